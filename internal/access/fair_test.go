package access

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/stileproject/stile/internal/oci"
)

// accountRefused is the 401 of a token endpoint: the account, not the image.
func accountRefused() *oci.Error {
	e := status(401)
	e.Account = true
	return e
}

// TestP7_OneNoisyTenant: thousands of plugins on a registry that never answers and on the
// shared one, and another tenant's new image is proven in under 2 s, its re-checks in time.
func TestP7_OneNoisyTenant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("quiet", "", slowly(50*time.Millisecond, yes(digest(1))))
		w.says("noisy", "", func(q asked) (string, error) {
			if strings.HasPrefix(q.image, "tarpit.example/") {
				return "hang", nil
			}
			time.Sleep(50 * time.Millisecond)
			return digest(1), nil
		})
		g := running(t, w, Config{MaxPerNamespace: 50_000, Recheck: 10 * time.Minute})
		old := plugin(t, "quiet", pinned, as("quiet"))
		g.Hold(old)
		time.Sleep(time.Second)
		for i := range 10_000 {
			r := plugin(t, "noisy", fmt.Sprintf("tarpit.example/p%d@%s", i, digest(1)), as("noisy"))
			r.Holder.Name = fmt.Sprint("tarpit-", i)
			g.Hold(r)
			r = plugin(t, "noisy", fmt.Sprintf("registry.example:5000/noisy/p%d@%s", i, digest(1)), as("noisy"))
			r.Holder.Name = fmt.Sprint("shared-", i)
			g.Hold(r)
		}
		time.Sleep(time.Second)
		start := time.Now()
		_, v, err := g.Prove(t.Context(), plugin(t, "quiet", tagged, as("quiet")))
		if took := time.Since(start); err != nil || v.State != Allowed || took > 2*time.Second {
			t.Errorf("told %v, %v after %v", v.State, err, took)
		}
		for range 3 {
			next := g.Check(old).NextCheck
			time.Sleep(time.Until(next) + time.Second)
			if v := g.Check(old); v.CheckedAt.Before(next.Add(-time.Second)) {
				t.Errorf("due at %v, not asked since %v", next, v.CheckedAt)
			}
		}
	})
}

func TestSlotsPerRegistry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", hang)
		g := running(t, w, Config{Registries: map[string]RegistryConfig{"one.example": {MaxInFlight: 1}}})
		for ns := range 5 {
			for i := range 20 {
				g.Check(plugin(t, fmt.Sprint("team-", ns), fmt.Sprintf("one.example/p%d-%d", ns, i), as(fmt.Sprint("user-", i))))
				g.Check(plugin(t, fmt.Sprint("team-", ns), fmt.Sprintf("many.example/p%d-%d", ns, i), as(fmt.Sprint("user-", i))))
			}
		}
		synctest.Wait()
		count := map[string]int{}
		for _, q := range w.questions() {
			count[strings.Split(q.image, "/")[0]]++
		}
		if want := map[string]int{"one.example": 1, "many.example": DefaultPerRegistry}; !cmp.Equal(count, want) {
			t.Error(cmp.Diff(count, want))
		}
	})
}

// TestInAllIsBounded: many registries that never answer, named by one tenant, leave room
// for others.
func TestInAllIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", hang)
		w.says("quiet", "", yes(digest(1)))
		g := running(t, w, Config{MaxInFlight: 16})
		for i := range 1000 {
			g.Check(plugin(t, "noisy", fmt.Sprintf("tarpit-%d.example/p", i), as("noisy")))
		}
		synctest.Wait()
		if n := len(w.questions()); n > 8 {
			t.Errorf("%d of 16 slots for one tenant", n)
		}
		g.Check(plugin(t, "quiet", tagged, as("quiet")))
		synctest.Wait()
		wantState(t, g.Check(plugin(t, "quiet", tagged, as("quiet"))), Allowed, NoReason)
		// The others are asked in their turn.
		time.Sleep(10 * time.Minute)
		if n := len(w.questions()); n < 100 {
			t.Errorf("only %d questions in ten minutes", n)
		}
	})
}

