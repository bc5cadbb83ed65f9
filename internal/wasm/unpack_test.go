package wasm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

type tarFile struct {
	name string
	data []byte
	kind byte
}

func tarOf(files ...tarFile) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Typeflag: f.kind}
		if f.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeSymlink {
			h.Linkname, h.Size = "/etc/passwd", 0
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if h.Size > 0 {
			_, _ = w.Write(f.data)
		}
	}
	_ = w.Close()
	return out.Bytes()
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	module := wasmtest.Named("the module")
	other := wasmtest.Named("another")
	plugin := tarFile{name: "plugin.wasm", data: module}
	for _, row := range []struct {
		story     string
		form      Form
		in        []byte
		packaging string
		err       error
	}{
		{"raw", FormAny, module, "raw", nil},
		{"gzip", FormAny, gz(module), "raw", nil},
		{"zstd", FormAny, zst(module), "raw", nil},
		{"gzip in zstd", FormAny, zst(gz(module)), "raw", nil},
		{"tar, whatever the name", FormAny, tarOf(tarFile{name: "x.wasm", data: module}, tarFile{name: "plugin.wasm", data: other}), "tar", nil},
		{"tar.gz", FormAny, gz(tarOf(plugin)), "tar", nil},
		{"tar.zst", FormAny, zst(tarOf(plugin)), "tar", nil},
		{"gzip in tar in gzip", FormAny, gz(tarOf(tarFile{name: "m.wasm.gz", data: gz(module)})), "tar", nil},
		{"tar with folders and links before it", FormAny, tarOf(tarFile{name: "d/", kind: tar.TypeDir}, tarFile{name: "l", kind: tar.TypeSymlink}, plugin), "tar", nil},
		{"layer", FormLayer, tarOf(plugin), "tar", nil},
		{"layer, gzip", FormLayer, gz(tarOf(plugin)), "tar", nil},
		{"layer, zstd", FormLayer, zst(tarOf(plugin)), "tar", nil},
		{"layer with other files", FormLayer, gz(tarOf(tarFile{name: "a.wasm", data: other}, tarFile{name: "./etc/plugin.wasm", data: module}, tarFile{name: "plugin.wasm", data: other})), "tar", nil},
		{"a link named plugin.wasm is no module", FormLayer, tarOf(tarFile{name: "plugin.wasm", kind: tar.TypeSymlink}), "tar", ErrNoModule},
		{"a name that leads out is only a name", FormLayer, tarOf(tarFile{name: "../../../../etc/plugin.wasm", data: module}), "tar", nil},
		{"an absolute name", FormLayer, tarOf(tarFile{name: "/plugin.wasm", data: module}), "tar", nil},
		{"layer without it", FormLayer, gz(tarOf(tarFile{name: "other.wasm", data: module})), "tar", ErrNoModule},
		{"layer that is no tar", FormLayer, gz(module), "raw", ErrNoModule},
		{"layer, empty tar", FormLayer, tarOf(), "tar", ErrNoModule},
		{"plugin.wasm that is something else", FormLayer, tarOf(tarFile{name: "plugin.wasm", data: []byte("#!/bin/sh")}), "tar", ErrNoModule},
		{"nothing", FormAny, nil, "raw", ErrNoModule},
		{"a page", FormAny, []byte("<html>not found</html>"), "raw", ErrNoModule},
		{"tar in tar", FormAny, tarOf(tarFile{name: "a.tar", data: tarOf(plugin)}), "tar", ErrArchive},
		{"gzip cut off", FormAny, gz(module)[:30], "raw", ErrArchive},
		{"tar.gz cut off", FormLayer, gz(tarOf(plugin))[:60], "", ErrArchive},
		{"gzip with padding after it", FormLayer, append(gz(tarOf(plugin)), make([]byte, 512)...), "tar", nil},
		{"zstd with padding after it", FormLayer, append(zst(tarOf(plugin)), make([]byte, 512)...), "tar", nil},
		{"gzip whose checksum is wrong", FormLayer, func() []byte { b := gz(tarOf(plugin)); b[len(b)-5] ^= 1; return b }(), "tar", ErrArchive},
		{"zstd cut off", FormAny, zst(bytes.Repeat(module, 1000))[:30], "raw", ErrArchive},
	} {
		t.Run(row.story, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			n, packaging, err := Unpack(&out, iotest.OneByteReader(bytes.NewReader(row.in)), row.form, Limits{})
			if row.err != nil {
				if !errors.Is(err, row.err) {
					t.Fatalf("error %v, want %v", err, row.err)
				}
				return
			}
			if err != nil || !bytes.Equal(out.Bytes(), module) || n != int64(len(module)) {
				t.Fatalf("got %d bytes, %v", out.Len(), err)
			}
			if packaging != row.packaging {
				t.Errorf("packaging %s, want %s", packaging, row.packaging)
			}
		})
	}
}

