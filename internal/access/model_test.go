package access

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// The model drives a Gate through random events and holds it, after every one, to what
// DESIGN promises: P2 (never lends), P4 (never lies), P5 (bounded), P9 (nothing lost).
// It knows what the registries would say, and what they did say to whom.

type mode int

const (
	up      mode = iota
	failing      // 503
	paged        // an ingress's 404 page for everything
	hanging
	modes
)

type answered struct {
	at      time.Time
	yes     bool
	real    bool // the registry's own answer
	confirm bool // asked by GET with a fresh token
}

// truth is two registries and what they know.
type truth struct {
	mu     sync.Mutex
	rights map[string]time.Time // "user image" → since when it is as it is
	may    map[string]bool
	modes  map[string]mode
	since  map[string]time.Time // host → since when it is in its mode
	said   map[string][]answered
	asked  int
}

func (w *truth) Check(ctx context.Context, ref oci.Reference, c oci.Credential, _ oci.Trust, o oci.CheckOptions) (oci.Descriptor, error) {
	time.Sleep(20 * time.Millisecond)
	w.mu.Lock()
	key := c.Origin() + " " + ref.String()
	m := w.modes[ref.Host()]
	a := answered{at: time.Now(), yes: m == up && w.may[key], real: m == up, confirm: o.Get && o.FreshToken}
	if m == up || m == paged {
		w.said[key] = append(w.said[key], a)
	}
	w.asked++
	w.mu.Unlock()
	switch {
	case m == hanging:
		<-ctx.Done()
		return oci.Descriptor{}, ctx.Err()
	case m == failing:
		return oci.Descriptor{}, ingress(http.StatusServiceUnavailable)
	case m == paged:
		return oci.Descriptor{}, ingress(http.StatusNotFound)
	case a.yes:
		return oci.Descriptor{Digest: ref.Digest()}, nil
	default:
		return oci.Descriptor{}, status(http.StatusForbidden)
	}
}

func (*truth) Forget(secret.Fingerprint) {}

// lastYes returns when the registry last said yes to the user; ok is false if never.
func (w *truth) lastYes(user string, image oci.Reference) (at time.Time, ok bool) {
	for _, a := range w.said[user+" "+image.String()] {
		if a.yes {
			at, ok = a.at, true
		}
	}
	return at, ok
}

// confirmedNo reports whether the user was ever refused twice, the second time by the
// registry itself, by GET with a fresh token, long enough after the first.
func (w *truth) confirmedNo(user string, image oci.Reference, after time.Duration) bool {
	said := w.said[user+" "+image.String()]
	for i, a := range said {
		for _, first := range said[:i] {
			if a.real && !a.yes && a.confirm && !first.yes && a.at.Sub(first.at) >= after {
				return true
			}
		}
	}
	return false
}

type model struct {
	t       *testing.T
	rnd     *rand.Rand
	w       *truth
	g       *Gate
	archive *Archive
	stop    func()
	path    string

	users  []string
	images []oci.Reference
	hosts  []string

	wants   map[Holder]Request
	since   map[Holder]time.Time
	proofs  map[Holder]Proof
	checked map[Holder]time.Time // the age of the proof's yes
	began   time.Time
	log     []string
}

const (
	modelForgetsAfter = 100 * 24 * time.Hour
	modelGrace        = 6 * time.Hour // long, so that a yes seldom ends by it
)

func (m *model) begin() {
	var err error
	m.began = time.Now()
	if m.archive, err = OpenArchive(m.path, testRoot, nil); err != nil {
		m.t.Fatal(err)
	}
	m.g = New(m.w, Config{Archive: m.archive, Forget: modelForgetsAfter, GraceWhileAnswering: modelGrace})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	g := m.g
	go func() { done <- g.Run(ctx) }()
	m.stop = func() {
		cancel()
		if err := errors.Join(<-done, m.archive.Close()); err != nil {
			m.t.Fatal(err)
		}
	}
}

func TestModel(t *testing.T) {
	t.Parallel()
	seeds := uint64(12)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "proofs.db")
			synctest.Test(t, func(t *testing.T) { drive(t, seed, path) })
		})
	}
}

