package document

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"

	"github.com/stileproject/stile/api/v1alpha1"
)

// maxDepth bounds how deep a document nests, as protobuf bounds what Envoy reads.
const maxDepth = 100

// kind is what a value is in JSON.
type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	list
	object
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "a list", "an object"}[k]
}

// node is one value of a document, as JSON has it: aliases and merges resolved, scalars
// read as kubectl reads them.
type node struct {
	kind   kind
	line   int    // from 1
	value  string // of a scalar; of a number, its JSON form
	plain  bool   // the scalar is written without quotes
	keys   []key  // of an object, in order, each once
	fields map[string]*node
	items  []*node // of a list
}

type key struct {
	name string
	line int
}

// encode appends n as JSON.
func (n *node) encode(b []byte) []byte {
	switch n.kind {
	case boolean, number:
		return append(b, n.value...)
	case text:
		q, _ := json.Marshal(n.value)
		return append(b, q...)
	case list:
		b = append(b, '[')
		for i, e := range n.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = e.encode(b)
		}
		return append(b, ']')
	case object:
		b = append(b, '{')
		for i, k := range n.keys {
			if i > 0 {
				b = append(b, ',')
			}
			q, _ := json.Marshal(k.name)
			b = append(append(b, q...), ':')
			b = n.fields[k.name].encode(b)
		}
		return append(b, '}')
	}
	return append(b, "null"...)
}

// text returns the string at a field of an object; "" if there is none.
func (n *node) text(field string) string {
	if n == nil || n.fields[field] == nil || n.fields[field].kind != text {
		return ""
	}
	return n.fields[field].value
}

// field returns the value at a field; nil if n has none.
func (n *node) field(name string) *node {
	if n == nil {
		return nil
	}
	return n.fields[name]
}

// builder makes nodes of one document. Its budget bounds what aliases may multiply.
type builder struct {
	base   int // lines before the document
	budget int
	report func(line int, path, reason, message string)
}

func errTooDeep(line int) error {
	return &syntaxError{line, fmt.Sprintf("nests more than %d deep", maxDepth)}
}

