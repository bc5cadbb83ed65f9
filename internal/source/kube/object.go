package kube

import (
	"encoding/json"
	"maps"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/source"
)

// lastApplied is kubectl's copy of the whole object in an annotation.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// pluginObject is all that is kept of a WasmPlugin. The embedded metadata is what the informer knows it by.
type pluginObject struct {
	metav1.ObjectMeta

	plugin   *v1alpha1.WasmPlugin // without status, resourceVersion and managedFields
	findings []document.Finding
	invalid  []v1alpha1.Finding
	status   published
}

// published is what a status says of what is served.
type published struct {
	observedGeneration int64
	source.Publication
}

// readPlugin makes a pluginObject of what the API server sent. The object is held against the same rules as a document of
// a folder, whatever the cluster's CustomResourceDefinition has let pass. One that differs from old in its status alone
// shares the rest with it.
func readPlugin(u *unstructured.Unstructured, old any) any {
	o := &pluginObject{ObjectMeta: metav1.ObjectMeta{Namespace: u.GetNamespace(), Name: u.GetName(), ResourceVersion: u.GetResourceVersion(), UID: u.GetUID()}}
	o.status = readStatus(u)
	if old, ok := old.(*pluginObject); ok && old.sameAuthor(u) {
		o.plugin, o.invalid, o.findings = old.plugin, old.invalid, old.findings
		return o
	}

	// What else there is in metadata is the API server's, and not an author's to be held against.
	meta := map[string]any{"namespace": u.GetNamespace(), "name": u.GetName()}
	for _, k := range []string{"labels", "uid", "generation", "creationTimestamp"} {
		if v, ok, _ := unstructured.NestedFieldNoCopy(u.Object, "metadata", k); ok {
			meta[k] = v
		}
	}
	if notes := annotations(u); len(notes) > 0 {
		meta["annotations"] = notes
	}
	text := map[string]any{"apiVersion": v1alpha1.WasmPluginAPIVersion, "kind": v1alpha1.WasmPluginKind, "metadata": meta}
	for k, v := range u.Object {
		switch k {
		case "apiVersion", "kind", "metadata", "status":
		default:
			text[k] = v
		}
	}
	data, err := json.Marshal(text)
	if err != nil { // it came as JSON
		o.fault("cannot be read")
		return o
	}
	for _, d := range document.Read("", data) {
		for _, f := range d.Findings {
			f.Line, f.Kind, f.Namespace, f.Name = 0, v1alpha1.WasmPluginKind, o.Namespace, o.Name
			o.findings = append(o.findings, f)
			if f.Severity == v1alpha1.SeverityError {
				o.invalid = append(o.invalid, v1alpha1.Finding{Field: f.Field, Severity: f.Severity, Reason: f.Reason, Message: f.Message})
			}
		}
		o.plugin, _ = d.Object.(*v1alpha1.WasmPlugin)
	}
	if o.plugin == nil {
		o.fault("is no WasmPlugin that can be read")
	}
	return o
}

func annotations(u *unstructured.Unstructured) map[string]string {
	notes := u.GetAnnotations() // a copy
	delete(notes, lastApplied)
	return notes
}

// sameAuthor reports whether u has what o has but for the status: the API server counts a generation for every change of
// a spec.
func (o *pluginObject) sameAuthor(u *unstructured.Unstructured) bool {
	return u.GetUID() == o.UID && u.GetGeneration() != 0 && u.GetGeneration() == o.plugin.Generation &&
		maps.Equal(u.GetLabels(), o.plugin.Labels) && maps.Equal(annotations(u), o.plugin.Annotations)
}

// fault makes o a plugin of which nothing is known but its name and what is wrong.
func (o *pluginObject) fault(message string) {
	f := v1alpha1.Finding{Severity: v1alpha1.SeverityError, Reason: v1alpha1.ReasonInvalid, Message: message}
	if len(o.invalid) == 0 {
		o.invalid = []v1alpha1.Finding{f}
		o.findings = append(o.findings, document.Finding{Kind: v1alpha1.WasmPluginKind, Namespace: o.Namespace, Name: o.Name,
			Severity: f.Severity, Reason: f.Reason, Message: f.Message})
	}
	o.plugin = &v1alpha1.WasmPlugin{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID}}
	o.plugin.APIVersion, o.plugin.Kind = v1alpha1.WasmPluginAPIVersion, v1alpha1.WasmPluginKind
}

// readStatus reads what a leader has published. A status that another program wrote and that does not fit is none.
func readStatus(u *unstructured.Unstructured) published {
	raw, ok, _ := unstructured.NestedFieldNoCopy(u.Object, "status")
	if !ok {
		return published{}
	}
	data, err := json.Marshal(raw)
	if err != nil {
		return published{}
	}
	var s struct {
		ObservedGeneration int64  `json:"observedGeneration"`
		Digest             string `json:"digest"`
		ModuleSHA256       string `json:"moduleSHA256"`
		Size               int64  `json:"size"`
		ServedGeneration   int64  `json:"servedGeneration"`
		ResolvedDigest     string `json:"resolvedDigest"`
		Epoch              int64  `json:"epoch"`
		ServedEpoch        int64  `json:"servedEpoch"`
	}
	if json.Unmarshal(data, &s) != nil || s.ObservedGeneration <= 0 {
		return published{}
	}
	return published{s.ObservedGeneration, source.Publication{
		Generation: s.ObservedGeneration, Resolved: s.ResolvedDigest,
		Digest: s.Digest, SHA256: s.ModuleSHA256, Size: max(0, s.Size), ServedGeneration: s.ServedGeneration,
		Epoch: uint64(max(0, s.Epoch)), ServedEpoch: uint64(max(0, s.ServedEpoch)),
	}}
}

// sameAs reports whether two objects give the same plugin; only their statuses may differ.
func (o *pluginObject) sameAs(p *pluginObject) bool {
	return o == p || reflect.DeepEqual(o.plugin, p.plugin) && reflect.DeepEqual(o.invalid, p.invalid)
}

// samePlugin reports whether two states of an object say the same to us: proxies come and go in a status.
func samePlugin(a, b any) bool {
	old, ok := a.(*pluginObject)
	now, also := b.(*pluginObject)
	return ok && also && old.plugin == now.plugin && old.status == now.status
}

// gatewayObject is all that is kept of a Gateway.
type gatewayObject struct {
	metav1.ObjectMeta
	gateway *document.Gateway
}

func readGateway(u *unstructured.Unstructured, _ any) any {
	class, _, _ := unstructured.NestedString(u.Object, "spec", "gatewayClassName")
	return &gatewayObject{
		ObjectMeta: metav1.ObjectMeta{Namespace: u.GetNamespace(), Name: u.GetName(), ResourceVersion: u.GetResourceVersion()},
		gateway:    &document.Gateway{Namespace: u.GetNamespace(), Name: u.GetName(), Class: class},
	}
}

// listenerObject is all that is kept of a ConfigMap with listeners.
type listenerObject struct {
	metav1.ObjectMeta
	files map[string]string // by key
}

func readListeners(u *unstructured.Unstructured, _ any) any {
	o := &listenerObject{ObjectMeta: metav1.ObjectMeta{Namespace: u.GetNamespace(), Name: u.GetName(), ResourceVersion: u.GetResourceVersion()}}
	o.files, _, _ = unstructured.NestedStringMap(u.Object, "data")
	return o
}
