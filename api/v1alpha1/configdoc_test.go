package v1alpha1_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/api/v1alpha1"
)

var update = flag.Bool("update", false, "write docs/spec/config.md anew")

const configPage = "../../docs/spec/config.md"

// TestConfigPage holds docs/spec/config.md to the types, their comments and the defaults.
func TestConfigPage(t *testing.T) {
	t.Parallel()
	p := page{comments: comments(t)}
	p.WriteString("# Configuration\n\n" +
		"`stile serve --config stile.yaml`: one YAML document, `apiVersion: stile.dev/v1alpha1`, `kind: Config`. What is left out has its default; " +
		"a field that is not known is an error. Sizes are whole numbers with an optional unit (`8Mi`, `4Gi`, `1M`), durations as Go writes them (`1h30m`). " +
		"No value is a secret; secrets are in the files that some values name.\n\n" +
		"<!-- Made from api/v1alpha1/config_types.go by `go test ./api/v1alpha1 -run ConfigPage -update`. -->\n")
	c := reflect.ValueOf(*v1alpha1.DefaultConfig())
	var sections []int
	p.WriteString("\n| field | default | |\n|---|---|---|\n")
	for i := range c.NumField() {
		if name(c.Type().Field(i)) == "apiVersion" || name(c.Type().Field(i)) == "kind" {
			continue
		}
		if nested(c.Type().Field(i).Type) != nil {
			sections = append(sections, i)
			continue
		}
		p.row("", c.Type(), c, i)
	}
	for _, i := range sections {
		f := c.Type().Field(i)
		typ := nested(f.Type)
		fmt.Fprintf(&p, "\n## `%s`\n\n%s\n\n| field | default | |\n|---|---|---|\n", path("", f), p.comments[c.Type().Name()+"."+f.Name])
		value := reflect.New(typ).Elem()
		if f.Type.Kind() == reflect.Struct {
			value = c.Field(i)
		}
		p.rows(path("", f), typ, value)
	}
	if *update {
		if err := os.WriteFile(configPage, []byte(p.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(configPage)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), p.String()); d != "" {
		t.Errorf("%s is not what the types say; run with -update (-file +types):\n%s", configPage, d)
	}
}

type page struct {
	strings.Builder
	comments map[string]string // "Type.Field" to its comment
}

func (p *page) rows(prefix string, typ reflect.Type, value reflect.Value) {
	for i := range typ.NumField() {
		p.row(prefix, typ, value, i)
	}
}

// row writes one field, or the fields of the struct that it is.
func (p *page) row(prefix string, typ reflect.Type, value reflect.Value, i int) {
	f := typ.Field(i)
	at := strings.TrimPrefix(prefix+"."+path("", f), ".")
	comment := p.comments[typ.Name()+"."+f.Name]
	if in := nested(f.Type); in != nil {
		if comment != "" {
			fmt.Fprintf(p, "| `%s` | | %s |\n", at, comment)
		}
		v := reflect.New(in).Elem()
		if f.Type.Kind() == reflect.Struct {
			v = value.Field(i)
		}
		p.rows(at, in, v)
		return
	}
	if comment == "" {
		comment = "(no comment: write one)"
	}
	fmt.Fprintf(p, "| `%s` | %s | %s |\n", at, shown(value.Field(i)), comment)
}

// nested returns the struct of this package that a field holds, alone, by pointer or in a list.
func nested(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[v1alpha1.Duration]() || t.PkgPath() != reflect.TypeFor[v1alpha1.Config]().PkgPath() {
		return nil
	}
	return t
}

func name(f reflect.StructField) string {
	n, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return n
}

func path(prefix string, f reflect.StructField) string {
	s := prefix + name(f)
	if f.Type.Kind() == reflect.Slice && nested(f.Type) != nil {
		s += "[]"
	}
	return s
}

// shown returns a default as YAML writes it; nothing for what is empty.
func shown(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case v1alpha1.Duration:
		return "`" + x.String() + "`"
	case v1alpha1.Size:
		return "`" + x.String() + "`"
	case []string:
		if len(x) == 0 {
			return "none"
		}
		return "`[" + strings.Join(x, ", ") + "]`"
	case string:
		if x == "" {
			return "empty"
		}
		return "`" + x + "`"
	case bool, int, int32:
		return fmt.Sprintf("`%v`", x)
	}
	return "none"
}

// comments reads the fields' comments.
func comments(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config_types.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		s, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		for _, f := range s.Fields.List {
			for _, id := range f.Names {
				out[spec.Name.Name+"."+id.Name] = strings.TrimSpace(strings.ReplaceAll(f.Doc.Text(), "\n", " "))
			}
		}
		return true
	})
	return out
}
