// Package storetest is what every way to keep a store must pass. Its one rule: it
// knows a store by its promises alone.
package storetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/stileproject/stile/internal/store"
)

// Run runs the suite. open opens a new, empty store.
func Run(t *testing.T, open func(testing.TB, store.Options) *store.Store) {
	t.Helper()
	for _, part := range []struct {
		promise string
		test    func(*testing.T, func(testing.TB, store.Options) *store.Store)
	}{
		{"what is written is read back", whatIsWrittenIsReadBack},
		{"nothing is seen before commit", nothingIsSeenBeforeCommit},
		{"P7 the least recently used gives way, leases do not", leastRecentlyUsedGivesWay},
		{"P7 a namespace over its share hurts itself alone", aNamespaceHurtsItselfAlone},
		{"many at once", manyAtOnce},
	} {
		t.Run(part.promise, func(t *testing.T) {
			t.Parallel()
			part.test(t, open)
		})
	}
}

// Digest is the name under which a store keeps b.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Write stores b for the namespace, delivered by source under its own digest.
func Write(s *store.Store, namespace, source string, b []byte) (string, error) {
	w, err := s.Create(namespace)
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := w.Write(b); err != nil {
		return "", err
	}
	return w.Commit(store.Record{Source: source, Name: "sha256:" + Digest(b)})
}

// MustWrite is Write for what must succeed.
func MustWrite(t testing.TB, s *store.Store, namespace, source string, b []byte) string {
	t.Helper()
	d, err := Write(s, namespace, source, b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Read opens the module and reads it, and has the store read it: both give the same.
func Read(s *store.Store, digest string) ([]byte, error) {
	f, err := s.Open(digest)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return b, err
	}
	whole, err := s.Read(digest)
	if err == nil && !bytes.Equal(b, whole) {
		err = fmt.Errorf("the store reads %d bytes of the %d that it opens", len(whole), len(b))
	}
	return b, err
}

func whatIsWrittenIsReadBack(t *testing.T, open func(testing.TB, store.Options) *store.Store) {
	s := open(t, store.Options{})
	content := bytes.Repeat([]byte("module"), 100_000)
	d := MustWrite(t, s, "team-a", "reg.example/a/p", content)
	if d != Digest(content) {
		t.Fatalf("digest %s, want %s", d, Digest(content))
	}
	got, err := Read(s, d)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read back %d bytes, %v; want %d", len(got), err, len(content))
	}
	r, ok := s.Get("reg.example/a/p", "sha256:"+d)
	if !ok || r.Module != d || r.Namespace != "team-a" {
		t.Fatalf("record = %+v, %v", r, ok)
	}
	if _, ok := s.Get("reg.example/b/p", "sha256:"+d); ok {
		t.Fatal("a source that delivered nothing has a record")
	}
}

func nothingIsSeenBeforeCommit(t *testing.T, open func(testing.TB, store.Options) *store.Store) {
	s := open(t, store.Options{})
	w, err := s.Create("ns")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if s.Has(Digest([]byte("half"))) {
		t.Fatal("visible before commit")
	}
	w.Abort()
	w.Abort()
	if u := s.Usage(); u.Modules != 0 || u.Size != 0 {
		t.Fatalf("after abort: %+v", u)
	}
}

func leastRecentlyUsedGivesWay(t *testing.T, open func(testing.TB, store.Options) *store.Store) {
	s := open(t, store.Options{MaxSize: 3 << 20})
	module := func(c byte) []byte { return bytes.Repeat([]byte{c}, 1<<20) }
	a := MustWrite(t, s, "a", "src", module('a'))
	b := MustWrite(t, s, "b", "src", module('b'))
	c := MustWrite(t, s, "c", "src", module('c'))
	if _, err := Read(s, a); err != nil { // a was used last, b is the oldest
		t.Fatal(err)
	}
	s.Retain([]string{b})
	d := MustWrite(t, s, "d", "src", module('d'))
	if s.Has(c) || !s.Has(a) || !s.Has(b) || !s.Has(d) {
		t.Fatalf("c was the least recently used without a lease; have a %v b %v c %v d %v", s.Has(a), s.Has(b), s.Has(c), s.Has(d))
	}
	s.Retain([]string{a, b, d})
	if _, err := Write(s, "e", "src", module('e')); !errors.Is(err, store.ErrFull) {
		t.Fatalf("error %v, want store.ErrFull", err)
	}
	for _, kept := range []string{a, b, d} {
		if _, err := Read(s, kept); err != nil {
			t.Fatal(err)
		}
	}
	s.Retain(nil)
	MustWrite(t, s, "e", "src", module('e'))
}

