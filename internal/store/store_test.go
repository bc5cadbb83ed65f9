package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, dir string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var (
	digest    = storetest.Digest
	write     = storetest.Write
	mustWrite = storetest.MustWrite
	read      = storetest.Read
)

func TestStore_OnDisk(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t testing.TB, o store.Options) *store.Store { return open(t, t.TempDir(), o) })
}

func TestStore_OnAForgetfulDisk(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t testing.TB, o store.Options) *store.Store {
		return open(t, "", store.NewForgetful().Options(o))
	})
}

func TestP9_ARestartFindsEverythingAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	a := mustWrite(t, s, "team-a", "reg.example/a", []byte("one"))
	b := mustWrite(t, s, "team-b", "reg.example/b", []byte("two"))
	if err := s.Put(store.Record{Source: "reg.example/c", Name: "facts", Data: []byte(`{"x":1}`)}); err != nil {
		t.Fatal(err)
	}
	before := s.Usage()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, store.Options{})
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
		for way, by := range map[string]func(*store.Store, string) ([]byte, error){"opened": storetest.Read, "read": (*store.Store).Read} {
			t.Run(name+", "+way, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				s := open(t, dir, store.Options{})
				content := []byte("good content")
				d := mustWrite(t, s, "ns", "src", content)
				if _, err := read(s, d); err != nil { // verified once: the next open must see the change all the same
					t.Fatal(err)
				}
				alter(t, filepath.Join(dir, store.Folder, store.DirModules, d))
				b, err := by(s, d)
				if err == nil || len(b) != 0 {
					t.Fatalf("served %q", b)
				}
				if name != "a link elsewhere" {
					if !errors.Is(err, store.ErrCorrupt) {
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
	s := open(t, dir, store.Options{})
	kept := mustWrite(t, s, "ns", "src", []byte("kept"))
	lost := mustWrite(t, s, "ns", "src2", []byte("its file goes"))
	altered := mustWrite(t, s, "ns", "src3", []byte("its record is altered"))
	mustDo(t, s.Close())
	in := func(parts ...string) string { return filepath.Join(append([]string{dir, store.Folder}, parts...)...) }
	mustDo(t, os.Remove(in(store.DirModules, lost)))
	rewrite(t, in(store.DirModules, digest([]byte("orphan"))), []byte("orphan"))
	rewrite(t, in(store.DirModules, "notes.txt"), []byte("not a digest"))
	rewrite(t, in(store.DirTemp, "half"), []byte("half"))
	rewrite(t, in(store.DirRecords, "x.json"), []byte("not a record"))
	record := in(store.DirRecords, store.RecordFile("src3", "sha256:"+altered))
	b, err := os.ReadFile(record)
	mustDo(t, err)
	rewrite(t, record, bytes.Replace(b, []byte("src3"), []byte("src4"), 1))
	s = open(t, dir, store.Options{})
	if u := s.Usage(); u.Modules != 1 || u.Records != 1 || !s.Has(kept) {
		t.Fatalf("after the sweep: %+v", u)
	}
	for _, sub := range []string{store.DirModules, store.DirRecords, store.DirTemp} {
		left, err := os.ReadDir(in(sub))
		mustDo(t, err)
		want := map[string]int{store.DirModules: 1, store.DirRecords: 1, store.DirTemp: 0}[sub]
		if len(left) != want {
			t.Errorf("%s has %d files, want %d: %v", sub, len(left), want, left)
		}
	}
}

func TestStore_OneProcessAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	d := mustWrite(t, s, "ns", "src", []byte("x"))
	if _, err := store.Open(dir, store.Options{}); !errors.Is(err, store.ErrInUse) {
		t.Fatalf("error %v, want ErrInUse", err)
	}
	reader := open(t, dir, store.Options{ReadOnly: true})
	if b, err := read(reader, d); err != nil || string(b) != "x" {
		t.Fatalf("read-only: %q, %v", b, err)
	}
	if _, err := write(reader, "ns", "src", []byte("y")); !errors.Is(err, store.ErrReadOnly) {
		t.Fatalf("error %v, want ErrReadOnly", err)
	}
	mustDo(t, s.Close())
	open(t, dir, store.Options{})
}

func TestStore_AForeignFolderIsNotTouched(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustDo(t, os.MkdirAll(filepath.Join(dir, store.Folder), 0o700))
	rewrite(t, filepath.Join(dir, store.Folder, "thesis.tex"), []byte("years of work"))
	if _, err := store.Open(dir, store.Options{}); err == nil {
		t.Fatal("opened")
	}
	if b, err := os.ReadFile(filepath.Join(dir, store.Folder, "thesis.tex")); err != nil || string(b) != "years of work" {
		t.Fatal("touched")
	}
	other := t.TempDir()
	mustDo(t, os.MkdirAll(filepath.Join(other, store.Folder), 0o700))
	rewrite(t, filepath.Join(other, store.Folder, store.FileFormat), []byte("stile store 2\n"))
	if _, err := store.Open(other, store.Options{}); err == nil {
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
	s := open(t, dir, store.Options{Keys: []secret.Key{key(1)}})
	d := mustWrite(t, s, "ns", "src", []byte("x"))
	mustDo(t, s.Close())
	s = open(t, dir, store.Options{Keys: []secret.Key{key(2), key(1)}}) // rotated
	if !s.Has(d) {
		t.Fatal("lost by rotation")
	}
	mustDo(t, s.Close())
	s = open(t, dir, store.Options{Keys: []secret.Key{key(3)}})
	if s.Has(d) {
		t.Fatal("adopted from whoever wrote it")
	}
}

// What was used before a restart does not give way to what was merely fetched later.
func TestStore_WhatWasUsedIsKnownAfterARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	a, b := mustWrite(t, s, "ns", "src/a", bytes.Repeat([]byte("a"), 1000)), mustWrite(t, s, "ns", "src/b", bytes.Repeat([]byte("b"), 1000))
	mustDo(t, s.Close())
	for digest, age := range map[string]time.Duration{a: 48 * time.Hour, b: 24 * time.Hour} {
		at := time.Now().Add(-age)
		mustDo(t, os.Chtimes(filepath.Join(dir, store.Folder, store.DirModules, digest), at, at))
	}
	s = open(t, dir, store.Options{})
	if _, err := read(s, a); err != nil {
		t.Fatal(err)
	}
	mustDo(t, s.Close())
	s = open(t, dir, store.Options{MaxSize: 2500})
	mustWrite(t, s, "ns", "src/c", bytes.Repeat([]byte("c"), 1000))
	if !s.Has(a) || s.Has(b) {
		t.Errorf("a, just used, is there: %v; b, not used for a day: %v", s.Has(a), s.Has(b))
	}
}