func drive(t *testing.T, seed uint64, path string) {
	m := &model{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), path: path,
		w: &truth{
			rights: map[string]time.Time{}, may: map[string]bool{}, modes: map[string]mode{},
			since: map[string]time.Time{}, said: map[string][]answered{},
		},
		users: []string{"ann", "ben", "cay"}, hosts: []string{"one.example", "two.example"},
		wants: map[Holder]Request{}, since: map[Holder]time.Time{}, proofs: map[Holder]Proof{}, checked: map[Holder]time.Time{},
	}
	for i := range 4 {
		m.images = append(m.images, ref(t, fmt.Sprintf("%s/p%d@%s", m.hosts[i%2], i, digest(i))))
	}
	for _, h := range m.hosts {
		m.w.since[h] = time.Now()
	}
	m.begin()
	defer func() { m.stop() }()
	for range 300 {
		m.step()
		m.check()
		m.g.mu.Lock()
		m.g.balance(t)
		m.g.mu.Unlock()
		if t.Failed() {
			for h, r := range m.wants {
				if e := m.g.table.find(r.Image, r.Credentials, r.Trust); e != nil {
					a := e.answer.Load()
					t.Logf("%v %s %v: %v checked %v next %v stale %v, askAt %v attempt %d strikes %d asking %v queued %v suspect %v held %d", h, r.Image.Repository(), r.Credentials,
						a.state, m.g.at(a.checked).Format("02 15:04:05"), m.g.at(a.next).Format("02 15:04:05"), m.g.at(a.stale).Format("02 15:04:05"), m.g.at(e.askAt).Format("02 15:04:05"), e.attempt, e.strikes, e.asking, e.queued, e.suspect, e.held)
				}
			}
			t.Logf("the last events were\n%s", strings.Join(m.log[max(0, len(m.log)-25):], "\n"))
			return
		}
	}
}

func (m *model) say(format string, args ...any) {
	m.log = append(m.log, time.Now().Format("02 15:04:05 ")+fmt.Sprintf(format, args...))
}

func (m *model) holder() Holder {
	return Holder{Namespace: fmt.Sprint("team-", m.rnd.IntN(3)), Name: fmt.Sprint("p", m.rnd.IntN(2))}
}

func (m *model) step() {
	switch n := m.rnd.IntN(100); {
	case n < 25:
		h := m.holder()
		var who []string
		for _, u := range m.rnd.Perm(len(m.users))[:m.rnd.IntN(3)] {
			who = append(who, m.users[u])
		}
		r := Request{Image: m.images[m.rnd.IntN(len(m.images))], Credentials: as(who...), Holder: h}
		m.say("%v wants %v as %v", h, r.Image.Repository(), who)
		m.wants[h], m.since[h] = r, time.Now()
		delete(m.proofs, h)
	case n < 45:
		m.right(m.rnd.IntN(3) > 0)
	case n < 55:
		host := m.hosts[m.rnd.IntN(2)]
		now := mode(m.rnd.IntN(int(modes)))
		if m.rnd.IntN(2) == 0 {
			now = up
		}
		m.say("%s is %v", host, now)
		m.w.mu.Lock()
		m.w.modes[host], m.w.since[host] = now, time.Now()
		m.w.mu.Unlock()
	case n < 60:
		h := m.holder()
		if r, ok := m.wants[h]; ok {
			m.say("%v forgets", h)
			m.g.Forget(r.Credentials.Fingerprint(), h)
			m.forgetHolder(h)
		}
	case n < 63:
		h := m.holder()
		m.say("%v is released", h)
		m.g.Release(h)
		m.forgetHolder(h)
	case n < 66:
		m.restart()
	default:
		d := time.Duration(m.rnd.Int64N(int64([]time.Duration{time.Second, time.Minute, 10 * time.Minute, 90 * time.Minute}[m.rnd.IntN(4)])))
		m.say("%v pass", d)
		time.Sleep(d)
	}
	synctest.Wait()
}

func (m *model) forgetHolder(h Holder) {
	if p := m.proofs[h]; p.Stands() && !m.wants[h].Credentials.Anonymous() {
		m.t.Errorf("%v let go and its proof stands", h)
	}
	delete(m.wants, h)
	delete(m.proofs, h)
}

func (m *model) right(may bool) {
	user := append(m.users, "")[m.rnd.IntN(len(m.users)+1)]
	key := user + " " + m.images[m.rnd.IntN(len(m.images))].String()
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.w.may[key] != may {
		m.say("%s may: %v", key, may)
		m.w.may[key], m.w.rights[key] = may, time.Now()
	}
}

