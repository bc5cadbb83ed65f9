package xds_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// The load test: 10,000 proxies in 100 groups of 10 plugins each, the proxies in a process of
// their own. It runs where STILE_LOAD is the number of proxies:
//
//	STILE_LOAD=9900 go test ./internal/xds -run 'TestLoad$' -v -timeout 20m
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
		loadClients(n, address)
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
		options = append(options, grpc.Creds(loadCredentials(folder, true)))
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

	client := exec.Command(os.Args[0], "-test.run=^TestLoad$")
	client.Env = append(os.Environ(), "STILE_LOAD_SERVER="+listener.Addr().String())
	client.Stderr = os.Stderr
	in, _ := client.StdinPipe()
	out, _ := client.StdoutPipe()
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	tell := func(s string) map[string]any {
		fmt.Fprintln(in, s)
		for lines.Scan() {
			var m map[string]any
			if json.Unmarshal(lines.Bytes(), &m) == nil {
				return m
			}
		}
		t.Fatal("the clients have ended")
		return nil
	}
	cpu := cpuSeconds()
	t.Logf("connect:   %v, server CPU %.1fs", tell("connect"), cpuSeconds()-cpu)
	pause(time.Second)
	full := memory()
	t.Logf("memory:    %.1f KiB for each quiet stream (heap %.1f MiB, stacks %.1f MiB, process %.0f MiB)",
		float64(full.total()-empty.total())/float64(n)/1024, float64(full.heap)/(1<<20), float64(full.stack)/(1<<20), float64(full.rss)/(1<<20))
	cpu = cpuSeconds()
	fmt.Fprintln(in, "change")
	at := time.Now()
	server.Publish("7", loadSnapshot(t, file, 7, 1))
	t.Logf("change:    %v, published in %v, server CPU %.3fs", tell(fmt.Sprint(at.UnixNano())), time.Since(at), cpuSeconds()-cpu)
	if got, want := server.Counts(key("p7-0")), n/loadGroups; got.Accepted != want {
		t.Errorf("counts %+v, want %d accepted", got, want)
	}
	cpu = cpuSeconds()
	t.Logf("reconnect: %v, server CPU %.1fs", tell("reconnect"), cpuSeconds()-cpu)
	in.Close()
	_ = client.Wait()
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

// loadClient is one proxy: delta, over a connection of its own.
type loadClient struct {
	node      plugin.Node
	have      map[string]map[string]string
	resources int
	cancel    context.CancelFunc
	conn      *grpc.ClientConn
}

// loadClients is the process of the proxies.
func loadClients(n int, address string) {
	clients := make([]*loadClient, n)
	for i := range clients {
		clients[i] = &loadClient{node: plugin.Node{ID: fmt.Sprint(i), Cluster: fmt.Sprint(i % loadGroups), Namespace: "team-a"}, have: map[string]map[string]string{}}
	}
	var configured atomic.Int64
	var received atomic.Int64
	var mu sync.Mutex
	var times []int64
	var started time.Time
	each := func(first bool) {
		limit := make(chan struct{}, 64)
		var wg sync.WaitGroup
		for _, c := range clients {
			limit <- struct{}{}
			wg.Go(func() {
				defer func() { <-limit }()
				c.open(address, first, func(r *discoveryv3.DeltaDiscoveryResponse) {
					if len(r.GetResources()) > 0 {
						received.Add(int64(proto.Size(r)))
						mu.Lock()
						times = append(times, time.Now().UnixNano())
						mu.Unlock()
					}
				}, func() { configured.Add(1) })
			})
		}
		wg.Wait()
	}
	say := func(m map[string]any) {
		b, _ := json.Marshal(m)
		fmt.Println(string(b))
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "connect":
			started = time.Now()
			each(true)
			for configured.Load() < int64(n) {
				pause(10 * time.Millisecond)
			}
			say(map[string]any{"configured": configured.Load(), "took": time.Since(started).String(), "bytes": received.Load()})
			received.Store(0)
		case "change":
			mu.Lock()
			times = nil
			mu.Unlock()
		case "reconnect":
			received.Store(0)
			started = time.Now()
			for _, c := range clients {
				c.cancel()
				_ = c.conn.Close()
			}
			each(false)
			pause(2 * time.Second)
			say(map[string]any{"took": (time.Since(started) - 2*time.Second).String(), "resourceBytes": received.Load()})
		default:
			at, _ := strconv.ParseInt(in.Text(), 10, 64)
			pause(2 * time.Second)
			mu.Lock()
			slices.Sort(times)
			m := map[string]any{"reached": len(times), "bytes": received.Load()}
			if len(times) > 0 {
				m["p50"] = time.Duration(times[len(times)/2] - at).String()
				m["p99"] = time.Duration(times[len(times)*99/100] - at).String()
			}
			mu.Unlock()
			say(m)
		}
	}
	os.Exit(0)
}

func (c *loadClient) open(address string, first bool, got func(*discoveryv3.DeltaDiscoveryResponse), done func()) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(loadCredentials(os.Getenv("STILE_LOAD_TLS"), false)),
		grpc.WithReadBufferSize(2<<10), grpc.WithWriteBufferSize(2<<10))
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.conn, c.cancel = conn, cancel
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		panic(err)
	}
	have := map[string]map[string]string{}
	for typeURL, versions := range c.have {
		have[typeURL] = versions
	}
	var names []string
	for i := range loadPlugins {
		names = append(names, xds.ResourceName(key(fmt.Sprintf("p%s-%d", c.node.Cluster, i))))
	}
	_ = stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: xdstest.Node(c.node), TypeUrl: xds.ClusterType, InitialResourceVersions: have[xds.ClusterType]})
	_ = stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ListenerType, InitialResourceVersions: have[xds.ListenerType]})
	_ = stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ExtensionType, InitialResourceVersions: have[xds.ExtensionType], ResourceNamesSubscribe: names})
	opened := make(chan struct{})
	if !first {
		close(opened)
	}
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			got(r)
			versions := map[string]string{}
			for name, v := range c.have[r.GetTypeUrl()] {
				versions[name] = v
			}
			for _, x := range r.GetResources() {
				versions[x.GetName()] = x.GetVersion()
			}
			c.have[r.GetTypeUrl()] = versions
			_ = stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
			if c.resources += len(r.GetResources()); first && c.resources == loadPlugins+2 {
				done()
				close(opened)
			}
		}
	}()
	<-opened
}
