package cli

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
)

// watchedLog is a log that tells when a text has been written to it.
type watchedLog struct {
	want string
	seen chan struct{}

	mu   sync.Mutex
	text bytes.Buffer
	told bool
}

func (l *watchedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	if l.want != "" && !l.told && strings.Contains(l.text.String(), l.want) {
		l.told = true
		close(l.seen)
	}
	return len(p), nil
}

func (l *watchedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// serveFolder makes a folder with a configuration on free ports, and returns both.
func serveFolder(t *testing.T, more string) (folder, config string) {
	t.Helper()
	folder = t.TempDir()
	write(t, folder, "resources/none.yaml", "# nothing yet\n")
	write(t, folder, "envoy/edge.yaml", "listeners: []\n")
	if !strings.Contains(more, "xds:") {
		more += "xds: { address: \"127.0.0.1:0\" }\n"
	}
	config = write(t, folder, "stile.yaml", `apiVersion: stile.dev/v1alpha1
kind: Config
resources: { directory: ./resources }
envoy: { directory: ./envoy }
store: { directory: ./data }
modules: { address: "127.0.0.1:0" }
admin: { address: "127.0.0.1:0" }
`+more)
	return folder, config
}

// started runs serve in the background, until the test ends, and returns its addresses.
func started(t *testing.T, config string) serveAddresses {
	t.Helper()
	a := &app{stderr: io.Discard, env: environment{"HOME=" + t.TempDir()}}
	loaded, err := a.loadConfig(&configInput{file: config})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	addresses, ended := make(chan serveAddresses, 1), make(chan error, 1)
	go func() {
		ended <- runServe(ctx, loaded.Config, serveHooks{Started: func(s serveAddresses) { addresses <- s }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case s := <-addresses:
		return s
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return serveAddresses{}
}

// get asks the admin address and returns status and body.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// eventually asks until the answer satisfies want.
func eventually(t *testing.T, url string, want func(int, string) bool) string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		status, body := get(t, url)
		if want(status, body) {
			return body
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("%s: never as wanted, last %d: %s", url, status, body)
		}
	}
}

func ready(status int, _ string) bool { return status == http.StatusOK }

const somePlugin = `apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: { name: auth, namespace: team-a }
spec: { url: "oci://127.0.0.1:1/a:v1", imagePullSecret: missing }
`

func TestServe_FromFolderToStatus(t *testing.T) {
	t.Parallel()
	folder, config := serveFolder(t, "health: { address: \"127.0.0.1:0\" }\n")
	at := started(t, config)
	eventually(t, "http://"+at.Admin+"/readyz", ready)
	eventually(t, "http://"+at.Health+"/readyz", ready)
	if _, body := get(t, "http://"+at.Admin+"/api/v1/plugins"); body != "{\"items\":[]}\n" {
		t.Errorf("plugins: %s", body)
	}
	if status, _ := get(t, "http://"+at.Health+"/api/v1/plugins"); status != http.StatusNotFound {
		t.Errorf("the API is on the health address: %d", status)
	}
	if _, body := get(t, "http://"+at.Admin+"/metrics"); !strings.Contains(body, "stile_build_info{") || !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics: %s", body)
	}
	if status, _ := get(t, "http://"+at.Modules+"/modules/nothing"); status != http.StatusNotFound {
		t.Errorf("a module of no token: %d", status)
	}

	// A plugin that names a Secret that is not there: said in its status, and nothing else breaks.
	write(t, folder, "resources/a.yaml", somePlugin)
	body := eventually(t, "http://"+at.Admin+"/api/v1/plugins", func(_ int, body string) bool {
		return strings.Contains(body, `"reason":"PullSecretNotFound"`)
	})
	if !strings.Contains(body, "team-a/missing") {
		t.Errorf("the status does not name the Secret: %s", body)
	}

	// stile status shows it.
	r := stile(t, nil, "status", "--server", at.Admin).want(t, OK)
	if !strings.Contains(r.stdout, "team-a/auth") || !strings.Contains(r.stdout, "False (PullSecretNotFound)") || !strings.Contains(r.stdout, "team-a/auth ResolvedRefs: pull secret team-a/missing does not exist") {
		t.Errorf("status: %s", r.stdout)
	}
	report := decode[statusReport](t, stile(t, nil, "status", "team-a/auth", "--server", at.Admin, "-o", "json").want(t, OK).stdout)
	if len(report.Plugins) != 1 || report.Proofs == nil || report.Proxies == nil {
		t.Errorf("status: %+v", report)
	}
	stile(t, nil, "status", "team-a/nobody", "--server", at.Admin).want(t, NotFound, "team-a/nobody")

	// A syntax error keeps what is there.
	write(t, folder, "resources/a.yaml", somePlugin+"---\na: [")
	write(t, folder, "resources/b.yaml", strings.Replace(somePlugin, "name: auth", "name: other", 1))
	eventually(t, "http://"+at.Admin+"/api/v1/plugins", func(_ int, body string) bool {
		return strings.Contains(body, `"name":"auth"`) && strings.Contains(body, `"name":"other"`)
	})
}

func TestServe_RootKeyIsMadeOnceAndForThisUserAlone(t *testing.T) {
	t.Parallel()
	folder, config := serveFolder(t, "")
	key := filepath.Join(folder, "data", rootKeyFile)
	var before []byte
	for range 2 {
		ok := t.Run("start", func(t *testing.T) {
			at := started(t, config)
			eventually(t, "http://"+at.Admin+"/readyz", ready)
			info, err := os.Stat(key)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", info.Mode())
			}
			text, err := os.ReadFile(key)
			if err != nil {
				t.Fatal(err)
			}
			if before != nil && !bytes.Equal(before, text) {
				t.Error("the second start has another key")
			}
			before = text
		})
		if !ok {
			return
		}
	}
	left, err := filepath.Glob(filepath.Join(folder, "data", ".root*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestServe_BadInput(t *testing.T) {
	t.Parallel()
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	busy := taken.Addr().String()
	file := write(t, t.TempDir(), "file", "")
	broken := write(t, t.TempDir(), "broken.yaml", "current: nonsense\n")
	missing := filepath.Join(t.TempDir(), "missing")
	for name, row := range map[string]struct {
		args   []string
		code   int
		stderr []string
	}{
		"xds port in use":     {[]string{"--xds-address", busy}, Failed, []string{"xds.address", busy, "address already in use", "--xds-address"}},
		"modules port in use": {[]string{"--modules-address", busy}, Failed, []string{"modules.address", busy, "--modules-address"}},
		"admin port in use":   {[]string{"--admin-address", busy}, Failed, []string{"admin.address", busy, "--admin-address"}},
		"health port in use":  {[]string{"--health-address", busy}, Failed, []string{"health.address", busy, "--health-address"}},
		"unwritable store":    {[]string{"--store", file + "/data"}, Failed, []string{"store " + file + "/data", "not a directory", "--store"}},
		"store is a file":     {[]string{"--store", file}, Failed, []string{"store " + file, "--store"}},
		"resources missing":   {[]string{"--resources", missing}, Usage, []string{"resources.directory", missing, "--resources"}},
		"resources is a file": {[]string{"--resources", file}, Usage, []string{"is a file, not a folder"}},
		"envoy missing":       {[]string{"--envoy", missing}, Usage, []string{"envoy.directory", missing}},
		"keys missing":        {[]string{"--keys-file", missing}, Failed, []string{"keys.file", missing}},
		"keys broken":         {[]string{"--keys-file", broken}, Failed, []string{"current: want 64 hexadecimal digits"}},
		"admin off loopback":  {[]string{"--admin-address", "0.0.0.0:0"}, Usage, []string{"admin.address"}},
		"xds off loopback":    {[]string{"--xds-address", "0.0.0.0:0"}, Usage, []string{"xds.address", "clientCAFile", "insecure"}},
		"audit unwritable":    {[]string{"--audit-file", file + "/x"}, Failed, []string{"audit.file", "--audit-file"}},
		"configuration":       {[]string{"--config", missing}, Usage, []string{missing, "--config"}},
		"bad value":           {[]string{"--access-recheck", "often"}, Usage, []string{"--access-recheck: access.recheck"}},
		"placement":           {[]string{"--placement-enabled"}, Usage, []string{"placement.enabled"}},
		"tls files":           {[]string{"--xds-tls-cert-file", missing, "--xds-tls-key-file", missing}, Usage, []string{"xds.tls", missing}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, config := serveFolder(t, "")
			args := append([]string{"serve", "--config", config}, row.args...)
			r := stile(t, nil, args...).want(t, row.code, row.stderr...)
			if !strings.Contains(r.stderr, "What to do: ") || r.stdout != "" {
				t.Errorf("stdout %q, stderr %s", r.stdout, r.stderr)
			}
		})
	}
}

func TestServe_ConfigurationFaultsAllAtOnce(t *testing.T) {
	t.Parallel()
	_, config := serveFolder(t, "nonsense: 1\naccess: { recheck: often, retyr: 3 }\n")
	stile(t, nil, "serve", "--config", config).want(t, Usage, "3 faults",
		"stile.yaml:8: nonsense: unknown key; known keys: apiVersion, kind, rootNamespace",
		"stile.yaml:9: access.recheck: must be a duration",
		`stile.yaml:9: access.retyr: unknown key; did you mean "retry"?`)
}

func TestServe_KubernetesNeedsAnAPI(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	config := write(t, folder, "stile.yaml", "resources: { kubernetes: { kubeconfig: nothing.yaml } }\n")
	stile(t, nil, "serve", "--config", config).want(t, Usage, "resources.kubernetes", "nothing.yaml", "--kubeconfig")
}

func TestServe_PathsOfAFileAreRelativeToIt(t *testing.T) {
	t.Parallel()
	folder, config := serveFolder(t, "")
	a := &app{stderr: io.Discard, env: environment{"STILE_ENVOY_DIRECTORY=elsewhere"}}
	loaded, err := a.loadConfig(&configInput{file: config, keys: nil})
	if err != nil {
		t.Fatal(err)
	}
	got := []string{loaded.Resources.Directory, loaded.Store.Directory, loaded.Envoy.Directory, loaded.Keys.File, loaded.Modules.URL}
	want := []string{filepath.Join(folder, "resources"), filepath.Join(folder, "data"), "elsewhere", "", ""}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("want %q, got %q", want[i], got[i])
		}
	}
}

