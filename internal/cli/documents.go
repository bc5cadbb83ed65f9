package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

// rules are what the configuration demands of documents: nothing if there is none, since
// its defaults are then nobody's decision.
func (a *app) rules(in *configInput) (document.Rules, error) {
	name, err := a.configFile(in.file)
	if err != nil || name == "" {
		return document.Rules{}, err
	}
	loaded, err := a.loadConfig(in)
	if err != nil {
		return document.Rules{}, err
	}
	return document.Rules{HostEnv: append([]string{}, loaded.Wasm.HostEnvAllow...)}, nil
}

// documents is what some paths hold.
type documents struct {
	report  document.ValidationReport
	plugins []*v1alpha1.WasmPlugin // of two of one name the first
	invalid map[plugin.Key][]v1alpha1.Finding
	secrets map[plugin.Key]*document.Secret
	classes map[plugin.Key]string // of the Gateways
}

// readDocuments reads paths, folders recursively. A path that does not exist is a usage
// error; what the documents say wrong is a finding.
func (a *app) readDocuments(ctx context.Context, verb string, paths []string) (*documents, error) {
	return a.readByRules(ctx, verb, paths, document.Rules{})
}

// readByRules is readDocuments, with findings for what breaks the rules.
func (a *app) readByRules(ctx context.Context, verb string, paths []string, rules document.Rules) (*documents, error) {
	if len(paths) == 0 {
		return nil, usagef("%s: -f PATH is missing: a file, a folder, or - for stdin", verb)
	}
	var docs []document.Document
	seen := map[string]bool{} // a file that is named twice is read once
	for _, path := range paths {
		if path == "-" {
			data, err := a.readStdin(ctx)
			if err != nil {
				return nil, fail(Failed, fmt.Errorf("%s: read stdin: %w", verb, err), "")
			}
			docs = append(docs, rules.Read("-", data)...)
			continue
		}
		more, err := a.readPath(verb, path, rules, seen)
		if err != nil {
			return nil, err
		}
		docs = append(docs, more...)
	}
	return gather(docs), nil
}

// readStdin reads stdin to its end, or until ctx ends: a read from a terminal cannot be
// interrupted, and is left to end with the process.
func (a *app) readStdin(ctx context.Context) ([]byte, error) {
	type read struct {
		data []byte
		err  error
	}
	done := make(chan read, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(a.stdin, file.MaxFile+1))
		if err == nil && len(data) > file.MaxFile {
			err = fmt.Errorf("is larger than %d MiB", file.MaxFile>>20)
		}
		done <- read{data, err}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// readPath reads a file, or the files of a folder, but for those that were seen already.
func (a *app) readPath(verb, path string, rules document.Rules, seen map[string]bool) ([]document.Document, error) {
	files, _, err := file.List(path)
	switch {
	case os.IsNotExist(err):
		return nil, fail(Usage, fmt.Errorf("%s: %w", verb, err), "name a file or folder that exists")
	case err != nil:
		return nil, fail(Failed, fmt.Errorf("%s: %w", verb, err), "")
	case len(files) == 0:
		a.note("%s: the folder %s holds no .yaml, .yml or .json file", verb, path)
	}
	var docs []document.Document
	for _, name := range files {
		if seen[filepath.Clean(name)] {
			continue
		}
		seen[filepath.Clean(name)] = true
		data, err := file.Read(name)
		if err != nil {
			return nil, fail(Failed, fmt.Errorf("%s: %w", verb, err), "")
		}
		docs = append(docs, rules.Read(name, data)...)
	}
	return docs, nil
}

// gather sorts the objects of documents by kind.
func gather(docs []document.Document) *documents {
	d := &documents{
		report:  document.Report(docs),
		invalid: map[plugin.Key][]v1alpha1.Finding{}, secrets: map[plugin.Key]*document.Secret{}, classes: map[plugin.Key]string{},
	}
	seen := map[plugin.Key]bool{}
	for _, doc := range docs {
		key := plugin.Key{Namespace: doc.Namespace, Name: doc.Name}
		switch o := doc.Object.(type) {
		case *v1alpha1.WasmPlugin:
			if seen[key] {
				continue
			}
			seen[key] = true
			d.plugins = append(d.plugins, o)
			for _, f := range doc.Findings {
				if f.Severity == v1alpha1.SeverityError {
					d.invalid[key] = append(d.invalid[key], v1alpha1.Finding{Field: f.Field, Severity: f.Severity, Reason: f.Reason, Message: f.Message})
				}
			}
		case *document.Secret:
			if d.secrets[key] == nil {
				d.secrets[key] = o
			}
		case *document.Gateway:
			if _, twice := d.classes[key]; !twice {
				d.classes[key] = o.Class
			}
		}
	}
	return d
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
			object += " " + objectName(f)
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

// objectName is namespace/name, or the name alone.
func objectName(f document.Finding) string {
	if f.Namespace == "" {
		return f.Name
	}
	return f.Namespace + "/" + f.Name
}

// count writes "1 plugin", "2 plugins".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
