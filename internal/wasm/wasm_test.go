package wasm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/tetratelabs/wazero"

	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

func reasons(findings []Finding) []string {
	var r []string
	for _, f := range findings {
		r = append(r, f.Severity+" "+f.Reason)
	}
	return r
}

// judged is a module and what is found wrong with it.
type judged struct {
	story string
	bytes []byte
	want  []string
}

func judgedModules() []judged {
	without := func(name string) []string {
		return slices.DeleteFunc(wasmtest.Default(), func(n string) bool { return n == name })
	}
	with := func(names ...string) []string { return append(wasmtest.Default(), names...) }
	good := wasmtest.Module(wasmtest.Options{})
	return []judged{
		{"a good module", good, nil},
		{"nothing at all", nil, []string{"error NotWasm"}},
		{"text", []byte("(module)"), []string{"error NotWasm"}},
		{"an error page", []byte("<html>502 Bad Gateway</html>"), []string{"error NotWasm"}},
		{"a component", []byte("\x00asm\x0d\x00\x01\x00"), []string{"error Component"}},
		{"a version of the future", []byte("\x00asm\x02\x00\x00\x00"), []string{"error UnknownVersion"}},
		{"a header cut off", []byte("\x00asm\x01"), []string{"error UnknownVersion"}},
		{"a module cut off", good[:len(good)-1], []string{"error Malformed"}},
		{"a section cut off", good[:20], []string{"error Malformed"}},
		{"bytes after the end", append(slices.Clone(good), 99), []string{"error Malformed"}},
		{"a section twice", append(slices.Clone(good), 10, 1, 0), []string{"error Malformed"}},
		{"no ABI marker", wasmtest.Module(wasmtest.Options{Functions: without("proxy_abi_version_0_2_1")}), []string{"error NoABI"}},
		{"an unknown ABI alone", wasmtest.Module(wasmtest.Options{Functions: append(without("proxy_abi_version_0_2_1"), "proxy_abi_version_0_3_0")}), []string{"error UnknownABI"}},
		{"an unknown ABI beside a known one", wasmtest.Module(wasmtest.Options{Functions: with("proxy_abi_version_0_3_0")}), nil},
		{"no allocator", wasmtest.Module(wasmtest.Options{Functions: without("malloc")}), []string{"error NoAllocator"}},
		{"the other allocator", wasmtest.Module(wasmtest.Options{Functions: append(without("malloc"), "proxy_on_memory_allocate")}), nil},
		{"no memory", wasmtest.Module(wasmtest.Options{NoMemory: true}), []string{"warning NoMemory"}},
		{"an imported memory", wasmtest.Module(wasmtest.Options{ImportMemory: true}), nil},
		{"an imported table", wasmtest.Module(wasmtest.Options{ImportTable: true}), nil},
		{"an imported global", wasmtest.Module(wasmtest.Options{ImportGlobal: true}), []string{"error UnknownImport"}},
		{"more memory than a host gives", wasmtest.Module(wasmtest.Options{MemoryMin: 20000}), []string{"error MemoryTooLarge"}},
		{"much memory", wasmtest.Module(wasmtest.Options{MemoryMin: 4096}), []string{"warning MemoryLarge"}},
		{"a start function", wasmtest.Module(wasmtest.Options{Start: true}), []string{"warning StartFunction"}},
		{"debug information", wasmtest.Module(wasmtest.Options{Custom: make([]byte, 5<<20)}), []string{"warning DebugInformation"}},
		{"no callbacks", wasmtest.Module(wasmtest.Options{Functions: []string{"proxy_abi_version_0_2_1", "malloc"}}), []string{"warning NoCallbacks"}},
		{"known imports", wasmtest.Module(wasmtest.Options{Imports: []string{"env.proxy_log", "wasi_snapshot_preview1.fd_write", "wasi_unstable.random_get", "env.proxy_get_log_level"}}), nil},
		{"an import of another host", wasmtest.Module(wasmtest.Options{Imports: []string{"env.proxy_make_coffee"}}), []string{"error UnknownImport"}},
		{"an import of another module", wasmtest.Module(wasmtest.Options{Imports: []string{"go.runtime"}}), []string{"error UnknownImport"}},
		{"an import of an older ABI", wasmtest.Module(wasmtest.Options{Imports: []string{"env.proxy_continue_request"}}), []string{"error UnknownImport"}},
		{"a host function with other parameters", wasmtest.Module(wasmtest.Options{Imports: []string{"env.proxy_log:ii>i"}}), []string{"error ImportSignature"}},
		{"a host function that returns more", wasmtest.Module(wasmtest.Options{Imports: []string{"wasi_snapshot_preview1.proc_exit:i>i"}}), []string{"error ImportSignature"}},
		{"a callback with other parameters", wasmtest.Module(wasmtest.Options{Functions: with("proxy_on_tick:i>i")}), []string{"error CallbackSignature"}},
		{"the callbacks of an older ABI", wasmtest.Module(wasmtest.Options{Functions: []string{"proxy_abi_version_0_1_0", "malloc", "proxy_on_request_headers:ii>i"}}), nil},
		{"the callbacks of an older ABI under the newer marker", wasmtest.Module(wasmtest.Options{Functions: []string{"proxy_abi_version_0_2_1", "malloc", "proxy_on_request_headers:ii>i"}}), []string{"error CallbackSignature"}},
		{"everything at once", wasmtest.Module(wasmtest.Options{
			Functions: []string{"main"}, NoMemory: true, Start: true, Imports: []string{"env.x"},
		}), []string{"error NoABI", "error UnknownImport", "warning NoMemory", "error NoAllocator", "warning StartFunction"}},
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	for _, row := range judgedModules() {
		t.Run(row.story, func(t *testing.T) {
			t.Parallel()
			_, findings := Inspect(row.bytes)
			if diff := cmp.Diff(row.want, reasons(findings)); diff != "" {
				t.Errorf("findings (-want +got):\n%s\n%+v", diff, findings)
			}
			for _, f := range findings {
				if f.Fix == "" || f.Message == "" {
					t.Errorf("a finding without a fix: %+v", f)
				}
			}
		})
	}
}

func TestInspect_WhatAModuleIs(t *testing.T) {
	t.Parallel()
	m, findings := Inspect(wasmtest.Module(wasmtest.Options{
		Imports: []string{"env.proxy_log", "env.proxy_done", "env.proxy_log"}, MemoryMin: 17, Custom: []byte("x"),
	}))
	want := Module{
		ABI: []string{"0.2.1"}, Types: []string{HTTP, Network}, Imports: 3,
		Functions: []string{"env.proxy_log", "env.proxy_done"}, Exports: 5, MemoryMin: 17, CustomSize: 8,
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("module (-want +got):\n%s", diff)
	}
	if len(findings) != 0 {
		t.Errorf("findings %+v", findings)
	}
	http := Module{Types: []string{HTTP}}
	if f := CheckType(http, HTTP); f != nil {
		t.Errorf("HTTP plugin: %+v", f)
	}
	if f := CheckType(http, Network); len(f) != 1 || !strings.Contains(f[0].Message, "NETWORK") {
		t.Errorf("NETWORK plugin: %+v", f)
	}
}

func TestInspectReader_AFailingReaderIsNoFindingAlone(t *testing.T) {
	t.Parallel()
	fault := errors.New("disk gone")
	good := wasmtest.Module(wasmtest.Options{})
	for n := range good {
		r := io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(fault))
		if _, findings, err := InspectReader(r); !errors.Is(err, fault) || !Invalid(findings) {
			t.Fatalf("after %d bytes: %v, %+v", n, err, findings)
		}
	}
}

