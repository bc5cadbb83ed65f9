package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/source/file"
)

// pathFlags adds -f to a verb. Further paths may follow as arguments, so that a shell's
// "-f *.yaml" works.
func pathFlags(cmd *cobra.Command) *[]string {
	return cmd.Flags().StringArrayP("filename", "f", nil, "file or folder of YAML or JSON documents, \"-\" for stdin; may be repeated")
}

// documents is what some paths hold.
type documents struct {
	plugins  []*v1alpha1.WasmPlugin // in the order of the files; of two of one name the first
	invalid  map[plugin.Key][]v1alpha1.Finding
	secrets  map[plugin.Key]*document.Secret
	checked  int // WasmPlugins, all of them
	findings []document.Finding
}

// readDocuments reads paths, folders recursively. A path that does not exist is a usage
// error; what the documents say wrong is a finding.
func (a *app) readDocuments(verb string, paths []string) (*documents, error) {
	if len(paths) == 0 {
		return nil, usagef("%s: -f PATH is missing: a file, a folder, or - for stdin", verb)
	}
	d := &documents{invalid: map[plugin.Key][]v1alpha1.Finding{}, secrets: map[plugin.Key]*document.Secret{}, findings: []document.Finding{}}
	seen := map[string]string{}
	for _, path := range paths {
		if path == "-" {
			data, err := io.ReadAll(io.LimitReader(a.stdin, file.MaxFile+1))
			if err == nil && len(data) > file.MaxFile {
				err = fmt.Errorf("is larger than %d MiB", file.MaxFile>>20)
			}
			if err != nil {
				return nil, fail(Failed, fmt.Errorf("%s: read stdin: %w", verb, err), "")
			}
			d.add("-", data, seen)
			continue
		}
		if err := a.readPath(verb, path, d, seen); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (a *app) readPath(verb, path string, d *documents, seen map[string]string) error {
	files, _, err := file.List(path)
	switch {
	case os.IsNotExist(err):
		return fail(Usage, fmt.Errorf("%s: %w", verb, err), "name a file or folder that exists")
	case err != nil:
		return fail(Failed, fmt.Errorf("%s: %w", verb, err), "")
	case len(files) == 0:
		a.note("%s: the folder %s holds no .yaml, .yml or .json file", verb, path)
	}
	for _, name := range files {
		data, err := file.Read(name)
		if err != nil {
			return fail(Failed, fmt.Errorf("%s: %w", verb, err), "")
		}
		d.add(name, data, seen)
	}
	return nil
}

// add takes the documents of one file. seen are the objects so far, and where they were.
func (d *documents) add(name string, data []byte, seen map[string]string) {
	for _, doc := range document.Read(name, data) {
		d.findings = append(d.findings, doc.Findings...)
		if _, ok := doc.Object.(*v1alpha1.WasmPlugin); ok {
			d.checked++
		}
		if doc.Object == nil {
			continue
		}
		key := plugin.Key{Namespace: doc.Namespace, Name: doc.Name}
		id := doc.Kind + " " + key.String()
		if first, twice := seen[id]; twice {
			d.findings = append(d.findings, document.Finding{
				File: name, Document: doc.Index, Line: doc.Line, Kind: doc.Kind, Namespace: doc.Namespace, Name: doc.Name,
				Field: "metadata.name", Severity: v1alpha1.SeverityWarning, Reason: v1alpha1.ReasonDuplicate,
				Message: "a second " + doc.Kind + " of this name: the one in " + first + " counts",
			})
			continue
		}
		seen[id] = name
		switch o := doc.Object.(type) {
		case *v1alpha1.WasmPlugin:
			d.plugins = append(d.plugins, o)
			for _, f := range doc.Findings {
				if f.Severity == v1alpha1.SeverityError {
					d.invalid[key] = append(d.invalid[key], v1alpha1.Finding{Field: f.Field, Severity: f.Severity, Reason: f.Reason, Message: f.Message})
				}
			}
		case *document.Secret:
			d.secrets[key] = o
		}
	}
}

// errors counts the findings of severity error.
func (d *documents) errors() int {
	n := 0
	for _, f := range d.findings {
		if f.Severity == v1alpha1.SeverityError {
			n++
		}
	}
	return n
}

// line is a finding on one line, as compilers write theirs.
func line(f document.Finding, wide bool) string {
	where := f.File
	if f.Line > 0 {
		where += fmt.Sprintf(":%d", f.Line)
	}
	parts := []string{where, f.Severity}
	if f.Kind != "" {
		object := f.Kind
		if f.Name != "" {
			object += " " + plugin.Key{Namespace: f.Namespace, Name: f.Name}.String()
		}
		parts = append(parts, object)
	}
	if f.Field != "" {
		parts = append(parts, f.Field)
	}
	text := strings.Join(append(parts, f.Message), ": ")
	if wide {
		text += fmt.Sprintf(" [%s, document %d]", f.Reason, f.Document)
	}
	return printable(text)
}

// count writes "1 plugin", "2 plugins".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