func aNamespaceHurtsItselfAlone(t *testing.T, open func(testing.TB, store.Options) *store.Store) {
	s := open(t, store.Options{MaxPerNamespace: 2 << 20})
	module := func(c byte) []byte { return bytes.Repeat([]byte{c}, 1<<20) }
	other := MustWrite(t, s, "quiet", "src", module('q'))
	a := MustWrite(t, s, "noisy", "src", module('a'))
	b := MustWrite(t, s, "noisy", "src", module('b'))
	shared := MustWrite(t, s, "quiet", "src", module('s'))
	s.Retain([]string{b})
	if err := s.Use(shared, "noisy"); err != nil { // a gives way
		t.Fatal(err)
	}
	if s.Has(a) || !s.Has(other) {
		t.Fatalf("a %v, other's %v", s.Has(a), s.Has(other))
	}
	s.Retain([]string{b, shared})
	if _, err := Write(s, "noisy", "src", module('c')); !errors.Is(err, store.ErrNamespaceFull) {
		t.Fatalf("error %v, want store.ErrNamespaceFull", err)
	}
	if err := s.Use(other, "noisy"); !errors.Is(err, store.ErrNamespaceFull) {
		t.Fatalf("error %v, want store.ErrNamespaceFull", err)
	}
	if _, err := Read(s, other); err != nil {
		t.Fatal(err)
	}
	// What the noisy one gives up stays for the others.
	s.Retain([]string{b})
	MustWrite(t, s, "noisy", "src", module('c'))
	if !s.Has(shared) {
		t.Fatal("a module of another namespace was evicted")
	}
}

func manyAtOnce(t *testing.T, open func(testing.TB, store.Options) *store.Store) {
	s := open(t, store.Options{MaxSize: 20_000})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 40 {
				content := fmt.Appendf(nil, "%d %s", (g+i)%16, bytes.Repeat([]byte("."), 2000))
				d, err := Write(s, fmt.Sprint("ns", g%3), fmt.Sprint("src", g), content)
				if err != nil && !errors.Is(err, store.ErrFull) {
					t.Error(err)
					return
				}
				if err != nil {
					continue
				}
				b, err := Read(s, d)
				if errors.Is(err, store.ErrNotFound) {
					continue // gave way meanwhile
				}
				if err != nil || !bytes.Equal(b, content) {
					t.Errorf("read %d bytes: %v", len(b), err)
				}
				s.Retain([]string{d})
			}
		})
	}
	wg.Wait()
	u := s.Usage()
	if u.Size > 20_000 {
		t.Errorf("%d bytes", u.Size)
	}
	var sum int64
	for i := range 16 {
		content := fmt.Appendf(nil, "%d %s", i, bytes.Repeat([]byte("."), 2000))
		if !s.Has(Digest(content)) {
			continue
		}
		b, err := Read(s, Digest(content))
		if err != nil {
			t.Error(err)
		}
		sum += int64(len(b))
	}
	if sum != u.Size {
		t.Errorf("size %d, the modules have %d", u.Size, sum)
	}
	s.Retain(nil)
	if d, err := Write(s, "ns", "src", make([]byte, 20_000)); err != nil || !s.Has(d) {
		t.Errorf("with everything idle there is no room: %v (something stayed reserved)", err)
	}
}
