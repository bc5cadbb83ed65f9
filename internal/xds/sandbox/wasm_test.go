package sandbox

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"

	"github.com/stileproject/stile/internal/proxywasm"
)

func TestWasmFilter_FailReloadMakesANewVM(t *testing.T) {
	t.Parallel()
	module, err := os.ReadFile("../../proxywasm/testdata/traps.wasm")
	if err != nil {
		t.Fatal(err)
	}
	load := func() (*proxywasm.Plugin, error) {
		return proxywasm.New(t.Context(), proxywasm.Options{Bytes: module})
	}
	first, err := load()
	if err != nil {
		t.Fatal(err)
	}
	w := &wasmFilter{policy: wasmv3.FailurePolicy_FAIL_RELOAD, reload: load, plugin: first, loaded: time.Now()}
	defer w.close()
	pass := func() int {
		s := w.open()
		defer s.done()
		var body []byte
		if answer := s.request(&proxywasm.Headers{}, &body); answer != nil {
			return answer.Status
		}
		return 200
	}
	if got := pass(); got != 503 || first.Err() == nil {
		t.Fatalf("a trap: %d, %v", got, first.Err())
	}
	if pass(); w.plugin != first {
		t.Error("it was reloaded at once")
	}
	w.loaded = time.Now().Add(-2 * reloadAfter)
	if pass(); w.plugin == first {
		t.Error("it was not reloaded in time")
	}
}

// What a plugin writes into :path is a path, whatever it looks like.
func TestForward_APathIsNoHost(t *testing.T) {
	t.Parallel()
	l := &listener{owner: New(Options{Upstream: "127.0.0.1:1"})}
	for _, path := range []string{"@127.0.0.1:2/", ":3/", "", "http://127.0.0.1:2/"} {
		h := proxywasm.Headers{{Name: ":method", Value: "GET"}, {Name: ":path", Value: path}}
		got := l.forward(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil), h, nil, nil, 0)
		if status, _ := got.headers.Get(":status"); status != "400" {
			t.Errorf("%q: %s", path, status)
		}
	}
}
