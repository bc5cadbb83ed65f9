package document_test

import (
	"fmt"

	"github.com/stileproject/stile/internal/document"
)

func ExampleRead() {
	docs := document.Read("plugins.yaml", []byte(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: auth, namespace: team-a}
spec:
  url: oci://registry.example/auth:v1
  phase: AUTHX
  priorty: 10
`))
	for _, f := range document.Report(docs).Findings {
		fmt.Printf("%s:%d: %s: %s\n", f.File, f.Line, f.Field, f.Message)
	}
	// Output:
	// plugins.yaml:6: spec.phase: must be one of UNSPECIFIED_PHASE, AUTHN, AUTHZ, STATS, ASM_ROUTER
	// plugins.yaml:7: spec.priorty: is not a field: did you mean priority?
}
