package envoy_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stileproject/stile/test/envoy/envoytest"
)

// delta makes Envoy speak delta.
func delta(o *envoytest.Options) { o.Delta = true }

func TestFirstConnect_NothingAnswered(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		d    discovered
		want answer
	}{
		{"a closed default takes over after the time-out", discovered{Default: httpClosed(), Timeout: "0.3s"}, answer{Status: 503}},
		{"an open default takes over after the time-out", discovered{Default: httpOpen(), Timeout: "0.3s"}, answer{Status: 200}},
		{"without a default: 500", discovered{Timeout: "0.3s"}, answer{Status: 500}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			began := time.Now()
			w.set(listenerType, "http", httpListener(t, "http", test.d))
			w.WaitReady()
			if waited := time.Since(began); waited < 200*time.Millisecond {
				t.Errorf("envoy was ready after %v, before the time-out", waited)
			}
			w.wantAnswer("http", test.want)
			w.wantACK(w.pushExtension(plugin, wasm{VM: "v1", Inline: module("module-1")}.any(t)))
			w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
		})
	}
}

func TestFirstConnect_NoTimeOutAndNoDefaultHoldsTheWholeStart(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.set(listenerType, "http", httpListener(t, "http", discovered{Timeout: "0s"}))
	w.set(listenerType, "neighbour", httpListener(t, "neighbour"))
	w.waitAsked(extensionType, plugin)
	w.settle()
	if w.Ready() {
		t.Error("envoy is ready though one plugin is not answered")
	}
	if got, err := w.get("neighbour"); err == nil {
		t.Errorf("a listener without any plugin answered %+v, want it to wait with the rest", got)
	}
	w.wantACK(w.pushExtension(plugin, wasm{VM: "v1", Inline: module("module-1")}.any(t)))
	w.WaitReady()
	w.wantSoon("neighbour", answer{Status: 200})
}

func TestFirstConnect_TheFirstAnswerIsNACKed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		def  object
		want int
	}{
		{"without a default", nil, 500},
		{"with a closed default", httpClosed(), 503},
		{"with an open default", httpOpen(), 200},
	} {
		for _, policy := range []string{"FAIL_OPEN", "FAIL_CLOSED"} { // of no importance here
			t.Run(test.name+" "+policy, func(t *testing.T) {
				t.Parallel()
				w := start(t)
				v := w.setExtension(plugin, wasm{VM: "v1", Inline: []byte("not wasm"), Policy: policy}.any(t))
				w.set(listenerType, "http", httpListener(t, "http", discovered{Default: test.def}))
				w.wantNACK(w.wait(extensionType, v))
				w.WaitReady() // at once, not after the time-out
				w.wantAnswer("http", answer{Status: test.want})
				w.wantACK(w.pushExtension(plugin, wasm{VM: "v2", Inline: module("module-1"), Policy: policy}.any(t)))
				w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
			})
		}
	}
}

func TestFirstConnect_PlainRemoteHoldsTheListenerUntilItIsThere(t *testing.T) {
	t.Parallel()
	code := module("module-8")

	t.Run("at the start", func(t *testing.T) {
		t.Parallel()
		w := start(t)
		release := w.modules.hold()
		v := w.setExtension(plugin, wasm{VM: "v8", Remote: code, URL: w.modules.serve("/8", code)}.any(t))
		w.set(listenerType, "http", httpListener(t, "http", discovered{Default: httpClosed()}))
		w.wantACK(w.wait(extensionType, v)) // before the code is there
		w.waitFetches(1)
		if w.Ready() {
			t.Error("envoy is ready before it has the code")
		}
		release()
		w.WaitReady()
		w.wantAnswer("http", answer{Status: 200, Tag: "module-8"})
	})
	t.Run("on a listener that is changed: the old one serves meanwhile", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		release := w.modules.hold()
		w.setExtension("second", wasm{VM: "v8", Remote: code, URL: w.modules.serve("/8", code)}.any(t))
		w.wantACK(w.push(listenerType, "http", httpListener(t, "http",
			discovered{Default: httpClosed()}, discovered{Name: "second", Default: httpClosed()})))
		w.waitFetches(1)
		w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
		release()
		w.wantSoon("http", answer{Status: 200, Tag: "module-1, module-8"})
	})
	t.Run("on a listener that refers to what already runs elsewhere", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		// A live update by plain remote skips the filter; a second listener fetches the code, for itself alone.
		w.wantACK(w.pushExtension(plugin, wasm{VM: "v8", Remote: code, URL: w.modules.serve("/8", code)}.any(t)))
		w.wantACK(w.push(listenerType, "second", httpListener(t, "second", discovered{Default: httpClosed()})))
		w.wantSoon("second", answer{Status: 200, Tag: "module-8"})
		w.wantAnswer("http", answer{Status: 200})
	})
}

