package engine_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/xds"
)

const image = "oci://" + host + "/a/p:v1"

// running builds a house in which team-a runs module 1.
func running(t *testing.T, change func(*engine.Config), story func(*house)) {
	t.Helper()
	build(t, change, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, false)
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image)
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "module 1")
		story(h)
	})
}

func TestFirstSightIsResolvedAndDelivered(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.wantCondition("team-a", "auth", "Accepted=True Accepted")
		h.wantCondition("team-a", "auth", "ResolvedRefs=True Resolved")
		s := h.status("team-a", "auth")
		if s.Digest != digestOf(1) || s.Delivery != "inline" || s.ServingLastGood {
			t.Errorf("status: %+v", s)
		}
		if len(h.contents.retained) != 1 {
			t.Errorf("retained: %v", h.contents.retained)
		}
		if !h.engine.Ready() {
			t.Error("not ready after the first plan")
		}
	})
}

func TestNobodyIsAnsweredBeforeTheFirstWorld(t *testing.T) {
	t.Parallel()
	build(t, nil, func(h *house) {
		h.connect("team-a")
		h.pass(time.Hour)
		if len(h.proxies.published) != 0 || h.engine.Ready() {
			t.Errorf("published %v, ready %v", h.proxies.published, h.engine.Ready())
		}
		h.apply()
		if len(h.proxies.published) != 1 || !h.engine.Ready() {
			t.Errorf("published %v, ready %v", h.proxies.published, h.engine.Ready())
		}
	})
}

func TestP1_APendingVerdictHoldsTheFirstAnswerForWarmHold(t *testing.T) {
	t.Parallel()
	build(t, nil, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.registry.hang = make(chan struct{})
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image)
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "hold")
		h.wantCondition("team-a", "auth", "ResolvedRefs=Unknown Pending")
		h.wantCondition("team-a", "auth", "Programmed=Unknown Pending")
		h.pass(20 * time.Second)
		h.wantDelivered("team-a", "auth", "standin")
		close(h.registry.hang)
		h.contents.arrive(1, false)
		h.pass(time.Minute)
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestP2_ASecretThatMayNotReadGetsTheStandIn(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.secret("team-b", "wrong")
		h.plugin("team-b", "auth", image)
		h.apply()
		h.connect("team-b")
		h.wantDelivered("team-b", "auth", "standin")
		h.wantCondition("team-b", "auth", "ResolvedRefs=False Unauthorized")
		if s := h.status("team-b", "auth"); s.Digest != "" || s.ModuleSHA256 != "" {
			t.Errorf("team-b learns about the image: %+v", s)
		}
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestASecondPluginOnTheSameImageCostsNoRequest(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		before := h.registry.checks
		h.plugin("team-a", "again", image)
		h.apply()
		h.wantDelivered("team-a", "again", "module 1")
		if h.registry.checks != before {
			t.Errorf("%d more requests", h.registry.checks-before)
		}
	})
}

func TestMissingAndBrokenSecretsAreNeverAnAnonymousTry(t *testing.T) {
	t.Parallel()
	build(t, nil, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.registry.set(func(r *registry) { r.allowed[oci.Credential{}.Fingerprint()] = true })
		h.plugin("team-a", "auth", image)
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "standin")
		h.wantCondition("team-a", "auth", "ResolvedRefs=False PullSecretNotFound")
		if h.registry.checks != 0 {
			t.Errorf("the registry was asked %d times", h.registry.checks)
		}
		h.contents.arrive(1, false)
		h.secret("team-a", good)
		h.apply()
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestP8_RevokedUnderKeep(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.registry.let(good, false)
		h.pass(2 * time.Hour)
		h.wantDelivered("team-a", "auth", "keep+standin")
		h.wantCondition("team-a", "auth", "ResolvedRefs=False Unauthorized")
		h.wantCondition("team-a", "auth", "Programmed=True ServingLastGood")
		if s := h.status("team-a", "auth"); !s.ServingLastGood || s.Digest != digestOf(1) || s.Pending == nil || s.Pending.Reason != "Unauthorized" {
			t.Errorf("status: %+v", s)
		}
		h.registry.let(good, true)
		h.pass(time.Hour)
		h.wantDelivered("team-a", "auth", "module 1")
		h.wantCondition("team-a", "auth", "ResolvedRefs=True Resolved")
	})
}

