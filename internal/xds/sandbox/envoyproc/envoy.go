// Package envoyproc runs a real Envoy on the loopback as a sandbox.Proxy. Its one
// rule: what it starts it stops, by its process id, and leaves no file behind.
package envoyproc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stileproject/stile/internal/xds/sandbox"
)

const (
	stopGrace    = 5 * time.Second       // from SIGTERM to SIGKILL
	pollInterval = 50 * time.Millisecond // how often the admin address is asked while waiting
	keptLog      = 4 << 10               // of Envoy's last words, for errors
	maxAdmin     = 256 << 20             // bytes of one answer of the admin address
)

// Options say which Envoy, for whom. Path and XDSAddress are required.
type Options struct {
	Path       string       // the envoy binary
	XDSAddress string       // host:port of the xDS server, plain gRPC
	Node       sandbox.Node // how it names itself
	Log        io.Writer    // what Envoy prints; nil = nowhere
	LogLevel   string       // trace, debug, info, warning, error, critical, off; "" = warning
	// DrainTime is how long an old version of a listener lives on, and keeps its
	// extensions subscribed; whole seconds; 0 = Envoy's own 600 s.
	DrainTime time.Duration
}

// Envoy is one Envoy process. It implements sandbox.Proxy.
type Envoy struct {
	node   sandbox.Node
	admin  string // host:port
	dir    string
	cmd    *exec.Cmd
	client *http.Client
	words  *lastWords
	exited chan struct{} // closed when the process is gone

	stop    sync.Once
	stopErr error
}

var _ sandbox.Proxy = (*Envoy)(nil)

// Start starts an Envoy and waits until its admin address answers. ctx bounds the
// start alone; the caller must Stop what it got.
func Start(ctx context.Context, o Options) (*Envoy, error) {
	dir, err := os.MkdirTemp("", "stile-envoy-")
	if err != nil {
		return nil, fmt.Errorf("start envoy: %w", err)
	}
	e, err := launch(o, dir)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("start envoy %s: %w", o.Path, err)
	}
	if err := e.waitForAdmin(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start envoy %s: %w", o.Path, err), e.Stop())
	}
	return e, nil
}

func launch(o Options, dir string) (*Envoy, error) {
	config, err := bootstrap(o)
	if err != nil {
		return nil, err
	}
	bootstrapPath := filepath.Join(dir, "bootstrap.json")
	if err := os.WriteFile(bootstrapPath, config, 0o600); err != nil {
		return nil, err
	}
	level := o.LogLevel
	if level == "" {
		level = "warning"
	}
	e := &Envoy{
		node:   o.Node,
		dir:    dir,
		words:  &lastWords{to: o.Log},
		exited: make(chan struct{}),
		client: &http.Client{
			Timeout:   10 * time.Second,
			Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true},
		},
	}
	// Without hot restart there is no base id to choose and no shared memory or
	// socket that could be left behind.
	args := []string{
		"--config-path", bootstrapPath, "--admin-address-path", e.adminFile(),
		"--disable-hot-restart", "--concurrency", "1", "--log-level", level,
	}
	if o.DrainTime > 0 {
		args = append(args, "--drain-time-s", strconv.Itoa(int(max(o.DrainTime/time.Second, 1))))
	}
	e.cmd = exec.Command(o.Path, args...) //nolint:noctx // the operator's own choice of binary; Stop ends it
	e.cmd.Stdout, e.cmd.Stderr = e.words, e.words
	e.cmd.Dir = dir
	e.cmd.SysProcAttr = processAttributes()
	e.cmd.WaitDelay = time.Second
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = e.cmd.Wait() // how it ended is in ProcessState
		close(e.exited)
	}()
	return e, nil
}

func (e *Envoy) adminFile() string { return filepath.Join(e.dir, "admin-address") }

