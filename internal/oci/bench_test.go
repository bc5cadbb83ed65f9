package oci

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stileproject/stile/internal/oci/localregistry"
)

// What the engine does for each plugin at each look: from a keyring and a reference to
// the effective credentials and the trust.
func BenchmarkKeyring_For(b *testing.B) {
	for _, entries := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			hosts := []string{"r.example"}
			for i := range entries - 1 {
				hosts = append(hosts, fmt.Sprintf("r%d.example", i))
			}
			k, r := keyring(b, "s", config(hosts...)), ref(b, "r.example/a/p:v1")
			b.ReportAllocs()
			for b.Loop() {
				if c, err := k.For(r); err != nil || c.Anonymous() {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkClient_Trust(b *testing.B) {
	c := newClient(b, Settings{}, "r.example")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Trust("r.example", "ns"); err != nil {
			b.Fatal(err)
		}
	}
}

// A warm check is one HEAD: what is measured is mostly loopback.
func BenchmarkClient_CheckHeld(b *testing.B) {
	for _, mode := range []localregistry.Mode{localregistry.Bearer, localregistry.Basic} {
		b.Run(string(mode), func(b *testing.B) {
			f := newFixture(b, localregistry.Options{Mode: mode}, Settings{})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.client.Check(b.Context(), f.image, f.alice, f.trust, CheckOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Reading a blob verifies it on the way, in constant memory.
func BenchmarkClient_Blob(b *testing.B) {
	content := make([]byte, 16<<20)
	d := newBlob("", content).Descriptor
	_, c, r, tr := plainRegistry(b, Settings{}, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/v2/" {
			_, _ = w.Write(content)
		}
	})
	buffer := make([]byte, 256<<10)
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for b.Loop() {
		blob, err := c.Blob(b.Context(), r, d, Credential{}, tr)
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = blob.Read(buffer)
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		_ = blob.Close()
	}
}
