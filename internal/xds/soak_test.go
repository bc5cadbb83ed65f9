package xds_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/internal/xds/xdstest"
)

// TestSoak has proxies come, go and refuse while plugins change, for as long as STILE_SOAK says, and then wants the
// server to hold no more goroutines, descriptors and heap than after its first tenth. make soak runs it.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("STILE_SOAK"))
	if err != nil {
		t.Skip("STILE_SOAK is not set")
	}
	file, problems := xds.ParseEnvoy("one.yaml", []byte(oneListener))
	if file == nil {
		t.Fatal(problems)
	}
	server := xds.NewServer(xds.Options{})
	g := grpc.NewServer(xds.ServerOptions()...)
	server.Register(g)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, over := make(chan struct{}), make(chan struct{})
	go func() { defer close(served); _ = g.Serve(listener) }()
	t.Cleanup(func() { close(over); g.Stop(); <-served; server.Close() })
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
	const groups, proxies = 10, 200
	for i := range groups {
		server.Publish(fmt.Sprint(i), loadSnapshot(t, file, i, 0))
	}
	members := make([]*xdstest.Member, proxies)
	var refusals atomic.Int64
	connect := func(i, incarnation int) {
		m := loadMember(i, incarnation%5)
		m.Node.Cluster = fmt.Sprint(i % groups)
		m.Names = loadMember(i%groups, 0).Names
		if i%3 == 0 { // every second version of the plugin that changes, which then stands in or stays as it was
			m.Refuse = func(r *discoveryv3.Resource) bool {
				v := r.GetVersion()
				refuses := r.GetName() == m.Names[0] && !strings.HasPrefix(v, "standin") && v[0] < '8'
				if refuses {
					refusals.Add(1)
				}
				return refuses
			}
		}
		done, err := m.Open(listener.Addr().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		<-done
		members[i] = m
	}
	for i := range members {
		connect(i, 0)
	}
	measure := func() (goroutines, descriptors int, heap uint64) {
		pause(2 * time.Second)
		entries, _ := os.ReadDir("/proc/self/fd")
		heap = memory().heap
		return runtime.NumGoroutine(), len(entries), heap
	}
	rounds, began := 0, time.Now()
	churn := func(until time.Duration) {
		for time.Since(began) < until {
			rounds++
			i := rand.IntN(proxies)
			members[i].Close()
			connect(i, rounds)
			server.Publish(fmt.Sprint(i%groups), loadSnapshot(t, file, i%groups, rounds))
		}
	}
	churn(length / 10)
	goroutines, descriptors, heap := measure()
	t.Logf("after %v, %d rounds: %d goroutines, %d descriptors, heap %.1f MiB", time.Since(began).Round(time.Second), rounds, goroutines, descriptors, float64(heap)/(1<<20))
	churn(length)
	goroutines2, descriptors2, heap2 := measure()
	t.Logf("after %v, %d rounds: %d goroutines, %d descriptors, heap %.1f MiB", time.Since(began).Round(time.Second), rounds, goroutines2, descriptors2, float64(heap2)/(1<<20))
	if name := os.Getenv("STILE_SOAK_HEAP"); name != "" { // where it went, for go tool pprof
		if f, err := os.Create(name); err == nil {
			_ = errors.Join(pprof.WriteHeapProfile(f), f.Close())
		}
	}
	if goroutines2 > goroutines+goroutines/20 || descriptors2 > descriptors+10 || heap2 > heap+heap/5+4<<20 {
		t.Error("something grows")
	}
	if refusals.Load() == 0 {
		t.Error("nobody has refused anything")
	}
	t.Logf("%d refusals", refusals.Load())
	for _, m := range members {
		m.Close()
	}
}