func TestUnpack_ALimitIsAnErrorAndNeverATruncatedModule(t *testing.T) {
	t.Parallel()
	module := wasmtest.Sized(1<<20, 1)
	small := wasmtest.Named("small")
	exact := Limits{Module: int64(len(module))}
	below := Limits{Module: int64(len(module)) - 1}
	bomb := func(n int) []byte { return append([]byte(Magic+"\x01\x00\x00\x00"), make([]byte, n)...) }
	many := make([]tarFile, 200)
	for i := range many {
		many[i] = tarFile{name: strings.Repeat("x", i+1), data: []byte("y")}
	}
	nest := func(b []byte, depth int) []byte {
		for range depth {
			b = gz(b)
		}
		return b
	}
	for _, row := range []struct {
		story  string
		form   Form
		in     []byte
		limits Limits
		what   string
	}{
		{"exactly at the limit", FormAny, module, exact, ""},
		{"exactly at the limit, in tar.gz", FormLayer, gz(tarOf(tarFile{name: "plugin.wasm", data: module})), exact, ""},
		{"one byte over", FormAny, module, below, "module"},
		{"one byte over, in tar.gz", FormLayer, gz(tarOf(tarFile{name: "plugin.wasm", data: module})), below, "module"},
		{"gzip bomb", FormAny, gz(bomb(4 << 20)), Limits{Module: 1 << 20}, "module"},
		{"zstd bomb", FormAny, zst(bomb(4 << 20)), Limits{Module: 1 << 20}, "module"},
		{"bomb in another entry", FormLayer, gz(tarOf(tarFile{name: "big", data: make([]byte, 4<<20)}, tarFile{name: "plugin.wasm", data: module})), Limits{Module: 2 << 20, Archive: 3 << 20}, "archive"},
		{"bomb before a tar", FormLayer, gz(make([]byte, 4<<20)), Limits{Module: 1 << 20}, ""},
		{"many entries", FormLayer, tarOf(many...), Limits{Entries: 100}, "entries"},
		{"nested to the limit", FormAny, nest(small, 4), Limits{}, ""},
		{"nested beyond", FormAny, nest(small, 5), Limits{}, "depth"},
		{"nested far beyond", FormAny, nest(small, 50), Limits{}, "depth"},
		{"a zstd window for the whole memory", FormAny, []byte(magicZstd + "\x00\x80\x01\x00\x00"), Limits{}, "archive"},
	} {
		t.Run(row.story, func(t *testing.T) {
			var out bytes.Buffer
			_, _, err := Unpack(&out, bytes.NewReader(row.in), row.form, row.limits)
			var limit *LimitError
			switch {
			case errors.As(err, &limit):
				if limit.What != row.what || limit.Raise == "" {
					t.Fatalf("limit %+v, want %q", limit, row.what)
				}
			case row.what != "":
				t.Fatalf("error %v, want the limit %q", err, row.what)
			case err == nil && !bytes.Equal(out.Bytes(), module) && !bytes.Equal(out.Bytes(), small):
				t.Fatalf("%d bytes and no error: truncated", out.Len())
			}
		})
	}
}

func TestUnpack_ATarHeaderDoesNotSizeAnything(t *testing.T) { //nolint:paralleltest // it measures what the process allocates
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	_ = w.WriteHeader(&tar.Header{Name: "plugin.wasm", Size: 200 << 30, Typeflag: tar.TypeReg})
	_, _ = w.Write(wasmtest.Named("short"))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err := Unpack(io.Discard, &out, FormLayer, Limits{})
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Fatal("a tar that ends early was taken")
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
		t.Errorf("%d bytes allocated", grown)
	}
}

func TestUnpack_TheReadersErrorIsTheReadersError(t *testing.T) {
	t.Parallel()
	fault := errors.New("connection reset")
	for _, whole := range [][]byte{wasmtest.Sized(100_000, 1), gz(wasmtest.Sized(100_000, 1)), zst(wasmtest.Sized(100_000, 1)), gz(tarOf(tarFile{name: "plugin.wasm", data: wasmtest.Sized(100_000, 1)}))} {
		for _, n := range []int{0, 1, 10, 600, len(whole) / 2} {
			r := io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(fault))
			if _, _, err := Unpack(io.Discard, r, FormAny, Limits{}); !errors.Is(err, fault) {
				t.Errorf("after %d bytes: %v", n, err)
			}
		}
	}
}

func FuzzUnpack(f *testing.F) {
	module := wasmtest.Named("m")
	for _, b := range [][]byte{module, gz(module), zst(module), tarOf(tarFile{name: "plugin.wasm", data: module}), gz(tarOf(tarFile{name: "plugin.wasm", data: module})), zst(tarOf(tarFile{name: "a", data: gz(module)}))} {
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, layer bool) {
		form := FormAny
		if layer {
			form = FormLayer
		}
		limits := Limits{Module: 64 << 10, Archive: 256 << 10, Entries: 100}
		var out bytes.Buffer
		n, _, err := Unpack(&out, bytes.NewReader(b), form, limits)
		if int64(out.Len()) > limits.Module || n != int64(out.Len()) {
			t.Errorf("%d bytes written, %d told", out.Len(), n)
		}
		if err == nil && !bytes.HasPrefix(out.Bytes(), []byte(Magic)) {
			t.Errorf("delivered %q", out.Bytes()[:min(out.Len(), 8)])
		}
	})
}
