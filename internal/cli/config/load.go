package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/stileproject/stile/internal/spelling"
)

// Fault is one thing wrong with a configuration. Line is 0 where the fault has none.
type Fault struct {
	Source  Source
	Key     string // for example "xds.address"; "" for the whole
	Message string
}

func (f Fault) String() string {
	where := f.Source.Name
	if f.Source.Line > 0 {
		where += ":" + strconv.Itoa(f.Source.Line)
	}
	parts := make([]string, 0, 3)
	for _, p := range []string{where, f.Key, f.Message} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ": ")
}

// Faults is every fault of a configuration: one as it is, several a line each.
type Faults []Fault

func (f Faults) Error() string {
	if len(f) == 1 {
		return f[0].String()
	}
	lines := make([]string, 0, len(f)+1)
	lines = append(lines, fmt.Sprintf("%d faults", len(f)))
	for _, fault := range f {
		lines = append(lines, "  "+fault.String())
	}
	return strings.Join(lines, "\n")
}

// Input is what the layers above the defaults hold.
type Input struct {
	FileName string // how messages call the file; "" = no file
	File     []byte
	Env      func(Key) (variable, text string, ok bool)
	Flags    map[string]FlagValue // by the path of the key; only flags that were given
}

// FlagValue is the text of a flag and the name that messages call it by.
type FlagValue struct{ Name, Text string }

// Sources says where each value came from: by the path of every leaf.
type Sources map[string]Source

// Load fills the struct that config points to, which holds the defaults, from the
// layers of in. Faults of all layers are returned together, as Faults; validate, if not
// nil, is asked for more once the struct is filled, also beside other faults; it is told
// where each value came from.
func Load(config any, in Input, validate func(Sources) error) (Sources, error) {
	l := &loader{in: in, sources: Sources{}, lines: map[string]int{}}
	root := reflect.ValueOf(config).Elem()
	walk(root, "", func(path string, _ reflect.Value) { l.sources[path] = Source{Layer: Default} })
	if in.FileName != "" {
		l.file(root)
	}
	l.texts(config, root)
	if validate != nil {
		l.validation(validate(l.sources))
	}
	if len(l.faults) == 0 {
		return l.sources, nil
	}
	slices.SortStableFunc(l.faults, func(a, b Fault) int { return a.Source.Line - b.Source.Line })
	return l.sources, l.faults
}

type loader struct {
	in      Input
	sources Sources
	lines   map[string]int // of every key the file holds, lists' elements included
	faults  Faults
}

func (l *loader) faultAt(line int, key, format string, args ...any) {
	l.faults = append(l.faults, Fault{
		Source: Source{Layer: File, Name: l.in.FileName, Line: line}, Key: key, Message: fmt.Sprintf(format, args...),
	})
}

// file reads the file into root.
func (l *loader) file(root reflect.Value) {
	decoder := yaml.NewDecoder(strings.NewReader(string(l.in.File)))
	var doc yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			l.syntax(err)
		}
		return
	}
	var second yaml.Node
	switch err := decoder.Decode(&second); {
	case err == nil:
		l.faultAt(second.Line, "", "a second document: a configuration file has one")
	case !errors.Is(err, io.EOF):
		l.syntax(err)
	}
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return
	}
	l.object(root, doc.Content[0], "")
}

// syntax reports a YAML syntax error, with the line that the parser's text names.
func (l *loader) syntax(err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, message, found := strings.Cut(rest, ": "); found {
			if n, err := strconv.Atoi(number); err == nil {
				line, text = n, message
			}
		}
	}
	l.faultAt(line, "", "not YAML: %s", text)
}

// object reads a mapping into a struct.
func (l *loader) object(v reflect.Value, node *yaml.Node, path string) {
	node = resolve(node)
	if node.Kind != yaml.MappingNode {
		l.faultAt(node.Line, path, "want an object with the keys %s", strings.Join(names(v.Type()), ", "))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		at := join(path, key.Value)
		if first, twice := seen[key.Value]; twice {
			l.faultAt(key.Line, at, "is written twice, first in line %d", first)
			continue
		}
		seen[key.Value] = key.Line
		index := slices.IndexFunc(fields(v.Type()), func(f field) bool { return f.name == key.Value })
		if index < 0 {
			l.unknown(key, path, names(v.Type()))
			continue
		}
		l.lines[at] = key.Line
		if isNull(value) {
			continue // a key without a value keeps the default
		}
		l.value(v.FieldByIndex(fields(v.Type())[index].index), value, at)
	}
}

// unknown reports a key that does not exist, the nearest that does, and all that do.
func (l *loader) unknown(key *yaml.Node, path string, known []string) {
	of := "known keys"
	if path != "" {
		of += " of " + path
	}
	hint := ""
	if near := Nearest(key.Value, known); near != "" {
		hint = fmt.Sprintf("did you mean %q? ", near)
	}
	l.faultAt(key.Line, join(path, key.Value), "unknown key; %s%s: %s", hint, of, strings.Join(known, ", "))
}

