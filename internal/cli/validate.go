package cli

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
)

func validateVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate -f PATH...",
		Short: "Would the API accept these documents?",
		Long: `Reads files and, recursively, folders (.yaml, .yml, .json), and reports everything that
the API would refuse, with file, document and field. Nothing is fetched. Where there is a
configuration, what its wasm.hostEnvAllow forbids is an error too.

Exits with 3 if any finding is an error, with 2 if a path does not exist.`,
		Example: `  stile validate -f resources/
  kubectl get wasmplugins -A -o yaml | stile validate -f - -o json`,
		Args: cobra.ArbitraryArgs,
	}
	out := outputFlag(cmd)
	paths := pathFlags(cmd)
	config := configFileFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rules, err := a.rules(config)
		if err != nil {
			return err
		}
		d, err := a.readByRules(cmd.Context(), "validate", append(slices.Clone(*paths), args...), rules)
		if err != nil {
			return err
		}
		if err := out.print(a.stdout, validationAnswer(d.report)); err != nil {
			return err
		}
		if d.report.HasErrors() {
			return silent(Findings)
		}
		return nil
	}
	return cmd
}

func validationAnswer(r document.ValidationReport) answer {
	var names []string
	faults := 0
	for _, f := range r.Findings {
		name := f.File
		if f.Name != "" {
			name = f.Kind + "/" + objectName(f)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		if f.Severity == v1alpha1.SeverityError {
			faults++
		}
	}
	return answer{Value: r, Names: names, Table: func(w io.Writer, wide bool) {
		for _, f := range r.Findings {
			_, _ = fmt.Fprintln(w, line(f, wide))
		}
		_, _ = fmt.Fprintf(w, "%s checked: %s, %s\n", count(r.Checked, "WasmPlugin"), count(faults, "error"), count(len(r.Findings)-faults, "warning"))
	}}
}