func TestP8_RevokedUnderFailStrategy(t *testing.T) {
	t.Parallel()
	running(t, func(c *engine.Config) { c.OnRevoked = v1alpha1.OnRevokedFailStrategy }, func(h *house) {
		h.registry.let(good, false)
		h.pass(2 * time.Hour)
		h.wantDelivered("team-a", "auth", "standin")
		if s := h.status("team-a", "auth"); s.ServingLastGood || s.Digest != "" {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestP4_ARegistryThatIsGoneTurnsNoYesIntoANo(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.registry.set(func(r *registry) {
			r.err = &oci.Error{Op: "check", Kind: oci.Unavailable, Err: errors.New("connection refused")}
		})
		h.pass(23 * time.Hour)
		h.wantDelivered("team-a", "auth", "module 1")
		h.wantCondition("team-a", "auth", "ResolvedRefs=True Resolved")
		h.pass(3 * time.Hour)
		h.wantDelivered("team-a", "auth", "keep+standin")
		h.registry.set(func(r *registry) { r.err = nil })
		h.pass(time.Hour)
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestP5_ASecretDeletedEndsTheRightAtOnce(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.secret("team-a", "")
		h.apply()
		h.wantDelivered("team-a", "auth", "keep+standin")
		h.wantCondition("team-a", "auth", "ResolvedRefs=False PullSecretNotFound")
	})
}

func TestP5_ASecretEditedKeepsWhatRunsUntilTheFirstVerdict(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.registry.set(func(r *registry) { r.hang = make(chan struct{}) })
		h.registry.let("new-password", true)
		h.secret("team-a", "new-password")
		h.apply()
		h.wantDelivered("team-a", "auth", "keep+hold")
		h.registry.set(func(r *registry) { close(r.hang); r.hang = nil })
		h.settle()
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestP5_ARotationWithoutAVerdictEndsAfterTwoMinutes(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.registry.set(func(r *registry) { r.hang = make(chan struct{}) })
		h.secret("team-a", "new-password")
		h.apply()
		h.pass(110 * time.Second)
		if s := h.status("team-a", "auth"); s.Digest == "" {
			t.Error("what ran is gone before the rotation's time is over")
		}
		h.pass(15 * time.Second)
		h.wantDelivered("team-a", "auth", "keep+standin")
	})
}

func TestP8_ANewVersionThatCannotBeHadLeavesTheLastGood(t *testing.T) {
	t.Parallel()
	for name, problem := range map[string]error{
		"the tag does not exist":     nil,
		"the module is no good":      &content.Problem{Reason: v1alpha1.ReasonModuleInvalid, Message: "not a module"},
		"the module is still coming": content.ErrPending,
		"the registry went away":     &content.Problem{Reason: v1alpha1.ReasonRegistryUnreachable, Message: "gone", Retry: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			running(t, nil, func(h *house) {
				if problem != nil {
					h.registry.tags["a/p:v2"] = digestOf(2)
					h.contents.problems[digestOf(2)] = problem
				}
				h.plugin("team-a", "auth", "oci://"+host+"/a/p:v2")
				h.apply()
				h.wantDelivered("team-a", "auth", "module 1")
				h.wantCondition("team-a", "auth", "Programmed=True ServingLastGood")
				h.pass(3 * time.Hour)
				h.wantDelivered("team-a", "auth", "module 1")

				h.registry.let(good, false) // the last good one is re-checked, too
				h.pass(2 * time.Hour)
				h.wantDelivered("team-a", "auth", "keep+standin")
				h.registry.let(good, true)
				h.registry.set(func(r *registry) { r.tags["a/p:v2"] = digestOf(2) })
				h.contents.arrive(2, false)
				h.pass(time.Hour)
				h.wantDelivered("team-a", "auth", "module 2")
			})
		})
	}
}

func TestP7_AnInvalidPluginKeepsItsLastValidGeneration(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.plugin("team-a", "auth", "ftp://nowhere/x")
		h.now.Invalid[plugin.Key{Namespace: "team-a", Name: "auth"}] = []v1alpha1.Finding{{Field: "spec.url", Severity: "error", Reason: "Invalid", Message: "the scheme must be one of oci, http, https and file"}}
		h.apply()
		h.wantDelivered("team-a", "auth", "module 1")
		h.wantCondition("team-a", "auth", "Accepted=False Invalid")
	})
}

