package access

import (
	"encoding/json"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/stileproject/stile/internal/secret"
)

// AuditEvent is one line of the audit stream: JSON, with this vocabulary and no other.
type AuditEvent struct {
	Time       time.Time          `json:"time"`
	Event      string             `json:"event"` // verdict, joined, left, forgotten, opened, closed
	Image      string             `json:"image"`
	Credential secret.Fingerprint `json:"credential"` // of the effective credentials
	State      State              `json:"state"`
	Reason     Reason             `json:"reason,omitempty"`
	Digest     string             `json:"digest,omitempty"`
	Stale      bool               `json:"stale,omitempty"`
	Holder     string             `json:"holder,omitempty"` // namespace/name
}

// The events.
const (
	eventVerdict   = "verdict"   // what is known of a right changed
	eventJoined    = "joined"    // a holder holds an image
	eventLeft      = "left"      // it no longer does
	eventForgotten = "forgotten" // what was known is dropped: idle, evicted, or its Secret went
	eventOpened    = "opened"    // a module's URL serves the image, on a holder's proof
	eventClosed    = "closed"    // it no longer does
)

// audit queues events for one writer, so that nobody waits for a disk. The queue has no
// bound: an audit that drops is none.
type audit struct {
	out    io.Writer
	log    *slog.Logger
	mu     sync.Mutex
	events []AuditEvent
	ready  chan struct{}
}

func newAudit(out io.Writer, log *slog.Logger) *audit {
	if out == nil {
		return nil
	}
	return &audit{out: out, log: log, ready: make(chan struct{}, 1)}
}

// Opened notes in the audit stream that a module's URL is served on p from now on. The
// URL itself is a capability, and is not told.
func (g *Gate) Opened(p Proof) { g.audit.proof(eventOpened, p) }

// Closed notes in the audit stream that the module's URL is no longer served on p.
func (g *Gate) Closed(p Proof) { g.audit.proof(eventClosed, p) }

func (l *audit) proof(event string, p Proof) {
	if p.hold != nil {
		l.holder(event, p.hold.entry, p.hold.holder)
	}
}

func (l *audit) verdict(e *entry, a *answer) {
	l.add(eventVerdict, e, a, "")
}

func (l *audit) holder(event string, e *entry, h Holder) {
	l.add(event, e, e.answer.Load(), h.String())
}

func (l *audit) add(event string, e *entry, a *answer, holder string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.events = append(l.events, AuditEvent{
		Time: time.Now().UTC().Round(0), Event: event, Image: e.image().String(), Credential: e.who.cred,
		State: a.state, Reason: a.reason.reason(), Digest: a.digest, Stale: a.stale != 0, Holder: holder,
	})
	l.mu.Unlock()
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// write writes what is queued until done is closed and the queue is empty.
func (l *audit) write(done <-chan struct{}) {
	if l == nil {
		<-done
		return
	}
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-l.ready:
		}
		l.mu.Lock()
		events := l.events
		l.events = nil
		l.mu.Unlock()
		var lines []byte
		for _, e := range events {
			line, err := json.Marshal(e)
			if err != nil {
				continue // cannot happen: every field is text
			}
			lines = append(append(lines, line...), '\n')
		}
		if len(lines) > 0 {
			if _, err := l.out.Write(lines); err != nil {
				l.log.Error("the audit stream cannot be written: what it should say is lost", "events", len(events), "error", err.Error())
			}
		}
	}
}
