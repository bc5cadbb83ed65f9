package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// hub is one registry with tags that move and go, manifests that go, and accounts that
// it refuses altogether.
type hub struct {
	mu      sync.Mutex
	up      bool
	upSince time.Time
	since   map[string]time.Time           // whatever follows is as it is since then, by its key
	may     map[string]bool                // user source
	locked  map[string]bool                // user
	gone    map[string]bool                // pinned image
	names   map[string][]named             // source → what its tag named, in order
	gave    map[string]map[string]struct{} // user source → digests of a yes
	refused map[string]bool                // user image, or user alone if the account was
}

type named struct {
	at     time.Time
	digest string // "" = the tag is deleted
}

func (h *hub) Check(_ context.Context, ref oci.Reference, c oci.Credential, _ oci.Trust, _ oci.CheckOptions) (oci.Descriptor, error) {
	d, err := h.decide(ref, c.Origin())
	time.Sleep(20 * time.Millisecond)
	return d, err
}

func (h *hub) decide(ref oci.Reference, user string) (oci.Descriptor, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	image, key := ref.String(), user+" "+ref.Source()
	if !h.up {
		return oci.Descriptor{}, ingress(http.StatusServiceUnavailable)
	}
	if h.locked[user] {
		h.refused[user] = true
		e := status(http.StatusUnauthorized)
		e.Account = true
		return oci.Descriptor{}, e
	}
	digest := ref.Digest()
	if digest == "" {
		digest = h.now(ref.Source())
	}
	switch {
	case !h.may[key]:
		h.refused[user+" "+image] = true
		return oci.Descriptor{}, status(http.StatusForbidden)
	case digest == "" || h.gone[ref.Source()+"@"+digest]:
		h.refused[user+" "+image] = true
		return oci.Descriptor{}, status(http.StatusNotFound)
	}
	if h.gave[key] == nil {
		h.gave[key] = map[string]struct{}{}
	}
	h.gave[key][digest] = struct{}{}
	return oci.Descriptor{Digest: digest}, nil
}

func (*hub) Forget(secret.Fingerprint) {}

// now returns what the source's tag names.
func (h *hub) now(source string) string {
	list := h.names[source]
	return list[len(list)-1].digest
}

// namedAt reports whether the tag named digest at that time; at the instant of a change
// it named both.
func (h *hub) namedAt(source, digest string, at time.Time) bool {
	list := h.names[source]
	for i, n := range list {
		over := i+1 < len(list) && list[i+1].at.Before(at)
		if n.digest == digest && !n.at.After(at) && !over {
			return true
		}
	}
	return false
}

// everNamed reports whether the tag ever named digest.
func (h *hub) everNamed(source, digest string) bool {
	return slices.ContainsFunc(h.names[source], func(n named) bool { return n.digest == digest })
}

// TestModel_TagsAndAccounts drives a Gate through random events of tags and accounts and
// holds it to P2, P4 and P5 after every one.
func TestModel_TagsAndAccounts(t *testing.T) {
	t.Parallel()
	seeds := uint64(12)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "proofs.db")
			synctest.Test(t, func(t *testing.T) {
				m := &tagModel{t: t, rnd: rand.New(rand.NewPCG(seed, 2)), path: path, wants: map[Holder]Request{}, began: map[Holder]time.Time{}}
				m.run()
			})
		})
	}
}

type tagModel struct {
	t       *testing.T
	rnd     *rand.Rand
	path    string
	h       *hub
	g       *Gate
	stop    func()
	sources []string
	wants   map[Holder]Request
	began   map[Holder]time.Time // since when it wants that
	life    time.Time            // the process began
	log     []string
	digests int
}

var tagUsers = []string{"ann", "ben", "cay"}

