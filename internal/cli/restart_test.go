package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// TestP9_ARestartNeedsNoRegistry ends stile and starts it again on the same folder while
// the registry is gone: a proxy that connects then runs the same plugins, and the same
// configuration, byte for byte.
func TestP9_ARestartNeedsNoRegistry(t *testing.T) {
	t.Parallel()
	d := newDemo(&app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, env: os.Environ()})
	d.proxyKind = "sandbox"
	w, err := d.build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.end(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := w.push(t.Context()); err != nil {
		t.Fatal(err)
	}
	run := func(proxy string) string {
		t.Helper()
		if err := w.serve(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, err := w.startProxy(t.Context(), "team-a-gw-0", "team-a")
		if err != nil {
			t.Fatal(err)
		}
		w.proxies[proxy] = p
		if _, err := w.waitFor(t.Context(), proxy, "badge,toll"); err != nil {
			t.Fatal(err)
		}
		return w.resourceVersion(t, "team-a", "extensions.istio.io/wasmplugin/team-a.badge")
	}
	before := run("first")
	if err := w.proxies["first"].Stop(); err != nil {
		t.Error(err)
	}
	w.stop()
	if err := <-w.died; err != nil {
		t.Fatalf("the end of serve: %v", err)
	}
	w.registry.Down()
	count := w.registry.RequestCount()
	began := time.Now()
	if after := run("second"); after != before {
		t.Errorf("the configuration changed with the restart: version %s, then %s", before, after)
	}
	if got := w.registry.RequestCount() - count; got != 0 {
		t.Errorf("the registry, which is down, answered %d requests", got)
	}
	t.Logf("the proxy answered %s after the restart", time.Since(began).Round(time.Millisecond))
}

// resourceVersion asks for one ECDS resource, as a proxy of the namespace, and returns
// its version: a hash of its content, without the try that tells spellings of it apart.
func (w *demoWorld) resourceVersion(t *testing.T, namespace, name string) string {
	t.Helper()
	conn, err := grpc.NewClient(w.stile.XDS, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client := xdstest.OpenDelta(t, conn, plugin.Node{ID: "probe", Cluster: "demo", Namespace: namespace, Labels: map[string]string{"app": "gateway"}})
	defer client.Close()
	client.Ask(xds.ExtensionType, nil, name)
	answer := client.Next()
	if len(answer.GetResources()) != 1 {
		t.Fatalf("%s: want one resource, have %v", name, answer.GetResources())
	}
	version, _, _ := strings.Cut(answer.GetResources()[0].GetVersion(), "~")
	return version
}
