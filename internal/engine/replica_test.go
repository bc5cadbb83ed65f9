package engine_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/xds"
)

// replica is a house of several that share the root key, the resources and what the
// leader has published.
type replica struct {
	*house
	leading bool
	leave   func()
}

// replicas are opened one by one in the bubble of a story.
func replicas(t *testing.T, story func(another func(leading bool) *replica)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var all []*replica
		story(func(leading bool) *replica {
			r := &replica{leading: leading}
			r.house, r.leave = open(t, func(c *engine.Config) { c.Leads = func() bool { return r.leading } })
			r.registry.tags["a/p:v1"] = digestOf(1)
			r.contents.arrive(1, true)
			r.secret("team-a", good)
			r.plugin("team-a", "auth", image)
			all = append(all, r)
			return r
		})
		for _, r := range all {
			r.leave()
		}
	})
}

// read gives r the resources once more, with what from has published of its plugins.
func (r *replica) read(from *replica) {
	r.now.Published = map[source.Key]*source.Publication{}
	for _, s := range from.engine.Plugins() {
		r.now.Published[source.Key{Namespace: s.Namespace, Name: s.Name}] = &source.Publication{
			Generation: s.Generation, URL: s.URL, Resolved: s.Resolved, Digest: s.Digest, SHA256: s.ModuleSHA256, Size: s.Size,
			ServedGeneration: s.ServedGeneration, Epoch: s.Epoch, ServedEpoch: s.ServedEpoch,
		}
	}
	r.apply()
	r.settle()
}

func TestReplicas_ATagThatMovedBetweenTheirStartsIsOneTagForAll(t *testing.T) {
	t.Parallel()
	replicas(t, func(another func(bool) *replica) {
		leader := another(true)
		leader.apply()
		leader.connect("team-a")
		follower := another(false)
		for _, r := range []*replica{leader, follower} {
			r.registry.set(func(r *registry) { r.tags["a/p:v1"] = digestOf(2) })
			r.contents.arrive(2, true)
		}
		follower.read(leader)
		follower.connect("team-a")
		if a, b := leader.token("team-a", "auth"), follower.token("team-a", "auth"); a != b || a == "" {
			t.Errorf("the leader's URL is %q, the follower's %q", a, b)
		}
	})
}

func TestReplicas_WhoHasResolvedByItselfFollowsTheLeaderAllTheSame(t *testing.T) {
	t.Parallel()
	replicas(t, func(another func(bool) *replica) {
		leader, follower := another(true), another(false)
		follower.registry.set(func(r *registry) { r.tags["a/p:v1"] = digestOf(2) })
		follower.contents.arrive(2, true)
		always := func(s *v1alpha1.WasmPluginSpec) { s.ImagePullPolicy = v1alpha1.PullAlways }
		for _, r := range []*replica{leader, follower} {
			r.plugin("team-a", "auth", image, always)
			r.apply()
			r.connect("team-a")
		}
		if a, b := leader.token("team-a", "auth"), follower.token("team-a", "auth"); a == b {
			t.Fatal("both resolved to the same digest: the story needs two")
		}
		follower.read(leader)
		if a, b := leader.token("team-a", "auth"), follower.token("team-a", "auth"); a != b {
			t.Errorf("the leader's URL is %q, the follower's %q", a, b)
		}
		asked := follower.registry.checks
		follower.plugin("team-a", "auth", image, always, func(s *v1alpha1.WasmPluginSpec) { s.Priority = new(int32(7)) })
		follower.read(leader)
		if n := follower.registry.checks - asked; n != 0 {
			t.Errorf("the follower asked for the tag %d times", n)
		}
	})
}

func TestReplicas_TheLeadChangesHandsAndNobodysConfigurationDoes(t *testing.T) {
	t.Parallel()
	replicas(t, func(another func(bool) *replica) {
		leader, follower := another(true), another(false)
		leader.apply()
		leader.connect("team-a")
		follower.read(leader)
		follower.connect("team-a")
		before, times := follower.token("team-a", "auth"), follower.proxies.times
		published := 0
		for _, n := range times {
			published += n
		}
		leader.leave()
		follower.registry.set(func(r *registry) { r.tags["a/p:v1"] = digestOf(2) })
		follower.contents.arrive(2, true)
		follower.leading = true
		follower.engine.Reconsider()
		follower.pass(10 * time.Minute)
		after := 0
		for _, n := range follower.proxies.times {
			after += n
		}
		if follower.token("team-a", "auth") != before || after != published {
			t.Errorf("published %d times, then %d", published, after)
		}
	})
}

