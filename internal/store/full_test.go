package store_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stileproject/stile/internal/store"
)

func TestStore_AFullDiskIsAnErrorForThatModuleAlone(t *testing.T) {
	t.Parallel()
	d := store.NewForgetful()
	s := open(t, "", d.Options(store.Options{}))
	kept := mustWrite(t, s, "ns", "src", []byte("written in time"))
	d.Fill(true)
	if _, err := write(s, "ns", "src", []byte("too late")); !errors.Is(err, store.ErrFull) {
		t.Errorf("module: error %v, want ErrFull", err)
	}
	if err := s.Put(store.Record{Source: "src", Name: "facts"}); !errors.Is(err, store.ErrFull) {
		t.Errorf("record: error %v, want ErrFull", err)
	}
	if _, ok := s.Get("src", "facts"); ok {
		t.Error("a record that was not written is there")
	}
	if _, err := read(s, kept); err != nil {
		t.Errorf("what was there: %v", err)
	}
	if n := d.Files(store.DirTemp); n != 0 {
		t.Errorf("%d temporary files are left", n)
	}
	if u := s.Usage(); u.Modules != 1 || u.Size != int64(len("written in time")) {
		t.Errorf("usage %+v", u)
	}
	d.Fill(false)
	mustWrite(t, s, "ns", "src", []byte("too late"))
}

func BenchmarkOpen10000(b *testing.B) {
	dir := b.TempDir()
	s := open(b, dir, store.Options{})
	const modules = 10_000
	for i := range modules {
		store.Plant(b, dir, s, fmt.Sprint("registry.example/repository", i), fmt.Appendf(nil, "module %d", i))
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := store.Open(dir, store.Options{})
		if err != nil || s.Usage().Modules != modules {
			b.Fatalf("%+v, %v", s.Usage(), err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
