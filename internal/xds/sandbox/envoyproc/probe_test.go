package envoyproc_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/adstest"
	"github.com/stileproject/stile/internal/xds/sandbox/envoyproc"
	"github.com/stileproject/stile/modules"
)

func TestProbe(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "trail=%s toll=%s\n", r.Header.Values("x-stile-trail"), r.Header.Get("x-stile-toll"))
	}))
	defer up.Close()
	host, p, _ := net.SplitHostPort(up.Listener.Addr().String())
	port, _ := strconv.Atoi(p)
	s := adstest.Start(t)
	s.Set(adstest.ClusterType, "c1", adstest.Cluster("upstream", host, port))
	s.Set(adstest.ListenerType, "l1", adstest.HTTPListener("in", adstest.Discovered("a", 2*time.Second, adstest.Closed()), adstest.Discovered("b", 2*time.Second, adstest.Closed())))
	s.SetExtension("a", "a1", adstest.Inline("vm-a", modules.Badge(), `{"name":"first"}`))
	s.SetExtension("b", "b1", adstest.Inline("vm-b", modules.Toll(), ``))
	e, err := envoyproc.Start(t.Context(), envoyproc.Options{Path: os.Getenv("STILE_ENVOY"), XDSAddress: s.Address(), Log: os.Stderr,
		Node: sandbox.Node{ID: "n", Cluster: "edge", Namespace: "team-a", Labels: map[string]string{"app": "gw"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Stop()
	addr, err := e.Address(t.Context(), "in")
	if err != nil {
		t.Fatal(err)
	}
	get := func(hdr ...string) {
		t.Helper()
		req, _ := http.NewRequest("GET", "http://"+addr, nil)
		for _, h := range hdr {
			req.Header.Set(h, "1")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		b, _ := io.ReadAll(resp.Body)
		t.Log(resp.Status, resp.Header.Get("x-stile-badge"), strings.TrimSpace(string(b)))
	}
	show := func(what string) {
		t.Helper()
		st, err := e.State(t.Context())
		t.Logf("%s: %+v %v", what, st, err)
	}
	get()
	get("x-stile-pass")
	show("start")
	// refused configuration
	s.SetExtension("a", "a2", adstest.Inline("vm-a2", modules.Badge(), `{}`))
	t.Log("NACK: ", s.WaitNACK(t, adstest.ExtensionType, "a2"))
	get("x-stile-pass")
	show("after nack")
	s.SetExtension("a", "a3", adstest.Inline("vm-a2", modules.Badge(), `{}`))
	s.WaitACK(t, adstest.ExtensionType, "a3")
	get("x-stile-pass")
	show("same again")
	s.SetExtension("a", "a4", adstest.Inline("vm-a3", modules.Badge(), `{"name":"fourth"}`))
	s.WaitACK(t, adstest.ExtensionType, "a4")
	get("x-stile-pass")
	s.SetExtension("a", "a5", adstest.Closed())
	s.WaitACK(t, adstest.ExtensionType, "a5")
	get("x-stile-pass")
	show("closed")
	for _, r := range s.Requests() {
		t.Logf("%s %v v=%s n=%s e=%s node=%s", r.GetTypeUrl(), r.GetResourceNames(), r.GetVersionInfo(), r.GetResponseNonce(), r.GetErrorDetail().GetMessage(), r.GetNode().GetId())
	}
	d, err := e.ConfigDump(t.Context())
	os.WriteFile("/tmp/sandbox-dump.json", d, 0o644)
}