func TestFirstConnect_PlainRemoteThatCannotBeFetched(t *testing.T) {
	t.Parallel()
	for policy, status := range map[string]int{"FAIL_CLOSED": 503, "FAIL_OPEN": 200} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			w := start(t)
			code := module("module-8")
			v := w.setExtension(plugin, wasm{VM: "v8", Remote: code, URL: "http://modules.test/8", Tries: 2, Policy: policy}.any(t))
			w.set(listenerType, "http", httpListener(t, "http", discovered{Default: httpClosed()}))
			w.wantACK(w.wait(extensionType, v))
			w.WaitReady()
			w.wantFetches(3) // num_retries and the first
			// The failure policy of the plugin, not default_config, which is for answers that do not come.
			w.wantAnswer("http", answer{Status: status})
			w.modules.serve("/8", code)
			w.settle()
			w.wantFetches(3) // it does not try again by itself
			w.wantAnswer("http", answer{Status: status})
		})
	}
}

func TestFirstConnect_NackOnCodeCacheMissLetsTheStandInServeFirst(t *testing.T) {
	t.Parallel()
	w := start(t)
	code := module("module-8")
	p := wasm{VM: "v8", Remote: code, URL: w.modules.serve("/8", code), Nack: true}
	v := w.setExtension(plugin, p.any(t))
	w.set(listenerType, "http", httpListener(t, "http", discovered{Default: httpClosed()}))
	w.wantNACK(w.wait(extensionType, v))
	w.WaitReady()
	w.wantAnswer("http", answer{Status: 503})
	w.waitFetches(1)
	w.settle()
	p.Tries++
	w.wantACK(w.pushExtension(plugin, p.any(t)))
	w.wantAnswer("http", answer{Status: 200, Tag: "module-8"})
}

func TestRemote_AboveTheResponseLimitIsTheFailurePolicy(t *testing.T) {
	t.Parallel()
	for mebibytes, want := range map[int]answer{31: {Status: 200, Tag: "module-8"}, 33: {Status: 503}} {
		w := start(t)
		code := padded(module("module-8"), mebibytes<<20)
		v := w.setExtension(plugin, wasm{VM: "v8", Remote: code, URL: w.modules.serve("/8", code)}.any(t))
		w.set(listenerType, "http", httpListener(t, "http", discovered{}))
		w.wantACK(w.wait(extensionType, v))
		w.WaitReady()
		w.wantAnswer("http", want)
	}
}

