package proxywasm_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/proxywasm"
	"github.com/stileproject/stile/modules"
)

// A guest with a runtime of its own: three megabytes of Go, built here.
func TestGoGuest(t *testing.T) {
	t.Parallel()
	module := buildGuest(t)
	t.Run("headers, environment, properties, output", func(t *testing.T) { t.Parallel(); testGuest(t, module) })
	t.Run("every host function", func(t *testing.T) { t.Parallel(); testHostFunctions(t, module) })
}

func buildGuest(t *testing.T) []byte {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a module with the Go tool")
	}
	out := filepath.Join(t.TempDir(), "goplugin.wasm")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", out, "./testdata/goplugin")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, text)
	}
	module, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return module
}

// The guest traps where an answer is not what the ABI says; its words are in the log.
func testHostFunctions(t *testing.T, module []byte) {
	t.Helper()
	p := start(t, proxywasm.Options{
		Bytes: module, Name: "self", RootID: "root", VMID: "vm", Config: []byte(`{"value":"selftest"}`),
		Properties: map[string]string{"xds.node.id": "gw-0"}, Timeout: time.Minute,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	s, err := p.Stream(map[string]string{"source.address": "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Done()
	h := request()
	if action, _, err := s.OnRequestHeaders(&h, false); err != nil || action != proxywasm.Continue {
		t.Fatal(action, err)
	}
	if diff := cmp.Diff(request(), h); diff != "" {
		t.Error(diff)
	}
	_, _, local, err := s.OnRequestBody([]byte("body"))
	want := &proxywasm.LocalResponse{Status: 418, Details: "self_test", Body: []byte("done"), Headers: proxywasm.Headers{{Name: "x-way", Value: "out"}}, GRPCStatus: 5}
	if diff := cmp.Diff(want, local); diff != "" || err != nil {
		t.Error(diff, err)
	}
	h = proxywasm.Headers{{Name: ":status", Value: "200"}}
	if action, _, err := s.OnResponseHeaders(&h, false); err != nil || action != proxywasm.Pause {
		t.Fatal(action, err)
	}
	action, body, _, err := s.OnResponseBody([]byte("body"))
	if err != nil || action != proxywasm.Continue || string(body) != "...body..." {
		t.Error(action, string(body), err)
	}
	if diff := cmp.Diff(map[string]int64{"self_tests": 9, "level": 5}, p.Metrics()); diff != "" {
		t.Error(diff)
	}
}

func testGuest(t *testing.T, module []byte) {
	t.Helper()
	var log bytes.Buffer
	p := start(t, proxywasm.Options{
		Bytes: module, Config: []byte(`{"value":"hello"}`), Env: map[string]string{"GREETING": "from outside"},
		Log: slog.New(slog.NewTextHandler(&log, nil)), Timeout: time.Minute,
	})
	for range 3 {
		h := request()
		if _, _, err := open(t, p).OnRequestHeaders(&h, true); err != nil {
			t.Fatal(err)
		}
		if got, _ := h.Get("x-go"); got != "hello from outside /" {
			t.Errorf("x-go: %q", got)
		}
	}
	if !strings.Contains(log.String(), `msg="goplugin: configured"`) {
		t.Errorf("what it prints is not in the log: %s", log.String())
	}
	if diff := cmp.Diff(map[string]int{}, p.Unimplemented()); diff != "" {
		t.Error(diff)
	}
}

// Whatever the bytes: no panic, and an end in time and memory.
func FuzzNew(f *testing.F) {
	names, err := filepath.Glob("testdata/*.wasm")
	if err != nil || len(names) == 0 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "{}")
	}
	f.Add(modules.Badge(), `{"name":"a"}`)
	f.Add(modules.Toll(), "")
	f.Fuzz(func(t *testing.T, module []byte, config string) {
		p, err := proxywasm.New(t.Context(), proxywasm.Options{Bytes: module, Config: []byte(config), MemoryPages: 64, Timeout: 50 * time.Millisecond})
		if err != nil {
			if !errors.Is(err, proxywasm.ErrModule) && !errors.Is(err, proxywasm.ErrFailed) && !errors.Is(err, proxywasm.ErrRefused) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		defer p.Close()
		s, err := p.Stream(nil)
		if err != nil {
			return
		}
		defer s.Done()
		h := request()
		_, _, _ = s.OnRequestHeaders(&h, false)
		_, _, _, _ = s.OnRequestBody([]byte("body"))
		_, _, _ = s.OnResponseHeaders(&h, true)
	})
}
