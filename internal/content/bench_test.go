package content

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

// A cold pull, verified, unpacked, judged and durable on disk, in turns with what curl
// and sha256sum would do with the same blob, so that both have the same machine. The
// ratio is that of the medians.
func BenchmarkColdPull(b *testing.B) {
	for _, mib := range []int{1, 10, 50} {
		module := wasmtest.Sized(mib<<20, uint64(mib))
		for _, packaging := range []string{"raw", "tar.gz"} {
			r := newRegistry(b)
			var digest string
			if packaging == "raw" {
				digest = r.artifact("p", module)
			} else {
				digest = r.image("p", "plugin.wasm", module)
			}
			var blob string
			for key := range r.blobs {
				if len(r.blobs[key]) > 1<<19 {
					blob = "/v2/p/blobs/" + strings.TrimPrefix(key, "p ")
				}
			}
			b.Run(fmt.Sprintf("%s/%dMiB", packaging, mib), func(b *testing.B) {
				w := newWorld(b, b.TempDir(), Config{MaxModule: 512 << 20}, r.host())
				p := w.prove("team-a", r.host()+"/p@"+digest)
				b.SetBytes(int64(len(module)))
				var pulls, plains []time.Duration
				for b.Loop() {
					b.StopTimer()
					start := time.Now()
					plainDownload(b, r.URL+blob)
					plains = append(plains, time.Since(start))
					b.StartTimer()
					start = time.Now()
					m := w.mustFetch(p)
					pulls = append(pulls, time.Since(start))
					b.StopTimer()
					w.chill(m)
					b.StartTimer()
				}
				pull, plain := median(pulls), median(plains)
				b.ReportMetric(float64(pull.Microseconds())/1000, "ms-stile")
				b.ReportMetric(float64(plain.Microseconds())/1000, "ms-plain")
				b.ReportMetric(float64(pull)/float64(plain), "ratio")
			})
		}
	}
}

// chill makes a module cold again: what is damaged on disk is forgotten when it is opened.
func (w *world) chill(m Module) {
	w.t.Helper()
	w.contents.mu.Lock()
	clear(w.contents.items)
	clear(w.contents.inline)
	w.contents.mu.Unlock()
	if err := os.Truncate(filepath.Join(w.dir, "content", "modules", m.SHA256), 0); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Open(m.SHA256); err == nil {
		w.t.Fatal("still there")
	}
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// plainDownload is curl -o file and sha256sum of what was sent.
func plainDownload(b *testing.B, url string) {
	b.Helper()
	request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
	if err != nil {
		b.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	f, err := os.Create(filepath.Join(b.TempDir(), "blob"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum), resp.Body); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkModuleWarm(b *testing.B) {
	r := newRegistry(b)
	w := newWorld(b, b.TempDir(), Config{}, r.host())
	p := w.prove("team-a", r.host()+"/p@"+r.artifact("p", wasmtest.Named("warm")))
	w.mustFetch(p)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.contents.Module(p); err != nil {
			b.Fatal(err)
		}
	}
}

// Fifty cold images of a registry that takes 50 ms for each request: side by side.
func TestModule_ColdImagesAreFetchedSideBySide(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	const images, latency = 50, 50 * time.Millisecond
	asks := make([]func() error, images)
	for i := range asks {
		p := w.prove(fmt.Sprint("team-", i%5), r.host()+"/p@"+r.artifact("p", wasmtest.Named(fmt.Sprint(i))))
		asks[i] = func() error {
			_, err := w.contents.Fetch(testContext(t), p)
			return err
		}
	}
	var under, most atomic.Int64
	r.set(func() {
		r.refuse = func(*http.Request) int {
			n := under.Add(1)
			defer under.Add(-1)
			for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
			}
			timer := time.NewTimer(latency)
			<-timer.C
			return 0
		}
	})
	before := r.count("")
	start := time.Now()
	var wg sync.WaitGroup
	for _, ask := range asks {
		wg.Go(func() {
			if err := ask(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	requests := r.count("") - before
	t.Logf("%d requests of %v in %v, %d at a time; one after the other %v", requests, latency, time.Since(start), most.Load(), time.Duration(requests)*latency)
	if most.Load() < 4 {
		t.Errorf("at most %d requests at a time", most.Load())
	}
}