// waitForAdmin waits for the file in which Envoy writes its admin address.
func (e *Envoy) waitForAdmin(ctx context.Context) error {
	return e.poll(ctx, "its admin address", func() (bool, error) {
		b, err := os.ReadFile(e.adminFile())
		if err != nil || !strings.Contains(string(b), ":") {
			return false, nil //nolint:nilerr // not written yet: ask again
		}
		e.admin = strings.TrimSpace(string(b))
		_, err = e.get(ctx, "/server_info")
		return err == nil, nil
	})
}

// poll asks until done says so, Envoy is gone, or ctx ends.
func (e *Envoy) poll(ctx context.Context, what string, done func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-e.exited:
			return fmt.Errorf("wait for %s: envoy ended (%s): %s", what, e.cmd.ProcessState, e.words)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; envoy's last words: %s", what, ctx.Err(), e.words)
		}
	}
}

// Admin returns the host:port of Envoy's admin address.
func (e *Envoy) Admin() string { return e.admin }

// PID returns the process id.
func (e *Envoy) PID() int { return e.cmd.Process.Pid }

// Address waits until the listener is active and Envoy's workers run.
func (e *Envoy) Address(ctx context.Context, listener string) (string, error) {
	address := ""
	err := e.poll(ctx, "listener "+listener, func() (bool, error) {
		if _, err := e.get(ctx, "/ready"); err != nil {
			return false, nil //nolint:nilerr // not ready yet: ask again
		}
		listeners, err := e.addresses(ctx)
		address = listeners[listener]
		return err == nil && address != "", nil
	})
	return address, err
}

// addresses returns the active listeners and where they serve.
func (e *Envoy) addresses(ctx context.Context) (map[string]string, error) {
	b, err := e.get(ctx, "/listeners?format=json")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Statuses []struct {
			Name    string `json:"name"`
			Address struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("envoy admin /listeners: %w", err)
	}
	addresses := map[string]string{}
	for _, s := range answer.Statuses {
		if s.Address.Socket.Port > 0 {
			addresses[s.Name] = net.JoinHostPort(s.Address.Socket.Address, strconv.Itoa(s.Address.Socket.Port))
		}
	}
	return addresses, nil
}

// get asks the admin address.
func (e *Envoy) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.admin+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAdmin))
	if err != nil {
		return nil, fmt.Errorf("envoy admin %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("envoy admin %s: %s", path, resp.Status)
	}
	return b, nil
}

// Stats returns Envoy's counters and gauges whose names contain the filter.
func (e *Envoy) Stats(ctx context.Context, filter string) (map[string]int64, error) {
	b, err := e.get(ctx, "/stats")
	if err != nil {
		return nil, err
	}
	stats := map[string]int64{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		n, err := strconv.ParseInt(value, 10, 64)
		if err == nil && strings.Contains(name, filter) {
			stats[name] = n
		}
	}
	return stats, nil
}

// Stop asks the process to end, kills it if it does not, and removes its files. It is
// an error if Envoy had ended before by itself.
func (e *Envoy) Stop() error {
	e.stop.Do(func() {
		select {
		case <-e.exited:
			e.stopErr = fmt.Errorf("envoy ended by itself (%s): %s", e.cmd.ProcessState, e.words)
		default:
			_ = e.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-e.exited:
			case <-time.After(stopGrace):
				_ = e.cmd.Process.Kill()
				<-e.exited
			}
		}
		e.client.CloseIdleConnections()
		if err := os.RemoveAll(e.dir); err != nil {
			e.stopErr = errors.Join(e.stopErr, fmt.Errorf("stop envoy: %w", err))
		}
	})
	return e.stopErr
}

// lastWords passes on what Envoy prints and keeps the end of it for errors.
type lastWords struct {
	to io.Writer

	mu   sync.Mutex // guards kept and writes to to
	kept []byte
}

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, b...)
	if over := len(w.kept) - keptLog; over > 0 {
		w.kept = bytes.Clone(w.kept[over:])
	}
	if w.to != nil {
		_, _ = w.to.Write(b) // Envoy must not stop because nobody listens
	}
	return len(b), nil
}

func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.kept) == 0 {
		return "(nothing)"
	}
	return strings.TrimSpace(string(w.kept))
}