// agrees fails if wazero loads what the section reader calls malformed: a stricter
// reader would keep good modules out. (wazero also looks into code, so that it refuses
// more than the section reader does.)
func agrees(t *testing.T, b []byte) {
	t.Helper()
	_, findings := Inspect(b)
	malformed := slices.ContainsFunc(findings, func(f Finding) bool {
		return slices.Contains([]string{"NotWasm", "Component", "UnknownVersion", "Malformed"}, f.Reason)
	})
	if !malformed {
		return
	}
	ctx := context.Background()
	if m, err := secondOpinion().CompileModule(ctx, b); err == nil {
		_ = m.Close(ctx)
		t.Errorf("wazero loads it, the section reader does not: %+v", findings)
	}
}

// secondOpinion is one runtime for all: making it is what takes time.
var secondOpinion = sync.OnceValue(func() wazero.Runtime {
	return wazero.NewRuntimeWithConfig(context.Background(), wazero.NewRuntimeConfigInterpreter().WithMemoryLimitPages(256))
})

func TestInspect_AgreesWithWazero(t *testing.T) {
	t.Parallel()
	good := wasmtest.Module(wasmtest.Options{Imports: []string{"env.proxy_log"}, Start: true, Custom: []byte("abc")})
	agrees(t, good)
	for i := range good {
		agrees(t, good[:i])
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			b := slices.Clone(good)
			b[i] ^= flip
			agrees(t, b)
		}
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(wasmtest.Module(wasmtest.Options{}))
	f.Add(wasmtest.Module(wasmtest.Options{Imports: []string{"env.proxy_log"}, Start: true, Custom: []byte("abc")}))
	f.Add([]byte("\x00asm\x0d\x00\x01\x00"))
	f.Add([]byte("\x00asm\x01\x00\x00\x00\x02\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, findings := Inspect(b)
		if len(m.Functions) > maxFunctions {
			t.Errorf("%d names kept", len(m.Functions))
		}
		if len(findings) == 0 && len(m.ABI) == 0 {
			t.Error("nothing found, nothing known")
		}
		agrees(t, b)
	})
}

// Whether a reader can leave bytes out makes no difference to what is found, also where
// the module ends before its sections do.
func TestInspectReader_LeavesOutWhatItNeedNotRead(t *testing.T) {
	t.Parallel()
	module := wasmtest.Sized(300<<10, 1)
	for _, size := range []int{len(module), len(module) - 1, len(module) / 2, 200, 8, 0} {
		wantModule, want, err := InspectReader(struct{ io.Reader }{bytes.NewReader(module[:size])})
		if err != nil {
			t.Fatal(err)
		}
		r := &seen{ReadSeeker: bytes.NewReader(module[:size])}
		gotModule, got, err := InspectReader(r)
		if err != nil || !cmp.Equal(gotModule, wantModule) || !cmp.Equal(got, want) {
			t.Errorf("%d bytes: %+v %v %v, want %+v %v", size, gotModule, got, err, wantModule, want)
		}
		if size == len(module) && r.n > 64<<10 {
			t.Errorf("it read %d of %d bytes", r.n, size)
		}
	}
}

type seen struct {
	io.ReadSeeker
	n int
}

func (s *seen) Read(b []byte) (int, error) {
	n, err := s.ReadSeeker.Read(b)
	s.n += n
	return n, err
}