// build turns y into a node. Its error is a *syntaxError; faults that leave the rest
// readable are reported instead.
func (b *builder) build(y *yaml.Node, path string, depth int) (*node, error) {
	line := b.base + y.Line
	if depth > maxDepth {
		return nil, errTooDeep(line)
	}
	if b.budget--; b.budget < 0 {
		return nil, &syntaxError{line, "its aliases multiply it beyond reason: write the values out"}
	}
	if y.Style&yaml.TaggedStyle != 0 && !knownTags[y.ShortTag()] {
		return nil, &syntaxError{line, "has a tag that is not known: remove it"}
	}
	switch y.Kind {
	case yaml.AliasNode:
		n, err := b.build(y.Alias, path, depth+1)
		return n, err
	case yaml.ScalarNode:
		return scalar(y, line)
	case yaml.SequenceNode:
		n := &node{kind: list, line: line, items: make([]*node, 0, len(y.Content))}
		for i, e := range y.Content {
			item, err := b.build(e, fmt.Sprintf("%s[%d]", path, i), depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		return n, nil
	case yaml.MappingNode:
		return b.mapping(y, path, depth, line)
	}
	return nil, &syntaxError{line, "is not a value"}
}

var knownTags = map[string]bool{
	"!!str": true, "!!int": true, "!!float": true, "!!bool": true, "!!null": true,
	"!!map": true, "!!seq": true, "!!binary": true, "!!timestamp": true, "!!merge": true,
}

func (b *builder) mapping(y *yaml.Node, path string, depth, line int) (*node, error) {
	n := &node{kind: object, line: line, fields: make(map[string]*node, len(y.Content)/2)}
	var merges []*node
	for i := 0; i+1 < len(y.Content); i += 2 {
		name, err := b.build(y.Content[i], path, depth+1)
		if err != nil {
			return nil, err
		}
		if name.kind == list || name.kind == object || name.kind == null {
			return nil, &syntaxError{name.line, "a field's name must be a string, not " + name.kind.String()}
		}
		at := join(path, name.value)
		value, err := b.build(y.Content[i+1], at, depth+1)
		if err != nil {
			return nil, err
		}
		if y.Content[i].Kind == yaml.ScalarNode && y.Content[i].ShortTag() == "!!merge" {
			merges = append(merges, value)
			continue
		}
		if first := n.fields[name.value]; first != nil {
			b.report(name.line, at, v1alpha1.ReasonDuplicate, fmt.Sprintf("is already set on line %d: remove one", b.lineOf(n, name.value)))
			continue
		}
		n.keys = append(n.keys, key{name.value, name.line})
		n.fields[name.value] = value
	}
	for _, m := range merges {
		if err := n.merge(m); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (b *builder) lineOf(n *node, name string) int {
	for _, k := range n.keys {
		if k.name == name {
			return k.line
		}
	}
	return n.line
}

// merge adds the fields of m, an object or a list of objects, that n does not have itself.
func (n *node) merge(m *node) error {
	switch m.kind {
	case object:
		for _, k := range m.keys {
			if n.fields[k.name] == nil {
				n.keys = append(n.keys, k)
				n.fields[k.name] = m.fields[k.name]
			}
		}
		return nil
	case list:
		for _, e := range m.items {
			if e.kind != object {
				return &syntaxError{e.line, "<< merges objects alone"}
			}
			if err := n.merge(e); err != nil {
				return err
			}
		}
		return nil
	}
	return &syntaxError{m.line, "<< merges objects alone"}
}

// join appends a field to a path. Names that are not plain words stand in brackets.
func join(path, name string) string {
	if name == "" || strings.ContainsAny(name, ".[]/ ") {
		return path + "[" + name + "]"
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// words are the unquoted words that YAML 1.1 takes for booleans, as kubectl still does.
var words = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true, "on": true, "On": true, "ON": true,
	"true": true, "True": true, "TRUE": true,
	"n": false, "N": false, "no": false, "No": false, "NO": false, "off": false, "Off": false, "OFF": false,
	"false": false, "False": false, "FALSE": false,
}

// scalar reads a scalar as kubectl would.
func scalar(y *yaml.Node, line int) (*node, error) {
	n := &node{line: line, plain: y.Style&^yaml.TaggedStyle == 0}
	tagged := y.Style&yaml.TaggedStyle != 0
	if !tagged && n.plain {
		if v, ok := words[y.Value]; ok {
			n.kind, n.value = boolean, strconv.FormatBool(v)
			return n, nil
		}
	}
	mismatch := &syntaxError{line, "has a tag that its value does not fit"}
	switch y.ShortTag() {
	case "!!null":
		if tagged && y.Value != "" && y.Value != "~" && !strings.EqualFold(y.Value, "null") {
			return nil, mismatch
		}
		n.kind = null
	case "!!bool":
		v, ok := words[y.Value]
		if !ok {
			return nil, mismatch
		}
		n.kind, n.value = boolean, strconv.FormatBool(v)
	case "!!int", "!!float":
		v, ok := jsonNumber(y.Value)
		if !ok {
			return nil, &syntaxError{line, "is a number that JSON cannot hold: put it in quotes if it is meant as a string"}
		}
		n.kind, n.value = number, v
	case "!!binary":
		raw, err := base64.StdEncoding.DecodeString(y.Value)
		if err != nil || !utf8.Valid(raw) {
			return nil, &syntaxError{line, "!!binary must be base64 of UTF-8 text"}
		}
		n.kind, n.value = text, string(raw)
	default:
		n.kind, n.value = text, y.Value
	}
	return n, nil
}

// jsonNumber spells a YAML number as JSON does; whole numbers keep all their digits.
func jsonNumber(s string) (string, bool) {
	s = strings.ReplaceAll(s, "_", "")
	if i, err := strconv.ParseInt(s, 0, 64); err == nil {
		return strconv.FormatInt(i, 10), true
	}
	if u, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 0, 64); err == nil {
		return strconv.FormatUint(u, 10), true
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return "", false
	}
	b, err := json.Marshal(f)
	return string(b), err == nil
}
