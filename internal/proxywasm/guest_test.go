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
	_, err = proxywasm.New(t.Context(), proxywasm.Options{Bytes: module, Config: []byte(`{`), Timeout: time.Minute})
	if !errors.Is(err, proxywasm.ErrRefused) {
		t.Errorf("a configuration that is no JSON: %v", err)
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
