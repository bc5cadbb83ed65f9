package file

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a folder of 10,000 plugins costs: to read at first, to look at again while nothing
// changes, and when one file of it changes.
func BenchmarkSource_10000Files(b *testing.B) {
	folder := b.TempDir()
	old := time.Now().Add(-time.Hour)
	for i := range 10_000 {
		name := filepath.Join(folder, fmt.Sprintf("p%05d.yaml", i))
		if err := os.WriteFile(name, []byte(wasmPlugin(fmt.Sprintf("p%05d", i), "oci://r.example/p:v1")), 0o600); err != nil {
			b.Fatal(err)
		}
		if err := os.Chtimes(name, old, old); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			New(folder, "", nil).read()
		}
	})
	s := New(folder, "", nil)
	s.read()
	b.Run("quiet", func(b *testing.B) {
		for b.Loop() {
			s.read()
		}
	})
	b.Run("one file", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			name := filepath.Join(folder, "p00000.yaml")
			if err := os.WriteFile(name, []byte(wasmPlugin("p00000", fmt.Sprintf("oci://r.example/p:v%d", i))), 0o600); err != nil {
				b.Fatal(err)
			}
			s.read()
		}
	})
}
