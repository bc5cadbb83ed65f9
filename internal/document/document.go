// Package document turns the text of YAML and JSON files into typed objects. Its one
// rule: every fault of a file is told at once, with its place, and no text of a
// stranger can do more harm than a finding.
package document

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/secret"
)

// Document is one document of a file, or one item of a List in it.
type Document struct {
	// File is the name as it was given; Index counts the file's documents from 0, empty ones
	// included. The items of a List share its Index.
	File  string
	Index int
	// Line is where the object begins, counted from 1.
	Line int
	// Kind, APIVersion, Namespace and Name are as written; the namespace of a WasmPlugin,
	// Secret or Gateway that names none is "default", as it is for kubectl.
	Kind, APIVersion, Namespace, Name string
	// Object is a *v1alpha1.WasmPlugin, *v1alpha1.Config, *Secret or *Gateway; nil for other
	// kinds, and where no object could be made out. It may be present beside errors: then
	// it holds what could be read.
	Object any
	// Findings are the faults of the object.
	Findings []Finding
	rules    Rules
}

// Rules are what an operator demands of documents beside what the API says. The zero value
// demands nothing.
type Rules struct {
	// HostEnv are the variables that plugins may take from a proxy's environment: nil is any,
	// an empty list none.
	HostEnv []string
}

// HasErrors reports whether any finding is an error.
func (d Document) HasErrors() bool {
	for _, f := range d.Findings {
		if f.Severity == v1alpha1.SeverityError {
			return true
		}
	}
	return false
}

