package placement

import (
	"sync/atomic"
	"testing"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
)

// TestTheLeadComesBack to the same replica while it knows held pods, as after a long outage
// of the API server: their Secrets are followed again, also those that say nothing of the
// pods' registry, and those that there are not.
func TestTheLeadComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var leads atomic.Bool
	leads.Store(true)
	w.run(func(c *Config) { c.Leads = leads.Load })
	ns := w.namespace()
	w.pullSecret(ns, "regcred", "team-a", w.user("team-a", "team-a/app"))
	w.rawSecret(ns, "other", dockerConfig("registry.other.example", "somebody", w.watch.Credential()))
	for _, round := range []string{"first", "second"} { // a count that is lost in the one is wrong in the other
		image, _ := w.image("team-a/app", round, "linux/amd64", "linux/arm64")
		w.registry.SetFaults(localregistry.Fault{Hang: true})
		names := []string{"p-" + round, "q-" + round}
		for _, name := range names {
			w.pod(ns, name, image, with("regcred", "other", "none"))
		}
		want := func(what string, n int) {
			t.Helper()
			kubetest.Eventually(t, func() string {
				followed := 0
				for _, name := range []string{"regcred", "other", "none"} {
					if _, known := w.secrets.Get(key(ns, name)); known {
						followed++
					}
				}
				if followed != n {
					return what
				}
				return ""
			})
		}
		want("the Secrets to be read", 3)
		leads.Store(false)
		want("no Secret to be followed without leading", 0)
		leads.Store(true)
		want("the Secrets to be followed again", 3)
		w.registry.SetFaults()
		for _, name := range names {
			wantPod(t, w.went(ns, name), placement.Placed, both)
		}
	}
}
