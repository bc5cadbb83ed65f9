package xdstest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// Member is one proxy of many: delta, over a connection of its own, with small buffers. It asks
// for clusters, listeners and the extensions that it is told to ask for, and answers everything.
type Member struct {
	Node  plugin.Node
	Names []string // of extensions
	// Refuse tells which extensions it refuses; nil: none.
	Refuse func(*discoveryv3.Resource) bool
	// Got is told of every response, on the goroutine of the stream; nil: nobody is.
	Got func(*discoveryv3.DeltaDiscoveryResponse)

	have       map[string]map[string]string // versions by type, over connections
	configured bool
	cancel     context.CancelFunc
	conn       *grpc.ClientConn
	ended      chan struct{}
}

// Open connects, in the clear where security is nil, telling what it had when it was last connected. What is returned is closed once
// the member has a listener and all its extensions.
func (m *Member) Open(address string, security *tls.Config) (<-chan struct{}, error) {
	c := insecure.NewCredentials()
	if security != nil {
		c = credentials.NewTLS(security)
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(c), grpc.WithReadBufferSize(2<<10), grpc.WithWriteBufferSize(2<<10))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		cancel()
		return nil, errors.Join(err, conn.Close())
	}
	m.conn, m.cancel, m.ended = conn, cancel, make(chan struct{})
	if m.have == nil {
		m.have = map[string]map[string]string{}
	}
	ask := func(typeURL string, names ...string) {
		_ = stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, InitialResourceVersions: m.have[typeURL], ResourceNamesSubscribe: names})
	}
	_ = stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: Node(m.Node), TypeUrl: xds.ClusterType, InitialResourceVersions: m.have[xds.ClusterType]})
	ask(xds.ListenerType)
	ask(xds.ExtensionType, m.Names...)
	done := make(chan struct{})
	if m.configured {
		close(done)
	}
	go func() {
		defer close(m.ended)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			if m.Got != nil {
				m.Got(r)
			}
			_ = stream.Send(m.answer(r))
			if !m.configured && len(m.have[xds.ListenerType]) > 0 && len(m.have[xds.ExtensionType]) == len(m.Names) {
				m.configured = true
				close(done)
			}
		}
	}()
	return done, nil
}

// answer notes what came and says yes or no to it.
func (m *Member) answer(r *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if r.GetTypeUrl() == xds.ExtensionType && m.Refuse != nil && slices.ContainsFunc(r.GetResources(), m.Refuse) {
		answer.ErrorDetail = Failure("Unable to create Wasm plugin")
		return answer
	}
	versions := m.have[r.GetTypeUrl()]
	if versions == nil {
		versions = map[string]string{}
		m.have[r.GetTypeUrl()] = versions
	}
	for _, name := range r.GetRemovedResources() {
		delete(versions, name)
	}
	for _, x := range r.GetResources() {
		versions[x.GetName()] = x.GetVersion()
	}
	return answer
}

// Close ends the connection.
func (m *Member) Close() {
	if m.conn == nil {
		return
	}
	m.cancel()
	_ = m.conn.Close()
	<-m.ended
	m.conn = nil
}

// Fleet is many members in a process of their own, which FleetProcess drives from another.
type Fleet struct {
	Address string
	TLS     *tls.Config // nil: in the clear
	Members []*Member
}

// Serve does what it is told, a line each, until there is no more: "connect", "reconnect", "forget"
// (counts from now on), or a time in nanoseconds since when answers are looked at. It says what came of it in JSON.
func (f *Fleet) Serve(in io.Reader, out io.Writer) error {
	var mu sync.Mutex
	var times []int64
	var received atomic.Int64
	for _, m := range f.Members {
		m.Got = func(r *discoveryv3.DeltaDiscoveryResponse) {
			if len(r.GetResources()) == 0 {
				return
			}
			received.Add(int64(proto.Size(r)))
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Now().UnixNano())
		}
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		said := map[string]any{}
		switch order := lines.Text(); order {
		case "connect", "reconnect":
			received.Store(0)
			for _, m := range f.Members {
				if m.conn != nil {
					m.cancel()
				}
			}
			for _, m := range f.Members {
				m.Close()
			}
			started := time.Now()
			if err := f.open(); err != nil {
				return err
			}
			said["took"] = time.Since(started).String()
			if order == "reconnect" {
				<-time.After(2 * time.Second) // what would be sent has the time to come
			}
			said["proxies"], said["resourceBytes"] = len(f.Members), received.Load()
		case "forget":
			mu.Lock()
			times = nil
			mu.Unlock()
			received.Store(0)
		default:
			at, err := strconv.ParseInt(order, 10, 64)
			if err != nil {
				return err
			}
			<-time.After(3 * time.Second)
			mu.Lock()
			slices.Sort(times)
			said["reached"], said["bytes"] = len(times), received.Load()
			if n := len(times); n > 0 {
				said["p50"], said["p99"] = time.Duration(times[n/2]-at).String(), time.Duration(times[n*99/100]-at).String()
			}
			mu.Unlock()
		}
		text, err := json.Marshal(said)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(out, string(text))
	}
	return lines.Err()
}

// open opens all, 64 at a time, and waits until all are configured.
func (f *Fleet) open() error {
	limit := make(chan struct{}, 64)
	errs := make(chan error, len(f.Members))
	var wg sync.WaitGroup
	for _, m := range f.Members {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			done, err := m.Open(f.Address, f.TLS)
			if err != nil {
				errs <- err
				return
			}
			<-done
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// FleetProcess is this test's binary running a Fleet.
type FleetProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// StartFleet runs one test of this binary, with these variables, as the process of a fleet.
func StartFleet(test string, env ...string) (*FleetProcess, error) {
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$")
	cmd.Env, cmd.Stderr = append(os.Environ(), env...), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &FleetProcess{cmd: cmd, in: in, out: bufio.NewScanner(out)}, cmd.Start()
}

// Tell gives an order and returns what came of it.
func (p *FleetProcess) Tell(order string) (map[string]any, error) {
	if _, err := fmt.Fprintln(p.in, order); err != nil {
		return nil, err
	}
	for p.out.Scan() {
		var said map[string]any
		if json.Unmarshal(p.out.Bytes(), &said) == nil {
			return said, nil
		}
	}
	return nil, errors.New("the fleet has ended")
}

// Stop ends the process.
func (p *FleetProcess) Stop() {
	_ = p.in.Close()
	_ = p.cmd.Wait()
}
