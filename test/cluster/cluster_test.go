// Package cluster tells stories of tenants in a Kubernetes cluster: a real API server, a
// registry that asks for passwords, stile as processes of its own, and proxies that
// speak xDS to them.
package cluster

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/cli"
	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/preflight"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/modules"
)

// asStile makes this test's binary be stile.
const asStile = "CLUSTER_IS_STILE"

func TestMain(m *testing.M) {
	preflight.Child()
	if os.Getenv(asStile) != "" {
		os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
	}
	os.Exit(kubetest.Main(m, kubetest.Options{}))
}

// cluster is an API server, a registry in which each tenant has its own repositories, and
// the replicas of one stile.
type cluster struct {
	*testing.T
	api      *kubetest.Server
	system   string // stile's namespace
	account  *rest.Config
	registry *localregistry.Registry
	words    map[string]string // tenants' passwords
	keys     string            // the file of the root key
	front    *front
}

// newCluster makes a cluster without stile; tenants are users of the registry, each with
// its own repositories.
func newCluster(t *testing.T, api *kubetest.Server, tenants ...string) *cluster {
	t.Helper()
	c := &cluster{T: t, api: api, words: map[string]string{}}
	c.system = api.Namespace(t)
	users := map[string]string{}
	for _, tenant := range tenants {
		c.words[tenant] = "CANARY-" + rand.Text()
		users[tenant] = c.words[tenant]
	}
	var err error
	if c.registry, err = localregistry.Start(localregistry.Options{Users: users, TokenLife: time.Second, TokenMarker: "CANARY-token"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.registry.Close() })
	c.account = api.ServiceAccount(t, c.system, "stile")
	c.allow()
	c.keys = filepath.Join(t.TempDir(), "keys.yaml")
	if err := os.WriteFile(c.keys, []byte("current: "+strings.Repeat("5a", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.front = newFront(t)
	api.Apply(t, nil, "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: listeners, namespace: "+c.system+", labels: { stile.dev/envoy: \"true\" } }\ndata:\n  edge.yaml: |\n"+listeners)
	return c
}

// listeners are those of the proxies of the cluster "edge".
const listeners = `
    listeners:
      - name: http
        address: { socket_address: { address: 127.0.0.1, port_value: 8080 } }
        filter_chains:
          - filters:
              - name: envoy.filters.network.http_connection_manager
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                  stat_prefix: http
                  route_config: { virtual_hosts: [{ name: all, domains: ["*"], routes: [{ match: { prefix: / }, direct_response: { status: 200 } }] }] }
                  http_filters:
                    - name: envoy.filters.http.router
                      typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
`

// tenant is one team: a namespace of its own and a user of the registry.
type tenant struct {
	*cluster
	name      string // at the registry
	namespace string
}

// as returns the tenant, with a namespace that has its pull secret "regcred".
func (c *cluster) as(name string) *tenant {
	c.Helper()
	t := &tenant{cluster: c, name: name, namespace: c.api.Namespace(c.T)}
	c.maySecrets(t.namespace)
	t.secret("regcred", c.words[name])
	return t
}

// secret writes a pull secret with the tenant's name and this password.
func (t *tenant) secret(name, password string) *tenant {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(t.name + ":" + password))
	t.Apply(fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: { name: %s }\ntype: kubernetes.io/dockerconfigjson\nstringData: { .dockerconfigjson: '{\"auths\":{%q:{\"auth\":%q}}}' }\n",
		name, t.registry.Host(), auth))
	return t
}

// Apply applies documents in the tenant's namespace.
func (t *tenant) Apply(yaml string) *tenant {
	t.Helper()
	t.api.Kubectl(t.T, "apply", "--server-side", "--force-conflicts", "-n", t.namespace, "-f", t.file(yaml))
	return t
}

// Plugin applies a WasmPlugin of the tenant; more is added to its spec.
func (t *tenant) Plugin(name, image string, more ...string) *tenant {
	t.Helper()
	return t.Apply("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: { name: " + name + ", labels: { istio.io/rev: " + t.system + " } }\nspec:\n  url: oci://" + t.registry.Host() + "/" + image +
		"\n  imagePullSecret: regcred\n  " + strings.Join(more, "\n  ") + "\n")
}

// Delete deletes an object of the tenant.
func (t *tenant) Delete(kind, name string) *tenant {
	t.Helper()
	t.api.Kubectl(t.T, "delete", "-n", t.namespace, kind, name)
	return t
}

// Sees waits until the status of the tenant's plugin has a condition.
func (t *tenant) Sees(name, condition, status, reason string) time.Duration {
	t.Helper()
	began := time.Now()
	kubetest.Eventually(t.T, func() string {
		p := t.read(name)
		for _, c := range p.Status.Conditions {
			if c.Type == condition && string(c.Status) == status && c.Reason == reason && c.ObservedGeneration == p.Generation {
				return ""
			}
		}
		return fmt.Sprintf("%s/%s lacks %s=%s %s: %+v", t.namespace, name, condition, status, reason, p.Status.Conditions)
	})
	return time.Since(began)
}

var plugins = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "wasmplugins"}

// read reads the tenant's plugin.
func (t *tenant) read(name string) *v1alpha1.WasmPlugin {
	t.Helper()
	client, err := dynamic.NewForConfig(t.api.Config)
	if err != nil {
		t.Fatal(err)
	}
	u, err := client.Resource(plugins).Namespace(t.namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var p v1alpha1.WasmPlugin
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &p); err != nil {
		t.Fatal(err)
	}
	return &p
}