// TestBudget: what one namespace may cost one registry, and nobody else's budget.
func TestBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		g := running(t, w, Config{Budget: 10})
		for i := range 1000 {
			g.Check(plugin(t, "team-a", fmt.Sprintf("registry.example/p%d", i), as("alice")))
		}
		synctest.Wait()
		if n := len(w.questions()); n < 95 || n > 105 {
			t.Errorf("a burst of %d, want ten seconds' worth of 10", n)
		}
		_, v, _ := g.Prove(t.Context(), plugin(t, "team-b", "registry.example/p", as("bob")))
		wantState(t, v, Allowed, NoReason)
		w.questions()
		time.Sleep(30 * time.Second)
		if n := len(w.questions()); n < 290 || n > 310 {
			t.Errorf("%d questions in half a minute, want 10 a second", n)
		}
		time.Sleep(time.Minute)
		wantState(t, g.Check(plugin(t, "team-a", "registry.example/p999", as("alice"))), Allowed, NoReason)
	})
}

func TestCaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		g := running(t, w, Config{MaxPerNamespace: 10, MaxProofs: 25})
		hold := func(ns string, i int) Verdict {
			r := plugin(t, ns, fmt.Sprintf("registry.example/%s/p%d@%s", ns, i, digest(1)), as("alice"))
			r.Holder.Name = fmt.Sprint("p", i)
			g.Hold(r)
			synctest.Wait()
			_, v := g.Hold(r)
			return v
		}
		for i := range 10 {
			wantState(t, hold("team-a", i), Allowed, NoReason)
		}
		wantState(t, hold("team-a", 10), Unknown, TooManyProofs)
		time.Sleep(2 * time.Hour)
		wantState(t, hold("team-a", 10), Unknown, TooManyProofs) // holders are never evicted
		for i := range 10 {
			wantState(t, hold("team-a", i), Allowed, NoReason)
		}
		select {
		case <-g.Changes():
		default:
		}
		g.Release(Holder{Namespace: "team-a", Name: "p0"})
		select {
		case <-g.Changes():
		default:
			t.Error("room was made and nobody told")
		}
		time.Sleep(2 * minIdle)
		wantState(t, hold("team-a", 10), Allowed, NoReason)
		wantState(t, hold("team-a", 0), Unknown, TooManyProofs)

		for i := range 10 {
			wantState(t, hold("team-b", i), Allowed, NoReason)
		}
		for i := range 5 {
			wantState(t, hold("team-c", i), Allowed, NoReason)
		}
		wantState(t, hold("team-c", 5), Unknown, TooManyProofs)
		g.Release(Holder{Namespace: "team-b", Name: "p0"})
		time.Sleep(2 * minIdle)
		wantState(t, hold("team-c", 5), Allowed, NoReason)
	})
}

// TestRoomIsNotMadeAtTheCostOfWhoAsks: a tag is answered after minutes, and its digest
// needs the place of the only entry that is idle, which is the tag.
func TestRoomIsNotMadeAtTheCostOfWhoAsks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", slowly(10*time.Minute, yes(digest(1))))
		g := running(t, w, Config{MaxPerNamespace: 1, Timeout: time.Hour})
		tag := plugin(t, "team-a", tagged, as("alice"))
		g.Check(tag)
		time.Sleep(11 * time.Minute)
		wantState(t, g.Check(tag), Unknown, TooManyProofs)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.balance(t)
	})
}

func TestForgottenWhenIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		g := running(t, w, Config{})
		tag := plugin(t, "team-a", tagged, as("alice"))
		g.Check(tag)
		g.Check(plugin(t, "team-b", "other.example/p:v1", as("bob")))
		synctest.Wait()
		pin := plugin(t, "team-a", pinned, as("alice"))
		g.Hold(pin)
		time.Sleep(23 * time.Hour)
		if n := len(g.List()); n != 4 {
			t.Errorf("%d entries before the day is over, want 4", n)
		}
		time.Sleep(2 * time.Hour)
		if list := g.List(); len(list) != 2 || list[0].Image != tagged && list[1].Image != tagged {
			t.Errorf("kept %v", list)
		}
		g.Release(pin.Holder)
		time.Sleep(25 * time.Hour)
		if n := len(g.List()); n != 0 {
			t.Errorf("%d entries after another", n)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.agenda)+len(g.principals)+len(g.hosts)+len(g.namespaces)+len(g.claims) != 0 {
			t.Errorf("left behind: agenda %d, principals %d, hosts %d, namespaces %d, claims %d",
				len(g.agenda), len(g.principals), len(g.hosts), len(g.namespaces), len(g.claims))
		}
	})
}

