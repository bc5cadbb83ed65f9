package placement

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/oci/localregistry"
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

// TestMoreSecretsThanAreRead: a pod that names tens of thousands costs nobody else his
// time, and a refusal that one of them might have changed is none.
func TestMoreSecretsThanAreRead(t *testing.T) {
	t.Parallel()
	w := public(t).run()
	ns := w.namespace()
	image, _ := w.image("public/app", "v1", "linux/amd64", "linux/arm64")
	names := make([]string, 20_000)
	for i := range names {
		names[i] = fmt.Sprint("none-", i)
	}
	w.pod(ns, "many", image, with(names...))
	w.registry.SetFaults(localregistry.Fault{Path: "/v2/closed/", Status: http.StatusForbidden, Header: http.Header{"Content-Type": {"application/json"}}, Body: `{"errors":[{"code":"DENIED"}]}`})
	w.pod(ns, "refused", w.registry.Host()+"/closed/app:v1", with(names...))
	wantPod(t, w.went(ns, "many"), placement.Placed, both)
	wantPod(t, w.went(ns, "refused"), placement.NotInspected, "")
	if note := w.event(ns, "refused", "NotInspected"); !strings.Contains(note, "name fewer") {
		t.Errorf("the owner is told %q", note)
	}
	if n := w.count("GET secrets"); n > 2*maxNamed {
		t.Errorf("%d Secrets were asked for", n)
	}
}
