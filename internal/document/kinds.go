package document

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/secret"
)

// kindInfo says what is known of one kind, or what is wrong with it.
type kindInfo struct {
	read       func(*Document, *node)
	namespaced bool
	list       bool

	field, severity, reason, message string
}

// knownKind is a kind that stile reads.
type knownKind struct {
	versions   []string
	shared     bool // other groups have a kind of this name, which is then an unknown kind
	namespaced bool
	read       func(*Document, *node)
}

const gatewayAPI = "gateway.networking.k8s.io/"

func known(kind string) (knownKind, bool) {
	switch kind {
	case v1alpha1.WasmPluginKind:
		return knownKind{versions: []string{v1alpha1.WasmPluginAPIVersion}, namespaced: true, read: readWasmPlugin}, true
	case "Secret":
		return knownKind{versions: []string{"v1"}, namespaced: true, read: readSecret}, true
	case "Gateway":
		return knownKind{versions: []string{gatewayAPI + "v1", gatewayAPI + "v1beta1"}, shared: true, namespaced: true, read: readGateway}, true
	case v1alpha1.ConfigKind:
		return knownKind{versions: []string{v1alpha1.ConfigAPIVersion}, shared: true, read: readConfig}, true
	}
	return knownKind{}, false
}

// lookup says how an object of that version and kind is read.
func lookup(apiVersion, kind string) kindInfo {
	if kind == "" {
		return kindInfo{field: "kind", severity: v1alpha1.SeverityError, reason: v1alpha1.ReasonRequired, message: "must say what this is, for example WasmPlugin"}
	}
	item, isList := strings.CutSuffix(kind, "List")
	if isList && item == "" {
		if apiVersion == "v1" {
			return kindInfo{list: true}
		}
		return wrongVersion(apiVersion, []string{"v1"})
	}
	if isList {
		if k, ok := known(item); ok && slices.Contains(k.versions, apiVersion) {
			return kindInfo{list: true}
		} else if ok && !k.shared {
			return wrongVersion(apiVersion, k.versions)
		}
	}
	k, ok := known(kind)
	if !ok || k.shared && apiVersion != "" && group(apiVersion) != group(k.versions[0]) {
		return kindInfo{field: "kind", severity: v1alpha1.SeverityWarning, reason: v1alpha1.ReasonUnknownKind, message: "is no kind that stile reads: it has no effect"}
	}
	if !slices.Contains(k.versions, apiVersion) {
		return wrongVersion(apiVersion, k.versions)
	}
	return kindInfo{read: k.read, namespaced: k.namespaced}
}

func wrongVersion(have string, versions []string) kindInfo {
	reason := v1alpha1.ReasonUnknownAPIVersion
	if have == "" {
		reason = v1alpha1.ReasonRequired
	}
	return kindInfo{field: "apiVersion", severity: v1alpha1.SeverityError, reason: reason, message: "must be " + strings.Join(versions, " or ")}
}

func group(apiVersion string) string {
	g, _, found := strings.Cut(apiVersion, "/")
	if !found {
		return ""
	}
	return g
}

func readWasmPlugin(d *Document, root *node) {
	p := &v1alpha1.WasmPlugin{}
	dec, bad := d.decodeInto(root, p)
	if root.field("spec") == nil || root.field("spec").kind == null {
		bad["spec"] = true
		d.add(root.line, "spec", v1alpha1.SeverityError, v1alpha1.ReasonRequired, "must not be empty")
	}
	p.APIVersion, p.Kind = d.APIVersion, d.Kind
	p.Namespace = d.Namespace
	d.Object = p
	d.addAll(p.Validate(), dec, bad)
	if d.rules.HostEnv != nil {
		d.addAll(p.ValidateHostEnv(d.rules.HostEnv), dec, bad)
	}
}

// readGateway reads what attachment needs; all else is left to those who own the kind.
func readGateway(d *Document, root *node) {
	d.Object = &Gateway{Namespace: d.Namespace, Name: d.Name, Class: root.field("spec").text("gatewayClassName")}
	if d.Name == "" {
		d.add(root.line, "metadata.name", v1alpha1.SeverityError, v1alpha1.ReasonRequired, "must not be empty")
	}
}

