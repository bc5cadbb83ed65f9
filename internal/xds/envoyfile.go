package xds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/stileproject/stile/internal/plugin"
)

// EnvoyFile is one Envoy YAML file of the operator, read and checked: the listeners, routes and
// clusters of the proxies that it is for. It is immutable and safe for concurrent use.
type EnvoyFile struct {
	file      string
	listeners []*listenerv3.Listener // as written; Translate clones what it changes
	views     []plugin.Listener      // the same listeners, as package plugin sees them
	own       map[string]*Resource   // each listener unchanged, by name
	routes    []*Resource            // sorted by name
	clusters  []*Resource            // sorted by name
}

// ParseEnvoy reads one Envoy YAML file: an object with the lists listeners, routes and
// clusters, each optional, in Envoy's own form. It checks every field against Envoy's API, in
// everything packed within too, and returns all faults at once. The file is nil if any fault is
// an error; warnings leave it usable.
func ParseEnvoy(file string, data []byte) (*EnvoyFile, []Problem) {
	p := &fileParser{file: file}
	f := p.parse(data)
	for _, problem := range p.problems {
		if problem.Severity == SeverityError {
			return nil, p.problems
		}
	}
	return f, p.problems
}

// Name returns the name of the file as ParseEnvoy was given it.
func (f *EnvoyFile) Name() string { return f.file }

// Listeners returns the listeners as package plugin sees them, in the order of the file. The
// result is shared and must not be changed.
func (f *EnvoyFile) Listeners() []plugin.Listener {
	if f == nil {
		return nil
	}
	return f.views
}

type fileParser struct {
	file     string
	problems []Problem
}

func (p *fileParser) add(f finding) {
	severity := SeverityError
	if f.warning {
		severity = SeverityWarning
	}
	p.problems = append(p.problems, Problem{File: p.file, Path: f.path, Severity: severity, Reason: f.reason, Message: f.message})
}

func (p *fileParser) parse(data []byte) *EnvoyFile {
	tree, err := parseTree(data)
	if err != nil {
		p.add(finding{reason: "Syntax", message: strings.TrimPrefix(err.Error(), "yaml: ")})
		return nil
	}
	if tree == nil {
		p.add(finding{reason: "Empty", message: "the file is empty: it must hold at least one of the lists listeners, routes, clusters"})
		return nil
	}
	top, ok := tree.(map[string]any)
	if !ok {
		p.add(finding{reason: "Syntax", message: "must be an object with the lists listeners, routes and clusters"})
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(top)) {
		switch key {
		case "listeners", "routes", "clusters":
		case "static_resources", "staticResources":
			p.add(finding{path: key, reason: "UnknownField", message: "put its listeners and clusters at the top level of the file"})
		default:
			p.add(finding{path: key, reason: "UnknownField", message: "unknown; the lists of an Envoy file are listeners, routes and clusters"})
		}
	}
	f := &EnvoyFile{file: p.file, own: map[string]*Resource{}}
	for i, m := range parseList(p, top, "listeners", func() *listenerv3.Listener { return &listenerv3.Listener{} }) {
		path := fmt.Sprintf("listeners[%d]", i)
		if err := plainTypedStructs(m); err != nil {
			p.add(finding{path: path, reason: "Invalid", message: err.Error()})
			continue
		}
		view, findings := viewListener(m, path)
		for _, x := range append(findings, foreignExtensions(m, path)...) {
			p.add(x)
		}
		f.listeners, f.views = append(f.listeners, m), append(f.views, view)
		f.own[m.GetName()] = newResource(ListenerType, m.GetName(), m)
	}
	routes := map[string]*routev3.RouteConfiguration{}
	for _, m := range parseList(p, top, "routes", func() *routev3.RouteConfiguration { return &routev3.RouteConfiguration{} }) {
		f.routes = append(f.routes, newResource(RouteType, m.GetName(), m))
		routes[m.GetName()] = m
	}
	addSwitches(f.listeners, f.views, routes)
	for _, m := range parseList(p, top, "clusters", func() *clusterv3.Cluster { return &clusterv3.Cluster{} }) {
		f.clusters = append(f.clusters, newResource(ClusterType, m.GetName(), m))
	}
	sortResources(f.routes)
	sortResources(f.clusters)
	p.missingRoutes(f)
	return f
}

// parseList reads one list of the file. Where an element has a fault the result is short or
// holds less, but then the problems say so and the file is not used.
func parseList[M interface {
	proto.Message
	GetName() string
}](p *fileParser, top map[string]any, key string, create func() M) []M {
	value, ok := top[key]
	if !ok || value == nil {
		return nil
	}
	list, ok := value.([]any)
	if !ok {
		p.add(finding{path: key, reason: "Invalid", message: "must be a list"})
		return nil
	}
	var out []M
	names := map[string]int{}
	for i, element := range list {
		path := fmt.Sprintf("%s[%d]", key, i)
		m := create()
		if !p.resource(m, element, path) {
			continue
		}
		name := m.GetName()
		if name == "" {
			p.add(finding{path: path + ".name", reason: "Invalid", message: "is missing: xDS knows resources by name"})
			continue
		}
		if first, twice := names[name]; twice {
			p.add(finding{path: path + ".name", reason: "Invalid", message: fmt.Sprintf("%q is the name of %s[%d] too", name, key, first)})
			continue
		}
		names[name] = i
		out = append(out, m)
	}
	return out
}

// resource reads one element into m and reports whether it has no error.
func (p *fileParser) resource(m proto.Message, element any, path string) bool {
	c := checker{}
	if element == nil {
		c.add(path, "Invalid", "is null")
	} else {
		c.message(m.ProtoReflect().Descriptor(), element, path)
	}
	if len(c.findings) > 0 {
		for _, x := range c.findings {
			p.add(x)
		}
		return false
	}
	text, err := json.Marshal(element)
	if err == nil {
		err = protojson.Unmarshal(text, m)
	}
	if err != nil {
		p.add(finding{path: path, reason: "Invalid", message: cleanJSONError(err).Error()})
		return false
	}
	good := true
	for _, x := range validateMessage(m, path) {
		p.add(x)
		good = good && x.warning
	}
	return good
}

// missingRoutes warns of route configurations that a listener asks of ADS and the file lacks.
func (p *fileParser) missingRoutes(f *EnvoyFile) {
	have := map[string]bool{}
	for _, r := range f.routes {
		have[r.Name] = true
	}
	for i, l := range f.listeners {
		for _, name := range routesOf(l) {
			if !have[name] {
				p.add(finding{path: fmt.Sprintf("listeners[%d]", i), reason: "RouteMissing", warning: true,
					message: fmt.Sprintf("asks ADS for route configuration %q, which routes does not have: the listener would wait for it", name)})
			}
		}
	}
}

// saidValue is where protojson repeats what was written into a field that may hold a secret.
var saidValue = regexp.MustCompile(`(?s)(invalid value for (?:string|bytes) (?:field|type)[^:]*|unexpected token):? .*`)

var jsonPosition = regexp.MustCompile(`^proto:\s*|\(line \d+:\d+\):?\s*|syntax error\s*`)

// cleanJSONError drops from a protojson error what speaks of JSON that nobody has seen, what may
// be a secret, and the deliberate instability of its spaces.
func cleanJSONError(err error) error {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return errors.New(strings.TrimSpace(saidValue.ReplaceAllString(jsonPosition.ReplaceAllString(text, ""), "$1")))
}

// compactJSON returns m in protojson with stable spacing, with the field names of Envoy's
// YAML or its own.
func compactJSON(m proto.Message, yamlNames bool) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: yamlNames}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
