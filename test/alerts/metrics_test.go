package alerts

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// metric is one that the code declares: its labels, and whether it is a histogram.
type metric struct {
	labels    []string
	histogram bool
}

// declared reads from the code every metric that it declares. A vector's labels are its own, and others have none.
func declared(t *testing.T) map[string]metric {
	t.Helper()
	all := map[string]metric{}
	root := filepath.Join("..", "..", "internal")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if name, m, ok := declaration(call); ok {
					all[name] = m
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 30 {
		t.Fatalf("only %d metrics found: the code declares them in another way now", len(all))
	}
	return all
}

// declaration reads New…(Opts{Name: …}, labels), NewDesc(name, help, labels, …) and helpers that take the name first.
func declaration(call *ast.CallExpr) (name string, m metric, ok bool) {
	if len(call.Args) == 0 {
		return "", metric{}, false
	}
	function := ""
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		function = f.Sel.Name
	case *ast.Ident:
		function = f.Name
	}
	m.histogram = strings.Contains(function, "Histogram")
	switch first := call.Args[0].(type) {
	case *ast.BasicLit:
		name = literal(first)
		if function == "NewDesc" && len(call.Args) > 2 {
			m.labels = literals(call.Args[2])
		}
	case *ast.CompositeLit:
		for _, e := range first.Elts {
			kv, isKV := e.(*ast.KeyValueExpr)
			if !isKV {
				continue
			}
			switch key, _ := kv.Key.(*ast.Ident); {
			case key == nil:
			case key.Name == "Name":
				name = literal(kv.Value)
			case key.Name == "ConstLabels":
				m.labels = append(m.labels, literals(kv.Value)...)
			}
		}
		if strings.HasSuffix(function, "Vec") && len(call.Args) > 1 {
			m.labels = append(m.labels, literals(call.Args[1])...)
		}
	}
	return name, m, strings.HasPrefix(name, "stile_") && !strings.HasSuffix(name, "_")
}

func literal(e ast.Expr) string {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return ""
	}
	s, err := strconv.Unquote(l.Value)
	if err != nil {
		return ""
	}
	return s
}

// literals are the strings of a slice, or the keys of a map.
func literals(e ast.Expr) (all []string) {
	c, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	for _, one := range c.Elts {
		if kv, isKV := one.(*ast.KeyValueExpr); isKV {
			one = kv.Key
		}
		all = append(all, literal(one))
	}
	return all
}

// ofTheScrape are labels that Prometheus adds to whatever a pod says.
var ofTheScrape = []string{"namespace", "pod", "instance", "job", "service", "endpoint", "container", "le"}

// knows says what is wrong with a name and the labels asked of it, or "".
func knows(all map[string]metric, name string, labels []string) string {
	base := name
	m, ok := all[base]
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if h, is := all[strings.TrimSuffix(name, suffix)]; !ok && is && h.histogram && strings.HasSuffix(name, suffix) {
			m, ok = h, true
		}
	}
	if !ok {
		return "no code declares " + name
	}
	for _, l := range labels {
		if !slices.Contains(m.labels, l) && !slices.Contains(ofTheScrape, l) {
			return name + " has no label " + l
		}
	}
	return ""
}