func (m *tagModel) begin() {
	archive, err := OpenArchive(m.path, testRoot, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	m.life = time.Now()
	g := New(m.h, Config{Archive: archive, GraceWhileAnswering: 100 * time.Hour, Grace: 100 * time.Hour, Forget: 1000 * time.Hour})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	m.g = g
	m.stop = func() {
		cancel()
		if err := errors.Join(<-done, archive.Close()); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *tagModel) run() {
	m.h = &hub{
		up: true, upSince: time.Now(), since: map[string]time.Time{}, may: map[string]bool{}, locked: map[string]bool{}, gone: map[string]bool{},
		names: map[string][]named{}, gave: map[string]map[string]struct{}{}, refused: map[string]bool{},
	}
	for i := range 3 {
		source := fmt.Sprintf("one.example/p%d", i)
		m.sources = append(m.sources, source)
		m.name(source, false)
	}
	m.begin()
	defer func() { m.stop() }()
	for range 250 {
		m.step()
		m.check()
		m.g.mu.Lock()
		m.g.balance(m.t)
		m.g.mu.Unlock()
		if m.t.Failed() {
			m.t.Logf("the last events were\n%s", strings.Join(m.log[max(0, len(m.log)-25):], "\n"))
			return
		}
	}
}

// name has a source's tag name another digest, or nothing.
func (m *tagModel) name(source string, deleted bool) {
	n := named{at: time.Now()}
	if !deleted {
		m.digests++
		n.digest = digest(m.digests)
	}
	m.h.names[source] = append(m.h.names[source], n)
	m.h.since[source] = n.at
	m.say("%s names %s", source, n.digest)
}

func (m *tagModel) say(format string, args ...any) {
	m.log = append(m.log, time.Now().Format("02 15:04:05 ")+fmt.Sprintf(format, args...))
}

func (m *tagModel) set(where map[string]bool, key string, value bool) {
	if where[key] != value {
		m.say("%s: %v", key, value)
		where[key], m.h.since[key] = value, time.Now()
	}
}

func (m *tagModel) step() {
	source, user := m.sources[m.rnd.IntN(len(m.sources))], tagUsers[m.rnd.IntN(len(tagUsers))]
	holder := Holder{Namespace: fmt.Sprint("team-", m.rnd.IntN(3)), Name: fmt.Sprint("p", m.rnd.IntN(2))}
	n := m.rnd.IntN(100)
	m.h.mu.Lock()
	switch {
	case n < 20:
		who := slices.Clone(tagUsers)
		m.rnd.Shuffle(len(who), func(i, j int) { who[i], who[j] = who[j], who[i] })
		who = who[:1+m.rnd.IntN(2)]
		m.say("%v wants %s as %v", holder, source, who)
		m.wants[holder] = Request{Image: ref(m.t, source+":v1"), Credentials: as(who...), Holder: holder}
		m.began[holder] = time.Now()
	case n < 40:
		m.set(m.h.may, user+" "+source, m.rnd.IntN(4) > 0)
	case n < 48:
		m.name(source, m.rnd.IntN(4) == 0)
	case n < 52:
		if d := m.h.now(source); d != "" {
			m.set(m.h.gone, source+"@"+d, true)
		}
	case n < 58:
		m.set(m.h.locked, user, m.rnd.IntN(2) == 0)
	case n < 63:
		m.h.up, m.h.upSince = !m.h.up, time.Now()
		m.say("the registry is up: %v", m.h.up)
	case n < 70:
		if r, ok := m.wants[holder]; ok {
			m.say("%v asks anew", holder)
			r.NotBefore = time.Now()
			m.wants[holder], m.began[holder] = r, time.Now()
		}
	case n < 73:
		m.say("restart")
		m.h.mu.Unlock()
		m.stop()
		m.begin()
		m.h.mu.Lock()
	case n < 76:
		m.say("%v is released", holder)
		delete(m.wants, holder)
		m.g.Release(holder)
	default:
		m.h.mu.Unlock()
		m.pass(time.Duration(m.rnd.Int64N(int64([]time.Duration{time.Minute, 10 * time.Minute, 90 * time.Minute}[m.rnd.IntN(3)]))))
		m.h.mu.Lock()
	}
	m.h.mu.Unlock()
	synctest.Wait()
}

// pass lets time pass, and has everybody ask as often as the engine does.
func (m *tagModel) pass(d time.Duration) {
	m.say("%v pass", d)
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(time.Minute, time.Until(end)))
		for _, r := range m.wants {
			m.g.Check(r)
		}
	}
}

