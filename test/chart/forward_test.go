package chart

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/stileproject/stile/internal/admin"
	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/xds"
)

// kubelet is the part of one that forwards ports: what the API server sends for any pod goes to one address.
func kubelet(t *testing.T, to string) (port int) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
			return
		}
		streams := make(chan httpstream.Stream, 16)
		c := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error { streams <- s; return nil })
		if c == nil {
			return
		}
		defer func() { _ = c.Close() }()
		for {
			select {
			case <-c.CloseChan():
				return
			case s := <-streams:
				if s.Headers().Get("streamType") == "data" && s.Headers().Get("port") == "18002" {
					go forwardTo(to, s)
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().(*net.TCPAddr).Port
}

func forwardTo(address string, s httpstream.Stream) {
	defer func() { _ = s.Close() }()
	c, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	go func() { _, _ = io.Copy(c, s) }()
	_, _ = io.Copy(s, c)
}

// "kubectl stile status" reaches the admin API on the loopback of a ready replica through a real API server, which hands the
// stream to the node's kubelet; of that, only what forwards ports is ours.
func TestKubectlStileStatusReachesReplicas(t *testing.T) {
	show := admin.Options{
		Plugins: func() any { return []string{} },
		Proofs: func() any {
			return []map[string]any{{"image": "registry.example/a/p:v1", "credential": "fp:3f9c", "state": "Allowed", "users": []string{"team-a/badge"}}}
		},
		Proxies: func() any { return []xds.Proxy{{ID: "gw-0", Cluster: "edge", Namespace: "team-a"}} },
	}
	service := httptest.NewServer(admin.New(show))
	t.Cleanup(service.Close)
	api := kubetest.Start(t, kubetest.Options{NoCRD: true})
	api.Kubectl(t, "create", "-f", absolute(t, "deploy", "crd.yaml"))
	api.Node(t, "node-0", "linux", "amd64")
	api.Kubectl(t, "patch", "node", "node-0", "--subresource=status", "--type=merge", fmt.Sprintf(
		`-p={"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.1"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":%d}}}}`, kubelet(t, service.Listener.Addr().String())))
	home := api.Namespace(t)
	api.Apply(t, nil, "apiVersion: v1\nkind: Pod\nmetadata: {name: stile-0, namespace: "+home+", labels: {app.kubernetes.io/name: stile}}\nspec:\n  nodeName: node-0\n  automountServiceAccountToken: false\n  containers: [{name: stile, image: stile}]\n")
	api.Kubectl(t, "patch", "pod", "-n", home, "stile-0", "--subresource=status", "--type=merge", `-p={"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`)

	c := exec.Command(filepath.Join(os.Getenv("STILE_KUBE_ASSETS"), "kubectl"), "stile", "status", "--service-namespace", home, "-o", "json")
	folder := kubectlPlugin(t)
	c.Env = []string{"PATH=" + folder + ":" + os.Getenv("PATH"), "KUBECONFIG=" + api.Kubeconfig(t, nil), "HOME=" + folder}
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var report struct {
		Proofs   []struct{ Image string }
		Proxies  []struct{ ID string }
		Replicas []struct {
			Pod   string
			Asked bool
			Error string
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Replicas) != 1 || !report.Replicas[0].Asked || len(report.Proofs) != 1 || len(report.Proxies) != 1 || report.Proxies[0].ID != "gw-0" {
		t.Errorf("want one replica, asked, with its proof and its proxy:\n%s\n%s", out, stderr.String())
	}
}