// value reads any node into v and notes where the value came from.
func (l *loader) value(v reflect.Value, node *yaml.Node, path string) {
	node = resolve(node)
	from := Source{Layer: File, Name: l.in.FileName, Line: node.Line}
	if _, leaf := l.sources[path]; leaf {
		l.sources[path] = from
	}
	t := v.Type()
	switch {
	case isScalar(t):
		if node.Kind != yaml.ScalarNode {
			l.faultAt(node.Line, path, "want a single value")
			return
		}
		if t.Kind() == reflect.String && !reads(t) && node.Tag != "!!str" && node.Tag != "!!timestamp" {
			l.faultAt(node.Line, path, "want text, have %s; put it in quotes", node.Value)
			return
		}
		if err := setScalar(v, node.Value); err != nil {
			l.faultAt(node.Line, path, "%v", err)
		}
	case t.Kind() == reflect.Struct:
		l.object(v, node, path)
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		if isOptional(t) {
			l.there(v.Elem(), path)
		}
		l.value(v.Elem(), node, path)
	case t.Kind() == reflect.Slice:
		l.list(v, node, path)
	case t.Kind() == reflect.Map:
		l.mapping(v, node, path)
	default:
		l.faultAt(node.Line, path, "cannot be set from a file")
	}
}

// there notes the leaves of an optional object that is there after all.
func (l *loader) there(v reflect.Value, path string) {
	delete(l.sources, path)
	walk(v, path, func(path string, _ reflect.Value) { l.sources[path] = Source{Layer: Default} })
}

func (l *loader) list(v reflect.Value, node *yaml.Node, path string) {
	if node.Kind != yaml.SequenceNode {
		l.faultAt(node.Line, path, "want a list")
		return
	}
	list := reflect.MakeSlice(v.Type(), len(node.Content), len(node.Content))
	for i, element := range node.Content {
		at := path + "[" + strconv.Itoa(i) + "]"
		l.lines[at] = element.Line
		l.value(list.Index(i), element, at)
	}
	v.Set(list)
}

func (l *loader) mapping(v reflect.Value, node *yaml.Node, path string) {
	if node.Kind != yaml.MappingNode {
		l.faultAt(node.Line, path, "want an object")
		return
	}
	m := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, element := node.Content[i], reflect.New(v.Type().Elem()).Elem()
		at := join(path, key.Value)
		name := reflect.ValueOf(key.Value).Convert(v.Type().Key())
		if m.MapIndex(name).IsValid() {
			l.faultAt(key.Line, at, "is written twice")
			continue
		}
		l.lines[at] = key.Line
		l.value(element, node.Content[i+1], at)
		m.SetMapIndex(name, element)
	}
	v.Set(m)
}

// texts reads the environment and then the flags.
func (l *loader) texts(config any, root reflect.Value) {
	for _, k := range Keys(config) {
		if l.in.Env != nil {
			if variable, text, ok := l.in.Env(k); ok {
				l.text(root, k.Path, text, Source{Layer: Environment, Name: variable})
			}
		}
		if f, ok := l.in.Flags[k.Path]; ok {
			l.text(root, k.Path, f.Text, Source{Layer: Flag, Name: "--" + f.Name})
		}
	}
}

func (l *loader) text(root reflect.Value, path, text string, from Source) {
	v := reach(root, path)
	if err := setText(v, text); err != nil {
		l.faults = append(l.faults, Fault{Source: from, Key: path, Message: err.Error()})
		return
	}
	if _, known := l.sources[path]; !known { // its object has just been made
		object := path[:strings.LastIndexByte(path, '.')]
		l.there(reach(root, object).Elem(), object)
	}
	l.sources[path] = from
}

// validation adds what validate found, with the place of the value that each fault
// begins with: "xds.address: …".
func (l *loader) validation(err error) {
	if err == nil {
		return
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range several.Unwrap() {
			l.validation(e)
		}
		return
	}
	key, message, ok := strings.Cut(err.Error(), ": ")
	if !ok || strings.ContainsAny(key, " \t") {
		l.faults = append(l.faults, Fault{Message: err.Error()})
		return
	}
	if slices.ContainsFunc(l.faults, func(f Fault) bool { return f.Key == key }) {
		return // the value could not be read: what it would have been says nothing
	}
	l.faults = append(l.faults, Fault{Source: l.from(key), Key: key, Message: message})
}

// from returns where the value at key, or the nearest one that holds it, came from.
func (l *loader) from(key string) Source {
	if s, ok := l.sources[key]; ok && s.Layer != File {
		return s
	}
	for at := key; at != ""; {
		if line, ok := l.lines[at]; ok {
			return Source{Layer: File, Name: l.in.FileName, Line: line}
		}
		cut := strings.LastIndexAny(at, ".[")
		if cut < 0 {
			break
		}
		at = at[:cut]
	}
	return Source{Layer: Default}
}

// Value is one leaf of a configuration, as people and programs read it.
type Value struct {
	Key    string          `json:"key"`
	Value  json.RawMessage `json:"value"`
	Source string          `json:"source"`
}

// Values returns every leaf of the struct that config points to, with its source, in
// the order of its fields.
func Values(config any, sources Sources) ([]Value, error) {
	var values []Value
	var faults []error
	walk(reflect.ValueOf(config).Elem(), "", func(path string, v reflect.Value) {
		text, err := json.Marshal(v.Interface())
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", path, err))
			return
		}
		values = append(values, Value{Key: path, Value: text, Source: sources[path].String()})
	})
	return values, errors.Join(faults...)
}

// resolve follows an alias to what it stands for.
func resolve(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func isNull(node *yaml.Node) bool {
	return resolve(node).Kind == yaml.ScalarNode && resolve(node).Tag == "!!null"
}

func names(t reflect.Type) []string {
	var all []string
	for _, f := range fields(t) {
		all = append(all, f.name)
	}
	return all
}

// Nearest returns the name that differs from s by case or by at most two edits, or "".
func Nearest(s string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if d := spelling.Distance(strings.ToLower(s), strings.ToLower(k), distance); d < distance && d < len(k) {
			best, distance = k, d
		}
	}
	return best
}