func TestP7_AnInvalidPluginWithoutAPastStandsIn(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.plugin("team-a", "broken", "ftp://nowhere/x")
		h.now.Invalid[plugin.Key{Namespace: "team-a", Name: "broken"}] = []v1alpha1.Finding{{Field: "spec.url", Severity: "error", Reason: "Invalid", Message: "the scheme must be one of oci, http, https and file"}}
		h.apply()
		h.wantDelivered("team-a", "broken", "standin")
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

// What is wrong with a document may be what keeps the module in check.
func TestP7_ADocumentThatWasNeverValidRunsNoModule(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		before := h.registry.checks
		broken := func(s *v1alpha1.WasmPluginSpec) { s.FailStrategy = "NOPE" }
		h.plugin("team-a", "broken", image, broken)
		h.now.Invalid[plugin.Key{Namespace: "team-a", Name: "broken"}] = []v1alpha1.Finding{{Field: "spec.failStrategy", Severity: "error", Reason: "Invalid", Message: "must be one of FAIL_CLOSE, FAIL_OPEN, FAIL_RELOAD"}}
		h.apply()
		h.pass(time.Minute)
		h.wantDelivered("team-a", "broken", "standin")
		h.wantCondition("team-a", "broken", "Accepted=False Invalid")
		h.wantCondition("team-a", "broken", "ResolvedRefs=Unknown Pending")
		h.wantCondition("team-a", "broken", "Programmed=False Pending")
		if s := h.status("team-a", "broken"); s.Digest != "" || h.registry.checks != before {
			t.Errorf("it was asked for: %d requests, %+v", h.registry.checks-before, s)
		}
		h.plugin("team-a", "broken", image)
		delete(h.now.Invalid, plugin.Key{Namespace: "team-a", Name: "broken"})
		h.apply()
		h.wantDelivered("team-a", "broken", "module 1")
	})
}

func TestP7_AnInvalidEditLeavesAValidDocumentInForceThoughItNeverRan(t *testing.T) {
	t.Parallel()
	build(t, nil, func(h *house) {
		h.secret("team-a", "wrong")
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, false)
		h.plugin("team-a", "auth", image)
		h.apply()
		h.connect("team-a")
		h.wantCondition("team-a", "auth", "ResolvedRefs=False Unauthorized")
		h.plugin("team-a", "auth", "ftp://nowhere/x")
		h.now.Invalid[plugin.Key{Namespace: "team-a", Name: "auth"}] = []v1alpha1.Finding{{Field: "spec.url", Severity: "error", Reason: "Invalid", Message: "no"}}
		h.apply()
		h.secret("team-a", good)
		h.apply()
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestATagThatMoves(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		policy v1alpha1.PullPolicy
		want   string
	}{
		"IfNotPresent keeps its digest when the plugin changes": {v1alpha1.PullIfNotPresent, "module 1"},
		"Always asks again when the plugin changes":             {v1alpha1.PullAlways, "module 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			running(t, nil, func(h *house) {
				policy := func(s *v1alpha1.WasmPluginSpec) { s.ImagePullPolicy = tt.policy }
				h.plugin("team-a", "auth", image, policy)
				h.apply()
				h.contents.arrive(2, false)
				h.registry.set(func(r *registry) { r.tags["a/p:v1"] = digestOf(2) })
				h.pass(5 * time.Hour)
				h.wantDelivered("team-a", "auth", "module 1")
				h.plugin("team-a", "auth", image, policy, func(s *v1alpha1.WasmPluginSpec) { s.PluginName = "changed" })
				h.apply()
				h.wantDelivered("team-a", "auth", tt.want)
			})
		})
	}
}

func TestAlwaysAsksAgainOnTheRefreshInterval(t *testing.T) {
	t.Parallel()
	running(t, func(c *engine.Config) { c.RefreshAlways = time.Hour }, func(h *house) {
		h.plugin("team-a", "auth", image, func(s *v1alpha1.WasmPluginSpec) { s.ImagePullPolicy = v1alpha1.PullAlways })
		h.apply()
		h.contents.arrive(2, false)
		h.registry.set(func(r *registry) { r.tags["a/p:v1"] = digestOf(2) })
		h.pass(50 * time.Minute)
		h.wantDelivered("team-a", "auth", "module 1")
		h.pass(15 * time.Minute)
		h.wantDelivered("team-a", "auth", "module 2")
	})
}

func TestADeletedTagEndsNothing(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		always := func(s *v1alpha1.WasmPluginSpec) { s.ImagePullPolicy = v1alpha1.PullAlways }
		h.registry.set(func(r *registry) { delete(r.tags, "a/p:v1") })
		h.plugin("team-a", "auth", image, always)
		h.apply()
		h.pass(time.Minute)
		h.wantDelivered("team-a", "auth", "module 1")
		h.wantCondition("team-a", "auth", "ResolvedRefs=True TagGone")
	})
}

