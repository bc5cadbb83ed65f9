package document_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/document"
)

// BenchmarkRead reads a folder's worth of plugins.
func BenchmarkRead(b *testing.B) {
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata:\n  name: p%d\n  namespace: team-%d\nspec:\n"+
			"  selector:\n    matchLabels: {app: gw}\n  url: oci://registry.example/p%d:v1\n  phase: AUTHN\n  priority: %d\n  pluginConfig:\n    realm: ingress\n    paths: [/a, /b]\n", i, i%100, i, i)
	}
	data := []byte(text.String())
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if docs := document.Read("f.yaml", data); len(docs) != 1000 || len(docs[0].Findings) > 0 {
			b.Fatal(len(docs))
		}
	}
}
