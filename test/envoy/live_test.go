package envoy_test

import (
	"fmt"
	"sync"
	"testing"
)

// notCreated is all that Envoy says about a plugin that it does not take, whatever the reason.
const notCreated = "Unable to create Wasm plugin tag"

// wantACK fails the test unless Envoy took the update.
func (w *world) wantACK(v verdict) {
	w.t.Helper()
	if !v.ACK {
		w.t.Errorf("envoy NACKed: %s; want an ACK", v.Message)
	}
}

// wantNACK fails the test unless Envoy refused the update.
func (w *world) wantNACK(v verdict) {
	w.t.Helper()
	if want := (verdict{Message: notCreated}); v != want {
		w.t.Errorf("envoy said %+v, want %+v", v, want)
	}
}

// wantFetches compares how often the module server was asked.
func (w *world) wantFetches(want int64) {
	w.t.Helper()
	if got := w.modules.requests.Load(); got != want {
		w.t.Errorf("envoy asked for modules %d times, want %d", got, want)
	}
}

func TestLiveInline_TheACKMeansLoaded(t *testing.T) {
	t.Parallel()
	w := serving(t)
	for i := range 3 {
		tag := fmt.Sprintf("module-%d", 2+i)
		w.wantACK(w.pushExtension(plugin, wasm{VM: tag, Inline: module(tag)}.any(t)))
		w.wantAnswer("http", answer{Status: 200, Tag: tag})
	}
}

func TestLiveInline_NoRequestMeetsAGap(t *testing.T) {
	t.Parallel()
	w := serving(t)
	stop := make(chan struct{})
	seen := map[answer]int{}
	var client sync.WaitGroup
	client.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := w.get("http")
			if err != nil {
				t.Errorf("GET during the updates: %v", err)
				return
			}
			seen[got]++
		}
	})
	for i := range 10 {
		tag := fmt.Sprintf("module-%d", i%2+1)
		w.wantACK(w.pushExtension(plugin, wasm{VM: fmt.Sprint(i), Inline: module(tag)}.any(t)))
	}
	close(stop)
	client.Wait()
	for got, n := range seen {
		if got.Status != 200 || got.Tag == "" {
			t.Errorf("%d requests during the updates were answered %+v", n, got)
		}
	}
}

func TestLiveInline_EightMebibytes(t *testing.T) {
	t.Parallel()
	w := serving(t)
	w.wantACK(w.pushExtension(plugin, wasm{VM: "v2", Inline: padded(module("module-2"), 8<<20)}.any(t)))
	w.wantAnswer("http", answer{Status: 200, Tag: "module-2"})
}

func TestLiveInline_AFailureKeepsTheOld(t *testing.T) {
	t.Parallel()
	w := serving(t)
	for _, test := range []struct {
		name string
		bad  wasm
	}{
		{"not a module", wasm{VM: "a", Inline: []byte("not wasm")}},
		{"an empty module", wasm{VM: "b", Inline: []byte("\x00asm\x01\x00\x00\x00")}},
		{"on_configure refuses", wasm{VM: "c", Inline: module("module-2"), Config: "Refuse"}},
		{"on_configure traps", wasm{VM: "d", Inline: module("module-2"), Config: "Trap"}},
		{"fail open as well", wasm{VM: "e", Inline: []byte("not wasm"), Policy: "FAIL_OPEN"}},
	} {
		t.Log(test.name) // one after the other, on one Envoy
		w.wantNACK(w.pushExtension(plugin, test.bad.any(t)))
		w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
	}
}

func TestAfterANACK_TheSameBytesAreACKedButNotApplied(t *testing.T) {
	t.Parallel()
	bad := wasm{VM: "bad", Inline: module("module-2"), Config: "Refuse"}

	t.Run("on the same stream", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		w.wantNACK(w.pushExtension(plugin, bad.any(t)))
		w.wantACK(w.pushExtension(plugin, bad.any(t)))
		w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
	})
	t.Run("on a new stream, and the version counts as held from then on", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		w.wantNACK(w.pushExtension(plugin, bad.any(t)))
		w.reconnect()
		w.wantACK(w.wait(extensionType, 2))
		w.wantReported(extensionType, "1") // the last one that Envoy had ACKed
		w.reconnect()
		w.wantACK(w.wait(extensionType, 2))
		w.wantReported(extensionType, "2")
		w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
	})
	t.Run("over delta the rejected version is reported as held after a reconnect", func(t *testing.T) {
		t.Parallel()
		w := serving(t, delta)
		w.wantNACK(w.pushExtension(plugin, bad.any(t)))
		w.reconnect()
		w.wantACK(w.wait(extensionType, 2))
		w.wantReported(extensionType+" "+plugin, "1")
		w.reconnect()
		w.waitAsked(extensionType, plugin)
		w.wantReported(extensionType+" "+plugin, "2")
		w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
	})
	t.Run("only the last rejected bytes are remembered", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		good := wasm{VM: "v1", Inline: module("module-1")}
		w.wantNACK(w.pushExtension(plugin, bad.any(t)))
		w.wantACK(w.pushExtension(plugin, good.any(t)))
		w.wantNACK(w.pushExtension(plugin, bad.any(t)))
		w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})
	})
	t.Run("changed bytes are tried again", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		w.wantNACK(w.pushExtension(plugin, bad.any(t)))
		changed := bad
		changed.VM = "bad again"
		w.wantNACK(w.pushExtension(plugin, changed.any(t)))
	})
}

