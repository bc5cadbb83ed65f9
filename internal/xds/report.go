package xds

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/cncf/xds/go/udpa/annotations"
	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsannotationsv3 "github.com/cncf/xds/go/xds/annotations/v3"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
)

// redacted stands for what is not shown.
const redacted = "<redacted>"

// ReportOptions say what a report shows.
type ReportOptions struct {
	// ShowURLs prints module URLs as they are. They are capabilities: whoever has one can fetch
	// the module.
	ShowURLs bool
	// YAMLNames spells field names as Envoy's YAML does, filter_chains; else they are those
	// of canonical protojson, filterChains. Envoy reads both.
	YAMLNames bool
}

// Report is a snapshot in protojson, as `stile translate` prints it: each element is one
// resource. What is held back is left out.
type Report struct {
	APIVersion       string            `json:"apiVersion"`
	Kind             string            `json:"kind"`
	Listeners        []json.RawMessage `json:"listeners"`
	Routes           []json.RawMessage `json:"routes"`
	Clusters         []json.RawMessage `json:"clusters"`
	ExtensionConfigs []json.RawMessage `json:"extensionConfigs"`
}

// Report shows the snapshot. Fields that Envoy's API marks as sensitive are not shown.
func (s *Snapshot) Report(o ReportOptions) (Report, error) {
	r := Report{APIVersion: "stile.dev/v1alpha1", Kind: "EnvoyResources"}
	for kind, list := range map[int]*[]json.RawMessage{listeners: &r.Listeners, routes: &r.Routes, clusters: &r.Clusters, extensions: &r.ExtensionConfigs} {
		*list = []json.RawMessage{}
		if s == nil {
			continue
		}
		for _, resource := range s.resources[kind] {
			if resource.Any == nil {
				continue
			}
			text, err := resource.show(o)
			if err != nil {
				return Report{}, err
			}
			*list = append(*list, text)
		}
	}
	return r, nil
}

func (r *Resource) show(o ReportOptions) ([]byte, error) {
	m, err := r.Any.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("show %s: %w", r.Name, err)
	}
	redactor{showURLs: o.ShowURLs}.message(m.ProtoReflect(), 0)
	text, err := compactJSON(m, o.YAMLNames)
	if err != nil {
		return nil, fmt.Errorf("show %s: %w", r.Name, err)
	}
	return text, nil
}

// redactor takes out of a message, in place, what must not be shown.
type redactor struct{ showURLs bool }

func (x redactor) message(m protoreflect.Message, depth int) {
	if depth > maxAnyDepth*4 {
		return
	}
	if a, ok := m.Interface().(*anypb.Any); ok {
		x.packed(a, depth)
		return
	}
	if uri, ok := m.Interface().(*corev3.HttpUri); ok && uri.GetCluster() == ModulesCluster && !x.showURLs {
		uri.Uri = redactModuleURL(uri.GetUri())
	}
	if isTypedStruct(m.Interface()) {
		x.typedStruct(m.Interface(), depth)
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if sensitive(f) {
			m.Set(f, hidden(m, f, v))
			return true
		}
		if f.Message() == nil {
			return true
		}
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, e protoreflect.Value) bool {
					x.message(e.Message(), depth+1)
					return true
				})
			}
		case f.IsList():
			for i := range v.List().Len() {
				x.message(v.List().Get(i).Message(), depth+1)
			}
		default:
			x.message(v.Message(), depth+1)
		}
		return true
	})
}

func (x redactor) packed(a *anypb.Any, depth int) {
	inner, err := a.UnmarshalNew()
	if err != nil {
		return
	}
	x.message(inner.ProtoReflect(), depth+1)
	_ = anypb.MarshalFrom(a, inner, deterministic)
}

// typedStruct hides the sensitive fields of a TypedStruct whose type is known, as its type says.
func (x redactor) typedStruct(m proto.Message, depth int) {
	var typeURL string
	var value *structpb.Struct
	switch s := m.(type) {
	case *xdstypev3.TypedStruct:
		typeURL, value = s.GetTypeUrl(), s.GetValue()
	case *udpatypev1.TypedStruct:
		typeURL, value = s.GetTypeUrl(), s.GetValue()
	}
	typed, err := fromStruct(typeURL, value)
	if err != nil || typed == nil || value == nil {
		return
	}
	x.message(typed.ProtoReflect(), depth+1)
	shown, err := compactJSON(typed, true)
	if err != nil {
		return
	}
	clean := &structpb.Struct{}
	if protojson.Unmarshal(shown, clean) == nil {
		value.Fields = clean.Fields
	}
}

func isTypedStruct(m proto.Message) bool {
	switch m.(type) {
	case *xdstypev3.TypedStruct, *udpatypev1.TypedStruct:
		return true
	}
	return false
}

func sensitive(f protoreflect.FieldDescriptor) bool {
	o := f.Options()
	return o != nil && (proto.GetExtension(o, annotations.E_Sensitive).(bool) || proto.GetExtension(o, xdsannotationsv3.E_Sensitive).(bool))
}

// hidden returns the value of a sensitive field with its text replaced and its shape kept.
func hidden(m protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch {
	case f.IsList():
		list := m.NewField(f)
		for range v.List().Len() {
			if f.Message() != nil {
				list.List().AppendMutable()
				continue
			}
			list.List().Append(hiddenScalar(f))
		}
		return list
	case f.IsMap():
		return m.NewField(f)
	case f.Message() != nil:
		return protoreflect.ValueOfMessage(hiddenMessage(v.Message()))
	default:
		return hiddenScalar(f)
	}
}

func hiddenScalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(redacted)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(redacted))
	default:
		return f.Default()
	}
}

// hiddenMessage hides every text within a message that is sensitive as a whole. Names of files
// are not secret: they say where the secret is.
func hiddenMessage(m protoreflect.Message) protoreflect.Message {
	out := m.New()
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Name() == "filename" || f.Name() == "environment_variable" {
			out.Set(f, v)
			return true
		}
		out.Set(f, hidden(out, f, v))
		return true
	})
	return out
}

// redactModuleURL keeps scheme and host of a module's URL and hides the rest.
func redactModuleURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return redacted
	}
	path := u.Path[:strings.LastIndexByte(u.Path, '/')+1]
	return u.Scheme + "://" + u.Host + path + redacted
}