func TestADigestMismatchIsRefused(t *testing.T) {
	t.Parallel()
	build(t, nil, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, false)
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image, func(s *v1alpha1.WasmPluginSpec) { s.SHA256 = strings.TrimPrefix(digestOf(2), "sha256:") })
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "standin")
		h.wantCondition("team-a", "auth", "ResolvedRefs=False DigestMismatch")
	})
}

func TestALargeModuleTravelsByURLThatClosesWithTheRight(t *testing.T) {
	t.Parallel()
	build(t, nil, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, true)
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image)
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "remote")
		token := h.token("team-a", "auth")
		f, info, err := h.engine.OpenModule(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(f); string(b) != info.SHA256 || !info.Stands() {
			t.Errorf("the module: %q, stands %v", b, info.Stands())
		}
		h.engine.Downloaded(info.Plugin, info.SHA256)
		if s := h.status("team-a", "auth"); s.Downloads != 1 {
			t.Errorf("downloads: %d", s.Downloads)
		}
		if _, _, err := h.engine.OpenModule(t.Context(), token+"0"); !errors.Is(err, engine.ErrNoModule) {
			t.Errorf("another token: %v", err)
		}
		h.secret("team-a", "")
		h.apply()
		if info.Stands() {
			t.Error("the open module stands though the right has ended")
		}
		if _, _, err := h.engine.OpenModule(t.Context(), token); !errors.Is(err, engine.ErrNoModule) {
			t.Errorf("after the end of the right: %v", err)
		}
		h.secret("team-a", good)
		h.apply()
		h.registry.let(good, false)
		h.pass(2 * time.Hour)
		h.registry.let(good, true)
		h.pass(time.Hour)
		again := h.token("team-a", "auth")
		if again == token {
			t.Error("the URL of before the revocation opens the module again")
		}
		if _, _, err := h.engine.OpenModule(t.Context(), again); err != nil {
			t.Errorf("the new URL: %v", err)
		}
	})
}

func TestADeletedPluginIsReleased(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.plugin("team-a", "auth", "")
		h.apply()
		h.wantDelivered("team-a", "auth", "nothing")
		if len(h.engine.Plugins()) != 0 || len(h.contents.retained) != 0 {
			t.Errorf("left: %v, %v", h.engine.Plugins(), h.contents.retained)
		}
		h.pass(25 * time.Hour) // until the proof is forgotten
		before := h.registry.checks
		h.pass(25 * time.Hour)
		if h.registry.checks != before {
			t.Errorf("%d re-checks for nobody", h.registry.checks-before)
		}
	})
}

func TestWhatDidNotChangeIsNotPublishedAgain(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.plugin("team-b", "other", "oci://"+host+"/b/q:v1")
		h.connect("team-b")
		h.apply()
		var a string
		for group := range h.proxies.published {
			if strings.Contains(group, "team-a") {
				a = group
			}
		}
		before, times := h.proxies.published[a], h.proxies.times[a]
		h.registry.set(func(r *registry) { r.tags["b/q:v1"] = digestOf(3) })
		h.secret("team-b", good)
		h.contents.arrive(3, false)
		h.apply()
		h.wantDelivered("team-b", "other", "module 3")
		if !h.proxies.published[a].Equal(before) {
			t.Error("team-a's snapshot differs though only team-b changed")
		}
		h.pass(3 * time.Hour)
		if n := h.proxies.times[a] - times; n > 1 {
			t.Errorf("team-a's group was published %d times", n)
		}
	})
}

func TestP6_ASignatureIsAskedForAndTheLastGoodMustHaveItToo(t *testing.T) {
	t.Parallel()
	signedBy := func(key string) func(*v1alpha1.WasmPluginSpec) {
		return func(s *v1alpha1.WasmPluginSpec) { s.VerificationKey = key }
	}
	running(t, nil, func(h *house) {
		h.contents.signed[digestOf(1)] = "key 1"
		h.plugin("team-a", "auth", image, signedBy("key 1"))
		h.apply()
		h.wantDelivered("team-a", "auth", "module 1")
		h.plugin("team-a", "auth", image, signedBy("key 2"))
		h.apply()
		h.wantDelivered("team-a", "auth", "keep+standin")
		h.wantCondition("team-a", "auth", "ResolvedRefs=False SignatureInvalid")
		h.registry.set(func(r *registry) { r.tags["a/p:v2"] = digestOf(2) })
		h.contents.arrive(2, false)
		h.plugin("team-a", "auth", "oci://"+host+"/a/p:v2", signedBy("key 2"))
		h.apply()
		h.wantDelivered("team-a", "auth", "keep+standin") // neither is signed by the present key
		h.contents.mu.Lock()
		h.contents.signed[digestOf(2)] = "key 2"
		h.contents.mu.Unlock()
		h.contents.arrive(2, false)
		h.settle()
		h.wantDelivered("team-a", "auth", "module 2")
	})
}