func TestReplicas_ARevocationClosesTheURLOnAllAndTheNextIsTheSame(t *testing.T) {
	t.Parallel()
	replicas(t, func(another func(bool) *replica) {
		leader, follower := another(true), another(false)
		leader.apply()
		leader.connect("team-a")
		follower.read(leader)
		follower.connect("team-a")
		first := leader.token("team-a", "auth")
		for _, r := range []*replica{leader, follower} {
			r.registry.let(good, false)
		}
		leader.pass(2 * time.Hour)
		for _, r := range []*replica{leader, follower} {
			if _, _, err := r.engine.OpenModule(r.t.Context(), first); !errors.Is(err, engine.ErrNoModule) {
				t.Errorf("after the revocation: %v", err)
			}
			r.wantDelivered("team-a", "auth", "keep+standin")
		}
		// A replica that starts only now keeps what the proxies of the others keep.
		late := another(false)
		late.registry.let(good, false)
		late.read(leader)
		late.connect("team-a")
		late.pass(time.Minute)
		late.wantDelivered("team-a", "auth", "keep+standin")
		for _, r := range []*replica{leader, follower, late} {
			r.registry.let(good, true)
		}
		leader.pass(time.Hour)
		follower.read(leader)
		late.read(leader)
		again := leader.token("team-a", "auth")
		if again == first || again == "" {
			t.Errorf("the URL of before the revocation is given out again")
		}
		for _, r := range []*replica{follower, late} {
			if got := r.token("team-a", "auth"); got != again {
				t.Errorf("the leader's URL is %q, another's %q", again, got)
			}
		}
	})
}

func TestReplicas_AURLOfAnotherIsWaitedForWhileTheModuleIsFetched(t *testing.T) {
	t.Parallel()
	replicas(t, func(another func(bool) *replica) {
		leader := another(true)
		leader.apply()
		leader.connect("team-a")
		token := leader.token("team-a", "auth")
		follower := another(false)
		delete(follower.contents.modules, digestOf(1)) // it has no such content
		follower.read(leader)
		opened := make(chan error, 1)
		go func() {
			_, _, err := follower.engine.OpenModule(follower.t.Context(), token)
			opened <- err
		}()
		follower.pass(5 * time.Second)
		follower.contents.arrive(1, true)
		follower.settle()
		if err := <-opened; err != nil {
			t.Errorf("the URL of the leader: %v", err)
		}
		began := time.Now()
		if _, _, err := follower.engine.OpenModule(follower.t.Context(), "a guess"); !errors.Is(err, engine.ErrNoModule) || time.Since(began) > 2*time.Second {
			t.Errorf("a guess: %v after %v", err, time.Since(began))
		}
	})
}

func TestReplicas_AnEpochThatSomebodyWroteIsTheSameForAllOrForNone(t *testing.T) {
	t.Parallel()
	replicas(t, func(another func(bool) *replica) {
		leader, follower := another(true), another(false)
		leader.apply()
		leader.connect("team-a")
		follower.read(leader)
		follower.connect("team-a")
		first := leader.token("team-a", "auth")
		for epoch, changes := range map[uint64]bool{40: true, v1alpha1.MaxEpoch + 1: false} {
			before := leader.token("team-a", "auth")
			for _, r := range []*replica{leader, follower} {
				published := *follower.now.Published[source.Key{Namespace: "team-a", Name: "auth"}]
				published.Epoch = epoch
				r.now.Published = map[source.Key]*source.Publication{{Namespace: "team-a", Name: "auth"}: &published}
				r.apply()
				r.settle()
			}
			a, b := leader.token("team-a", "auth"), follower.token("team-a", "auth")
			if a != b || (a != before) != changes {
				t.Errorf("epoch %d: the leader's URL is %q, the follower's %q, before %q", epoch, a, b, before)
			}
		}
		if _, _, err := leader.engine.OpenModule(leader.t.Context(), first); !errors.Is(err, engine.ErrNoModule) {
			t.Errorf("the URL of an earlier epoch is still open: %v", err)
		}
	})
}

func TestReplicas_TheStatusCountsTheProxiesOfAll(t *testing.T) {
	t.Parallel()
	others := xds.Counts{Matched: 2, Sent: 2, Accepted: 1, Rejected: 1}
	build(t, func(c *engine.Config) { c.Others = func(plugin.Key) xds.Counts { return others } }, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, false)
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image)
		h.proxies.counts = xds.Counts{Matched: 1, Sent: 1, Accepted: 1}
		h.apply()
		h.wantCondition("team-a", "auth", "Programmed=False PartiallyProgrammed")
		if n := h.status("team-a", "auth").Proxies; n.Matched != 3 || n.Accepted != 2 || n.Rejected != 1 {
			t.Errorf("proxies: %+v", n)
		}
	})
}

func TestP6_ADigestThatTheDocumentNamesLaterIsHeldAgainstTheResolvedTag(t *testing.T) {
	t.Parallel()
	build(t, nil, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, false)
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image)
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "module 1")
		h.plugin("team-a", "auth", image, func(s *v1alpha1.WasmPluginSpec) { s.SHA256 = digestOf(2)[len("sha256:"):] })
		h.apply()
		h.wantCondition("team-a", "auth", "ResolvedRefs=False DigestMismatch")
		h.wantCondition("team-a", "auth", "Programmed=True ServingLastGood")
	})
}
