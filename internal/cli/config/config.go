// Package config fills a configuration struct from its layers: default, file,
// environment, flag, the later winning over the earlier. Its one rule: every fault of a
// file is reported at once, with its line, and nothing that is not known is passed over.
//
// It knows no field of its own: keys are the JSON names of the struct, joined by dots.
package config

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// EnvPrefix is what the environment variables of the configuration begin with.
const EnvPrefix = "STILE_"

// Layer is where a value came from.
type Layer string

// The layers, the later winning over the earlier.
const (
	Default     Layer = "default"
	File        Layer = "file"
	Environment Layer = "env"
	Flag        Layer = "flag"
)

// Source says where one value came from. Name is the file, the variable or the flag;
// Line counts from 1 and is 0 where there is none.
type Source struct {
	Layer Layer
	Name  string
	Line  int
}

// String returns for example "default", "file stile.yaml:7", "env STILE_XDS_ADDRESS".
func (s Source) String() string {
	switch {
	case s.Name == "":
		return string(s.Layer)
	case s.Line > 0:
		return fmt.Sprintf("%s %s:%d", s.Layer, s.Name, s.Line)
	default:
		return string(s.Layer) + " " + s.Name
	}
}

// Key is one single value of a configuration that the environment and flags can set.
type Key struct {
	Path string // for example "xds.inlineMaxModule"
	List bool   // a list of strings: commas separate its elements
}

// Env returns the environment variable of the key: STILE_XDS_INLINE_MAX_MODULE.
func (k Key) Env() string { return EnvPrefix + strings.ToUpper(words(k.Path, "_")) }

// Flag returns the flag of the key, without dashes: xds-inline-max-module.
func (k Key) Flag() string { return words(k.Path, "-") }

// Keys returns every single value of the struct that config points to, in the order of
// its fields, those of optional objects included. Lists of structs and maps are not among
// them: only a file can hold those.
func Keys(config any) []Key {
	var keys []Key
	walkAll(reflect.ValueOf(config).Elem(), "", func(path string, v reflect.Value) {
		if path == "apiVersion" || path == "kind" {
			return
		}
		if isScalar(v.Type()) || isStrings(v.Type()) {
			keys = append(keys, Key{Path: path, List: isStrings(v.Type())})
		}
	})
	return keys
}

// walk visits the leaves of a struct: its scalars, lists and maps, and optional objects
// that are not there.
func walk(v reflect.Value, prefix string, visit func(string, reflect.Value)) {
	for _, f := range fields(v.Type()) {
		path, field := join(prefix, f.name), v.FieldByIndex(f.index)
		if isOptional(field.Type()) && !field.IsNil() {
			field = field.Elem()
		}
		if field.Kind() == reflect.Struct && !isScalar(field.Type()) {
			walk(field, path, visit)
			continue
		}
		visit(path, field)
	}
}

// walkAll visits the leaves of a struct and, beside them, those that optional objects
// would have if they were there.
func walkAll(v reflect.Value, prefix string, visit func(string, reflect.Value)) {
	walk(v, prefix, func(path string, v reflect.Value) {
		if isOptional(v.Type()) {
			walkAll(reflect.New(v.Type().Elem()).Elem(), path, visit)
			return
		}
		visit(path, v)
	})
}

// reach returns the leaf of a struct at path. Optional objects on the way are made.
func reach(v reflect.Value, path string) reflect.Value {
	name, rest, deeper := strings.Cut(path, ".")
	all := fields(v.Type())
	v = v.FieldByIndex(all[slices.IndexFunc(all, func(f field) bool { return f.name == name })].index)
	if !deeper {
		return v
	}
	if isOptional(v.Type()) {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	return reach(v, rest)
}

// isOptional reports whether t is an object that may be missing.
func isOptional(t reflect.Type) bool {
	return t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct && !isScalar(t)
}

// field is one JSON field of a struct.
type field struct {
	name  string
	index []int
}

// fields returns the JSON fields of a struct in order, those of inlined structs included.
func fields(t reflect.Type) []field {
	var all []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name == "" && (f.Anonymous || strings.Contains(options, "inline")) && f.Type.Kind() == reflect.Struct:
			for _, inner := range fields(f.Type) {
				all = append(all, field{inner.name, append(slices.Clone(f.Index), inner.index...)})
			}
		case name == "":
			all = append(all, field{f.Name, f.Index})
		default:
			all = append(all, field{name, f.Index})
		}
	}
	return all
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
)

// isScalar reports whether a value of type t is written as one word.
func isScalar(t reflect.Type) bool {
	if reads(t) {
		return true
	}
	switch t.Kind() {
	case reflect.Pointer:
		return isScalar(t.Elem())
	case reflect.String, reflect.Bool, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}

// reads reports whether t has a form of its own.
func reads(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(textUnmarshaler) || p.Implements(jsonUnmarshaler)
}

func isStrings(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String
}

// setScalar gives v the value that text writes. Its errors say what is wanted.
func setScalar(v reflect.Value, text string) error {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		return setScalar(v.Elem(), text)
	}
	if v.CanAddr() {
		switch u := v.Addr().Interface().(type) {
		case encoding.TextUnmarshaler:
			return u.UnmarshalText([]byte(text))
		case json.Unmarshaler:
			quoted, err := json.Marshal(text)
			if err != nil {
				return err
			}
			if err := u.UnmarshalJSON(quoted); err == nil {
				return nil
			}
			if _, err := strconv.ParseFloat(text, 64); err == nil {
				return u.UnmarshalJSON([]byte(text))
			}
			return u.UnmarshalJSON(quoted)
		}
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("want true or false, have %q", text)
		}
		v.SetBool(b)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("want a number, have %q", text)
		}
		v.SetFloat(f)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("want a whole number, have %q", text)
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("want a whole number that is not negative, have %q", text)
		}
		v.SetUint(n)
	default:
		return fmt.Errorf("cannot be set from text")
	}
	return nil
}

// setText gives v the value that an environment variable or a flag writes.
func setText(v reflect.Value, text string) error {
	if !isStrings(v.Type()) {
		return setScalar(v, text)
	}
	list := reflect.MakeSlice(v.Type(), 0, 0)
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = reflect.Append(list, reflect.ValueOf(part).Convert(v.Type().Elem()))
		}
	}
	v.Set(list)
	return nil
}

// words splits a path at dots and at the humps of its names: "tls.clientCAFile" gives
// "tls-client-ca-file" for "-".
func words(path, separator string) string {
	var b strings.Builder
	runes := []rune(path)
	for i, r := range runes {
		switch {
		case r == '.':
			b.WriteString(separator)
			continue
		case unicode.IsUpper(r) && i > 0 && runes[i-1] != '.':
			endsWord := unicode.IsLower(runes[i-1]) || unicode.IsDigit(runes[i-1])
			beginsWord := unicode.IsUpper(runes[i-1]) && i+1 < len(runes) && unicode.IsLower(runes[i+1])
			if endsWord || beginsWord {
				b.WriteString(separator)
			}
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}
