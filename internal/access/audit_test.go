package access

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"testing/synctest"
)

// TestAuditVocabulary: every event is written, none but those that are documented, and
// an opened URL is told with its image and holder.
func TestAuditVocabulary(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range []string{eventVerdict, eventJoined, eventLeft, eventForgotten, eventOpened, eventClosed} {
		if !strings.Contains(string(doc), "| `"+event+"` |") {
			t.Errorf("docs/audit.md does not describe %q", event)
		}
	}
	for _, reason := range reasons[1:] {
		if !strings.Contains(string(doc), "`"+string(reason)+"`") {
			t.Errorf("docs/audit.md does not name the reason %s", reason)
		}
	}
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		g := New(w, Config{Audit: &out})
		stop := make(chan struct{})
		done := make(chan error)
		go func() { done <- g.Run(contextUntil(t, stop)) }()
		r := plugin(t, "team-a", pinned, as("alice"))
		g.Check(r)
		synctest.Wait()
		p, _ := g.Hold(r)
		g.Opened(p)
		g.Closed(p)
		g.Opened(Proof{})
		g.Forget(r.Credentials.Fingerprint(), r.Holder)
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	var events []string
	for line := range strings.Lines(out.String()) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e["event"] == eventOpened && (e["image"] != pinned || e["holder"] != "team-a/p" || e["state"] != "Allowed") {
			t.Errorf("opened: %v", e)
		}
		events = append(events, e["event"].(string))
	}
	if got := strings.Join(events, " "); got != "verdict joined opened closed left forgotten" {
		t.Errorf("the stream tells: %s", got)
	}
}
