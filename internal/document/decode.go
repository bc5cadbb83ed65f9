package document

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/spelling"
)

// decoder fills typed values from nodes and reports, with its path, whatever does not fit.
type decoder struct {
	lines  map[string]int // of every path that was read
	report func(line int, path, reason, message string)
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// decode fills v from n. A null is as if the field were absent, as the API server has it.
func (d *decoder) decode(n *node, v reflect.Value, path string) {
	d.lines[path] = n.line
	if n.kind == null {
		return
	}
	if v.Kind() == reflect.Pointer {
		fresh := reflect.New(v.Type().Elem())
		if !v.IsNil() {
			fresh.Elem().Set(v.Elem())
		}
		d.decode(n, fresh.Elem(), path)
		v.Set(fresh)
		return
	}
	if v.CanAddr() && v.Addr().Type().Implements(unmarshaler) {
		d.unmarshal(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.object(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		if !d.want(n, list, path) {
			return
		}
		out := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
		for i, item := range n.items {
			at := path + "[" + strconv.Itoa(i) + "]"
			if item.kind == null {
				d.report(item.line, at, v1alpha1.ReasonInvalid, "must not be empty: remove the entry or write its value")
				continue
			}
			d.decode(item, out.Index(i), at)
		}
		v.Set(out)
	case reflect.String:
		if d.want(n, text, path) {
			v.SetString(n.value)
		}
	case reflect.Bool:
		if d.want(n, boolean, path) {
			v.SetBool(n.value == "true")
		}
	case reflect.Int, reflect.Int32, reflect.Int64:
		d.integer(n, v, path)
	default:
		d.report(n.line, path, v1alpha1.ReasonInvalid, "cannot be set in a file")
	}
}

func (d *decoder) want(n *node, k kind, path string) bool {
	if n.kind == k {
		return true
	}
	message := fmt.Sprintf("must be %s, is %s", k, n.kind)
	if k == text && (n.kind == number || n.kind == boolean) {
		message += ": put it in quotes"
	}
	d.report(n.line, path, v1alpha1.ReasonInvalid, message)
	return false
}

func (d *decoder) unmarshal(n *node, v reflect.Value, path string) {
	err := v.Addr().Interface().(json.Unmarshaler).UnmarshalJSON(n.encode(nil))
	if err == nil {
		return
	}
	switch v.Addr().Interface().(type) {
	case *v1alpha1.Size, *v1alpha1.Duration:
		d.report(n.line, path, v1alpha1.ReasonInvalid, err.Error())
	case *v1alpha1.Object:
		d.want(n, object, path)
	default:
		d.report(n.line, path, v1alpha1.ReasonInvalid, "is malformed")
	}
}

func (d *decoder) integer(n *node, v reflect.Value, path string) {
	if !d.want(n, number, path) {
		return
	}
	i, err := strconv.ParseInt(n.value, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(n.value, 64)
		if ferr != nil || f != math.Trunc(f) || math.Abs(f) >= 1<<63 {
			d.report(n.line, path, v1alpha1.ReasonInvalid, "must be a whole number")
			return
		}
		i = int64(f)
	}
	if v.OverflowInt(i) {
		d.report(n.line, path, v1alpha1.ReasonInvalid, fmt.Sprintf("must be a whole number of %d bits", v.Type().Bits()))
		return
	}
	v.SetInt(i)
}

func (d *decoder) mapping(n *node, v reflect.Value, path string) {
	if !d.want(n, object, path) {
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.keys))
	for _, k := range n.keys {
		at := path + "[" + k.name + "]"
		value := n.fields[k.name]
		if value.kind == null {
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		d.decode(value, e, at)
		out.SetMapIndex(reflect.ValueOf(k.name).Convert(v.Type().Key()), e)
	}
	v.Set(out)
}

// object fills the fields of a struct by their JSON names.
func (d *decoder) object(n *node, v reflect.Value, path string) {
	if !d.want(n, object, path) {
		return
	}
	known := fieldsOf(v.Type())
	for _, k := range n.keys {
		at := join(path, k.name)
		f, ok := known[k.name]
		if !ok {
			d.report(k.line, at, v1alpha1.ReasonUnknownField, unknownField(k.name, known))
			continue
		}
		value := n.fields[k.name]
		if f.lenient {
			continue
		}
		d.decode(value, v.FieldByIndex(f.index), at)
		if f.nonempty && value.kind == text && value.value == "" {
			d.report(value.line, at, v1alpha1.ReasonInvalid, "must not be empty: write a value or remove the field")
		}
	}
}

// field is a field of a struct, found by its JSON name.
type field struct {
	index []int
	// nonempty: present, it must hold text, as the API's schema says. Struct tag stile:"nonempty".
	nonempty bool
	// lenient: what it holds is somebody else's to write, and is not read. Struct tag stile:"ignore".
	lenient bool
}

var fieldCache sync.Map // reflect.Type → map[string]field

func fieldsOf(t reflect.Type) map[string]field {
	if m, ok := fieldCache.Load(t); ok {
		return m.(map[string]field)
	}
	m := map[string]field{}
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" || f.Anonymous && strings.Contains(options, "inline") {
			continue
		}
		if name == "" {
			continue
		}
		if len(f.Index) > 1 && !inlined(t, f.Index) {
			continue
		}
		tag := f.Tag.Get("stile")
		m[name] = field{index: f.Index, nonempty: tag == "nonempty", lenient: tag == "ignore"}
	}
	fieldCache.Store(t, m)
	return m
}

// inlined reports whether all structs on the way to a promoted field are inline in JSON.
func inlined(t reflect.Type, index []int) bool {
	for i := 1; i < len(index); i++ {
		f := t.FieldByIndex(index[:i])
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			return false
		}
	}
	return true
}

// unknownField says which field was probably meant, else which there are.
func unknownField(name string, known map[string]field) string {
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	slices.Sort(names)
	near, best := "", 3
	for _, k := range names {
		if strings.EqualFold(k, name) {
			near, best = k, 0
		} else if d := spelling.Distance(strings.ToLower(k), strings.ToLower(name), best); d < best && d < len(k)/2+1 {
			near, best = k, d
		}
	}
	if near != "" {
		return fmt.Sprintf("is not a field: did you mean %s?", near)
	}
	return "is not a field: known are " + strings.Join(names, ", ")
}
