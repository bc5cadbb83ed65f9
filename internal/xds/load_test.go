package xds_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// The load test: 10,000 proxies in 100 groups of 10 plugins each, the proxies in a process of
// their own. It runs where STILE_LOAD is the number of proxies:
//
//	STILE_LOAD=10000 go test ./internal/xds -run 'TestLoad$' -v -timeout 20m
//
// STILE_LOAD_TLS=1 has every proxy come with a certificate. Each process needs a descriptor for each proxy.

const (
	loadGroups  = 100
	loadPlugins = 10
)

func loadSnapshot(t testing.TB, file *xds.EnvoyFile, group, changed int) *xds.Snapshot {
	t.Helper()
	var plugins []*v1alpha1.WasmPlugin
	for i := range loadPlugins {
		name := fmt.Sprintf("p%d-%d", group, i)
		plugins = append(plugins, wasmPlugin(name, func(s *v1alpha1.WasmPluginSpec) {
			if i == 0 {
				s.PluginConfig = &v1alpha1.Object{Raw: fmt.Appendf(nil, `{"version": %d}`, changed)}
			}
		}))
	}
	node := plugin.Node{ID: "x", Cluster: fmt.Sprint(group), Namespace: "team-a"}
	plan, _ := plugin.Build(plugin.Inputs{Plugins: plugins, Node: node, Listeners: file.Listeners()})
	in := xds.Input{Plan: plan, File: file, Node: node, Plugins: map[plugin.Key]*v1alpha1.WasmPlugin{}, ModulesURL: "http://127.0.0.1:1",
		Deliver: func(plugin.Key) xds.Delivery { return inline() }}
	for _, p := range plugins {
		in.Plugins[plugin.KeyOf(p)] = p
	}
	return translate(t, in)
}

func TestLoad(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("STILE_LOAD"))
	if err != nil {
		t.Skip("STILE_LOAD is not set")
	}
	if address := os.Getenv("STILE_LOAD_SERVER"); address != "" {
		loadClients(t, n, address)
		return
	}
	file, problems := xds.ParseEnvoy("one.yaml", []byte(oneListener))
	if file == nil {
		t.Fatal(problems)
	}
	server := xds.NewServer(xds.Options{})
	options := xds.ServerOptions()
	if os.Getenv("STILE_LOAD_TLS") != "" {
		folder := t.TempDir()
		t.Setenv("STILE_LOAD_TLS", folder)
		loadCertificates(t, folder)
		options = append(options, grpc.Creds(credentials.NewTLS(loadTLS(folder, true))))
	}
	g := grpc.NewServer(options...)
	server.Register(g)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve(listener) }()
	defer server.Close()
	defer g.Stop()
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case e := <-server.Events():
				if e.Kind == xds.Connected {
					server.Join(e.Stream, e.Node.Cluster)
				}
			case <-over:
				return
			}
		}
	}()
	started := time.Now()
	for i := range loadGroups {
		server.Publish(fmt.Sprint(i), loadSnapshot(t, file, i, 0))
	}
	t.Logf("%d snapshots made in %v", loadGroups, time.Since(started))
	empty := memory()

	fleet, err := xdstest.StartFleet("TestLoad", "STILE_LOAD_SERVER="+listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Stop()
	tell := func(order string) map[string]any {
		said, err := fleet.Tell(order)
		if err != nil {
			t.Fatal(err)
		}
		return said
	}
	cpu := cpuSeconds()
	t.Logf("connect:   %v, server CPU %.1fs", tell("connect"), cpuSeconds()-cpu)
	pause(time.Second)
	full := memory()
	t.Logf("memory:    %.1f KiB for each quiet stream (heap %.1f MiB, stacks %.1f MiB, process %.0f MiB)",
		float64(full.total()-empty.total())/float64(n)/1024, float64(full.heap)/(1<<20), float64(full.stack)/(1<<20), float64(full.rss)/(1<<20))
	cpu = cpuSeconds()
	tell("forget")
	at := time.Now()
	server.Publish("7", loadSnapshot(t, file, 7, 1))
	t.Logf("change:    %v, published in %v, server CPU %.3fs", tell(fmt.Sprint(at.UnixNano())), time.Since(at), cpuSeconds()-cpu)
	if got, want := server.Counts(key("p7-0")), n/loadGroups; got.Accepted != want {
		t.Errorf("counts %+v, want %d accepted", got, want)
	}
	cpu = cpuSeconds()
	t.Logf("reconnect: %v, server CPU %.1fs", tell("reconnect"), cpuSeconds()-cpu)
}

// pause lets what was sent arrive, or not.
func pause(d time.Duration) { <-time.After(d) }

type usage struct{ heap, stack, rss uint64 }

func (u usage) total() uint64 { return u.heap + u.stack }

func memory() usage {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u := usage{heap: m.HeapAlloc, stack: m.StackInuse}
	if status, err := os.ReadFile("/proc/self/status"); err == nil {
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				kib, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
				u.rss = kib << 10
			}
		}
	}
	return u
}

func cpuSeconds() float64 {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// loadMember is one of the proxies.
func loadMember(i, incarnation int) *xdstest.Member {
	group := i % loadGroups
	m := &xdstest.Member{Node: plugin.Node{ID: fmt.Sprintf("%d-%d", i, incarnation), Cluster: fmt.Sprint(group), Namespace: "team-a"}}
	for k := range loadPlugins {
		m.Names = append(m.Names, xds.ResourceName(key(fmt.Sprintf("p%d-%d", group, k))))
	}
	return m
}

// loadClients is the process of the proxies.
func loadClients(t *testing.T, n int, address string) {
	fleet := &xdstest.Fleet{Address: address, TLS: loadTLS(os.Getenv("STILE_LOAD_TLS"), false)}
	for i := range n {
		fleet.Members = append(fleet.Members, loadMember(i, 0))
	}
	if err := fleet.Serve(os.Stdin, os.Stdout); err != nil {
		t.Fatal(err)
	}
	os.Exit(0)
}
