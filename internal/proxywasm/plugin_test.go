package proxywasm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/proxywasm"
	"github.com/stileproject/stile/modules"
)

func start(t testing.TB, o proxywasm.Options) *proxywasm.Plugin {
	t.Helper()
	p, err := proxywasm.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func open(t testing.TB, p *proxywasm.Plugin) *proxywasm.Stream {
	t.Helper()
	s, err := p.Stream(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Done)
	return s
}

func request() proxywasm.Headers {
	return proxywasm.Headers{{":method", "GET"}, {":path", "/"}, {":authority", "here"}, {":scheme", "http"}}
}

func TestBadge_SignsInOrder(t *testing.T) {
	t.Parallel()
	h := request()
	for _, name := range []string{"first", "second"} {
		p := start(t, proxywasm.Options{Bytes: modules.Badge(), Config: fmt.Appendf(nil, `{ "name" : %q }`, name)})
		action, local, err := open(t, p).OnRequestHeaders(&h, true)
		if err != nil || local != nil || action != proxywasm.Continue {
			t.Fatalf("%s: %v %v %v", name, action, local, err)
		}
	}
	want := append(request(), proxywasm.Header{Name: "x-stile-trail", Value: "first,second"})
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
}

func TestBadge_SignsTheResponse(t *testing.T) {
	t.Parallel()
	p := start(t, proxywasm.Options{Bytes: modules.Badge(), Config: []byte(`{"name":"b"}`)})
	s := open(t, p)
	h := proxywasm.Headers{{":status", "200"}, {"x-stile-badge", "a"}}
	if _, _, err := s.OnResponseHeaders(&h, false); err != nil {
		t.Fatal(err)
	}
	if got, _ := h.Get("X-Stile-Badge"); got != "a,b" {
		t.Errorf("x-stile-badge: %q", got)
	}
}

func TestToll(t *testing.T) {
	t.Parallel()
	p := start(t, proxywasm.Options{Bytes: modules.Toll(), Config: []byte(`{"header":"x-pass"}`)})

	h := request()
	action, local, err := open(t, p).OnRequestHeaders(&h, true)
	if err != nil {
		t.Fatal(err)
	}
	want := &proxywasm.LocalResponse{Status: 403, Details: "toll_unpaid", Body: []byte("toll: this way needs the header x-pass\n"), GRPCStatus: -1}
	if diff := cmp.Diff(want, local); diff != "" || action != proxywasm.Pause {
		t.Errorf("without the header: %v\n%s", action, diff)
	}

	h = append(request(), proxywasm.Header{Name: "x-pass", Value: "1"}, proxywasm.Header{Name: "x-stile-toll", Value: "forged"})
	action, local, err = open(t, p).OnRequestHeaders(&h, true)
	if err != nil || local != nil || action != proxywasm.Continue {
		t.Fatal(action, local, err)
	}
	if got, _ := h.Get("x-stile-toll"); got != "paid" {
		t.Errorf("x-stile-toll: %q", got)
	}
}

func TestNew_RefusesConfiguration(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]proxywasm.Options{
		"badge, no configuration":       {Bytes: modules.Badge()},
		"badge, empty name":             {Bytes: modules.Badge(), Config: []byte(`{"name":""}`)},
		"badge, no string":              {Bytes: modules.Badge(), Config: []byte(`{"name":7}`)},
		"badge, cut short":              {Bytes: modules.Badge(), Config: []byte(`{"name":"a`)},
		"badge, only the key":           {Bytes: modules.Badge(), Config: []byte(`{"name"`)},
		"badge, long name":              {Bytes: modules.Badge(), Config: []byte(`{"name":"` + strings.Repeat("n", 65) + `"}`)},
		"badge, larger than its memory": {Bytes: modules.Badge(), Config: bytes.Repeat([]byte(" "), 66<<10), Timeout: time.Minute},
		"toll, other field":             {Bytes: modules.Toll(), Config: []byte(`{"name":"a"}`)},
		"refuses":                       {Bytes: fixture(t, "refuses"), Config: []byte(`{}`)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := proxywasm.New(t.Context(), o)
			if !errors.Is(err, proxywasm.ErrRefused) {
				t.Errorf("want ErrRefused, got %v", err)
			}
		})
	}
}

