package placement

import (
	"testing"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/placement"
)

const both = "arch In amd64,arm64; os In linux"

// TestTheStory is where placement comes from: pod A may pull an image, pod B may not. A
// asks the registry and gets its affinity; B gets nothing that A learned and is let go, to
// fail by its own pull; A', a replica of A, costs no request.
func TestTheStory(t *testing.T) {
	w := newWorld(t).run()
	ns := w.namespace()
	image, _ := w.image("team-a/app", "v1", "linux/amd64", "linux/arm64")
	w.pullSecret(ns, "may", "alice", w.user("alice", "team-a/app"))
	w.pullSecret(ns, "may-not", "bob", w.user("bob"))

	if n := w.asked(func() {
		w.pod(ns, "a", image, with("may"))
		wantPod(t, w.went(ns, "a"), placement.Placed, both)
	}); n == 0 {
		t.Error("A cost no request")
	}
	w.pod(ns, "b", image, with("may-not"))
	wantPod(t, w.went(ns, "b"), placement.NotAllowed, "")
	w.event(ns, "b", "NotAllowed")
	w.pod(ns, "nobody", image)
	wantPod(t, w.went(ns, "nobody"), placement.NotAllowed, "")
	if n := w.asked(func() {
		w.pod(ns, "a2", image, with("may"))
		wantPod(t, w.went(ns, "a2"), placement.Placed, both)
	}); n != 0 {
		t.Errorf("A' cost %d requests", n)
	}
	kubetest.Eventually(t, func() string {
		if n := w.metric("stile_placement_gated_pods", ""); n != 0 {
			return "no pod held"
		}
		return ""
	})
}