func TestP7_OneChangeReachesOnlyTheProxiesItConcerns(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.plugin("root", "everywhere", "oci://"+host+"/r/x:v1", func(s *v1alpha1.WasmPluginSpec) { s.ImagePullSecret = "" })
		h.apply()
		h.connect("team-b")
		times := func() (a, b int) {
			for group, n := range h.proxies.times {
				if strings.Contains(group, "team-a") {
					a += n
				} else {
					b += n
				}
			}
			return a, b
		}
		h.pass(time.Minute)
		a, b := times()
		h.plugin("team-b", "own", "oci://"+host+"/b/q:v1")
		h.apply()
		if a2, b2 := times(); a2 != a || b2 == b {
			t.Errorf("a plugin of team-b: team-a's proxies were published to %d times, team-b's %d", a2-a, b2-b)
		}
		h.plugin("root", "everywhere", "")
		h.apply()
		h.wantDelivered("root", "everywhere", "nothing")
	})
}

func TestP8_AnEnvoyFileThatNeverWasGoodAnswersNobody(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]func(*house){
		"not YAML at the start": func(h *house) { h.now.UnreadableEnvoy = map[string]bool{"edge": true} },
		"not Envoy's":           func(h *house) { h.now.EnvoyFiles = map[string][]byte{"edge": []byte("listeners: [{nme: x}]")} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			build(t, nil, func(h *house) {
				broken(h)
				h.apply()
				h.connect("team-a")
				h.pass(time.Hour)
				if len(h.proxies.published) != 0 {
					t.Errorf("published: %v", h.proxies.published)
				}
				if got := h.engine.BrokenFiles(); !slices.Equal(got, []string{"edge"}) {
					t.Errorf("the files that were never good: %v", got)
				}
				h.now.UnreadableEnvoy = nil
				h.now.EnvoyFiles = map[string][]byte{"edge": []byte("listeners: []")}
				h.apply()
				if len(h.proxies.published) != 1 || len(h.engine.BrokenFiles()) != 0 {
					t.Errorf("published once the file was good: %v; never good: %v", h.proxies.published, h.engine.BrokenFiles())
				}
				h.now.EnvoyFiles = map[string][]byte{"edge": []byte("listeners: [{nme: x}]")}
				h.apply()
				if got := h.engine.BrokenFiles(); len(got) != 0 {
					t.Errorf("a file whose last good content is in force is said to be never good: %v", got)
				}
			})
		})
	}
}

func TestP4_TheStatusNamesNoDigestThatEveryProxyRefused(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.proxies.mu.Lock()
		h.proxies.counts = xds.Counts{Matched: 1, Sent: 1, Rejected: 1}
		h.proxies.mu.Unlock()
		h.registry.let(good, false)
		h.pass(2 * time.Hour)
		h.wantCondition("team-a", "auth", "ResolvedRefs=False Unauthorized")
		h.wantCondition("team-a", "auth", "Programmed=False PartiallyProgrammed")
		if s := h.status("team-a", "auth"); s.Digest != "" || s.ServingLastGood {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestP8_ASecretThatCannotBeReadIsNoSecretThatIsGone(t *testing.T) {
	t.Parallel()
	build(t, nil, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, false)
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image)
		h.apply()
		h.connect("team-a")
		h.secret("team-a", "")
		key := source.Key{Namespace: "team-a", Name: "regcred"}
		h.now.UnreadableSecrets = map[source.Key]source.UnreadableSecret{key: {Why: "the API cannot be asked", Unsure: true}}
		h.apply()
		h.pass(time.Hour)
		h.wantCondition("team-a", "auth", "ResolvedRefs=False PullSecretNotFound")
		h.wantCondition("team-a", "auth", "Programmed=True ServingLastGood")
		if s := h.status("team-a", "auth"); s.Conditions[1].Message != "the API cannot be asked" || s.Epoch != 0 {
			t.Errorf("status: %+v", s)
		}
		h.now.UnreadableSecrets = map[source.Key]source.UnreadableSecret{key: {Why: "it may not be read"}}
		h.apply()
		if s := h.status("team-a", "auth"); s.Epoch != 1 {
			t.Error("a Secret that may not be read still lends its right")
		}
	})
}
