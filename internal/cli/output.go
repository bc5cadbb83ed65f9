package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// apiVersion is the version of every JSON answer.
const apiVersion = "stile.dev/v1alpha1"

// output is the -o flag of a verb.
type output struct{ format string }

// outputFlag adds -o to a verb, with table as the default.
func outputFlag(cmd *cobra.Command) *output {
	o := &output{}
	cmd.Flags().VarP(newChoice(&o.format, "table", "table", "wide", "json", "yaml", "name"), "output", "o",
		"form of the answer: table, wide, json, yaml or name")
	return o
}

// formatFlag adds -o to a verb whose --output is a file. The flag's long name is --format.
func formatFlag(cmd *cobra.Command) *output {
	o := &output{}
	cmd.Flags().VarP(newChoice(&o.format, "table", "table", "wide", "json", "yaml", "name"), "format", "o",
		"form of the answer: table, wide, json, yaml or name")
	return o
}

// answer is what a verb prints. Value is the JSON and YAML form; Names are the lines of
// "-o name"; Table writes the form for people, with more columns where wide is set.
type answer struct {
	Value any
	Names []string
	Table func(w io.Writer, wide bool)
}

// print writes the answer in the form the user chose.
func (o *output) print(w io.Writer, a answer) error {
	var b bytes.Buffer
	switch o.format {
	case "json":
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(a.Value); err != nil {
			return fmt.Errorf("print json: %w", err)
		}
	case "yaml":
		text, err := yaml.Marshal(a.Value)
		if err != nil {
			return fmt.Errorf("print yaml: %w", err)
		}
		b.Write(text)
	case "name":
		for _, n := range a.Names {
			b.WriteString(n + "\n")
		}
	default:
		a.Table(&b, o.format == "wide")
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	return nil
}

// table writes rows in aligned columns under the given heading.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, heading ...string) *table {
	t := &table{w: tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	if len(heading) > 0 {
		t.row(heading...)
	}
	return t
}

// row writes one row; an empty cell shows as "-", so that columns can be counted.
func (t *table) row(cells ...string) {
	clean := make([]string, len(cells))
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		clean[i] = printable(c)
	}
	_, _ = fmt.Fprintln(t.w, strings.Join(clean, "\t"))
}

func (t *table) end() { _ = t.w.Flush() }

// printable replaces control characters, which could move a terminal's cursor, by
// spaces: what is shown may have been written by strangers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
}