func TestOneResponse_ANACKCoversTheGoodOnesThatWereApplied(t *testing.T) {
	t.Parallel()
	w := start(t)
	w.setExtension("a", wasm{VM: "a1", Inline: module("module-1"), Config: "a"}.any(t))
	w.setExtension("b", wasm{VM: "b1", Inline: module("module-2"), Config: "b"}.any(t))
	w.set(listenerType, "http", httpListener(t, "http", discovered{Name: "a"}, discovered{Name: "b"}))
	w.WaitReady()
	w.wantAnswer("http", answer{Status: 200, Tag: "module-1, module-2", Config: "a, b"})

	w.swap(extensionType, "a", extension("a", wasm{VM: "a2", Inline: []byte("not wasm")}.any(t)))
	w.wantNACK(w.pushExtension("b", wasm{VM: "b2", Inline: module("module-3"), Config: "b"}.any(t)))
	w.wantAnswer("http", answer{Status: 200, Tag: "module-1, module-3", Config: "a, b"})
}

// The hazard for which stile never updates a running listener by plain remote.
func TestLiveRemote_TheFilterIsSkippedWhileEnvoyACKs(t *testing.T) {
	t.Parallel()
	code := module("module-2")
	remote := func(w *world) wasm {
		return wasm{VM: "v2", Remote: code, URL: w.modules.serve("/2", code), Tries: 3} // FAIL_CLOSED
	}

	t.Run("over a running plugin", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		p := remote(w)
		w.wantACK(w.pushExtension(plugin, p.any(t)))
		w.wantAnswer("http", answer{Status: 200})
		w.settle()
		w.wantFetches(0) // never, although nothing holds it up
		w.wantAnswer("http", answer{Status: 200})

		// The next one finds a fetch that is thought to run, and fails, closed at last.
		p.Config = "changed"
		w.wantACK(w.pushExtension(plugin, p.any(t)))
		w.wantAnswer("http", answer{Status: 503})
		w.wantFetches(0)

		// Inline mends it.
		w.wantACK(w.pushExtension(plugin, wasm{VM: "v3", Inline: module("module-3")}.any(t)))
		w.wantAnswer("http", answer{Status: 200, Tag: "module-3"})
	})
	t.Run("over a stand-in that is closed: it opens", func(t *testing.T) {
		t.Parallel()
		w := start(t)
		w.set(listenerType, "http", httpListener(t, "http", discovered{Default: httpClosed(), Timeout: "0.1s"}))
		w.WaitReady()
		w.wantAnswer("http", answer{Status: 503})
		w.wantACK(w.pushExtension(plugin, remote(w).any(t)))
		w.wantAnswer("http", answer{Status: 200})
		w.wantFetches(0)
	})
	t.Run("unless the code is in Envoy's cache", func(t *testing.T) {
		t.Parallel()
		w := serving(t)
		p := remote(w)
		w.fetchByNACK(p)
		w.wantACK(w.pushExtension(plugin, wasm{VM: "v3", Inline: module("module-3")}.any(t)))
		w.wantACK(w.pushExtension(plugin, p.any(t)))
		w.wantAnswer("http", answer{Status: 200, Tag: "module-2"})
		w.wantFetches(1)
	})
}

func TestNackOnCodeCacheMiss_KeepsTheOldUntilTheCodeIsThere(t *testing.T) {
	t.Parallel()
	w := serving(t)
	release := w.modules.hold()
	code := module("module-2")
	p := wasm{VM: "v2", Remote: code, URL: w.modules.serve("/2", code), Nack: true}
	w.wantNACK(w.pushExtension(plugin, p.any(t)))
	w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})

	// The same bytes: ACKed without being looked at, now and when the code is there.
	w.wantACK(w.pushExtension(plugin, p.any(t)))
	w.waitFetches(1)
	release()
	w.settle()
	w.wantACK(w.pushExtension(plugin, p.any(t)))
	w.wantAnswer("http", answer{Status: 200, Tag: "module-1"})

	// Any change of the bytes: taken, without another fetch.
	p.Tries++
	w.wantACK(w.pushExtension(plugin, p.any(t)))
	w.wantAnswer("http", answer{Status: 200, Tag: "module-2"})
	w.wantFetches(1)
}