func TestRetryAfterIsKeptPerCredential(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		busy := status(429)
		busy.RetryAfter = time.Hour // clamped to 15 min
		w.says("alice", "", no(busy))
		w.says("bob", "", yes(digest(1)))
		g := running(t, w, Config{})
		g.Hold(plugin(t, "team-a", pinned, as("alice")))
		synctest.Wait()
		if n := len(w.questions()); n != 1 {
			t.Errorf("%d questions", n)
		}
		wantState(t, g.Check(plugin(t, "team-a", pinned, as("alice"))), Unknown, RegistryUnreachable)
		g.Check(plugin(t, "team-a", "registry.example:5000/other", as("alice"))) // same account
		_, v, _ := g.Prove(t.Context(), plugin(t, "team-b", pinned, as("bob")))
		wantState(t, v, Allowed, NoReason)
		time.Sleep(14 * time.Minute)
		for _, q := range w.questions() {
			if q.user == "alice" {
				t.Errorf("asked at %v, though it was told to wait", q.at)
			}
		}
		w.says("alice", "", yes(digest(1)))
		time.Sleep(2 * time.Minute)
		wantState(t, g.Check(plugin(t, "team-a", pinned, as("alice"))), Allowed, NoReason)
		wantState(t, g.Check(plugin(t, "team-a", "registry.example:5000/other", as("alice"))), Allowed, NoReason)
	})
}

// TestP5_RefusedAccountIsAskedOnceForAll: a hundred images, one wrong password.
func TestP5_RefusedAccountIsAskedOnceForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", slowly(10*time.Millisecond, no(accountRefused())))
		w.says("bob", "", yes(digest(1)))
		g := running(t, w, Config{})
		request := func(i int, c oci.Credentials) Request {
			r := plugin(t, "team-a", fmt.Sprintf("registry.example:5000/p%d@%s", i, digest(1)), c)
			r.Holder.Name = fmt.Sprint("p", i)
			return r
		}
		for i := range 100 {
			g.Hold(request(i, as("alice")))
		}
		time.Sleep(10 * time.Second)
		if n := len(w.questions()); n != 1 {
			t.Errorf("a refused account was asked %d times, want once", n)
		}
		for i := range 100 {
			wantState(t, g.Check(request(i, as("alice"))), Denied, Unauthorized)
		}
		time.Sleep(2 * time.Hour)
		if n := len(w.questions()); n > 10 {
			t.Errorf("and %d times in two hours", n)
		}
		// Others at the same registry are not hurt.
		_, v, _ := g.Prove(t.Context(), request(0, as("bob")))
		wantState(t, v, Allowed, NoReason)
		// The password is corrected: one image finds out, the others follow at once.
		w.says("alice", "", yes(digest(1)))
		time.Sleep(34 * time.Minute)
		for i := range 100 {
			wantState(t, g.Check(request(i, as("alice"))), Allowed, NoReason)
		}
	})
}

// TestOneAsksFirst: while the first question of an account hangs the others wait, and
// then go together.
func TestOneAsksFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", yes(digest(1)))
		w.says("alice", image+"/broken:v1", hang)
		g := running(t, w, Config{})
		g.Check(plugin(t, "team-a", image+"/broken:v1", as("alice")))
		synctest.Wait()
		for i := range 20 {
			g.Check(plugin(t, "team-a", fmt.Sprint(image, i), as("alice")))
			g.Check(plugin(t, "team-b", fmt.Sprint(image, i), as("bob", "alice")))
			g.Check(plugin(t, "team-c", fmt.Sprint(image, i), as()))
		}
		synctest.Wait()
		for i := range 20 {
			wantState(t, g.Check(plugin(t, "team-a", fmt.Sprint(image, i), as("alice"))), Pending, NoReason)
			wantState(t, g.Check(plugin(t, "team-c", fmt.Sprint(image, i), as())), Denied, Unauthorized)
		}
		time.Sleep(DefaultTimeout)
		synctest.Wait()
		for i := range 20 {
			wantState(t, g.Check(plugin(t, "team-a", fmt.Sprint(image, i), as("alice"))), Allowed, NoReason)
			wantState(t, g.Check(plugin(t, "team-b", fmt.Sprint(image, i), as("bob", "alice"))), Allowed, NoReason)
		}
	})
}

