// Package e2e_test holds what users are promised, end to end: stile as a process of its own, a registry that asks
// for credentials, a real Envoy, and clients that send requests through it. One story each; what Envoy itself does
// is in test/envoy, what each room does beside the room.
package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
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
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/cli"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/preflight"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/test/envoy/envoytest"
)

// asStile makes this test's binary be stile.
const asStile = "E2E_IS_STILE"

func TestMain(m *testing.M) {
	preflight.Child()
	if os.Getenv(asStile) != "" {
		os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
	}
	goleak.VerifyTestMain(m)
}

// world is a registry, an upstream that shows what reached it, a folder of stile's, and stile once it is started.
type world struct {
	*testing.T
	folder   string
	registry *localregistry.Registry
	upstream *httptest.Server
	oci      *oci.Client
	cred     oci.Credential
	trust    oci.Trust
	secret   string // the pull secret's document

	stile *process
	at    addresses // fixed at the first start, so that a restart is found again
}

// addresses are where stile listens.
type addresses struct{ XDS, Modules, Admin string }

// newWorld makes a world without stile running; more is added to stile's configuration.
func newWorld(t *testing.T) *world {
	t.Helper()
	envoytest.Path(t) // skips or fails before anything is done
	w := &world{T: t, folder: t.TempDir()}
	password := rand.Text()
	var err error
	w.registry, err = localregistry.Start(localregistry.Options{Mode: localregistry.Bearer, Users: map[string]string{"team": password}, TokenLife: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.registry.Close() })
	w.registry.Allow("team", localregistry.Everywhere, localregistry.Pull, localregistry.Push)
	root, err := secret.NewRoot([]byte(rand.Text() + rand.Text())[:32], nil)
	if err != nil {
		t.Fatal(err)
	}
	key := root.Key(secret.ForFingerprints)
	host := w.registry.Host()
	if w.oci, err = oci.NewClient(oci.Settings{Registries: []oci.Registry{{Host: host, PlainHTTP: true}}, Key: key}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.oci.Close)
	if w.trust, err = w.oci.Trust(host, oci.Operator); err != nil {
		t.Fatal(err)
	}
	w.cred = oci.NewCredential(key, "the test", "team", password)
	auth := base64.StdEncoding.EncodeToString([]byte("team:" + password))
	w.secret = fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: { name: regcred, namespace: team-a }\ntype: kubernetes.io/dockerconfigjson\nstringData: { .dockerconfigjson: '{\"auths\":{%q:{\"auth\":%q}}}' }\n", host, auth)

	w.upstream = httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(w.upstream.Close)
	w.write("resources/secret.yaml", w.secret)
	w.write("envoy/none.yaml", "listeners: []\n")
	w.at = addresses{freePort(t), freePort(t), freePort(t)}
	return w
}

// echo answers with what reached the upstream, and speaks the upgrade to "echo".
func echo(rw http.ResponseWriter, r *http.Request) {
	seen := fmt.Sprintf("%s %s trail=%s toll=%s tag=%s env=%s config=%s", r.Method, r.URL.Path, r.Header.Get("X-Stile-Trail"), r.Header.Get("X-Stile-Toll"),
		r.Header.Get("X-Tag"), r.Header.Get("X-Env"), r.Header.Get("X-Config"))
	if r.Header.Get("Upgrade") == "" {
		_, _ = io.WriteString(rw, seen)
		return
	}
	rw.Header().Set("Upgrade", r.Header.Get("Upgrade"))
	rw.Header().Set("Connection", "Upgrade")
	rw.WriteHeader(http.StatusSwitchingProtocols)
	connection, stream, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = connection.Close() }()
	_, _ = fmt.Fprintf(stream, "%s\n", seen)
	_ = stream.Flush()
	line, _ := stream.ReadString('\n')
	_, _ = stream.WriteString("upstream: " + line)
	_ = stream.Flush()
}

// freePort is an address of the loopback that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// write puts a file into stile's folder, whole at once.
func (w *world) write(name, text string) {
	w.Helper()
	path := filepath.Join(w.folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		w.Fatal(err)
	}
}

// envoyFile writes the operator's file for the cluster "edge": listeners, the cluster upstream, and more clusters.
func (w *world) envoyFile(listeners string, clusters ...string) {
	w.Helper()
	w.write("envoy/edge.yaml", listeners+"clusters:\n"+cluster("upstream", w.upstream.Listener.Addr().String())+strings.Join(clusters, ""))
}

func cluster(name, address string) string {
	return fmt.Sprintf("- name: %s\n  connect_timeout: 2s\n  load_assignment: { cluster_name: %s, endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: %s } } } }] }] }\n", name, name, portOf(address))
}

// plugin writes a WasmPlugin of team-a; spec is in YAML's flow form, without braces.
func (w *world) plugin(name, spec string) {
	w.Helper()
	w.write("resources/"+name+".yaml", "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: { name: "+name+", namespace: team-a }\nspec: { imagePullSecret: regcred, "+spec+" }\n")
}

// image is the url of a repository of the registry.
func (w *world) image(name string) string { return "oci://" + w.registry.Host() + "/team-a/" + name }

// push puts a module at a reference of the registry.
func (w *world) push(name string, module []byte) {
	w.Helper()
	ref, err := oci.ParseReference(strings.TrimPrefix(w.image(name), "oci://"))
	if err != nil {
		w.Fatal(err)
	}
	if _, err := w.oci.Push(w.Context(), module, ref, oci.LayoutOCI, w.cred, w.trust); err != nil {
		w.Fatal(err)
	}
}

// process is a running stile.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