func TestOwnListeners_AreForbidden(t *testing.T) {
	t.Parallel()
	s := &service{cfg: v1alpha1.DefaultConfig()}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s.bound.admin = l
	at := l.Addr().(*net.TCPAddr).AddrPort()
	if !s.own(at) {
		t.Error("its own address is not its own")
	}
	if s.own(mustAddrPort("127.0.0.1:1")) || s.own(mustAddrPort("127.0.0.2:"+strings.Split(at.String(), ":")[1])) {
		t.Error("another address is its own")
	}
	all, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = all.Close() })
	s.bound.xds = all
	_, port, _ := net.SplitHostPort(all.Addr().String())
	if !s.own(mustAddrPort("10.1.2.3:" + port)) {
		t.Error("an address of a listener on all addresses is not its own")
	}
}

func TestStatus_NobodyAnswers(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	stile(t, nil, "status", "--server", address).want(t, Unavailable, "--server")
}

func TestAuthorize_IdentityBindsNamespaceAndCluster(t *testing.T) {
	t.Parallel()
	if authorize(nil, nil) != nil {
		t.Error("without identities everybody may")
	}
	for _, row := range []struct {
		glob, text string
		want       bool
	}{
		{"spiffe://a/ns/*/sa/*", "spiffe://a/ns/x/sa/y", true},
		{"spiffe://a/ns/x", "spiffe://a/ns/x/", false},
		{"*", "", true},
		{"a.b", "axb", false},
	} {
		if got := globPattern(row.glob).MatchString(row.text); got != row.want {
			t.Errorf("%q of %q: %v", row.glob, row.text, got)
		}
	}
}

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
