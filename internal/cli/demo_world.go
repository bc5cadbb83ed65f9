package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/envoyproc"
	"github.com/stileproject/stile/modules"
)

// demoWorld is everything that the demo starts.
type demoWorld struct {
	demo     *demo
	envoy    string // path of a real Envoy; empty: the sandbox
	folder   string
	files    []string // as they were written, for people
	log      *os.File // what stile and the proxies say
	registry *localregistry.Registry
	password map[string]string // of each tenant
	images   map[string]string // by module
	upstream *httptest.Server
	client   *http.Client
	sent     http.Header // what each request is sent with

	stop    context.CancelFunc // ends stile
	died    chan error         // stile's end
	stile   serveAddresses
	proxies map[string]demoProxy
}

// demoProxy is a proxy and the address of its listener.
type demoProxy struct {
	sandbox.Proxy
	address string
}

// build makes the folder, the registry and the upstream. Nothing is left behind if it fails.
func (d *demo) build(ctx context.Context) (_ *demoWorld, err error) {
	envoy, err := d.chooseProxy()
	if err != nil {
		return nil, err
	}
	w := &demoWorld{
		demo: d, envoy: envoy, images: map[string]string{}, proxies: map[string]demoProxy{},
		password: map[string]string{"team-a": d.password("team-a"), "team-b": d.password("team-b"), "publisher": d.password("publisher")},
		client:   &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
		sent:     http.Header{},
		died:     make(chan error, 1),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.end())
		}
	}()
	if w.folder, err = os.MkdirTemp("", "stile-demo-"); err != nil {
		return w, fmt.Errorf("demo: %w", err)
	}
	for _, sub := range []string{"resources", "envoy", "data"} {
		if err := os.Mkdir(filepath.Join(w.folder, sub), 0o700); err != nil {
			return w, fmt.Errorf("demo: %w", err)
		}
	}
	if w.log, err = os.OpenFile(filepath.Join(w.folder, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return w, fmt.Errorf("demo: %w", err)
	}
	mode := localregistry.Bearer
	if d.openRegistry {
		mode = localregistry.Open
	}
	w.registry, err = localregistry.Start(localregistry.Options{Mode: mode, Users: w.password, TokenLife: time.Second, TokenMarker: d.tokenMarker})
	if err != nil {
		return w, fmt.Errorf("demo: %w", err)
	}
	w.upstream = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(r.Header)
	}))
	return w, ctx.Err()
}

// end stops everything, the last first, and removes the folder.
func (w *demoWorld) end() error {
	var errs []error
	for _, p := range w.proxies {
		errs = append(errs, p.Stop())
	}
	if w.stop != nil {
		w.stop()
		errs = append(errs, <-w.died)
	}
	if w.upstream != nil {
		w.upstream.Close()
	}
	if w.registry != nil {
		errs = append(errs, w.registry.Close())
	}
	w.client.CloseIdleConnections()
	if w.log != nil {
		errs = append(errs, w.log.Close())
	}
	if w.folder != "" {
		errs = append(errs, os.RemoveAll(w.folder))
	}
	return errors.Join(errs...)
}

func (w *demoWorld) proxyName() string {
	if w.envoy != "" {
		return "envoy"
	}
	return "sandbox"
}

// addresses tells people where everything is.
func (w *demoWorld) addresses() []string {
	lines := []string{
		"admin     http://" + w.stile.Admin + "/api/v1/plugins",
		"xDS       " + w.stile.XDS,
		"modules   http://" + w.stile.Modules,
		"registry  http://" + w.registry.Host() + " (users team-a, team-b; their passwords are in the folder's Secrets)",
		"upstream  " + w.upstream.URL,
		"folder    " + w.folder,
	}
	for _, name := range []string{"team-a", "team-b"} {
		if p, ok := w.proxies[name]; ok {
			lines = append(lines, fmt.Sprintf("%-9s curl -i http://%s/", name, p.address))
		}
	}
	return lines
}