func TestNew_RefusedSaysWhatThePluginSaid(t *testing.T) {
	t.Parallel()
	_, err := proxywasm.New(t.Context(), proxywasm.Options{Bytes: modules.Badge(), Name: "n"})
	if err == nil || !strings.Contains(err.Error(), `start plugin "n"`) || !strings.Contains(err.Error(), "badge: the configuration must be") {
		t.Errorf("got %v", err)
	}
}

func TestNew_RefusesWhatIsNoModule(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{
		"nothing":    nil,
		"text":       []byte("<html>not found</html>"),
		"cut short":  modules.Badge()[:600],
		"empty wasm": []byte("\x00asm\x01\x00\x00\x00"),
		"component":  []byte("\x00asm\x0d\x00\x01\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := proxywasm.New(t.Context(), proxywasm.Options{Bytes: b}); !errors.Is(err, proxywasm.ErrModule) {
				t.Errorf("want ErrModule, got %v", err)
			}
		})
	}
}

func TestNew_MemoryIsLimited(t *testing.T) {
	t.Parallel()
	_, err := proxywasm.New(t.Context(), proxywasm.Options{Bytes: fixture(t, "hog"), MemoryPages: 16})
	if !errors.Is(err, proxywasm.ErrFailed) || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("a hog must meet its limit and trap, got %v", err)
	}
}

func TestNew_TimeIsLimited(t *testing.T) {
	t.Parallel()
	_, err := proxywasm.New(t.Context(), proxywasm.Options{Bytes: fixture(t, "loops_at_start"), Timeout: 500 * time.Millisecond})
	if !errors.Is(err, proxywasm.ErrFailed) || !strings.Contains(err.Error(), "did not return within 500ms") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = proxywasm.New(ctx, proxywasm.Options{Bytes: fixture(t, "loops_at_start")}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gives up: got %v", err)
	}
}

func TestStream_AFailedPluginStaysFailed(t *testing.T) {
	t.Parallel()
	for name, words := range map[string]string{"traps": "unreachable", "loops": "did not return"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, proxywasm.Options{Bytes: fixture(t, name), Timeout: time.Second})
			bystander := open(t, p)
			h := request()
			_, _, err := open(t, p).OnRequestHeaders(&h, true)
			if !errors.Is(err, proxywasm.ErrFailed) || !strings.Contains(err.Error(), words) {
				t.Fatalf("got %v", err)
			}
			if _, _, err := bystander.OnRequestHeaders(&h, true); !errors.Is(err, proxywasm.ErrFailed) {
				t.Errorf("a stream of a failed plugin: %v", err)
			}
			if _, err := p.Stream(nil); !errors.Is(err, proxywasm.ErrFailed) {
				t.Errorf("a new stream of a failed plugin: %v", err)
			}
			if p.Err() == nil {
				t.Error("Err is nil")
			}
		})
	}
}

func TestStream_NetworkPluginLetsHTTPPass(t *testing.T) {
	t.Parallel()
	p := start(t, proxywasm.Options{Bytes: fixture(t, "network")})
	h := request()
	if action, local, err := open(t, p).OnRequestHeaders(&h, true); action != proxywasm.Continue || local != nil || err != nil {
		t.Error(action, local, err)
	}
}

func TestUnimplemented_IsAnsweredAndCounted(t *testing.T) {
	t.Parallel()
	p := start(t, proxywasm.Options{Bytes: fixture(t, "stranger")})
	h := request()
	if _, _, err := open(t, p).OnRequestHeaders(&h, true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{"env.proxy_make_coffee": 2}, p.Unimplemented()); diff != "" {
		t.Error(diff)
	}
}

