// Package envoytest starts a real Envoy for tests, on loopback and on ports that Envoy picks itself. It knows
// nothing of xDS beyond an address to put into the bootstrap.
package envoytest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Version is the version of Envoy that test/envoy/fetch.sh fetches and that the tests describe.
const Version = "1.40.0"

// Path returns the Envoy to test with: STILE_ENVOY, else the one that test/envoy/fetch.sh keeps in the user's
// cache. Without one the test fails, unless STILE_NO_ENVOY is set: then it is skipped.
func Path(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("STILE_ENVOY"); path != "" {
		return path
	}
	if cache, err := os.UserCacheDir(); err == nil {
		path := filepath.Join(cache, "stile", "envoy-"+Version, "envoy")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	if os.Getenv("STILE_NO_ENVOY") != "" {
		t.Skip("NOT TESTED WITH A REAL ENVOY: STILE_NO_ENVOY is set and no Envoy is at hand")
	}
	t.Fatal("no Envoy at hand: run test/envoy/fetch.sh, set STILE_ENVOY, or set STILE_NO_ENVOY=1 to skip")
	return ""
}

// Options says what Envoy starts with.
type Options struct {
	XDS      string            // address of the ADS server; empty = none, only Static
	ID       string            // node id; empty = "test"
	Cluster  string            // node cluster; empty = "test"
	Metadata map[string]any    // node metadata
	Clusters map[string]string // static clusters: name to address of the only endpoint
	Delta    bool              // ADS in its delta form; default state of the world
	CDS      bool              // ask for clusters over ADS too
	Runtime  map[string]any    // a static runtime layer
	Extra    map[string]any    // further fields of the bootstrap
	// Bootstrap is a whole bootstrap in YAML. With it no other field counts: what a user starts Envoy with is
	// started as it is.
	Bootstrap string
}

// Envoy is a running Envoy. It ends with its test.
type Envoy struct {
	t       testing.TB
	admin   string
	log     *logBuffer
	Process *os.Process
	done    chan struct{} // closed when the process is gone
}

// Start starts Envoy and waits until its admin interface answers; listeners may come later. When the test fails,
// the end of Envoy's log is part of the test's.
func Start(t testing.TB, o Options) *Envoy {
	t.Helper()
	path := Path(t)
	dir := t.TempDir()
	config, data := filepath.Join(dir, "bootstrap.yaml"), []byte(o.Bootstrap)
	if o.Bootstrap == "" {
		var err error
		config = filepath.Join(dir, "bootstrap.json")
		if data, err = json.MarshalIndent(bootstrap(o), "", "  "); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(config, data, 0o600); err != nil {
		t.Fatal(err)
	}

	adminFile := filepath.Join(dir, "admin")
	e := &Envoy{t: t, log: &logBuffer{}, done: make(chan struct{})}
	// Without hot restart Envoy makes no shared memory, so that any number can run and none leaves anything behind.
	// The end of the test's context kills it; Cleanup, which comes after, waits until it is gone.
	command := exec.CommandContext(t.Context(), path, "--config-path", config, "--admin-address-path", adminFile, "--concurrency", "1",
		"--disable-hot-restart", "--log-level", "info", "--component-log-level", "wasm:debug,config:debug")
	command.Stdout, command.Stderr = e.log, e.log
	if err := command.Start(); err != nil {
		t.Fatalf("start envoy: %v", err)
	}
	e.Process = command.Process
	go func() {
		_ = command.Wait() // how it ended does not matter; that it ended does
		close(e.done)
	}()
	t.Cleanup(func() {
		<-e.done
		if t.Failed() {
			t.Logf("envoy's log, its end:\n%s", e.log.tail(12000))
		}
	})

	e.Eventually("the admin interface answers", func() error {
		address, err := os.ReadFile(adminFile)
		if err != nil {
			return err
		}
		e.admin = strings.TrimSpace(string(address))
		_, err = e.Admin("/server_info")
		return err
	})
	return e
}

// Kill ends Envoy at once and waits until it is gone.
func (e *Envoy) Kill() {
	_ = e.Process.Kill() // it may be gone already
	<-e.done
}

// Log returns what Envoy has logged so far.
func (e *Envoy) Log() string { return e.log.tail(-1) }

// Admin returns the answer of Envoy's admin interface to a GET of path; a status other than 200 is an error.
func (e *Envoy) Admin(path string) (string, error) {
	ctx, cancel := context.WithTimeout(e.t.Context(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.admin+path, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("GET %s: %s: %s", path, response.Status, bytes.TrimSpace(body))
	}
	return string(body), nil
}

// Ready tells whether Envoy has finished its start and so accepts connections.
func (e *Envoy) Ready() bool {
	_, err := e.Admin("/ready")
	return err == nil
}

// WaitReady waits until Envoy accepts connections.
func (e *Envoy) WaitReady() {
	e.t.Helper()
	e.Eventually("envoy is ready", func() error { _, err := e.Admin("/ready"); return err })
}

// Listener waits for the named listener and returns the address it listens on.
func (e *Envoy) Listener(name string) string {
	e.t.Helper()
	var address string
	e.Eventually("listener "+name+" is active", func() error {
		body, err := e.Admin("/listeners?format=json")
		if err != nil {
			return err
		}
		var all struct {
			Statuses []struct {
				Name  string `json:"name"`
				Local struct {
					Socket struct {
						Address string `json:"address"`
						Port    int    `json:"port_value"`
					} `json:"socket_address"`
				} `json:"local_address"`
			} `json:"listener_statuses"`
		}
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			return err
		}
		for _, l := range all.Statuses {
			if l.Name == name && l.Local.Socket.Port != 0 {
				address = fmt.Sprintf("%s:%d", l.Local.Socket.Address, l.Local.Socket.Port)
				return nil
			}
		}
		return fmt.Errorf("not among %s", body)
	})
	return address
}

// Stat returns the value of the statistic with exactly this name, 0 if Envoy has none yet.
func (e *Envoy) Stat(name string) int {
	e.t.Helper()
	body, err := e.Admin("/stats?format=json")
	if err != nil {
		e.t.Fatal(err)
	}
	var all struct {
		Stats []struct {
			Name  string `json:"name"`
			Value any    `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		e.t.Fatal(err)
	}
	for _, s := range all.Stats {
		if n, ok := s.Value.(float64); ok && s.Name == name {
			return int(n)
		}
	}
	return 0
}

// Eventually waits, up to 20 s, until try returns nil, and fails the test with its last error otherwise. It also
// fails when Envoy is gone.
func (e *Envoy) Eventually(what string, try func() error) {
	e.t.Helper()
	const patience, pause = 20 * time.Second, 20 * time.Millisecond
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-e.done:
			e.t.Fatalf("waiting until %s: envoy has ended", what)
		case <-deadline.C:
			e.t.Fatalf("waiting until %s: %v", what, err)
		case <-tick.C:
		}
	}
}

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
