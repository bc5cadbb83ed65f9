package placement

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
)

// TestOneTenantsSlowRepositories at a registry that others use, too: manifests that do not
// come hold back the pods that need them and no others.
func TestOneTenantsSlowRepositories(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	noisy, other := w.namespace(), w.namespace()
	const many = 2 * perRegistry
	var slow []string
	for i := range many {
		image, _ := w.image(fmt.Sprint("slow/app-", i), "v1", "linux/amd64", "linux/arm64")
		slow = append(slow, image)
	}
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	w.registry.SetFaults(localregistry.Fault{Method: http.MethodGet, Path: "/v2/slow/", Hang: true})
	for i := range slow {
		w.pod(noisy, fmt.Sprint("p-", i), slow[i])
	}
	kubetest.Eventually(t, func() string {
		proven := 0
		for _, r := range w.registry.Requests() {
			if r.Method == http.MethodHead && r.Status == http.StatusOK {
				proven++
			}
		}
		if proven < many {
			return "all rights to be proven"
		}
		return ""
	})
	w.pod(other, "p", image)
	began := time.Now()
	wantPod(t, w.went(other, "p"), placement.Placed, both)
	if took := time.Since(began); took > 20*time.Second { // a request to a registry may take 30 s
		t.Errorf("the other's pod was held for %s", took)
	}
	if n := w.metric("stile_placement_gated_pods", ""); n < many {
		t.Errorf("%v pods held, want those of the slow repositories", n)
	}
	w.registry.SetFaults()
	for i := range slow {
		wantPod(t, w.went(noisy, fmt.Sprint("p-", i)), placement.Placed, both)
	}
}
