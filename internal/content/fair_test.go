package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/wasm/wasmtest"
)

func TestP7_AHangingRegistryAndABusyTenantDelayNobodyElse(t *testing.T) {
	t.Parallel()
	slow, quick := newRegistry(t), newRegistry(t)
	w := newWorld(t, t.TempDir(), Config{}, slow.host(), quick.host())
	var hanging []access.Proof
	for i := range 40 { // team-a wants much of a registry that will hang
		name := fmt.Sprint("p", i)
		hanging = append(hanging, w.prove("team-a", slow.host()+"/"+name+"@"+slow.artifact(name, wasmtest.Named(name))))
	}
	own := w.prove("team-a", quick.host()+"/p@"+quick.artifact("p", wasmtest.Named("own")))
	other := w.prove("team-b", quick.host()+"/p@"+quick.artifact("p", wasmtest.Named("other")))
	release := make(chan struct{})
	defer close(release)
	slow.set(func() {
		slow.refuse = func(*http.Request) int {
			<-release
			return 0
		}
	})
	for _, p := range hanging {
		if _, err := w.contents.Module(p); !errors.Is(err, ErrPending) {
			t.Fatal(err)
		}
	}
	w.mustFetch(other)
	w.mustFetch(own)
	if _, err := w.contents.Module(hanging[0]); !errors.Is(err, ErrPending) {
		t.Error(err)
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	q := newQueue(32) // 8 for a namespace or host, 4 for a host in a namespace
	push := func(namespace, host string, n int) {
		for i := range n {
			q.push(&item{key: itemKey{host + "/p", fmt.Sprint(namespace, i)}}, namespace)
		}
	}
	start := func() (started map[string]int, entries []*entry) {
		started = map[string]int{}
		for e := q.next(); e != nil; e = q.next() {
			started[e.namespace+" "+e.host]++
			entries = append(entries, e)
		}
		return started, entries
	}
	push("noisy", "slow", 100)
	push("noisy", "quick", 1)
	push("a", "slow", 10)
	push("b", "quick", 1)
	got, entries := start()
	want := map[string]int{"noisy slow": 4, "noisy quick": 1, "a slow": 4, "b quick": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("started %v, want %v", got, want)
	}
	push("c", "slow", 1) // the host has its share already
	if got, _ := start(); len(got) != 0 {
		t.Errorf("started %v", got)
	}
	for _, e := range entries {
		q.done(e)
	}
	got, entries = start()
	if got["c slow"] != 1 || got["a slow"] < 3 || got["noisy slow"] < 3 {
		t.Errorf("not taken in turn: %v", got)
	}
	for len(entries) > 0 {
		for _, e := range entries {
			q.done(e)
		}
		_, entries = start()
	}
	if q.running != 0 || len(q.namespaces) != 0 || len(q.hosts) != 0 {
		t.Errorf("left over: %+v", q)
	}
}

func TestURL_WhatADownloadIsRefusedWith(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	w := newWorld(t, t.TempDir(), Config{}, f.host())
	f.Server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var status int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
		rw.WriteHeader(status)
		_, _ = rw.Write([]byte("<html>"))
	})
	for status, reason := range map[int]string{
		http.StatusNotFound: ReasonImageNotFound, http.StatusForbidden: ReasonUnauthorized,
		http.StatusBadGateway: ReasonRegistryUnreachable, http.StatusOK: ReasonModuleInvalid,
	} {
		_, err := w.fetchURL(URLRequest{URL: fmt.Sprintf("%s/%d?token=%s", f.URL, status, "CANARY-7"), Trust: w.trust(f.host()), Namespace: "team-a"})
		wantProblem(t, err, reason)
	}
	for _, raw := range []string{"file:///etc/passwd", "https://user:pw@host/m", "https://", ":", ""} {
		_, err := w.contents.URL(URLRequest{URL: raw, Namespace: "team-a"})
		wantProblem(t, err, ReasonSourceNotAllowed)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for reason, first := range map[string]time.Duration{ReasonRegistryUnreachable: retryFirst, ReasonUnauthorized: retrySlow} {
		for range 100 {
			if d := backoff(reason, 1); d < first*8/10 || d > first*12/10 {
				t.Fatalf("%s: first after %v", reason, d)
			}
			if d := backoff(reason, 1000); d < retryMax*8/10 || d > retryMax*12/10 {
				t.Fatalf("%s: at last after %v", reason, d)
			}
		}
	}
}

// A module that fails for ever is tried less and less often, and no more once nobody
// wants it.
func TestRun_TriesAgainAndForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newBubble(t)
		r := URLRequest{URL: "https://example.test/m", Namespace: "team-a"}
		if _, err := w.URL(r); !errors.Is(err, ErrPending) {
			t.Fatal(err)
		}
		time.Sleep(urlInterest + time.Minute)
		synctest.Wait()
		tries := w.fetcher.(*unreachable).tries.Load()
		if tries < 8 || tries > 14 { // 1 s, 2 s, 4 s, … 5 min
			t.Errorf("%d tries in %v", tries, urlInterest)
		}
		time.Sleep(2 * itemInterest)
		synctest.Wait()
		if n := w.fetcher.(*unreachable).tries.Load(); n > tries+1 {
			t.Errorf("%d tries more, for nobody", n-tries)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.items) != 0 {
			t.Errorf("%d items are kept for nobody", len(w.items))
		}
	})
}

// unreachable answers nobody.
type unreachable struct{ tries atomic.Int64 }

func (u *unreachable) Manifest(context.Context, oci.Reference, oci.Credential, oci.Trust) (oci.Manifest, error) {
	u.tries.Add(1)
	return oci.Manifest{}, &oci.Error{Op: "manifest", Kind: oci.Unavailable}
}

func (u *unreachable) Blob(context.Context, oci.Reference, oci.Descriptor, oci.Credential, oci.Trust) (io.ReadCloser, error) {
	return nil, &oci.Error{Op: "blob", Kind: oci.Unavailable}
}

func (u *unreachable) Download(context.Context, string, oci.Trust) (io.ReadCloser, error) {
	u.tries.Add(1)
	return nil, &oci.Error{Op: "download", Kind: oci.Unavailable}
}

// newBubble is Contents that run in a synctest bubble, without any network.
func newBubble(t *testing.T) *Contents {
	t.Helper()
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := New(s, &unreachable{}, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		_ = s.Close()
	})
	return c
}
