package placement

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/placement"
)

// TestPullSecretsOfImpossibleNames, which the API server lets a pod name: there is no such
// Secret, and the pod is not held for it.
func TestPullSecretsOfImpossibleNames(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	ns := w.namespace()
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	names := []string{"a/b", "..", ".", "%41", "UPPER", "a b", "a,b=c", `a\`, "é", strings.Repeat("x", 300), strings.Repeat("x", 5000)}
	for i, name := range names {
		w.pod(ns, fmt.Sprint("p-", i), image, with(name))
	}
	for i := range names {
		wantPod(t, w.went(ns, fmt.Sprint("p-", i)), placement.Placed, both)
	}
}
