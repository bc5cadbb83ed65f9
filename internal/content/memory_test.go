package content

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

// hugeModule is a module of size bytes that exists nowhere as a whole.
func hugeModule(size int) (read func() io.Reader, total int64) {
	good := wasmtest.Module(wasmtest.Options{})
	name := []byte("\x06filler")
	head := append(bytes.Clone(good), 0) // a custom section of the size
	head = append(head, wasmtest.Uint(uint64(size+len(name)))...)
	head = append(head, name...)
	read = func() io.Reader {
		return io.MultiReader(bytes.NewReader(head), io.LimitReader(&pattern{}, int64(size)))
	}
	return read, int64(len(head) + size)
}

type pattern struct{ at int }

var patternBlock = wasmtest.Sized(1<<16, 1)

func (p *pattern) Read(b []byte) (int, error) {
	n := copy(b, patternBlock[p.at:])
	p.at = (p.at + n) % len(patternBlock)
	return n, nil
}

// A module of 200 MiB is fetched, unpacked, judged, stored and read back with less than
// 32 MiB of heap.
func TestModule_MemoryDoesNotGrowWithTheModule(t *testing.T) { //nolint:paralleltest // it measures the heap of the process
	size := 200 << 20
	if raceEnabled {
		size = 48 << 20 // compressing 200 MiB would take minutes, to show nothing more
	}
	read, total := hugeModule(size)
	sum := sha256.New()
	if _, err := io.Copy(sum, read()); err != nil {
		t.Fatal(err)
	}
	rawDigest := newDigest([32]byte(sum.Sum(nil)))

	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(z, io.MultiReader(bytes.NewReader(tarHeader("plugin.wasm", total)), read(), bytes.NewReader(make([]byte, 512-int(total%512)+1024))))
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}

	r := newRegistry(t)
	raw := r.put("p", typeOCIManifest, imageOf(imageConfigBlob(r, "p"), descriptor{MediaType: "application/wasm", Digest: rawDigest, Size: total}))
	tarred := r.put("p", typeOCIManifest, imageOf(imageConfigBlob(r, "p"), r.blob("p", ociTarGzip, packed.Bytes())))
	usual := r.Server.Config.Handler
	r.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, rawDigest) {
			_, _ = io.CopyBuffer(struct{ io.Writer }{w}, read(), make([]byte, 64<<10))
			return
		}
		usual.ServeHTTP(w, req)
	})
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	for _, digest := range []string{raw, tarred} {
		p := w.prove("team-a", r.host()+"/p@"+digest)
		peak := heapPeak(func() {
			m := w.mustFetch(p)
			if m.Size != total || "sha256:"+m.SHA256 != rawDigest || m.Inline != nil {
				t.Errorf("module %+v", m)
			}
			f, err := w.contents.Open(p)
			if err != nil {
				t.Error(err)
				return
			}
			n, err := io.Copy(io.Discard, f)
			if err = errors.Join(err, f.Close()); err != nil || n != total {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
		t.Logf("peak of the heap: %d KiB for a module of %d MiB", peak>>10, total>>20)
		if peak > 32<<20 {
			t.Errorf("the heap grew by %d MiB", peak>>20)
		}
	}
}

// heapPeak returns by how much the heap grew at most while do ran.
func heapPeak(do func()) uint64 {
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	done, peaks := make(chan struct{}), make(chan uint64)
	go func() {
		var peak uint64
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapInuse)
			select {
			case <-tick.C:
			case <-done:
				peaks <- peak
				return
			}
		}
	}()
	do()
	close(done)
	peak := <-peaks
	return peak - min(peak, before.HeapInuse)
}

// tarHeader is the header of one file.
func tarHeader(name string, size int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00")
	b[156] = '0'
	copy(b[257:], "ustar\x0000")
	copy(b[148:], "        ")
	var sum int
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}
