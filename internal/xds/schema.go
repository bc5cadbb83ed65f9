package xds

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/stileproject/stile/internal/spelling"
)

// finding is one fault at one place of a tree; the file is added by the caller.
type finding struct {
	path, reason, message string
	warning               bool
}

// checker compares a tree with the protos it shall become, before protojson does: protojson
// stops at the first fault and knows lines of its own input only, a checker names the path
// of each.
type checker struct{ findings []finding }

func (c *checker) add(path, reason, format string, args ...any) {
	c.findings = append(c.findings, finding{path: path, reason: reason, message: fmt.Sprintf(format, args...)})
}

func (c *checker) message(d protoreflect.MessageDescriptor, v any, path string) {
	if d.FullName() == "google.protobuf.Any" {
		c.any(v, path)
		return
	}
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") {
		c.wellKnown(d, v, path)
		return
	}
	m, ok := v.(map[string]any)
	if !ok {
		c.add(path, "Invalid", "must be an object (%s)", d.FullName())
		return
	}
	c.fields(d, m, path, false)
}

// duration is how protojson writes one.
var duration = regexp.MustCompile(`^-?[0-9]+(\.[0-9]{1,9})?s$`)

// wellKnown checks the types that have a JSON form of their own.
func (c *checker) wellKnown(d protoreflect.MessageDescriptor, v any, path string) {
	switch d.FullName() {
	case "google.protobuf.Value":
	case "google.protobuf.Struct", "google.protobuf.Empty":
		if _, ok := v.(map[string]any); !ok {
			c.add(path, "Invalid", "must be an object")
		}
	case "google.protobuf.ListValue":
		if _, ok := v.([]any); !ok {
			c.add(path, "Invalid", "must be a list")
		}
	case "google.protobuf.Duration":
		if s, ok := v.(string); !ok || !duration.MatchString(s) {
			c.add(path, "Invalid", "must be a duration in seconds, such as 1.5s")
		}
	case "google.protobuf.Timestamp", "google.protobuf.FieldMask":
		if _, ok := v.(string); !ok {
			c.add(path, "Invalid", "must be a string")
		}
	default: // the wrappers: the value itself
		if f := d.Fields().ByName("value"); f != nil {
			c.single(f, v, path)
		}
	}
}

func (c *checker) fields(d protoreflect.MessageDescriptor, m map[string]any, path string, inAny bool) {
	seen := map[protoreflect.Name]string{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if inAny && key == "@type" {
			continue
		}
		at := join(path, key)
		f := d.Fields().ByJSONName(key)
		if f == nil {
			f = d.Fields().ByTextName(key)
		}
		if f == nil {
			c.add(at, "UnknownField", "no such field in %s%s", d.FullName(), suggestion(d, key))
			continue
		}
		if other, twice := seen[f.Name()]; twice {
			c.add(at, "Invalid", "the same field as %s", other)
			continue
		}
		seen[f.Name()] = key
		if m[key] == nil {
			continue
		}
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
			if other, twice := seen["oneof "+o.Name()]; twice {
				c.add(at, "Invalid", "excludes %s: set one of them", other)
			}
			seen["oneof "+o.Name()] = key
		}
		c.field(f, m[key], at)
	}
}

func (c *checker) field(f protoreflect.FieldDescriptor, v any, path string) {
	switch {
	case f.IsMap():
		m, ok := v.(map[string]any)
		if !ok {
			c.add(path, "Invalid", "must be an object")
			return
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			c.single(f.MapValue(), m[k], fmt.Sprintf("%s[%q]", path, k))
		}
	case f.IsList():
		list, ok := v.([]any)
		if !ok {
			c.add(path, "Invalid", "must be a list")
			return
		}
		for i, e := range list {
			c.single(f, e, fmt.Sprintf("%s[%d]", path, i))
		}
	default:
		c.single(f, v, path)
	}
}

func (c *checker) single(f protoreflect.FieldDescriptor, v any, path string) {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		if v == nil && f.Message().FullName() != "google.protobuf.Value" {
			c.add(path, "Invalid", "must be an object, is null")
			return
		}
		c.message(f.Message(), v, path)
	case protoreflect.StringKind, protoreflect.BytesKind:
		if _, ok := v.(string); !ok {
			c.add(path, "Invalid", "must be a string; quote it")
		}
	case protoreflect.BoolKind:
		if _, ok := v.(bool); !ok {
			c.add(path, "Invalid", "must be true or false")
		}
	case protoreflect.EnumKind:
		c.enum(f.Enum(), v, path)
	default: // numbers: Envoy takes them quoted too
		switch v.(type) {
		case json.Number, float64, string:
		default:
			c.add(path, "Invalid", "must be a number")
		}
	}
}

func (c *checker) enum(d protoreflect.EnumDescriptor, v any, path string) {
	name, ok := v.(string)
	if !ok {
		if _, number := v.(json.Number); !number {
			c.add(path, "Invalid", "must be one of %s", enumNames(d))
		}
		return
	}
	if d.Values().ByName(protoreflect.Name(name)) == nil {
		c.add(path, "Invalid", "%q is not one of %s", name, enumNames(d))
	}
}

func enumNames(d protoreflect.EnumDescriptor) string {
	names := make([]string, 0, d.Values().Len())
	for i := range d.Values().Len() {
		names = append(names, string(d.Values().Get(i).Name()))
	}
	return strings.Join(names, ", ")
}

// any checks a google.protobuf.Any in its JSON form: an object with "@type" beside the fields
// of that type.
func (c *checker) any(v any, path string) {
	m, ok := v.(map[string]any)
	if !ok {
		c.add(path, "Invalid", `must be an object with "@type"`)
		return
	}
	if len(m) == 0 {
		return
	}
	url, _ := m["@type"].(string)
	if url == "" {
		c.add(join(path, "@type"), "Invalid", "is missing: it names the type, for example type.googleapis.com/envoy.extensions.filters.http.router.v3.Router")
		return
	}
	t, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		c.add(join(path, "@type"), "UnknownType", "%q is not a type of Envoy's API that stile knows; an extension of your own can be written as xds.type.v3.TypedStruct with its type_url", url)
		return
	}
	d := t.Descriptor()
	if strings.HasPrefix(string(d.FullName()), "google.protobuf.") && d.FullName() != "google.protobuf.Empty" {
		return // such a type stands under "value"; protojson checks it
	}
	c.fields(d, m, path, true)
	if d.FullName() == "xds.type.v3.TypedStruct" || d.FullName() == "udpa.type.v1.TypedStruct" {
		c.typedStruct(m, path)
	}
}

// typedStruct checks the value of a TypedStruct against its type where stile knows that type.
func (c *checker) typedStruct(m map[string]any, path string) {
	url, _ := m["type_url"].(string)
	if url == "" {
		url, _ = m["typeUrl"].(string)
	}
	if url == "" {
		c.add(join(path, "type_url"), "Invalid", "is missing")
		return
	}
	t, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		return // TypedStruct is for just that: an extension whose type is not known here
	}
	if v, ok := m["value"]; ok && v != nil {
		c.message(t.Descriptor(), v, join(path, "value"))
	}
}

// suggestion returns "; did you mean x?" for the field whose name is nearest to key.
func suggestion(d protoreflect.MessageDescriptor, key string) string {
	best, distance := "", 3
	for i := range d.Fields().Len() {
		name := string(d.Fields().Get(i).Name())
		if n := spelling.Distance(key, name, distance); n < distance {
			best, distance = name, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// deterministic marshals equal messages to equal bytes.
var deterministic = proto.MarshalOptions{Deterministic: true}