func (m *tagModel) check() {
	const (
		interval = 66*time.Minute + 31*time.Second + 2*time.Minute
		again    = 5*time.Minute + 30*time.Second + 2*time.Minute
		account  = 33*time.Minute + 6*time.Minute + time.Minute
	)
	now := time.Now()
	for holder, r := range m.wants {
		v := m.g.Check(r)
		pin := r
		var proof Proof
		var right Verdict
		if v.State == Allowed {
			pin.Image = r.Image.At(v.Digest)
			proof, right = m.g.Hold(pin)
		}
		m.h.mu.Lock()
		source := r.Image.Source()
		fail := func(format string, args ...any) {
			m.t.Errorf("%v %s as %v: %s: %+v", holder, source, r.Credentials, fmt.Sprintf(format, args...), v)
		}
		if v.State == Allowed {
			if !proof.Stands() || right.State != Allowed {
				fail("P4: the tag is allowed and its digest is not: %+v", right)
			}
			user := proof.Credential().Origin()
			if !slices.ContainsFunc(r.Credentials.Candidates(), func(c oci.Credential) bool { return c.Origin() == user && c.Fingerprint() == v.Credential }) {
				fail("P2: lent the right of %s", user)
			}
			if _, ok := m.h.gave[user+" "+source][v.Digest]; !ok {
				fail("P2: no registry gave %s that digest", user)
			}
			if v.Reason == TagGone && !m.h.everNamed(source, v.Digest) || v.Reason != TagGone && !m.h.namedAt(source, v.Digest, v.CheckedAt) {
				fail("P4: the tag did not name that")
			}
			if v.CheckedAt.Before(r.NotBefore) {
				fail("an older resolution than was asked for")
			}
			for _, ended := range []string{user + " " + source, user, source + "@" + v.Digest} {
				if over := !m.h.may[ended] && ended == user+" "+source || m.h.locked[ended] || m.h.gone[ended]; over && m.h.up && now.After(later(m.life, later(m.h.since[ended], m.h.upSince)).Add(interval)) {
					fail("P5: %s is over since %v", ended, now.Sub(m.h.since[ended]))
				}
			}
		}
		if v.State == Denied {
			pinned := func(user string) bool {
				return slices.ContainsFunc(m.h.names[source], func(n named) bool { return m.h.refused[user+" "+source+"@"+n.digest] })
			}
			if !slices.ContainsFunc(r.Credentials.Candidates(), func(c oci.Credential) bool {
				return m.h.refused[c.Origin()] || m.h.refused[c.Origin()+" "+r.Image.String()] || pinned(c.Origin())
			}) {
				fail("P4: denied, and nobody was refused")
			}
		}
		if d := m.h.now(source); v.State != Allowed && m.h.up && d != "" && !m.h.gone[source+"@"+d] {
			wait := again
			if slices.ContainsFunc(slices.Collect(maps.Keys(m.h.refused)), func(key string) bool { return !strings.Contains(key, " ") }) {
				wait = account // an account that was refused is asked less often
			}
			for _, c := range r.Credentials.Candidates() {
				user := c.Origin()
				right := user + " " + source
				since := later(later(later(m.h.since[right], m.h.since[user]), later(m.h.since[source], m.h.upSince)), later(m.began[holder], m.life))
				if m.h.may[right] && !m.h.locked[user] && now.After(since.Add(wait)) {
					fail("P5: %s may since %v", user, now.Sub(since))
				}
			}
		}
		m.h.mu.Unlock()
	}
}