func (c *cluster) file(text string) string {
	c.Helper()
	name := filepath.Join(c.TempDir(), "document.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
	return name
}

// push pushes a module to a repository as its owner.
func (c *cluster) push(tenant, image string, module []byte) {
	c.Helper()
	root, err := secret.NewRoot([]byte(rand.Text() + rand.Text())[:secret.Size], nil)
	if err != nil {
		c.Fatal(err)
	}
	key := root.Key(secret.ForFingerprints)
	client, err := oci.NewClient(oci.Settings{Registries: []oci.Registry{{Host: c.registry.Host(), PlainHTTP: true}}, Key: key})
	if err != nil {
		c.Fatal(err)
	}
	defer client.Close()
	trust, err := client.Trust(c.registry.Host(), oci.Operator)
	if err != nil {
		c.Fatal(err)
	}
	ref, err := oci.ParseReference(c.registry.Host() + "/" + image)
	if err != nil {
		c.Fatal(err)
	}
	c.registry.Allow(tenant, ref.Repository(), localregistry.Pull, localregistry.Push)
	if _, err := client.Push(c.Context(), module, ref, oci.LayoutOCI, oci.NewCredential(key, "the test", tenant, c.words[tenant]), trust); err != nil {
		c.Fatal(err)
	}
}

// replica is one running stile.
type replica struct {
	cluster *cluster
	name    string
	cmd     *exec.Cmd
	done    chan struct{}
	at      struct{ XDS, Modules, Admin, Health, Webhook string }

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

// start starts a replica and waits until it is ready; more is added to its configuration.
func (c *cluster) start(name, more string) *replica {
	c.Helper()
	folder := c.TempDir()
	config := filepath.Join(folder, "stile.yaml")
	text := "apiVersion: stile.dev/v1alpha1\nkind: Config\nrootNamespace: " + c.system + "\nkeys: { file: " + c.keys + " }\nstore: { directory: " + folder + "/data }\n" +
		"resources: { kubernetes: { kubeconfig: " + c.api.Kubeconfig(c.T, c.account) + ", namespace: " + c.system + ", revision: " + c.system + " } }\n" +
		"envoy: { directory: '' }\nxds: { address: '127.0.0.1:0', inlineMaxModule: 0 }\nmodules: { address: '127.0.0.1:0', url: '" + c.front.URL + "' }\nadmin: { address: '127.0.0.1:0' }\n" +
		"registries: [{ host: '" + c.registry.Host() + "', plainHTTP: true }]\naccess: { recheck: 1s, denied: { first: 200ms, max: 1s, confirmAfter: 100ms }, unauthorized: { first: 200ms, max: 1s } }\n" + more
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
	r := &replica{cluster: c, name: name, done: make(chan struct{})}
	r.cmd = exec.CommandContext(c.Context(), os.Args[0], "serve", "--config", config, "--log-format", "json")
	r.cmd.Env = []string{asStile + "=1", "HOME=" + folder, "POD_NAME=" + name}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		c.Fatal(err)
	}
	serving := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			r.mu.Lock()
			r.log.WriteString(lines.Text() + "\n")
			r.mu.Unlock()
			if strings.Contains(lines.Text(), `"msg":"serving"`) {
				serving <- lines.Text()
			}
		}
		_ = r.cmd.Wait() // how it ended is in ProcessState
		close(r.done)
	}()
	c.Cleanup(func() {
		r.kill()
		if c.Failed() {
			c.Logf("the log of %s, its end:\n%s", name, tail(r.Log(), 3000))
		}
		c.noCanary("the log of "+name, r.Log())
	})
	select {
	case line := <-serving:
		if err := json.Unmarshal([]byte(line), &r.at); err != nil {
			c.Fatal(err)
		}
	case <-r.done:
		c.Fatalf("stile has ended: %s", r.Log())
	}
	kubetest.Eventually(c.T, func() string {
		text, err := r.get("/readyz?verbose")
		if err != nil {
			return fmt.Sprintf("%s is not ready: %v %s", name, err, text)
		}
		return ""
	})
	c.front.to.Store(&r.at.Modules)
	return r
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// Log is what the replica has said.
func (r *replica) Log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// kill ends the replica as a crash does.
func (r *replica) kill() {
	_ = r.cmd.Process.Kill()
	<-r.done
}

// stop ends it as an operator does.
func (r *replica) stop() {
	r.cluster.Helper()
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	<-r.done
	if code := r.cmd.ProcessState.ExitCode(); code != 0 {
		r.cluster.Errorf("%s ended with %d", r.name, code)
	}
}

// get asks the admin address.
func (r *replica) get(path string) (string, error) {
	return get(r.cluster.T, "http://"+r.at.Admin+path)
}

func get(t *testing.T, address string) (string, error) {
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(answer.Body); err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return body.String(), fmt.Errorf("answered %s", answer.Status)
	}
	return body.String(), nil
}

// front is the Service of the replicas' module servers: it sends every request to the
// one that is chosen.
type front struct {
	*httptest.Server
	to atomic.Pointer[string]
}

func newFront(t *testing.T) *front {
	f := &front{}
	f.Server = httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: *f.to.Load()})
	}})
	t.Cleanup(f.Close)
	return f
}

// noCanary searches text for what is secret here.
func (c *cluster) noCanary(where, text string) {
	c.Helper()
	for _, word := range c.words {
		if strings.Contains(text, word) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(word))) {
			c.Errorf("%s holds a password", where)
		}
	}
	if strings.Contains(text, "CANARY") {
		c.Errorf("%s holds a canary", where)
	}
}

// badge and toll are modules that differ.
var badge, toll = modules.Badge(), modules.Toll()
