package e2e_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
)

//go:generate ../../tools/wat2wasm.sh testdata

// trip sends what makes the module trips trap.
func trip(n int) []string {
	var headers []string
	for i := range n {
		headers = append(headers, fmt.Sprintf("x-more-%d: 1", i))
	}
	return headers
}

// Every fail strategy, HTTP and NETWORK: before the module is there, while it works, at the request that makes it trap, and after.
func TestFailStrategies_WhatAModuleThatTrapsDoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var dialled atomic.Int64
	greeter := greets(t, &dialled)
	strategies := []string{"FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"}
	var listeners strings.Builder
	http := func(strategy string) string { return "http-" + strings.ToLower(strings.TrimPrefix(strategy, "FAIL_")) }
	tcp := func(strategy string) string { return "tcp-" + strings.ToLower(strings.TrimPrefix(strategy, "FAIL_")) }
	for i, s := range strategies {
		listeners.WriteString(listener(http(s), fmt.Sprintf("{ ports: [%d] }", 10+i), hcm("", jwtAndRBAC)))
		listeners.WriteString(listener(tcp(s), fmt.Sprintf("{ ports: [%d] }", 20+i), strings.ReplaceAll(tcpProxy, "cluster: upstream", "cluster: greeter")))
		on := func(port int) string {
			return fmt.Sprintf("url: '%s', failStrategy: %s, match: [{ ports: [{ number: %d }] }]", w.image("trips:v1"), s, port)
		}
		w.plugin(http(s), on(10+i))
		w.plugin(tcp(s), on(20+i)+", type: NETWORK")
	}
	w.envoyFile("listeners:\n"+listeners.String(), cluster("greeter", greeter))
	w.start("")
	e := w.envoy()
	e.WaitReady()
	long := strings.Repeat("x", 80) + "\n"

	t.Log("there is no module: the stand-ins")
	w.now(e.Listener(http("FAIL_CLOSE")), "503: fault filter abort")
	w.now(e.Listener(http("FAIL_OPEN")), "trail= toll= tag= ")
	w.now(e.Listener(http("FAIL_RELOAD")), "503: fault filter abort")
	for s, want := range map[string]string{"FAIL_CLOSE": "", "FAIL_OPEN": "welcome\n" + long, "FAIL_RELOAD": ""} {
		if got := say(t, e.Listener(tcp(s)), long); got != want {
			t.Errorf("stand-in of NETWORK %s: %q, want %q", s, got, want)
		}
	}

	t.Log("it comes, and works")
	w.push("trips:v1", wasm(t, "testdata/trips.wasm"))
	for _, s := range strategies {
		loaded := func(p pluginStatus) bool { return accepted(p) && p.Delivery == "inline" }
		w.status(http(s), "loaded", loaded)
		w.status(tcp(s), "loaded", loaded)
		w.soon(e.Listener(http(s)), "tag=trips ")
		w.eventually("NETWORK "+s+" works", func() error {
			if got := say(t, e.Listener(tcp(s)), "x\n"); got != "welcome\nx\n" {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
	}

	t.Log("it traps: what made it trap never passes it by, FAIL_OPEN or not")
	for _, s := range strategies {
		w.now(e.Listener(http(s)), "503: ", trip(40)...)
		if got := say(t, e.Listener(tcp(s)), long); strings.Contains(got, long) {
			t.Errorf("NETWORK %s: what made it trap reached the upstream: %q", s, got)
		}
	}

	t.Log("and after that: closed, open, or a new VM")
	for range 3 {
		w.now(e.Listener(http("FAIL_CLOSE")), "503: ")
		if got := say(t, e.Listener(tcp("FAIL_CLOSE")), "x\n"); strings.Contains(got, "x\n") {
			t.Errorf("NETWORK FAIL_CLOSE lets pass: %q", got)
		}
	}
	w.soon(e.Listener(http("FAIL_OPEN")), "trail= toll= tag= ")
	w.soon(e.Listener(http("FAIL_RELOAD")), "tag=trips ")
	for _, s := range []string{"FAIL_OPEN", "FAIL_RELOAD"} {
		w.eventually("NETWORK "+s+" lets pass", func() error {
			if got := say(t, e.Listener(tcp(s)), "x\n"); got != "welcome\nx\n" {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
	}
	w.eventually("NETWORK FAIL_OPEN lets pass what made it trap", func() error {
		if got := say(t, e.Listener(tcp("FAIL_OPEN")), long); got != "welcome\n"+long {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	if got := say(t, e.Listener(tcp("FAIL_RELOAD")), long); strings.Contains(got, long) {
		t.Errorf("NETWORK FAIL_RELOAD does not run the module again: %q", got)
	}
}