// restart holds P9: what stood stands, with no request.
func (m *model) restart() {
	stood := map[Holder]Verdict{}
	for h, p := range m.proofs {
		if p.Stands() {
			_, stood[h] = m.g.Hold(m.wants[h])
		}
	}
	m.say("restart; %d proofs stand", len(stood))
	m.stop()
	m.begin()
	m.w.mu.Lock()
	asked := m.w.asked
	m.w.mu.Unlock()
	for h, before := range stood {
		p, v := m.g.Hold(m.wants[h])
		if v.State != Allowed || !p.Stands() || !v.CheckedAt.Equal(before.CheckedAt) {
			m.t.Errorf("P9: %v stood before the restart with %+v, and now %+v", h, before, v)
		}
		m.proofs[h] = p
	}
	m.w.mu.Lock()
	if m.w.asked != asked {
		m.t.Errorf("P9: the restart cost %d questions", m.w.asked-asked)
	}
	m.w.mu.Unlock()
}

// check holds the Gate to its promises.
func (m *model) check() {
	const (
		interval = 66*time.Minute + 31*time.Second + time.Minute // + jitter, confirmation, a question that hung
		again    = 5*time.Minute + 30*time.Second + time.Minute
	)
	now := time.Now()
	for h, r := range m.wants {
		before, had := m.proofs[h]
		p, v := m.g.Hold(r)
		if synctest.Wait(); p.Stands() != (v.State == Allowed) {
			p, v = m.g.Hold(r) // it ended at this very instant
		}
		m.w.mu.Lock()
		image := r.Image
		hostUp := m.w.modes[image.Host()] == up
		hostSince := m.w.since[image.Host()]
		if p.Stands() != (v.State == Allowed) {
			m.t.Errorf("%v: the proof stands %v, the verdict is %v", h, p.Stands(), v.State)
		}
		switch v.State {
		case Allowed:
			user := p.Credential().Origin()
			m.own(h, r, user)
			if _, ok := m.w.lastYes(user, image); !ok {
				m.t.Errorf("P2: %v has a yes by %q that no registry gave", h, user)
			}
			key := user + " " + image.String()
			revoked := m.w.rights[key]
			if !m.w.may[key] && hostUp && now.After(later(m.began, later(revoked, hostSince)).Add(interval)) {
				m.t.Errorf("P5: %v stands by %q, revoked %v ago", h, user, now.Sub(revoked))
			}
		case Denied:
			if !m.wasRefused(r) {
				m.t.Errorf("P4: %v is denied, and no registry refused it last", h)
			}
		}
		if v.State != Allowed && hostUp {
			for _, c := range r.Credentials.Candidates() {
				key := c.Origin() + " " + image.String()
				if m.w.may[key] && now.After(later(later(m.w.rights[key], hostSince), m.since[h]).Add(again)) {
					m.t.Errorf("P5: %v is %v %v, though %q may since %v", h, v.State, v.Reason, c.Origin(), now.Sub(m.w.rights[key]))
				}
			}
		}
		if had && before.Stands() && v.State != Allowed {
			m.t.Errorf("P4: %v's proof stands, and it is told %v", h, v.State)
		}
		if had && !before.Stands() {
			user := before.Credential().Origin()
			age := now.Sub(m.checked[h])
			if !m.w.confirmedNo(user, image, DefaultConfirmAfter) && age < modelGrace {
				m.t.Errorf("P4: %v's yes by %q ended for no reason, it was %v old at most; %+v", h, user, age, v)
			}
		}
		m.w.mu.Unlock()
		if p != (Proof{}) {
			m.proofs[h], m.checked[h] = p, v.CheckedAt
		} else {
			delete(m.proofs, h)
		}
	}
}

func (m *model) own(h Holder, r Request, user string) {
	for _, c := range r.Credentials.Candidates() {
		if c.Origin() == user {
			return
		}
	}
	m.t.Errorf("P2: %v is lent the right of %q", h, user)
}

// wasRefused reports whether some candidate of r was refused by the registry.
func (m *model) wasRefused(r Request) bool {
	for _, c := range r.Credentials.Candidates() {
		for _, a := range m.w.said[c.Origin()+" "+r.Image.String()] {
			if a.real && !a.yes {
				return true
			}
		}
	}
	return false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