func (p *process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// command is stile with these arguments and nothing of this process's environment.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = []string{asStile + "=1", "HOME=" + t.TempDir()}
	return c
}

// start starts stile and waits until its first plan is complete; more is added to its configuration.
func (w *world) start(more string) {
	w.Helper()
	w.configure(more)
	w.run()
}

func (w *world) configure(more string) {
	w.Helper()
	sections := map[string]string{
		"xds":     "xds: { address: '" + w.at.XDS + "' }\n",
		"modules": "modules: { address: '" + w.at.Modules + "' }\n",
		"access":  "access: { recheck: 1s, denied: { first: 200ms, max: 1s, confirmAfter: 100ms } }\n",
		"fetch":   "fetch: { refreshAlways: 300ms }\n",
	}
	config := "apiVersion: stile.dev/v1alpha1\nkind: Config\nresources: { directory: ./resources }\nenvoy: { directory: ./envoy }\nstore: { directory: ./data }\nadmin: { address: '" + w.at.Admin + "' }\n" +
		"registries: [{ host: '" + w.registry.Host() + "', plainHTTP: true }]\n" + more
	for name, text := range sections {
		if !strings.Contains(more, name+":") {
			config += text
		}
	}
	w.write("stile.yaml", config)
}

// run starts stile with the configuration that is there.
func (w *world) run() {
	w.Helper()
	p := &process{cmd: command(w.T, "serve", "--config", filepath.Join(w.folder, "stile.yaml")), done: make(chan struct{})}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.stile = p
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			p.mu.Lock()
			p.log.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
		}
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	w.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if w.Failed() {
			w.Logf("stile's log, its end:\n%s", tail(p.Log(), 8000))
		}
	})
	w.eventually("stile is ready", func() error {
		select {
		case <-p.done:
			w.Fatalf("stile has ended: %s", p.Log())
		default:
		}
		_, err := w.api("/readyz")
		return err
	})
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// kill ends stile as a crash does.
func (w *world) kill() {
	w.Helper()
	_ = w.stile.cmd.Process.Kill()
	<-w.stile.done
}

// stop ends stile as an operator does, and wants it to end well.
func (w *world) stop() {
	w.Helper()
	if err := w.stile.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.Error(err)
	}
	<-w.stile.done
	if code := w.stile.cmd.ProcessState.ExitCode(); code != 0 {
		w.Errorf("stile ended with %d", code)
	}
}

// envoy starts an Envoy that names itself of team-a, in the cluster "edge".
func (w *world) envoy() *envoytest.Envoy {
	w.Helper()
	return envoytest.Start(w.T, envoytest.Options{XDS: w.at.XDS, CDS: true, ID: "gw-0", Cluster: "edge", Metadata: map[string]any{"NAMESPACE": "team-a", "LABELS": map[string]any{"app": "gateway"}}})
}

var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// api asks stile's own address.
func (w *world) api(path string) (string, error) {
	return fetch(w.T, client, "http://"+w.at.Admin+path)
}

// fetch returns the body of an answer of 200; any other is an error that has it.
func fetch(t *testing.T, c *http.Client, url string, headers ...string) (string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		request.Header.Add(name, value)
	}
	response, err := c.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("%d: %s", response.StatusCode, bytes.TrimSpace(body))
	}
	return string(body), nil
}

// answers asks once and wants this: the body's words of a 200, or the error's.
func (w *world) answers(address, want string, headers ...string) error {
	w.Helper()
	return w.answersOf(client, "http://"+address+"/", want, headers...)
}

func (w *world) answersOf(c *http.Client, url, want string, headers ...string) error {
	w.Helper()
	got, err := fetch(w.T, c, url, headers...)
	if err != nil {
		got = err.Error()
	}
	if !strings.Contains(got, want) {
		return fmt.Errorf("want %q, got %q", want, got)
	}
	return nil
}

// soon asks until the answer is as wanted.
func (w *world) soon(address, want string, headers ...string) {
	w.Helper()
	w.eventually("the answer is "+want, func() error { return w.answers(address, want, headers...) })
}

// now asks once.
func (w *world) now(address, want string, headers ...string) {
	w.Helper()
	if err := w.answers(address, want, headers...); err != nil {
		w.Error(err)
	}
}

// pluginStatus is what /api/v1/plugins says of one, as far as these tests look.
type pluginStatus struct {
	Namespace, Name, Delivery, ModuleSHA256 string
	ServingLastGood                         bool
	Downloads                               int
	Conditions                              []struct{ Type, Status, Reason, Message string }
	Proxies                                 struct{ Matched, Sent, Accepted, Rejected, Unproven int }
}

// status waits until stile says of a plugin what is wanted.
func (w *world) status(name, what string, want func(pluginStatus) bool) {
	w.Helper()
	w.eventually("the status of "+name+" says "+what, func() error {
		body, err := w.api("/api/v1/plugins")
		if err != nil {
			return err
		}
		var all struct{ Items []pluginStatus }
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			return err
		}
		for _, p := range all.Items {
			if p.Name == name {
				if want(p) {
					return nil
				}
				return fmt.Errorf("%+v", p)
			}
		}
		return fmt.Errorf("no plugin %s", name)
	})
}

func accepted(p pluginStatus) bool { return p.Proxies.Accepted == 1 && p.Proxies.Rejected == 0 }

// patience is how long a story waits for what must happen, on a busy machine.
const patience = 40 * time.Second

func (w *world) eventually(what string, try func() error) {
	w.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			w.Fatalf("waiting until %s: %v", what, err)
		case <-tick.C:
		}
	}
}