func TestStream_WildPointersAreRefused(t *testing.T) {
	t.Parallel()
	p := start(t, proxywasm.Options{Bytes: fixture(t, "wild")})
	h := request()
	if _, _, err := open(t, p).OnRequestHeaders(&h, true); err != nil {
		t.Error(err)
	}
}

func TestStream_PausesForTheBodyAndChangesIt(t *testing.T) {
	t.Parallel()
	p := start(t, proxywasm.Options{Bytes: fixture(t, "pauses")})
	if !p.ReadsRequestBody() || p.ReadsResponseBody() {
		t.Error("which bodies it reads is wrong")
	}
	s := open(t, p)
	h := request()
	if action, _, err := s.OnRequestHeaders(&h, false); action != proxywasm.Pause || err != nil {
		t.Fatal(action, err)
	}
	body := []byte("GOGO on")
	action, got, local, err := s.OnRequestBody(body)
	if action != proxywasm.Continue || local != nil || err != nil {
		t.Fatal(action, local, err)
	}
	if string(got) != "STOP on" || string(body) != "GOGO on" {
		t.Errorf("got %q, given %q", got, body)
	}
}

func TestStream_DoneIsDone(t *testing.T) {
	t.Parallel()
	p := start(t, proxywasm.Options{Bytes: modules.Toll()})
	s := open(t, p)
	s.Done()
	h := request()
	if _, _, err := s.OnRequestHeaders(&h, true); err == nil {
		t.Error("a callback after Done succeeded")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Stream(nil); !errors.Is(err, proxywasm.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// One plugin, many goroutines: each stream sees its own headers alone.
func TestPlugin_ManyStreamsAtOnce(t *testing.T) {
	t.Parallel()
	p := start(t, proxywasm.Options{Bytes: modules.Badge(), Config: []byte(`{"name":"b"}`)})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 20 {
				s, err := p.Stream(nil)
				if err != nil {
					t.Error(err)
					return
				}
				h := append(request(), proxywasm.Header{Name: "x-stile-trail", Value: fmt.Sprint(i, "-", j)})
				_, _, err = s.OnRequestHeaders(&h, true)
				s.Done()
				if got, _ := h.Get("x-stile-trail"); err != nil || got != fmt.Sprint(i, "-", j, ",b") {
					t.Errorf("got %q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestPlugin_LogsWithItsName(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	_, _ = proxywasm.New(t.Context(), proxywasm.Options{Bytes: modules.Badge(), Name: "team-a.badge", Log: slog.New(slog.NewTextHandler(&out, nil))})
	if !strings.Contains(out.String(), "level=ERROR") || !strings.Contains(out.String(), "plugin=team-a.badge") {
		t.Errorf("log: %s", out.String())
	}
}

func ExampleNew() {
	plugin, err := proxywasm.New(context.Background(), proxywasm.Options{
		Bytes:  modules.Badge(),
		Config: []byte(`{"name": "gate"}`),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer plugin.Close()
	stream, err := plugin.Stream(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stream.Done()
	headers := proxywasm.Headers{{Name: ":path", Value: "/"}}
	action, _, err := stream.OnRequestHeaders(&headers, true)
	fmt.Println(action, headers, err)
	// Output: continue [{:path /} {x-stile-trail gate}] <nil>
}

func BenchmarkStream(b *testing.B) {
	p := start(b, proxywasm.Options{Bytes: modules.Badge(), Config: []byte(`{"name":"b"}`)})
	for b.Loop() {
		s, err := p.Stream(nil)
		if err != nil {
			b.Fatal(err)
		}
		h := request()
		if _, _, err := s.OnRequestHeaders(&h, true); err != nil {
			b.Fatal(err)
		}
		s.Done()
	}
}
