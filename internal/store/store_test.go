package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// write stores b for the namespace, delivered by source under its own digest.
func write(s *Store, namespace, source string, b []byte) (string, error) {
	w, err := s.Create(namespace)
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := w.Write(b); err != nil {
		return "", err
	}
	return w.Commit(Record{Source: source, Name: "sha256:" + digest(b)})
}

func mustWrite(t *testing.T, s *Store, namespace, source string, b []byte) string {
	t.Helper()
	d, err := write(s, namespace, source, b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func read(s *Store, d string) ([]byte, error) {
	f, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

func TestStore_WhatIsWrittenIsReadBack(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	content := bytes.Repeat([]byte("module"), 100_000)
	d := mustWrite(t, s, "team-a", "reg.example/a/p", content)
	if d != digest(content) {
		t.Fatalf("digest %s, want %s", d, digest(content))
	}
	got, err := read(s, d)
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

func TestStore_NothingIsSeenBeforeCommit(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	w, err := s.Create("ns")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if s.Has(digest([]byte("half"))) {
		t.Fatal("visible before commit")
	}
	w.Abort()
	w.Abort()
	if u := s.Usage(); u.Modules != 0 || u.Size != 0 {
		t.Fatalf("after abort: %+v", u)
	}
}

func TestP9_ARestartFindsEverythingAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	a := mustWrite(t, s, "team-a", "reg.example/a", []byte("one"))
	b := mustWrite(t, s, "team-b", "reg.example/b", []byte("two"))
	if err := s.Put(Record{Source: "reg.example/c", Name: "facts", Data: []byte(`{"x":1}`)}); err != nil {
		t.Fatal(err)
	}
	before := s.Usage()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	for _, d := range []string{a, b} {
		if _, err := read(s, d); err != nil {
			t.Fatal(err)
		}
	}
	if r, ok := s.Get("reg.example/c", "facts"); !ok || string(r.Data) != `{"x":1}` {
		t.Fatalf("facts = %+v, %v", r, ok)
	}
	after := s.Usage()
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Fatalf("usage %+v, before the restart %+v", after, before)
	}
}

func TestP6_AlteredBytesAreNeverServed(t *testing.T) {
	t.Parallel()
	for name, alter := range map[string]func(t *testing.T, path string){
		"of equal length":  func(t *testing.T, p string) { rewrite(t, p, []byte("evil content")) },
		"cut off":          func(t *testing.T, p string) { rewrite(t, p, []byte("good")) },
		"emptied":          func(t *testing.T, p string) { rewrite(t, p, nil) },
		"gone":             func(t *testing.T, p string) { mustDo(t, os.Remove(p)) },
		"a link elsewhere": func(t *testing.T, p string) { mustDo(t, os.Remove(p)); mustDo(t, os.Symlink("/etc/hostname", p)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, dir, Options{})
			content := []byte("good content")
			d := mustWrite(t, s, "ns", "src", content)
			if _, err := read(s, d); err != nil { // verified once: the next open must see the change all the same
				t.Fatal(err)
			}
			alter(t, filepath.Join(dir, folder, dirModules, d))
			b, err := read(s, d)
			if err == nil || len(b) != 0 {
				t.Fatalf("served %q", b)
			}
			if name != "a link elsewhere" {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("error %v, want ErrCorrupt", err)
				}
				if _, ok := s.Get("src", "sha256:"+d); ok {
					t.Fatal("its record is still there: it would never be fetched again")
				}
			}
			mustWrite(t, s, "ns", "src", content)
			if b, err := read(s, d); err != nil || !bytes.Equal(b, content) {
				t.Fatalf("written again: %q, %v", b, err)
			}
		})
	}
}

func rewrite(t *testing.T, path string, b []byte) {
	t.Helper()
	mustDo(t, os.WriteFile(path, b, 0o600))
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStore_TheSweepRemovesWhatIsNotWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	kept := mustWrite(t, s, "ns", "src", []byte("kept"))
	lost := mustWrite(t, s, "ns", "src2", []byte("its file goes"))
	altered := mustWrite(t, s, "ns", "src3", []byte("its record is altered"))
	mustDo(t, s.Close())
	in := func(parts ...string) string { return filepath.Join(append([]string{dir, folder}, parts...)...) }
	mustDo(t, os.Remove(in(dirModules, lost)))
	rewrite(t, in(dirModules, digest([]byte("orphan"))), []byte("orphan"))
	rewrite(t, in(dirModules, "notes.txt"), []byte("not a digest"))
	rewrite(t, in(dirTemp, "half"), []byte("half"))
	rewrite(t, in(dirRecords, "x.json"), []byte("not a record"))
	record := in(dirRecords, recordKey{"src3", "sha256:" + altered}.file())
	b, err := os.ReadFile(record)
	mustDo(t, err)
	rewrite(t, record, bytes.Replace(b, []byte("src3"), []byte("src4"), 1))
	s = open(t, dir, Options{})
	if u := s.Usage(); u.Modules != 1 || u.Records != 1 || !s.Has(kept) {
		t.Fatalf("after the sweep: %+v", u)
	}
	for _, sub := range []string{dirModules, dirRecords, dirTemp} {
		left, err := os.ReadDir(in(sub))
		mustDo(t, err)
		want := map[string]int{dirModules: 1, dirRecords: 1, dirTemp: 0}[sub]
		if len(left) != want {
			t.Errorf("%s has %d files, want %d: %v", sub, len(left), want, left)
		}
	}
}

