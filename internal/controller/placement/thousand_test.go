package placement

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
)

// thousand makes 1,000 pods of four namespaces, from 20 private images by one credential.
func (w *world) thousand() (spaces []string) {
	password := w.user("alice", localregistry.Everywhere)
	var images []string
	for i := range 20 {
		image, _ := w.image(fmt.Sprintf("team/app-%d", i), "v1", "linux/amd64", "linux/arm64")
		images = append(images, image)
	}
	for range 4 {
		ns := w.namespace()
		w.pullSecret(ns, "may", "alice", password)
		spaces = append(spaces, ns)
	}
	begin := time.Now()
	each(1000, func(i int) { w.pod(spaces[i%4], fmt.Sprint("p-", i), images[i%20], with("may")) })
	w.t.Logf("1,000 pods created in %v", time.Since(begin))
	return spaces
}

// gated counts the pods that still carry the gate.
func (w *world) gated(spaces []string) (n int) {
	for _, ns := range spaces {
		list, err := w.client.CoreV1().Pods(ns).List(w.t.Context(), metav1.ListOptions{})
		must(w.t, err)
		for i := range list.Items {
			if placement.Gated(&list.Items[i]) {
				n++
			}
		}
	}
	return n
}

// TestAThousandPodsAtOnce wait for a controller, at a registry that takes 100 ms for every
// request: one patch for each pod, no list, one read of each Secret, and of each image one
// question and one manifest.
func TestAThousandPodsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	spaces := w.thousand()
	before := len(w.registry.Requests())
	w.registry.SetFaults(localregistry.Fault{Delay: 100 * time.Millisecond})
	w.run()
	took := kubetest.Within(t, time.Minute, func() string {
		if n := w.metric("stile_placement_let_go_total", "Placed"); n < 1000 {
			return fmt.Sprintf("1,000 pods to be let go, but %v", n)
		}
		return ""
	})
	if n := w.gated(spaces); n != 0 {
		t.Errorf("%d pods are still held", n)
	}
	perImage := map[string]int{}
	others := 0
	for _, r := range w.registry.Requests()[before:] {
		if repository, _, ok := strings.Cut(r.Path, "/manifests/"); ok {
			perImage[repository]++
		} else {
			others++
		}
	}
	most := 0
	for _, n := range perImage {
		most = max(most, n)
	}
	t.Logf("all let go in %v; requests to the registry: %d for each of %d images, %d for tokens and pings", took, most, len(perImage), others)
	t.Logf("requests to the API server: %v", w.requests.count)
	if most > 2 || len(perImage) != 20 {
		t.Errorf("%d requests for an image of %d", most, len(perImage))
	}
	if n := w.count("PATCH pods"); n != 1000 {
		t.Errorf("%d patches for 1,000 pods", n)
	}
	if n := w.count("LIST pods"); n > 1 {
		t.Errorf("%d lists of pods", n)
	}
	if n := w.count("GET pods") + w.count("GET events") + w.count("POST events"); n != 0 {
		t.Errorf("%d requests besides patches", n)
	}
	if n := w.count("GET secrets"); n > 4 {
		t.Errorf("%d reads of 4 Secrets", n)
	}
}

// TestP9_RestartWithAThousandHeld: killed in the middle, it goes on where it was, and lets
// nobody go twice or otherwise than before.
func TestP9_RestartWithAThousandHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	spaces := w.thousand()
	w.registry.SetFaults(localregistry.Fault{Delay: 20 * time.Millisecond})
	w.run()
	kubetest.Eventually(t, func() string {
		if w.metric("stile_placement_let_go_total", "Placed") < 200 {
			return "some pods to be let go"
		}
		return ""
	})
	w.stop()
	held := w.gated(spaces)
	if held == 0 {
		t.Fatal("none was left to be taken up")
	}
	w.run(func(c *Config) { c.MaxWait = time.Second }) // they are older than that: all the same, they are asked about
	took := kubetest.Within(t, time.Minute, func() string {
		// A patch that was under way when it ended may have reached the API server after the count.
		n, left := w.metric("stile_placement_let_go_total", "Placed"), w.metric("stile_placement_gated_pods", "")
		if int(n) < held-patchers || left > 0 {
			return fmt.Sprintf("%d pods to be let go, but %v", held, n)
		}
		return ""
	})
	if n := w.gated(spaces); n != 0 {
		t.Errorf("%d pods are still held", n)
	}
	t.Logf("%d pods were held over the restart, all let go in %v", held, took)
	for _, ns := range spaces {
		list, err := w.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for i := range list.Items {
			wantPod(t, &list.Items[i], placement.Placed, both)
		}
	}
}