func readConfig(d *Document, root *node) {
	c := v1alpha1.DefaultConfig()
	// The default folder of resources is no default for those who name a Kubernetes API.
	if r := root.field("resources"); r.field("kubernetes") != nil && r.field("kubernetes").kind != null && r.field("directory") == nil {
		c.Resources.Directory = ""
	}
	dec, bad := d.decodeInto(root, c)
	d.Object = c
	d.addAll(c.Findings(), dec, bad)
}

// ReadConfig reads the one Config of a file. It returns the defaults, overridden by what
// could be read, and every fault with its line; the Config is to be used only if none
// of them is an error.
func ReadConfig(file string, data []byte) (*v1alpha1.Config, []Finding) {
	docs := Read(file, data)
	if len(docs) == 0 {
		d := Document{File: file, Kind: v1alpha1.ConfigKind}
		d.add(0, "", v1alpha1.SeverityError, v1alpha1.ReasonRequired,
			"holds nothing: write apiVersion: "+v1alpha1.ConfigAPIVersion+" and kind: "+v1alpha1.ConfigKind)
		return v1alpha1.DefaultConfig(), d.Findings
	}
	first := docs[0]
	c, ok := first.Object.(*v1alpha1.Config)
	if !ok {
		c = v1alpha1.DefaultConfig()
		if !first.HasErrors() {
			first.add(first.Line, "kind", v1alpha1.SeverityError, v1alpha1.ReasonUnknownKind,
				"must be "+v1alpha1.ConfigKind+" of "+v1alpha1.ConfigAPIVersion)
		}
	}
	if len(docs) > 1 {
		first.add(docs[1].Line, "", v1alpha1.SeverityError, v1alpha1.ReasonInvalid, "must be the only document of its file")
	}
	return c, first.Findings
}

// secretDocument is a Secret as it is written.
type secretDocument struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metav1.ObjectMeta `json:"metadata"`
	Type       string            `json:"type"`
	Immutable  *bool             `json:"immutable"`
	Data       map[string]string `json:"data"`
	StringData map[string]string `json:"stringData"`
}

// pullSecretKeys are the keys that the API server wants in Secrets of these types, and
// takes only with JSON in them.
var pullSecretKeys = map[string]string{
	"kubernetes.io/dockerconfigjson": ".dockerconfigjson",
	"kubernetes.io/dockercfg":        ".dockercfg",
}

func readSecret(d *Document, root *node) {
	var w secretDocument
	dec, bad := d.decodeInto(root, &w)
	s := &Secret{Namespace: d.Namespace, Name: d.Name, Type: w.Type, Data: make(map[string]secret.Secret, len(w.Data)+len(w.StringData))}
	values := map[string][]byte{}
	for _, k := range sortedKeys(w.Data) {
		raw, err := base64.StdEncoding.DecodeString(w.Data[k])
		if err != nil {
			path := "data[" + k + "]"
			bad[path] = true
			d.add(dec.line(path), path, v1alpha1.SeverityError, v1alpha1.ReasonInvalid, "must be base64: encode it, or move it to stringData")
			continue
		}
		values[k] = raw
	}
	for k, v := range w.StringData {
		values[k] = []byte(v)
	}
	for k, v := range values {
		s.Data[k] = secret.New(v)
	}
	if d.Name == "" && !covered("metadata.name", bad) {
		d.add(dec.line("metadata.name"), "metadata.name", v1alpha1.SeverityError, v1alpha1.ReasonRequired, "must not be empty")
	}
	if k := pullSecretKeys[s.Type]; k != "" && !covered("data["+k+"]", bad) && !covered("stringData["+k+"]", bad) {
		at := "data[" + k + "]"
		if _, ok := w.StringData[k]; ok {
			at = "stringData[" + k + "]"
		}
		switch v, ok := values[k]; {
		case !ok:
			d.add(dec.line(at), at, v1alpha1.SeverityError, v1alpha1.ReasonRequired, "must be there in a Secret of type "+s.Type)
		case !json.Valid(v):
			d.add(dec.line(at), at, v1alpha1.SeverityError, v1alpha1.ReasonInvalid, "must hold JSON in a Secret of type "+s.Type)
		}
	}
	d.Object = s
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