func TestStore_LeastRecentlyUsedGivesWayAndLeasesDoNot(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{MaxSize: 3 << 20})
	module := func(c byte) []byte { return bytes.Repeat([]byte{c}, 1<<20) }
	a := mustWrite(t, s, "a", "src", module('a'))
	b := mustWrite(t, s, "b", "src", module('b'))
	c := mustWrite(t, s, "c", "src", module('c'))
	if _, err := read(s, a); err != nil { // a was used last, b is the oldest
		t.Fatal(err)
	}
	s.Retain([]string{b})
	d := mustWrite(t, s, "d", "src", module('d'))
	if s.Has(c) || !s.Has(a) || !s.Has(b) || !s.Has(d) {
		t.Fatalf("c was the least recently used without a lease; have a %v b %v c %v d %v", s.Has(a), s.Has(b), s.Has(c), s.Has(d))
	}
	s.Retain([]string{a, b, d})
	if _, err := write(s, "e", "src", module('e')); !errors.Is(err, ErrFull) {
		t.Fatalf("error %v, want ErrFull", err)
	}
	for _, kept := range []string{a, b, d} {
		if _, err := read(s, kept); err != nil {
			t.Fatal(err)
		}
	}
	s.Retain(nil)
	mustWrite(t, s, "e", "src", module('e'))
}

func TestP7_ANamespaceOverItsShareHurtsItselfAlone(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{MaxPerNamespace: 2 << 20})
	module := func(c byte) []byte { return bytes.Repeat([]byte{c}, 1<<20) }
	other := mustWrite(t, s, "quiet", "src", module('q'))
	a := mustWrite(t, s, "noisy", "src", module('a'))
	b := mustWrite(t, s, "noisy", "src", module('b'))
	shared := mustWrite(t, s, "quiet", "src", module('s'))
	s.Retain([]string{b})
	if err := s.Use(shared, "noisy"); err != nil { // a gives way
		t.Fatal(err)
	}
	if s.Has(a) || !s.Has(other) {
		t.Fatalf("a %v, other's %v", s.Has(a), s.Has(other))
	}
	s.Retain([]string{b, shared})
	if _, err := write(s, "noisy", "src", module('c')); !errors.Is(err, ErrNamespaceFull) {
		t.Fatalf("error %v, want ErrNamespaceFull", err)
	}
	if err := s.Use(other, "noisy"); !errors.Is(err, ErrNamespaceFull) {
		t.Fatalf("error %v, want ErrNamespaceFull", err)
	}
	if _, err := read(s, other); err != nil {
		t.Fatal(err)
	}
	// What the noisy one gives up stays for the others.
	s.Retain([]string{b})
	mustWrite(t, s, "noisy", "src", module('c'))
	if !s.Has(shared) {
		t.Fatal("a module of another namespace was evicted")
	}
}

func TestStore_OneProcessAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	d := mustWrite(t, s, "ns", "src", []byte("x"))
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrInUse) {
		t.Fatalf("error %v, want ErrInUse", err)
	}
	reader := open(t, dir, Options{ReadOnly: true})
	if b, err := read(reader, d); err != nil || string(b) != "x" {
		t.Fatalf("read-only: %q, %v", b, err)
	}
	if _, err := write(reader, "ns", "src", []byte("y")); !errors.Is(err, ErrReadOnly) {
		t.Fatalf("error %v, want ErrReadOnly", err)
	}
	mustDo(t, s.Close())
	open(t, dir, Options{})
}

func TestStore_AForeignFolderIsNotTouched(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustDo(t, os.MkdirAll(filepath.Join(dir, folder), 0o700))
	rewrite(t, filepath.Join(dir, folder, "thesis.tex"), []byte("years of work"))
	if _, err := Open(dir, Options{}); err == nil {
		t.Fatal("opened")
	}
	if b, err := os.ReadFile(filepath.Join(dir, folder, "thesis.tex")); err != nil || string(b) != "years of work" {
		t.Fatal("touched")
	}
	other := t.TempDir()
	mustDo(t, os.MkdirAll(filepath.Join(other, folder), 0o700))
	rewrite(t, filepath.Join(other, folder, fileFormat), []byte("stile store 2\n"))
	if _, err := Open(other, Options{}); err == nil {
		t.Fatal("a store of another format was opened")
	}
}

func TestStore_RecordsOfAnotherKeyAreDropped(t *testing.T) {
	t.Parallel()
	key := func(c byte) secret.Key {
		root, err := secret.NewRoot(bytes.Repeat([]byte{c}, secret.Size), nil)
		mustDo(t, err)
		return root.Key(secret.ForRows)
	}
	dir := t.TempDir()
	s := open(t, dir, Options{Keys: []secret.Key{key(1)}})
	d := mustWrite(t, s, "ns", "src", []byte("x"))
	mustDo(t, s.Close())
	s = open(t, dir, Options{Keys: []secret.Key{key(2), key(1)}}) // rotated
	if !s.Has(d) {
		t.Fatal("lost by rotation")
	}
	mustDo(t, s.Close())
	s = open(t, dir, Options{Keys: []secret.Key{key(3)}})
	if s.Has(d) {
		t.Fatal("adopted from whoever wrote it")
	}
}

func TestStore_ManyAtOnce(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{MaxSize: 20_000})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 40 {
				content := fmt.Appendf(nil, "%d %s", (g+i)%16, bytes.Repeat([]byte("."), 2000))
				d, err := write(s, fmt.Sprint("ns", g%3), fmt.Sprint("src", g), content)
				if err != nil && !errors.Is(err, ErrFull) {
					t.Error(err)
					return
				}
				if err != nil {
					continue
				}
				b, err := read(s, d)
				if errors.Is(err, ErrNotFound) {
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
	for d := range s.modules {
		sum += s.modules[d].size
		if _, err := read(s, d); err != nil {
			t.Error(err)
		}
	}
	if sum != u.Size || s.reserved != 0 {
		t.Errorf("size %d, sum %d, reserved %d", u.Size, sum, s.reserved)
	}
}