func TestNackOnCodeCacheMiss_AFailedFetchIsTriedAgainByTheNextChange(t *testing.T) {
	t.Parallel()
	w := serving(t)
	code := module("module-2")
	p := wasm{VM: "v2", Remote: code, URL: "http://modules.test/2", Nack: true} // 404
	w.wantNACK(w.pushExtension(plugin, p.any(t)))
	w.waitFetches(1)
	w.settle()
	w.modules.serve("/2", code)
	p.Tries++
	w.wantNACK(w.pushExtension(plugin, p.any(t)))
	w.waitFetches(2)
	w.settle()
	p.Tries++
	w.wantACK(w.pushExtension(plugin, p.any(t)))
	w.wantAnswer("http", answer{Status: 200, Tag: "module-2"})
}

func TestVMKey(t *testing.T) {
	t.Parallel()
	one, two := module("module-1"), module("module-2")
	a, b := map[string]string{"M": "a"}, map[string]string{"M": "b"}
	for _, test := range []struct {
		name        string
		first, then wasm
		remote      bool
		want        answer
	}{
		// The module keeps its configuration in the VM's memory: in a shared VM both show the last one.
		{"vm_id and code equal: one VM", wasm{VM: "v", Inline: one}, wasm{VM: "v", Inline: one}, false,
			answer{200, "module-1, module-1", "", "second, second"}},
		{"other vm_id", wasm{VM: "v", Inline: one}, wasm{VM: "w", Inline: one}, false,
			answer{200, "module-1, module-1", "", "first, second"}},
		{"other code", wasm{VM: "v", Inline: one}, wasm{VM: "v", Inline: two}, false,
			answer{200, "module-1, module-2", "", "first, second"}},
		{"other environment", wasm{VM: "v", Inline: one, Env: a}, wasm{VM: "v", Inline: one, Env: b}, false,
			answer{200, "module-1, module-1", "M=a, M=b", "first, second"}},
		{"remote, other environment", wasm{VM: "v", Inline: one, Env: a}, wasm{VM: "v", Inline: two, Env: b}, true,
			answer{200, "module-1, module-2", "M=a, M=b", "first, second"}},
		{"remote, other vm_id", wasm{VM: "v", Inline: one}, wasm{VM: "w", Inline: two}, true,
			answer{200, "module-1, module-2", "", "first, second"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := vms(t, test.first, test.then, test.remote)
			w.wantAnswer("http", test.want)
		})
	}

	// The key of a remote plugin is made before its code is there: one code runs in both filters, which one is chance.
	t.Run("remote, other code: one VM, and the wrong code", func(t *testing.T) {
		t.Parallel()
		w := vms(t, wasm{VM: "v", Inline: one}, wasm{VM: "v", Inline: two}, true)
		got, err := w.get("http")
		if err != nil {
			t.Fatal(err)
		}
		if got.Tag != "module-1, module-1" && got.Tag != "module-2, module-2" {
			t.Errorf("GET: got %+v, want the same code twice", got)
		}
	})
}

// vms starts a world whose listener passes requests through two plugins, whose code comes by URL if remote.
func vms(t *testing.T, first, then wasm, remote bool) *world {
	t.Helper()
	w := start(t)
	for name, p := range map[string]wasm{"first": first, "second": then} {
		p.Config = name
		if remote {
			p.Remote, p.URL, p.Inline = p.Inline, w.modules.serve("/"+name, p.Inline), nil
		}
		w.setExtension(name, p.any(t))
	}
	w.set(listenerType, "http", httpListener(t, "http", discovered{Name: "first"}, discovered{Name: "second"}))
	w.WaitReady()
	return w
}

func TestLiveUpdate_AChangedVMIDBringsTheNewEnvironment(t *testing.T) {
	t.Parallel()
	w := serving(t)
	for i, vm := range []string{"v7", "v7", "v8"} { // the same vm_id does too: the environment is part of the key
		env := fmt.Sprintf("M=%d", i)
		p := wasm{VM: vm, Inline: module("module-7"), Env: map[string]string{"M": fmt.Sprint(i)}}
		w.wantACK(w.pushExtension(plugin, p.any(t)))
		w.wantAnswer("http", answer{Status: 200, Tag: "module-7", Env: env})
	}
}
