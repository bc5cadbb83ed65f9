package cluster

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/stileproject/stile/internal/kubetest"
)

// A thousand plugins of twenty tenants: how long until all are programmed, and what that
// costs the API server. The times are logged, see docs/benchmarks.md; the requests are
// what the test holds.
func TestScale_AThousandPlugins(t *testing.T) { //nolint:paralleltest // it measures
	const tenants, each = 20, 50
	api := kubetest.Start(t, kubetest.Options{})
	c := newCluster(t, api, "team")
	c.push("team", "team/auth:v1", badge)
	c.start("stile-0", "")
	client, err := dynamic.NewForConfig(api.Config)
	if err != nil {
		t.Fatal(err)
	}
	var all []*tenant
	for range tenants {
		all = append(all, c.as("team"))
	}
	before := c.requests()
	began := time.Now()
	var group errgroup.Group
	group.SetLimit(16)
	for _, a := range all {
		for i := range each {
			group.Go(func() error {
				_, err := client.Resource(plugins).Namespace(a.namespace).Create(t.Context(), &unstructured.Unstructured{Object: object{
					"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin",
					"metadata": object{"name": fmt.Sprintf("p%03d", i), "labels": object{"istio.io/rev": c.system}},
					"spec":     object{"url": "oci://" + c.registry.Host() + "/team/auth:v1", "imagePullSecret": "regcred"},
				}}, metav1.CreateOptions{})
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	created := time.Since(began)
	kubetest.Within(t, 2*time.Minute, func() string {
		list, err := client.Resource(plugins).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		n := 0
		for _, p := range list.Items {
			conditions, _, _ := unstructured.NestedSlice(p.Object, "status", "conditions")
			for _, condition := range conditions {
				if o := condition.(object); o["type"] == "Programmed" && o["status"] == "True" {
					n++
				}
			}
		}
		if n < tenants*each {
			return fmt.Sprintf("%d of %d plugins are programmed", n, tenants*each)
		}
		return ""
	})
	took, after := time.Since(began), c.requests()
	t.Logf("%d plugins created in %v; all programmed %v after the first was", tenants*each, created, took)
	for what, most := range map[string]float64{
		"wasmplugins/status": 2 * tenants * each, // one for what is pending, one for what has become of it
		"events":             2 * tenants * each,
		"secrets":            4 * tenants, // a get and a watch for each, the tests' own writes not counted
	} {
		n := after[what] - before[what]
		t.Logf("%s: %.0f requests, %.2f a plugin", what, n, n/(tenants*each))
		if n > most {
			t.Errorf("%s: %.0f requests for %d plugins, want at most %.0f", what, n, tenants*each, most)
		}
	}
}

var requestCount = regexp.MustCompile(`(?m)^apiserver_request_total\{([^}]*)\} (\S+)$`)

// requests are what the API server says it was asked, by resource.
func (c *cluster) requests() map[string]float64 {
	c.Helper()
	counts := map[string]float64{}
	for _, m := range requestCount.FindAllStringSubmatch(c.api.Kubectl(c.T, "get", "--raw", "/metrics"), -1) {
		label := map[string]string{}
		for _, pair := range strings.Split(m[1], ",") {
			name, value, _ := strings.Cut(pair, "=")
			label[name] = strings.Trim(value, `"`)
		}
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			c.Fatal(err)
		}
		if label["resource"] == "wasmplugins" && label["subresource"] != "status" {
			continue // the tests' own
		}
		name := label["resource"]
		if label["subresource"] != "" {
			name += "/" + label["subresource"]
		}
		counts[name] += n
	}
	return counts
}
