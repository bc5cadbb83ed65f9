package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/source"
)

// Many plugins with a Secret each: one list of plugins, and a get and a watch for each Secret. STILE_LOAD=1000 is what
// docs/benchmarks.md reports.
func TestRequestsAndTimeOfManyPlugins(t *testing.T) { //nolint:paralleltest // it measures
	c := newCluster(t, kubetest.API(t))
	n, err := strconv.Atoi(os.Getenv("STILE_LOAD"))
	if err != nil {
		n = 100
	}
	var makers sync.WaitGroup
	todo := make(chan int)
	for range 8 {
		makers.Go(func() {
			for i := range todo {
				name := fmt.Sprintf("p%04d", i)
				text := wasmPlugin("A", name, fmt.Sprintf(`url: "oci://registry.example/%s:v1", imagePullSecret: %s`, name, name)) + c.pullSecret("A", name, c.canary.Credential())
				if err := c.server.TryApply(nil, c.names(text)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		todo <- i
	}
	close(todo)
	makers.Wait()

	var connections atomic.Int32
	c.account.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		connections.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	before, goroutines := memory(), runtime.NumGoroutine()
	begin := time.Now()
	c.watchFirst()
	took := time.Since(begin)
	if len(c.last.Plugins) != n || len(c.last.Secrets) != n || c.worlds != 1 {
		t.Fatalf("the first World has %d plugins and %d Secrets", len(c.last.Plugins), len(c.last.Secrets))
	}
	if name := os.Getenv("STILE_LOAD_HEAP"); name != "" { // where it went, for go tool pprof
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		if err := errors.Join(pprof.WriteHeapProfile(f), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	requests := len(c.requests.all())
	after := memory()
	t.Logf("%d plugins with a Secret each: first World after %v; %d requests, %d of them for plugins, %d for Secrets; %.1f KiB and %.1f goroutines a plugin; %d connections",
		n, took.Round(time.Millisecond), requests, c.requests.count("/wasmplugins"), c.requests.count("/secrets"),
		float64(after-before)/1024/float64(n), float64(runtime.NumGoroutine()-goroutines)/float64(n), connections.Load())
	if got := c.requests.count("/secrets"); got != 2*n {
		t.Errorf("%d requests for %d Secrets, want a get and a watch each", got, n)
	}
	if rest := requests - c.requests.count("/secrets"); rest > 12 {
		t.Errorf("%d requests beside those for Secrets, however many plugins there are:\n%s", rest, strings.Join(c.requests.all()[:20], "\n"))
	}

	// One change among many costs no request at all.
	key := source.Key{Namespace: c.a, Name: "p0007"}
	old := c.last.Secrets[key]
	c.apply(c.pullSecret("A", "p0007", c.canary.Credential()))
	changed := c.sees(func(w *source.World) string {
		if w.Secrets[key] == old {
			return "the new content"
		}
		return ""
	})
	c.apply(wasmPlugin("A", "p0008", `url: "oci://registry.example/p0008:v2", imagePullSecret: p0008`))
	edited := c.sees(func(w *source.World) string {
		if w.Plugin(source.Key{Namespace: c.a, Name: "p0008"}).Generation != 2 {
			return "the new generation"
		}
		return ""
	})
	t.Logf("a Secret's change was seen after %v, a plugin's after %v", changed.Round(time.Millisecond), edited.Round(time.Millisecond))
	if got := len(c.requests.all()) - requests; got != 0 {
		t.Errorf("%d requests for two changes: %q", got, c.requests.all()[requests:])
	}
}

// memory is what is in use of heap and stacks.
func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