// Finding is one fault of a document, as a ValidationReport shows it. Line is 0 where it
// is not known. No message repeats a value.
type Finding struct {
	File      string `json:"file"`
	Document  int    `json:"document"`
	Line      int    `json:"line,omitempty"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Field     string `json:"field"`
	Severity  string `json:"severity"`
	Reason    string `json:"reason"`
	Message   string `json:"message"`
}

// Secret is a Kubernetes Secret. Its values cannot be printed.
type Secret struct {
	Namespace, Name, Type string
	// Data is data, decoded, and stringData, which wins where both name a key.
	Data map[string]secret.Secret
}

// Gateway is as much of a Gateway of gateway.networking.k8s.io as attachment needs.
type Gateway struct {
	Namespace, Name string
	// Class is the name of its GatewayClass.
	Class string
}

// Read splits a file and reads each document of it. It returns the documents that hold
// anything, in the order of the file; one that is not text gives a Document with a
// finding. It never fails.
func Read(file string, data []byte) []Document { return Rules{}.Read(file, data) }

// Read is the function Read, with findings for what breaks the rules.
func (r Rules) Read(file string, data []byte) []Document {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var docs []Document
	for i, c := range split(data) {
		docs = append(docs, readChunk(Document{File: file, Index: i, Line: c.line + 1, rules: r}, c)...)
	}
	return docs
}

// invalidUTF8 returns the place of the first byte that is no UTF-8 text, or -1. A zero byte,
// as UTF-16 has, is none.
func invalidUTF8(data []byte) int {
	for at := 0; at < len(data); {
		r, n := utf8.DecodeRune(data[at:])
		if r == utf8.RuneError && n <= 1 || r == 0 {
			return at
		}
		at += n
	}
	return -1
}

// readChunk reads d from its text.
func readChunk(d Document, c chunk) []Document {
	if at := invalidUTF8(c.text); at >= 0 {
		d.Line += bytes.Count(c.text[:at], []byte("\n"))
		d.add(d.Line, "", v1alpha1.SeverityError, v1alpha1.ReasonSyntax, "is not UTF-8 text")
		return []Document{d}
	}
	y, err := parse(c)
	if y == nil && err == nil {
		return nil
	}
	var root *node
	var early []Finding
	if err == nil {
		b := builder{base: c.line, budget: 10_000 + 4*len(c.text), report: func(line int, path, reason, message string) {
			early = append(early, Finding{Line: line, Field: path, Severity: v1alpha1.SeverityError, Reason: reason, Message: message})
		}}
		root, err = b.build(y, "", 0)
	}
	if err != nil {
		var syntax *syntaxError
		line := d.Line
		if errors.As(err, &syntax) && syntax.line > 0 {
			line = syntax.line
		}
		d.add(line, "", v1alpha1.SeverityError, v1alpha1.ReasonSyntax, err.Error())
		return []Document{d}
	}
	if root.kind == null {
		return nil // as templates leave where they make nothing
	}
	return d.open(root, early, "", "")
}

func (d *Document) add(line int, field, severity, reason, message string) {
	d.Findings = append(d.Findings, Finding{
		File: d.File, Document: d.Index, Line: line, Kind: d.Kind, Namespace: d.Namespace, Name: d.Name,
		Field: field, Severity: severity, Reason: reason, Message: message,
	})
}

// open reads an object, or the items of a List. early are faults found while its tree was
// made, with paths from root; kind and apiVersion are what an item of a typed list may omit.
func (d Document) open(root *node, early []Finding, apiVersion, kind string) []Document {
	d.Line = root.line
	if root.kind != object {
		d.add(root.line, "", v1alpha1.SeverityError, v1alpha1.ReasonInvalid, "must be an object with apiVersion, kind and metadata, is "+root.kind.String())
		return []Document{d}
	}
	d.APIVersion, d.Kind = root.text("apiVersion"), root.text("kind")
	if kind != "" && d.Kind == "" && d.APIVersion == "" {
		d.APIVersion, d.Kind = apiVersion, kind
	}
	metadata := root.field("metadata")
	d.Namespace, d.Name = metadata.text("namespace"), metadata.text("name")
	what := lookup(d.APIVersion, d.Kind)
	if what.list {
		return d.openList(root, early)
	}
	if what.read != nil && what.namespaced && d.Namespace == "" {
		d.Namespace = "default"
	}
	for _, f := range early {
		d.add(f.Line, f.Field, f.Severity, f.Reason, f.Message)
	}
	if what.reason != "" {
		d.add(root.line, what.field, what.severity, what.reason, what.message)
	}
	if what.read != nil {
		what.read(&d, root)
	}
	return []Document{d}
}

// openList reads the items of a List as if each were a document.
func (d Document) openList(root *node, early []Finding) []Document {
	items := root.field("items")
	var docs []Document
	if items != nil && items.kind != list {
		d.add(items.line, "items", v1alpha1.SeverityError, v1alpha1.ReasonInvalid, "must be a list, is "+items.kind.String())
	}
	version, kind := d.APIVersion, strings.TrimSuffix(d.Kind, "List")
	var own []Finding
	byItem := map[int][]Finding{}
	for _, f := range early {
		if i, path, ok := itemPath(f.Field); ok {
			f.Field = path
			byItem[i] = append(byItem[i], f)
		} else {
			own = append(own, f)
		}
	}
	for _, f := range own {
		d.add(f.Line, f.Field, f.Severity, f.Reason, f.Message)
	}
	if len(d.Findings) > 0 {
		docs = append(docs, d)
	}
	if items == nil {
		return docs
	}
	for i, item := range items.items {
		docs = append(docs, Document{File: d.File, Index: d.Index, rules: d.rules}.open(item, byItem[i], version, kind)...)
	}
	return docs
}

// itemPath takes "items[3].spec.url" apart into 3 and "spec.url".
func itemPath(path string) (int, string, bool) {
	var i int
	if n, err := fmt.Sscanf(path, "items[%d]", &i); n != 1 || err != nil {
		return 0, "", false
	}
	_, rest, _ := strings.Cut(path, "]")
	return i, strings.TrimPrefix(rest, "."), true
}

// decodeInto fills target from root and returns the decoder, which knows the lines. The
// paths that did not fit are returned too.
func (d *Document) decodeInto(root *node, target any) (*decoder, map[string]bool) {
	bad := map[string]bool{}
	dec := &decoder{lines: map[string]int{}}
	dec.report = func(line int, path, reason, message string) {
		bad[path] = true
		d.add(line, path, v1alpha1.SeverityError, reason, message)
	}
	dec.decode(root, reflect.ValueOf(target).Elem(), "")
	return dec, bad
}

// addAll adds findings of the API's own validation, each with its line, but for those on
// fields that could not be read in the first place.
func (d *Document) addAll(found []v1alpha1.Finding, dec *decoder, bad map[string]bool) {
	for _, f := range found {
		if covered(f.Field, bad) {
			continue
		}
		d.add(dec.line(f.Field), f.Field, f.Severity, f.Reason, f.Message)
	}
}

// covered reports whether path or anything above it is in bad.
func covered(path string, bad map[string]bool) bool {
	for path != "" {
		if bad[path] {
			return true
		}
		path = parent(path)
	}
	return false
}

// line returns the line of a field, or of the nearest thing around it.
func (d *decoder) line(path string) int {
	for ; path != ""; path = parent(path) {
		if n, ok := d.lines[path]; ok {
			return n
		}
	}
	return d.lines[""]
}

// parent returns the path without its last step.
func parent(path string) string {
	if strings.HasSuffix(path, "]") {
		if i := strings.LastIndexByte(path, '['); i >= 0 {
			return path[:i]
		}
	}
	if i := strings.LastIndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return ""
}
