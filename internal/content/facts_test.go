package content

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

// The right ends while the facts are on their way: what was delivered is kept for the
// source, and the one who asked does not hear it.
func TestP2_FactsAreNotToldToWhoLostTheRightMeanwhile(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, r.host())
	d := r.artifact("p", wasmtest.Named("meanwhile"))
	p := w.prove("team-a", r.host()+"/p@"+d)
	var released atomic.Bool
	r.set(func() {
		r.refuse = func(req *http.Request) int {
			if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") && !released.Swap(true) {
				w.gate.Release(access.Holder{Namespace: "team-a", Name: "plugin-1"})
			}
			return 0
		}
	})
	if f, err := w.contents.Facts(testContext(t), p); !errors.Is(err, ErrNotProven) || len(f.Platforms) > 0 {
		t.Fatalf("%+v, %v", f, err)
	}
	if !released.Load() {
		t.Fatal("the config was not asked for")
	}
	other := w.prove("team-b", r.host()+"/p@"+d)
	asked := r.count("GET ")
	if f, err := w.contents.Facts(testContext(t), other); err != nil || len(f.Platforms) != 1 || r.count("GET ") != asked {
		t.Fatalf("who has the right: %+v, %v, %d requests", f, err, r.count("GET ")-asked)
	}
	if _, known := w.contents.KnownFacts(p); known {
		t.Error("known facts are told to who has no right")
	}
}
