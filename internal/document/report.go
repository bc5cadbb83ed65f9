package document

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/stileproject/stile/api/v1alpha1"
)

// ValidationReport is what `stile validate -o json` prints.
type ValidationReport struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// Checked counts the WasmPlugins that were checked.
	Checked int `json:"checked"`
	// Findings are sorted by file, document and line; never nil.
	Findings []Finding `json:"findings"`
}

// HasErrors reports whether any finding is an error.
func (r ValidationReport) HasErrors() bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == v1alpha1.SeverityError })
}

// Report sums up documents of any number of files. Beside the documents' own findings it
// tells of WasmPlugins and Secrets of one name, of which only the first counts.
func Report(docs []Document) ValidationReport {
	r := ValidationReport{APIVersion: v1alpha1.ConfigAPIVersion, Kind: "ValidationReport", Findings: []Finding{}}
	type id struct{ kind, namespace, name string }
	first := map[id]Document{}
	for _, d := range docs {
		r.Findings = append(r.Findings, d.Findings...)
		switch d.Object.(type) {
		case *v1alpha1.WasmPlugin:
			r.Checked++
		case *Secret, *Gateway:
		default:
			continue
		}
		if d.Name == "" {
			continue
		}
		key := id{d.Kind, d.Namespace, d.Name}
		if f, twice := first[key]; twice {
			d.Findings = nil
			d.add(d.Line, "metadata.name", v1alpha1.SeverityWarning, v1alpha1.ReasonDuplicate, "is already defined in "+place(f)+", which alone counts: remove or rename one")
			r.Findings = append(r.Findings, d.Findings...)
			continue
		}
		first[key] = d
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Document, b.Document), cmp.Compare(a.Line, b.Line))
	})
	return r
}

// place says where a document is.
func place(d Document) string { return fmt.Sprintf("%s, line %d", d.File, d.Line) }