// TestP5_RefusedAccountEndsEveryYes: it is asked for one, confirmed, and the others end
// when they are due, with few failed logins.
func TestP5_RefusedAccountEndsEveryYes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", yes(digest(1)))
		g := running(t, w, Config{})
		var proofs []Proof
		for i := range 100 {
			r := plugin(t, "team-a", fmt.Sprintf("registry.example:5000/p%d@%s", i, digest(1)), as("alice"))
			r.Holder.Name = fmt.Sprint("p", i)
			g.Hold(r)
			synctest.Wait()
			p, _ := g.Hold(r)
			proofs = append(proofs, p)
		}
		w.questions()
		w.says("alice", "", no(accountRefused()))
		time.Sleep(67 * time.Minute)
		for i, p := range proofs {
			if p.Stands() {
				t.Errorf("proof %d stands", i)
			}
		}
		if n := len(w.questions()); n > 20 {
			t.Errorf("%d failed logins for 100 images", n)
		}
	})
}

// TestP4_AnAccountRefusedForOneImageOnly: there are registries that answer 401 with
// Basic authentication for what the account may not read. No yes ends by another's no.
func TestP4_AnAccountRefusedForOneImageOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", yes(digest(1)))
		g := running(t, w, Config{})
		var proofs []Proof
		for i := range 5 {
			r := plugin(t, "team-a", fmt.Sprintf("registry.example:5000/p%d@%s", i, digest(1)), as("alice"))
			r.Holder.Name = fmt.Sprint("p", i)
			g.Hold(r)
			synctest.Wait()
			p, _ := g.Hold(r)
			proofs = append(proofs, p)
		}
		w.says("alice", proofs[0].Image().String(), no(accountRefused()))
		for range 24 {
			time.Sleep(time.Hour)
			for i, p := range proofs[1:] {
				if !p.Stands() {
					t.Fatalf("proof %d ended", i+1)
				}
			}
		}
		if proofs[0].Stands() {
			t.Error("revoked and still standing")
		}
		// And an image that is new is asked for, and not refused with the other.
		_, v, _ := g.Prove(t.Context(), plugin(t, "team-a", tagged, as("alice")))
		wantState(t, v, Allowed, NoReason)
	})
}

func TestRecheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", no(status(403)))
		g := running(t, w, Config{})
		tag := plugin(t, "team-a", tagged, as("alice"))
		g.Check(tag)
		time.Sleep(time.Hour)
		w.says("", "", yes(digest(1)))
		w.questions()
		if n, err := g.Recheck(tag.Image); n != 1 || err != nil {
			t.Errorf("asked %d, %v", n, err)
		}
		synctest.Wait()
		wantState(t, g.Check(tag), Allowed, NoReason)
		if _, err := g.Recheck(tag.Image); !errors.Is(err, ErrTooSoon) {
			t.Errorf("got %v", err)
		}
		time.Sleep(11 * time.Second)
		if n, err := g.Recheck(tag.Image); n != 2 || err != nil {
			t.Errorf("asked %d, %v: want the tag and what it names", n, err)
		}
		if n, err := g.Recheck(ref(t, "nobody.example/p")); n != 0 || err != nil {
			t.Errorf("asked %d, %v", n, err)
		}
	})
}

// TestMessagesNameTheCallersOwnSecret: two tenants share an entry and not their names.
func TestMessagesNameTheCallersOwnSecret(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		g := running(t, w, Config{})
		with := func(origin string) Request {
			c := oci.NewCredentials(testKey, oci.NewCredential(testKey, origin, "u", "CANARY-p"))
			return plugin(t, "team", pinned, c)
		}
		g.Check(with("pull secret team-a/regcred"))
		synctest.Wait()
		v := g.Check(with("pull secret team-b/other"))
		if !strings.Contains(v.Message, "pull secret team-b/other") || strings.Contains(v.Message, "team-a") {
			t.Error(v.Message)
		}
		if want := pinned + ": registry.example:5000 answered 401 to pull secret team-b/other: check the password and the rights of that account"; v.Message != want {
			t.Errorf("got  %s\nwant %s", v.Message, want)
		}
	})
}

