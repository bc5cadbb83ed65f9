package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// The whole service under load: stile as a process of its own with 10,000 plugins in a folder, and as many proxies
// as STILE_LOAD says in another process: 100 groups, each of which has 10 of its namespace's 100 plugins.
//
//	STILE_LOAD=10000 go test ./test/e2e -run 'TestScale$' -v -timeout 20m
//
// STILE_LOAD_TLS=1 has every proxy come with a certificate. Each process needs a descriptor for each proxy.

const (
	scaleGroups  = 100
	scaleServed  = 10
	scalePlugins = 100 // of each group's namespace
)

// scaleFiles are a namespace's plugins: those that its proxies have, and the others.
func scaleFiles(w *world, group, change int) (served, others string) {
	one := func(i int, app, config string) string {
		return fmt.Sprintf("---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: { name: p%d, namespace: ns-%d }\nspec: { url: '%s', imagePullSecret: regcred, selector: { matchLabels: { app: %s } }, pluginConfig: { group: %d, %s } }\n",
			i, group, w.image("tag:v1"), app, group, config)
	}
	var a, b strings.Builder
	for i := range scalePlugins {
		switch {
		case i == 0:
			a.WriteString(one(i, "gateway", fmt.Sprintf("change: %d", change)))
		case i < scaleServed:
			a.WriteString(one(i, "gateway", "change: 0"))
		default:
			b.WriteString(one(i, "another", "change: 0"))
		}
	}
	return a.String(), b.String()
}

func TestScale(t *testing.T) { //nolint:paralleltest // it measures
	n, err := strconv.Atoi(os.Getenv("STILE_LOAD"))
	if err != nil {
		t.Skip("STILE_LOAD is not set")
	}
	if address := os.Getenv("STILE_LOAD_SERVER"); address != "" {
		scaleFleet(t, n, address)
		return
	}
	w := newWorld(t)
	w.push("tag:v1", tag(t))
	for i := range scaleGroups {
		served, others := scaleFiles(w, i, 0)
		w.write(fmt.Sprintf("resources/ns-%d/served.yaml", i), served)
		w.write(fmt.Sprintf("resources/ns-%d/others.yaml", i), others)
		w.write(fmt.Sprintf("resources/ns-%d/secret.yaml", i), strings.ReplaceAll(w.secret, "team-a", fmt.Sprintf("ns-%d", i)))
	}
	w.envoyFile("listeners:\n" + listener("http", "", hcm("", jwtAndRBAC)))
	folder := os.Getenv("STILE_LOAD_TLS")
	security := ""
	if folder != "" {
		folder = w.folder
		a := newAuthority(t)
		for name, pair := range map[string]func() (string, string){
			"server": func() (string, string) { return a.server("stile.example") },
			"client": func() (string, string) { return a.client("spiffe://cluster.local/ns/all/sa/gateway") },
		} {
			certificate, key := pair()
			w.write(name+".crt", certificate)
			w.write(name+".key", key)
		}
		w.write("ca.crt", a.pem)
		security = ", tls: { certFile: server.crt, keyFile: server.key, clientCAFile: ca.crt }"
	}
	w.configure("xds: { address: '" + w.at.XDS + "'" + security + " }\naccess: { recheck: 1h }\nfetch: { refreshAlways: 0s }\n")
	started := time.Now()
	w.run()
	w.eventually("every plugin is decided", func() error {
		text, err := w.api("/api/v1/plugins")
		if err == nil && strings.Count(text, `"type":"ResolvedRefs","status":"True"`) != scaleGroups*scalePlugins {
			err = fmt.Errorf("%d are", strings.Count(text, `"type":"ResolvedRefs","status":"True"`))
		}
		return err
	})
	t.Logf("%d plugins of %d namespaces read and resolved in %v, CPU %.1fs", scaleGroups*scalePlugins, scaleGroups, time.Since(started).Round(time.Millisecond), w.cpu())
	empty := w.memory()

	fleet, err := xdstest.StartFleet("TestScale", "STILE_LOAD_SERVER="+w.at.XDS, "STILE_LOAD_TLS="+folder)
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Stop()
	tell := func(order string) map[string]any {
		t.Helper()
		said, err := fleet.Tell(order)
		if err != nil {
			t.Fatal(err)
		}
		return said
	}
	step := func(name, order string) map[string]any {
		t.Helper()
		before := w.cpu()
		said := tell(order)
		t.Logf("%-10s %v, server CPU %.2fs", name, said, w.cpu()-before)
		return said
	}
	step("connect", "connect")
	full := w.memory()
	t.Logf("memory     %.1f KiB for each quiet stream; heap and stacks %.0f MiB with no proxy, %.0f MiB with %d, process %.0f MiB",
		float64(full.live-empty.live)/float64(n)/1024, float64(empty.live)/(1<<20), float64(full.live)/(1<<20), n, float64(full.resident)/(1<<20))
	if each := (full.live - empty.live) / int64(n); each > 64<<10 {
		t.Errorf("%d bytes for each quiet stream", each)
	}
	for i := range 5 {
		tell("forget")
		served, _ := scaleFiles(w, 7, i+1)
		at := time.Now()
		w.write("resources/ns-7/served.yaml", served)
		said := step("change", fmt.Sprint(at.UnixNano()))
		if said["reached"] != float64(n/scaleGroups) {
			t.Errorf("the change reached %v proxies", said["reached"])
		}
	}
	if said := step("reconnect", "reconnect"); said["resourceBytes"] != 0.0 {
		t.Errorf("%v bytes of resources were sent to proxies that have them", said["resourceBytes"])
	}
}

