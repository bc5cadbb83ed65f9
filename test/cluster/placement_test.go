package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci/localregistry"
)

// mayPlace gives stile's account what the chart does where placement is on, and the
// policies that put the gate on pods and keep the account to it.
func (c *cluster) mayPlace(namespaces ...string) {
	c.Helper()
	c.api.Apply(c.T, nil, strings.ReplaceAll(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: SYSTEM-pods }
rules:
- { apiGroups: [""], resources: [pods], verbs: [get, list, watch, patch] }
- { apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: SYSTEM-pods }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: SYSTEM-pods }
subjects: [{ kind: ServiceAccount, name: stile, namespace: SYSTEM }]
`, "SYSTEM", c.system))
	for _, name := range []string{"gate-policy", "guard-policy"} {
		text, err := os.ReadFile("../../charts/stile/files/" + name + ".yaml")
		if err != nil {
			c.Fatal(err)
		}
		c.api.Apply(c.T, nil, strings.NewReplacer(
			"stile-system", c.system, "name: stile-", "name: "+c.system+"-", "policyName: stile-", "policyName: "+c.system+"-",
			"namespaceSelector: {}", "namespaceSelector: { matchExpressions: [{ key: kubernetes.io/metadata.name, operator: In, values: ["+strings.Join(namespaces, ", ")+"] }] }",
		).Replace(string(text)))
	}
}

// pushFor pushes an image of one platform, which nobody but the tenant may pull.
func (c *cluster) pushFor(tenant, repository, system, arch string) string {
	c.Helper()
	c.registry.SetOpen(true)
	defer c.registry.SetOpen(false)
	config := fmt.Appendf(nil, `{"os":%q,"architecture":%q,"of":%q}`, system, arch, repository)
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(config))
	c.put(http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+digest, "application/octet-stream", config)
	const manifest = "application/vnd.oci.image.manifest.v1+json"
	c.put(http.MethodPut, "/v2/"+repository+"/manifests/v1", manifest, fmt.Appendf(nil,
		`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`, manifest, digest, len(config)))
	c.registry.Allow(tenant, repository)
	return c.registry.Host() + "/" + repository + ":v1"
}

func (c *cluster) put(method, path, kind string, body []byte) {
	c.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://"+c.registry.Host()+path, bytes.NewReader(body))
	if err != nil {
		c.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		c.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		c.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// Pod applies a pod as anybody writes it: without a gate.
func (t *tenant) Pod(name, image string) *tenant {
	t.Helper()
	return t.Apply(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: { name: %s }\nspec: { containers: [{ name: main, image: %q }], imagePullSecrets: [{ name: regcred }] }\n", name, image))
}

// Ends waits until what kubectl prints of the tenant's pod is so.
func (t *tenant) Ends(pod, path, want string) {
	t.Helper()
	kubetest.Eventually(t.T, func() string {
		if got := t.api.Kubectl(t.T, "get", "pod", pod, "-n", t.namespace, "-o", "jsonpath="+path); got != want {
			return fmt.Sprintf("%s of pod %s: %q, want %q", path, pod, got, want)
		}
		return ""
	})
}

// The story of docs/placement.md, by the whole program: pods without a word about
// architectures, a scheduler, two architectures, two tenants; stile is killed while a pod
// is held, and comes back.
func TestStory_PodsArePlaced(t *testing.T) {
	t.Parallel()
	api := kubetest.API(t)
	c := newCluster(t, api, "team-a", "team-b")
	image := c.pushFor("team-a", "team-a/app", "linux", "arm64")
	later := c.pushFor("team-a", "team-a/later", "linux", "amd64")
	a, b := c.as("team-a"), c.as("team-b")
	c.mayPlace(a.namespace, b.namespace)
	api.Scheduler(t)
	api.Node(t, "amd", "linux", "amd64")
	api.Node(t, "arm", "linux", "arm64")
	const settings = "placement: { enabled: true, maxWait: 60s }\n"
	r := c.start("stile-0", settings)
	kubetest.Eventually(t, func() string { // the policy has reached the API server
		if out := api.Kubectl(t, "run", "probe", "-n", a.namespace, "--image", image, "--dry-run=server", "-o", "jsonpath={.spec.schedulingGates[*].name}"); out == "" {
			return "a gate on new pods"
		}
		return ""
	})

	a.Pod("app", image).Ends("app", "{.spec.nodeName}", "arm")
	a.Ends("app", `{.metadata.labels.stile\.dev/placement}`, "Placed")
	b.Pod("theirs", image).Ends("theirs", `{.metadata.labels.stile\.dev/placement}`, "NotAllowed")
	b.Ends("theirs", "{.spec.affinity}", "")

	c.registry.SetFaults(localregistry.Fault{Hang: true})
	a.Pod("later", later)
	a.Ends("later", "{.spec.schedulingGates[*].name}", "stile.dev/architecture")
	r.kill()
	c.registry.SetFaults()
	c.start("stile-1", settings)
	a.Ends("later", "{.spec.nodeName}", "amd")

	c.noCanary("the API", api.Kubectl(t, "get", "pods,events", "-A", "-o", "yaml"))
}