// TestAbandonedDenialsSleep: a plugin that is gone has nothing asked for a day.
func TestAbandonedDenialsSleep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", no(status(403)))
		g := running(t, w, Config{})
		r := plugin(t, "team-a", tagged, as("alice"))
		g.Check(r)
		time.Sleep(2 * time.Hour)
		w.questions()
		time.Sleep(10 * time.Hour)
		if n := len(w.questions()); n != 0 {
			t.Errorf("asked %d times for nobody", n)
		}
		w.says("", "", yes(digest(1)))
		wantState(t, g.Check(r), Denied, Unauthorized)
		synctest.Wait()
		wantState(t, g.Check(r), Allowed, NoReason)
	})
}

func TestListAuditAndMetrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", yes(digest(1)))
		var trail bytes.Buffer
		registry := prometheus.NewPedanticRegistry()
		g := running(t, w, Config{Audit: &trail, Registerer: registry})
		r := plugin(t, "team-a", pinned, as("alice"))
		g.Hold(r)
		synctest.Wait()
		g.Hold(r)
		g.Check(plugin(t, "team-b", pinned, as("bob")))
		synctest.Wait()
		list := g.List()
		if len(list) != 2 {
			t.Fatalf("%d entries", len(list))
		}
		byState := map[State]Entry{list[0].State: list[0], list[1].State: list[1]}
		if e := byState[Allowed]; e.Image != pinned || e.Digest != digest(1) || len(e.Users) != 1 || e.Users[0] != "team-a/p" || e.CheckedAt == nil || e.NextCheck == nil || e.StaleSince != nil || e.LastUsed == nil {
			t.Errorf("%+v", e)
		}
		if e := byState[Denied]; e.Reason != Unauthorized || len(e.Users) != 0 {
			t.Errorf("%+v", e)
		}
		g.Release(r.Holder)
		synctest.Wait()
		var events []string
		for line := range strings.Lines(trail.String()) {
			var e struct{ Event, Holder, State, Reason string }
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			events = append(events, strings.TrimSpace(strings.Join([]string{e.Event, e.Holder, e.State, e.Reason}, " ")))
		}
		want := []string{"joined team-a/p Pending", "verdict  Allowed", "verdict  Denied Unauthorized", "left team-a/p Allowed"}
		if !cmp.Equal(events, want) {
			t.Error(cmp.Diff(want, events))
		}
		for _, bad := range []string{"CANARY", "alice", "bob"} {
			if strings.Contains(trail.String(), bad) {
				t.Errorf("the audit stream contains %q", bad)
			}
		}
		if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
			t.Error(problems, err)
		}
		time.Sleep(7 * time.Second)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		for name, want := range map[string]float64{
			"stile_access_checks_total allowed": 1, "stile_access_checks_total denied": 1, "stile_access_checks_total unknown": 0,
			"stile_access_proofs Allowed": 1, "stile_access_proofs Denied": 1, "stile_access_proofs Pending": 0, "stile_access_proofs Stale": 0,
			"stile_access_asking": 0, "stile_access_waiting": 0, "stile_access_refusals_total": 0, "stile_access_age_seconds": 7,
			"stile_access_max_proofs": DefaultMaxProofs, "stile_access_max_proofs_per_namespace": DefaultMaxPerNamespace, "stile_access_largest_namespace": 1,
		} {
			if got[name] != want {
				t.Errorf("%s = %v, want %v", name, got[name], want)
			}
		}
	})
}

func TestRunTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := running(t, newWorld(), Config{})
		if err := g.Run(t.Context()); err == nil {
			t.Error("ran twice")
		}
	})
}

// TestNothingIsAskedBeforeRun, and nothing after it.
func TestNothingIsAskedBeforeRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		g := New(w, Config{})
		r := plugin(t, "team-a", tagged, as("alice"))
		wantState(t, g.Check(r), Pending, NoReason)
		time.Sleep(time.Hour)
		wantState(t, g.Check(r), Pending, NoReason)
		if n := len(w.questions()); n != 0 {
			t.Errorf("%d questions before Run", n)
		}
		done := make(chan error)
		stop := make(chan struct{})
		ctx := contextUntil(t, stop)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		wantState(t, g.Check(r), Allowed, NoReason)
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, _, err := g.Prove(t.Context(), plugin(t, "team-a", image, as("alice"))); !errors.Is(err, ErrNotRunning) {
			t.Errorf("got %v", err)
		}
	})
}