func TestRemote_OneSumInTwoPluginsWhileOneFetchRuns(t *testing.T) {
	t.Parallel()
	code := module("module-8")
	remote := func(w *world, name string) wasm {
		return wasm{VM: name, Remote: code, URL: w.modules.serve("/8", code), Config: name}
	}

	t.Run("in a listener that warms each fetches for itself", func(t *testing.T) {
		t.Parallel()
		w := start(t)
		release := w.modules.hold()
		w.setExtension("a", remote(w, "a").any(t))
		w.setExtension("b", remote(w, "b").any(t))
		w.set(listenerType, "http", httpListener(t, "http", discovered{Name: "a"}, discovered{Name: "b"}))
		w.waitFetches(2)
		release()
		w.WaitReady()
		w.wantAnswer("http", answer{Status: 200, Tag: "module-8, module-8", Config: "a, b"})
	})
	t.Run("a live one is NACKed and fetches too", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		release := w.modules.hold()
		w.setExtension("a", remote(w, "a").any(t))
		w.set(listenerType, "second", httpListener(t, "second", discovered{Name: "a"}))
		w.waitFetches(1)
		p := remote(w, "b")
		p.Nack = true
		w.wantNACK(w.pushExtension(plugin, p.any(t)))
		w.waitFetches(2)
		release()
		w.settle()
		p.Tries++
		w.wantACK(w.pushExtension(plugin, p.any(t)))
		w.wantAnswer("http", answer{Status: 200, Tag: "module-8", Config: "b"})
		w.wantSoon("second", answer{Status: 200, Tag: "module-8", Config: "a"})
	})
}

func TestDelta_ARemovedResourceFallsToTheDefault(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		def  object
		want int
	}{
		{"with a closed default", httpClosed(), 503},
		{"without a default", nil, 500},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, delta)
			v := w.setExtension(plugin, wasm{VM: "v1", Inline: module("module-1")}.any(t))
			w.set(listenerType, "http", httpListener(t, "http", discovered{Default: test.def}))
			w.wantACK(w.wait(extensionType, v))
			w.WaitReady()
			w.wantACK(w.wait(extensionType, w.remove(extensionType, plugin)))
			w.wantAnswer("http", answer{Status: test.want})
		})
	}
}

func TestDelta_ANameThatIsSaidToBeAbsentIsWaitedForWithoutEnd(t *testing.T) {
	t.Parallel()
	w := start(t, delta)
	w.set(listenerType, "http", httpListener(t, "http", discovered{Default: httpOpen(), Timeout: "1s"}))
	w.waitAsked(extensionType, plugin)
	w.wantACK(w.wait(extensionType, w.remove(extensionType, plugin)))
	<-time.After(2 * time.Second) // the time-out is long over
	if w.Ready() {
		t.Error("envoy is ready: being told that there is no such extension does not keep it waiting any more")
	}
	w.wantACK(w.pushExtension(plugin, wasm{VM: "v1", Inline: module("module-1")}.any(t)))
	w.WaitReady()
	w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
}

func TestDelta_ARouteThatIsSaidToBeAbsentIsWaitedForWithoutEnd(t *testing.T) {
	t.Parallel()
	routed := func(w *world) {
		w.set(listenerType, "http", toListener(t, "http", object{"name": "hcm", "typed_config": object{
			"@type": networkHCM, "stat_prefix": "http", "http_filters": []object{{"name": "router", "typed_config": object{"@type": httpRouter}}},
			"rds": object{"route_config_name": "r", "config_source": object{"ads": object{}, "resource_api_version": "V3", "initial_fetch_timeout": "1s"}},
		}}))
		w.waitAsked(routeType, "r")
	}
	silent := start(t, delta)
	routed(silent)
	silent.WaitReady()
	silent.wantAnswer("http", answer{Status: 404})
	told := start(t, delta)
	routed(told)
	told.wantACK(told.wait(routeType, told.remove(routeType, "r")))
	<-time.After(2 * time.Second) // the time-out is long over
	if told.Ready() {
		t.Error("envoy is ready: being told that there is no such route does not keep it waiting any more")
	}
}

func TestListener_AnUnknownTypeURLIsANACKOfTheListener(t *testing.T) {
	t.Parallel()
	w := serving(t)
	d := discovered{Default: httpClosed(), Types: []string{httpWasm, httpFault, "type.googleapis.com/nobody.knows.This"}}
	if v := w.push(listenerType, "http", httpListener(t, "http", d)); v.ACK {
		t.Error("envoy took a listener with a type_urls entry that it cannot know")
	}
	w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
}