// scaleFleet is the process of the proxies.
func scaleFleet(t *testing.T, n int, address string) {
	f := &xdstest.Fleet{Address: address}
	if folder := os.Getenv("STILE_LOAD_TLS"); folder != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(folder, "client.crt"), filepath.Join(folder, "client.key"))
		if err != nil {
			t.Fatal(err)
		}
		ca, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		f.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool, ServerName: "stile.example"}
	}
	for i := range n {
		namespace := fmt.Sprintf("ns-%d", i%scaleGroups)
		m := &xdstest.Member{Node: plugin.Node{ID: fmt.Sprintf("gw-%d", i), Cluster: "edge", Namespace: namespace, Labels: map[string]string{"app": "gateway"}}}
		for k := range scaleServed {
			m.Names = append(m.Names, xds.ResourceName(plugin.Key{Namespace: namespace, Name: fmt.Sprintf("p%d", k)}))
		}
		f.Members = append(f.Members, m)
	}
	if err := f.Serve(os.Stdin, os.Stdout); err != nil {
		t.Fatal(err)
	}
	os.Exit(0)
}

// cpu is the processor time that stile's process has used, in seconds.
func (w *world) cpu() float64 {
	w.Helper()
	return w.metric("process_cpu_seconds_total")
}

// metric is the value of a metric without labels.
func (w *world) metric(name string) float64 {
	w.Helper()
	text, err := w.api("/metrics")
	if err != nil {
		w.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				w.Fatal(err)
			}
			return v
		}
	}
	w.Fatalf("no metric %s", name)
	return 0
}

type usage struct{ live, resident int64 }

// memory is what stile's process has in memory after a collection: its heap and stacks, and all of it.
func (w *world) memory() usage {
	w.Helper()
	for range 2 {
		response, err := client.Get("http://" + w.at.Admin + "/debug/pprof/heap?gc=1")
		if err != nil {
			w.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			w.Fatal(response.Status)
		}
	}
	return usage{
		live:     int64(w.metric("go_memstats_heap_alloc_bytes") + w.metric("go_memstats_stack_inuse_bytes")),
		resident: int64(w.metric("process_resident_memory_bytes")),
	}
}
