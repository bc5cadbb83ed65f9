package xds

import (
	"errors"
	"fmt"
	"strings"

	configcorev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
)

// maxAnyDepth bounds how deep one Any may stand in another.
const maxAnyDepth = 32

// validateMessage applies the rules that Envoy's API writes on its fields to m and to
// everything packed within it, and looks for configuration sources that stile does not serve.
func validateMessage(m proto.Message, path string) []finding {
	v := validator{}
	v.message(m, path, 0)
	return v.findings
}

type validator struct{ findings []finding }

func (v *validator) add(path, format string, args ...any) {
	v.findings = append(v.findings, finding{path: path, reason: "Invalid", message: fmt.Sprintf(format, args...)})
}

func (v *validator) message(m proto.Message, path string, depth int) {
	if depth > maxAnyDepth {
		v.add(path, "too many messages packed in one another")
		return
	}
	if err := validateAll(m); err != nil {
		v.rules(m.ProtoReflect().Descriptor(), err, path)
	}
	v.descend(m.ProtoReflect(), path, depth)
}

func validateAll(m proto.Message) error {
	if x, ok := m.(interface{ ValidateAll() error }); ok {
		return x.ValidateAll()
	}
	return nil
}

// The errors that the generated validators return.
type (
	ruleErrors interface {
		error
		AllErrors() []error
	}
	ruleError interface {
		error
		Field() string
		Reason() string
		Cause() error
	}
)

// rules flattens what a generated validator returned into one finding for each field.
func (v *validator) rules(d protoreflect.MessageDescriptor, err error, path string) {
	if all, ok := errors.AsType[ruleErrors](err); ok {
		for _, e := range all.AllErrors() {
			v.rules(d, e, path)
		}
		return
	}
	e, ok := errors.AsType[ruleError](err)
	if !ok {
		v.add(path, "%v", err)
		return
	}
	at, inner := fieldPath(d, e.Field(), path)
	if cause := e.Cause(); cause != nil && inner != nil {
		_, many := errors.AsType[ruleErrors](cause)
		_, one := errors.AsType[ruleError](cause)
		if many || one {
			v.rules(inner, cause, at)
			return
		}
	}
	v.add(at, "%s", e.Reason())
}

// fieldPath turns the Go name of a field, with its index, into the name in YAML, and returns
// the type of the field where it is a message.
func fieldPath(d protoreflect.MessageDescriptor, goField, path string) (string, protoreflect.MessageDescriptor) {
	name, index, hasIndex := strings.Cut(goField, "[")
	plain := strings.ToLower(strings.ReplaceAll(name, "_", ""))
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if strings.ReplaceAll(string(f.Name()), "_", "") != plain {
			continue
		}
		at := join(path, string(f.Name()))
		if hasIndex {
			at += "[" + index
		}
		inner := f.Message()
		if f.IsMap() {
			inner = f.MapValue().Message()
		}
		return at, inner
	}
	for i := range d.Oneofs().Len() {
		if o := d.Oneofs().Get(i); strings.ReplaceAll(string(o.Name()), "_", "") == plain {
			return join(path, string(o.Name())), nil
		}
	}
	return join(path, goField), nil
}

// descend looks at everything packed within m, and at its configuration sources.
func (v *validator) descend(m protoreflect.Message, path string, depth int) {
	m.Range(func(f protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if f.Message() == nil {
			return true
		}
		at := join(path, string(f.Name()))
		switch {
		case f.IsMap():
			if f.MapValue().Message() == nil {
				return true
			}
			value.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				v.inner(e.Message(), fmt.Sprintf("%s[%q]", at, k.String()), depth)
				return true
			})
		case f.IsList():
			for i := range value.List().Len() {
				v.inner(value.List().Get(i).Message(), fmt.Sprintf("%s[%d]", at, i), depth)
			}
		default:
			v.inner(value.Message(), at, depth)
		}
		return true
	})
}

func (v *validator) inner(m protoreflect.Message, path string, depth int) {
	switch x := m.Interface().(type) {
	case *anypb.Any:
		v.packed(x, path, depth)
	case *configcorev3.ConfigSource:
		v.configSource(x, path, depth)
	default:
		v.descend(m, path, depth)
	}
}

func (v *validator) packed(a *anypb.Any, path string, depth int) {
	m, err := a.UnmarshalNew()
	if err != nil {
		return // an empty Any, or one that the schema check has named already
	}
	var url string
	var value proto.Message
	switch x := m.(type) {
	case *xdstypev3.TypedStruct:
		url, value = x.GetTypeUrl(), x.GetValue()
	case *udpatypev1.TypedStruct:
		url, value = x.GetTypeUrl(), x.GetValue()
	default:
		v.message(m, path, depth+1)
		return
	}
	typed, err := fromStruct(url, value)
	switch {
	case err != nil:
		v.add(join(path, "value"), "%v", cleanJSONError(err))
	case typed != nil:
		v.message(typed, join(path, "value"), depth+1)
	}
}

// fromStruct reads the value of a TypedStruct as the type that it names; nil if stile does not
// know that type.
func fromStruct(url string, value proto.Message) (proto.Message, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		return nil, nil //nolint:nilerr // an unknown type is what TypedStruct is for
	}
	text, err := protojson.Marshal(value)
	if err != nil {
		return nil, err
	}
	m := t.New().Interface()
	if err := protojson.Unmarshal(text, m); err != nil {
		return nil, err
	}
	return m, nil
}

// configSource finds sources that would make Envoy wait for ever: types that stile's ADS does
// not serve. What the path says decides which type is meant.
func (v *validator) configSource(s *configcorev3.ConfigSource, path string, depth int) {
	if !fromADS(s) {
		v.descend(s.ProtoReflect(), path, depth)
		return
	}
	field := path[strings.LastIndexByte(path, '.')+1:]
	var kind, advice string
	switch {
	case field == "eds_config":
		kind, advice = "endpoints (EDS)", "write them into the cluster (load_assignment), or name an own api_config_source"
	case field == "sds_config":
		kind, advice = "secrets (SDS)", "name files (path_config_source or the certificate's file names), or an own api_config_source"
	case strings.Contains(path, "scoped_r"):
		kind, advice = "scoped routes (SRDS)", "use rds or route_config"
	case strings.Contains(path, "vhds"):
		kind, advice = "virtual hosts (VHDS)", "write them into the route configuration"
	case strings.Contains(path, "leds"):
		kind, advice = "endpoints (LEDS)", "write them into the cluster"
	case strings.Contains(path, "fcds"):
		kind, advice = "filter chains (FCDS)", "write them into the listener"
	default:
		return
	}
	v.findings = append(v.findings, finding{path: path, reason: "NotServed", warning: true,
		message: fmt.Sprintf("asks ADS for %s, which stile does not serve: the proxy would wait for ever; %s", kind, advice)})
}