func TestStandIn_HTTP(t *testing.T) {
	t.Parallel()
	w := start(t, func(o *envoytest.Options) {
		// Settings that somebody made for a fault filter of their own.
		o.Runtime = map[string]any{"fault.http.abort.abort_percent": 0, "fault.http.max_active_faults": 0}
	})
	exposed := httpClosed()
	delete(exposed, "abort_percent_runtime")
	delete(exposed, "max_active_faults_runtime")
	for name, config := range map[string]object{"closed": httpClosed(), "open": httpOpen(), "exposed": exposed} {
		w.setExtension(name, toAny(t, config))
		w.set(listenerType, name, httpListener(t, name, discovered{Name: name}))
	}
	w.WaitReady()
	w.wantAnswer("closed", answer{Status: 503})
	w.wantAnswer("open", answer{Status: 200})
	w.wantAnswer("exposed", answer{Status: 200}) // the default runtime keys open it

	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+w.Listener("closed")+"/a.B/C", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/grpc")
	response, err := requests.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if status := response.Header.Get("Grpc-Status"); response.StatusCode != http.StatusOK || status != "14" {
		t.Errorf("a gRPC caller got %s with grpc-status %q, want 200 with 14", response.Status, status)
	}

	// The plugin and its stand-in follow each other on a running listener.
	w.wantACK(w.pushExtension("closed", wasm{VM: "v1", Inline: module("module-1")}.any(t)))
	w.wantAnswer("closed", answer{Status: 200, Tag: "module-1"})
	w.wantACK(w.pushExtension("closed", toAny(t, httpClosed())))
	w.wantAnswer("closed", answer{Status: 503})
}

func TestStandIn_Network(t *testing.T) {
	t.Parallel()
	guard := wasm{Type: networkWasm, VM: "guard", Inline: guardModule}
	for _, test := range []struct {
		name     string
		d        discovered
		hello    string
		greeting string // what the client gets of an upstream that speaks first
		dialled  int64
		received string
	}{
		{"closed, a silent client", discovered{Default: networkClosed()}, "", "welcome", 1, ""},
		{"open", discovered{Default: networkOpen()}, "hello", "welcome", 1, "hello"},
		{"guard, a silent client", discovered{Default: guard.object()}, "", "", 0, ""},
		{"guard", discovered{Default: guard.object()}, "hello", "", 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			up := startTalker(t)
			w := start(t, func(o *envoytest.Options) { o.Clusters["upstream"] = up.address })
			test.d.Timeout = "0.1s"
			w.set(listenerType, "tcp", tcpListener(t, "tcp", test.d))
			w.WaitReady()
			if got := w.dial("tcp", test.hello); got != test.greeting {
				t.Errorf("the client received %q, want %q", got, test.greeting)
			}
			if got := up.dialled.Load(); got != test.dialled {
				t.Errorf("the upstream was dialled %d times, want %d", got, test.dialled)
			}
			if got := up.received(); got != test.received {
				t.Errorf("the upstream received %q, want %q", got, test.received)
			}
		})
	}
	t.Run("closed: no byte of the client passes", func(t *testing.T) {
		t.Parallel()
		up := startTalker(t)
		w := start(t, func(o *envoytest.Options) { o.Clusters["upstream"] = up.address })
		w.set(listenerType, "tcp", tcpListener(t, "tcp", discovered{Default: networkClosed(), Timeout: "0.1s"}))
		w.WaitReady()
		w.dial("tcp", "hello") // may or may not see the greeting before it is cut off
		if got := up.received(); got != "" {
			t.Errorf("the upstream received %q, want nothing", got)
		}
		w.wantACK(w.pushExtension(plugin, toAny(t, networkOpen())))
		if got := w.dial("tcp", "hello"); got != "welcome" || up.received() != "hello" {
			t.Errorf("after it was opened: the client received %q, the upstream %q", got, up.received())
		}
	})
}
