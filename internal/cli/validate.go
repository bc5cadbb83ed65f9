package cli

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/internal/document"
)

// validationReport is the JSON of "stile validate".
type validationReport struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"`
	Checked    int                `json:"checked"`
	Findings   []document.Finding `json:"findings"`
}

func validateVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate -f PATH...",
		Short: "Would the API accept these documents?",
		Long: `Reads files and, recursively, folders (.yaml, .yml, .json), and reports everything that
the API would refuse, with file, document and field. Nothing is fetched.

Exits with 3 if any finding is an error, with 2 if a path does not exist.`,
		Example: `  stile validate -f resources/
  kubectl get wasmplugins -A -o yaml | stile validate -f - -o json`,
		Args: cobra.ArbitraryArgs,
	}
	out := outputFlag(cmd)
	paths := pathFlags(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		d, err := a.readDocuments("validate", append(slices.Clone(*paths), args...))
		if err != nil {
			return err
		}
		if err := out.print(a.stdout, validationAnswer(d)); err != nil {
			return err
		}
		if d.errors() > 0 {
			return silent(Findings)
		}
		return nil
	}
	return cmd
}

func validationAnswer(d *documents) answer {
	var names []string
	for _, f := range d.findings {
		name := f.File
		if f.Name != "" {
			name = f.Kind + "/" + f.Namespace + "/" + f.Name
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return answer{
		Value: validationReport{APIVersion: apiVersion, Kind: "ValidationReport", Checked: d.checked, Findings: d.findings},
		Names: names,
		Table: func(w io.Writer, wide bool) {
			for _, f := range d.findings {
				_, _ = fmt.Fprintln(w, line(f, wide))
			}
			faults := d.errors()
			_, _ = fmt.Fprintf(w, "%s checked: %s, %s\n", count(d.checked, "WasmPlugin"), count(faults, "error"), count(len(d.findings)-faults, "warning"))
		},
	}
}
