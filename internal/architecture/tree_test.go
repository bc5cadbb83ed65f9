package architecture

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// modulePath is the import path of the repository's root.
const modulePath = "github.com/stileproject/stile"

// file is what the rules look at of one Go file.
type file struct {
	Room    string   // folder within the repository, as internal/oci
	Name    string   // path within the repository
	Test    bool     // a _test.go file
	Imports []string // import paths; those of this repository without modulePath
	Uses    []use
	Lines   int
}

// use is a selector expression: pkg.Name with the import path of pkg if it is an import, else with an empty one.
type use struct {
	Path, Name string
	Line       int
}

// tree returns every Go file of the repository's root module.
func tree(t *testing.T) []file {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var files []file
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != root && (foreign(d.Name()) || exists(filepath.Join(p, "go.mod"))) {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(p, ".go") {
			f, err := read(p, filepath.ToSlash(name), nil)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// foreign tells a folder that go build does not look into.
func foreign(name string) bool {
	return name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// read parses one file; source overrides what is on disk.
func read(onDisk, name string, source any) (file, error) {
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, onDisk, source, parser.SkipObjectResolution)
	if err != nil {
		return file{}, err
	}
	f := file{Room: path.Dir(name), Name: name, Test: strings.HasSuffix(name, "_test.go"), Lines: set.File(parsed.Pos()).LineCount()}
	imports := map[string]string{} // name in the file to path
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, err
		}
		local := path.Base(imported)
		if spec.Name != nil {
			local = spec.Name.Name
		}
		imports[local] = imported
		f.Imports = append(f.Imports, strings.TrimPrefix(imported, modulePath+"/"))
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			u := use{Name: s.Sel.Name, Line: set.Position(s.Pos()).Line}
			if x, ok := s.X.(*ast.Ident); ok {
				u.Path = imports[x.Name]
			}
			f.Uses = append(f.Uses, u)
		}
		return true
	})
	return f, nil
}

// ours tells an import of this repository.
func ours(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return first == "api" || first == "internal" || first == "cmd" || first == "modules" || first == "examples" || first == "test"
}

// match tells whether an import path or a room is the pattern, or is below it where the pattern ends in "/...".
func match(pattern, s string) bool {
	if above, tree := strings.CutSuffix(pattern, "/..."); tree {
		return s == above || strings.HasPrefix(s, above+"/")
	}
	return s == pattern
}

func matchAny(patterns []string, s string) bool {
	for _, p := range patterns {
		if match(p, s) {
			return true
		}
	}
	return false
}