// push puts the modules into the registry, each in a packaging of its own.
func (w *demoWorld) push(ctx context.Context) ([]string, error) {
	root, err := secret.NewRoot([]byte(rand.Text()[:16]+rand.Text()[:16]), nil)
	if err != nil {
		return nil, err
	}
	key := root.Key(secret.ForFingerprints)
	host := w.registry.Host()
	client, err := oci.NewClient(oci.Settings{Registries: []oci.Registry{{Host: host, PlainHTTP: true}}, Key: key})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	trust, err := client.Trust(host, oci.Operator)
	if err != nil {
		return nil, err
	}
	publisher := oci.NewCredential(key, "the demo's publisher", "publisher", w.password["publisher"])
	w.registry.Allow("publisher", localregistry.Everywhere, localregistry.Pull, localregistry.Push)
	w.restore("team-a")
	var lines []string
	for _, m := range []struct {
		name   string
		bytes  []byte
		layout oci.Layout
	}{{"badge", modules.Badge(), oci.LayoutArtifact}, {"toll", modules.Toll(), oci.LayoutOCI}} {
		image := host + "/team-a/" + m.name + ":v1"
		ref, err := oci.ParseReference(image)
		if err != nil {
			return lines, err
		}
		digest, err := client.Push(ctx, m.bytes, ref, m.layout, publisher, trust)
		if err != nil {
			return lines, err
		}
		w.images[m.name] = image
		lines = append(lines, fmt.Sprintf("%-9s %s, %d bytes, layout %s, %s…", m.name, image, len(m.bytes), m.layout, digest[:19]))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/v2/team-a/badge/manifests/v1", nil)
	if err != nil {
		return lines, err
	}
	anonymous, err := w.client.Do(req)
	if err != nil {
		return lines, err
	}
	_ = anonymous.Body.Close()
	return append(lines, fmt.Sprintf("%-9s asked without a password, it answers %d", "registry", anonymous.StatusCode)), nil
}

// restore gives a tenant the right to both modules; revoke takes it away.
func (w *demoWorld) restore(tenant string) {
	for _, m := range []string{"badge", "toll"} {
		w.registry.Allow(tenant, "team-a/"+m, localregistry.Pull)
	}
}

func (w *demoWorld) revoke(tenant string) {
	for _, m := range []string{"badge", "toll"} {
		w.registry.Revoke(tenant, "team-a/"+m)
	}
}

// serve writes the folder and starts stile on it, by the code path of "stile serve".
func (w *demoWorld) serve(ctx context.Context) error {
	host := w.registry.Host()
	_, port, err := net.SplitHostPort(w.upstream.Listener.Addr().String())
	if err != nil {
		return err
	}
	inline := "8Mi"
	if w.demo.remote {
		inline = "0"
	}
	texts := []struct{ path, text string }{
		{"resources/team-a.yaml", demoSecret("team-a", host, "team-a", w.password["team-a"]) + "---\n" +
			demoPlugin("team-a", "badge", w.images["badge"], "AUTHN", 10, "badge") + "---\n" + demoToll("team-a", w.images["toll"])},
		{"resources/team-b.yaml", demoSecret("team-b", host, "team-b", w.password["team-b"]) + "---\n" +
			demoPlugin("team-b", "badge", w.images["badge"], "AUTHN", 10, "badge")},
		{"envoy/demo.yaml", strings.ReplaceAll(demoEnvoy, "%d", port)},
		{"stile.yaml", fmt.Sprintf(demoConfig, w.folder, host, inline)},
	}
	for _, f := range texts {
		if err := w.write(f.path, f.text); err != nil {
			return err
		}
		w.files = append(w.files, fmt.Sprintf("%-9s %s", "", f.path))
	}
	// Without the environment: a STILE_* variable must not change the demo.
	cfg, err := (&app{}).loadConfig(&configInput{file: filepath.Join(w.folder, "stile.yaml")})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	w.stop = stop
	ready := make(chan serveAddresses, 1)
	go func() {
		w.died <- runServe(running, cfg.Config, serveHooks{
			Log:     slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			Started: func(a serveAddresses) { ready <- a },
		})
	}()
	select {
	case w.stile = <-ready:
		return nil
	case err := <-w.died:
		w.died <- nil
		return fmt.Errorf("serve ended: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write replaces a file of the folder at once.
func (w *demoWorld) write(name, text string) error {
	path := filepath.Join(w.folder, name)
	if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return os.Rename(path+".tmp", path)
}

// addSecondPlugin gives team-a one more plugin on the image that it already runs.
func (w *demoWorld) addSecondPlugin() error {
	return w.write("resources/team-a-again.yaml", demoPlugin("team-a", "again", w.images["badge"], "UNSPECIFIED_PHASE", 0, "again"))
}

// startProxy starts a proxy of a tenant and waits for its listener.
func (w *demoWorld) startProxy(ctx context.Context, id, namespace string) (demoProxy, error) {
	node := sandbox.Node{ID: id, Cluster: "demo", Namespace: namespace, Labels: map[string]string{"app": "gateway"}}
	var p sandbox.Proxy
	var err error
	if w.envoy != "" {
		p, err = envoyproc.Start(ctx, envoyproc.Options{Path: w.envoy, XDSAddress: w.stile.XDS, Node: node, Log: w.log})
	} else {
		p = sandbox.Start(sandbox.Options{XDSAddress: w.stile.XDS, Node: node, Log: slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	}
	if err != nil {
		return demoProxy{}, fmt.Errorf("proxy %s: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*w.demo.patience)
	defer cancel()
	address, err := p.Address(ctx, "http")
	if err != nil {
		return demoProxy{}, errors.Join(fmt.Errorf("proxy %s: %w", id, err), p.Stop())
	}
	return demoProxy{Proxy: p, address: address}, nil
}

// chain is the order of filters in a tenant's listener.
func (w *demoWorld) chain(tenant string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	state, err := w.proxies[tenant].State(ctx)
	if err != nil {
		return err.Error()
	}
	listener, _ := state.Listener("http")
	var names []string
	for _, f := range listener.Filters {
		names = append(names, strings.TrimPrefix(f, "extensions.istio.io/wasmplugin/"))
	}
	return strings.Join(names, " > ")
}

// badgeDownloads counts what a plugin of team-a asks for badge if it has nothing to build
// on: its tag, its blobs. Re-checks of the proof that is there go on all the while; they
// ask for the digest.
func (w *demoWorld) badgeDownloads() int {
	n := 0
	for _, r := range w.registry.Requests() {
		if r.User == "team-a" && strings.HasPrefix(r.Path, "/v2/team-a/badge/") && !strings.Contains(r.Path, "/manifests/sha256:") {
			n++
		}
	}
	return n
}

// stale returns nil once a re-check of badge has found no registry.
func (w *demoWorld) stale(ctx context.Context) error {
	var list struct {
		Items []struct {
			Image      string
			StaleSince *time.Time
		}
	}
	if err := w.admin(ctx, "/api/v1/proofs", &list); err != nil {
		return err
	}
	for _, p := range list.Items {
		if strings.Contains(p.Image, "/team-a/badge@") && p.StaleSince != nil {
			return nil
		}
	}
	return errors.New("no re-check has found the registry gone")
}

// admin reads an answer of the admin API.
func (w *demoWorld) admin(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.stile.Admin+path, nil)
	if err != nil {
		return err
	}
	res, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	return json.NewDecoder(res.Body).Decode(into)
}

// demoAnswer is what a request met: the status, and the headers that the upstream saw.
type demoAnswer struct {
	code int
	seen http.Header
}

// get sends one request through a proxy.
func (w *demoWorld) get(ctx context.Context, proxy string) (demoAnswer, error) {
	p, ok := w.proxies[proxy]
	if !ok {
		return demoAnswer{}, fmt.Errorf("%s has no proxy", proxy)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+"/", nil)
	if err != nil {
		return demoAnswer{}, err
	}
	req.Header = w.sent.Clone()
	res, err := w.client.Do(req)
	if err != nil {
		return demoAnswer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	a := demoAnswer{code: res.StatusCode}
	if res.StatusCode == http.StatusOK {
		if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&a.seen); err != nil {
			return a, fmt.Errorf("the upstream's answer: %w", err)
		}
	}
	return a, nil
}

// waitFor sends requests until one passes, and the upstream sees the trail.
func (w *demoWorld) waitFor(ctx context.Context, proxy, trail string) (demoAnswer, error) {
	var got demoAnswer
	err := w.poll(ctx, func() error {
		var err error
		if got, err = w.get(ctx, proxy); err != nil {
			return err
		}
		if have := strings.Join(got.seen.Values(demoTrail), ","); got.code != http.StatusOK || have != trail {
			return fmt.Errorf("%s: want 200 with %s: %q, have %d with %q", proxy, demoTrail, trail, got.code, have)
		}
		return nil
	})
	return got, err
}

// until asks the admin API for a plugin until its status is as expected.
func (w *demoWorld) until(ctx context.Context, plugin string, ok func(engine.PluginStatus) error) (engine.PluginStatus, error) {
	var found engine.PluginStatus
	err := w.poll(ctx, func() error {
		var list struct{ Items []engine.PluginStatus }
		if err := w.admin(ctx, "/api/v1/plugins", &list); err != nil {
			return err
		}
		for _, s := range list.Items {
			if s.Namespace+"/"+s.Name == plugin {
				found = s
				return ok(s)
			}
		}
		return fmt.Errorf("%s is not in /api/v1/plugins", plugin)
	})
	return found, err
}

// poll tries until there is no error, patience ends or the error is final.
func (w *demoWorld) poll(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, w.demo.patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		final, isFinal := errors.AsType[hopeless](err)
		switch {
		case err == nil:
			return nil
		case isFinal:
			return final.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", w.demo.patience, err)
		case <-tick.C:
		}
	}
}
