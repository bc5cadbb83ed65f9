package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stileproject/stile/api/v1alpha1"
)

// ValidatePath is where ValidatePlugins is served.
const ValidatePath = "/validate-wasmplugin"

// PluginRules say which plugins are validated, and what the operator demands of them beside
// what the API says.
type PluginRules struct {
	// Owns reports whether a plugin of that namespace and with those labels is stile's; nil is
	// always. Another's is let pass without a word: its own control plane judges it, perhaps
	// by a newer version of the API, and stile does nothing with it.
	Owns func(namespace string, labels map[string]string) bool
	// HostEnv are the variables that plugins may take from a proxy's environment: nil is any,
	// an empty list none.
	HostEnv []string
}

// ValidatePlugins returns the webhook that refuses plugins which stile would not use. It
// says everything that is wrong at once, and warns of what is probably a mistake.
//
// It judges what a request changes: faults that the stored plugin has already are
// warnings, so that nobody is kept from editing labels, finalizers or another field of a
// plugin that has become invalid. It never refuses a deletion.
func ValidatePlugins(rules PluginRules) http.Handler {
	return Review(func(_ context.Context, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return rules.judge(r)
	})
}

func (rules PluginRules) judge(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	pass := &admissionv1.AdmissionResponse{Allowed: true}
	if r.Kind.Group != v1alpha1.Group || r.Kind.Kind != v1alpha1.WasmPluginKind || r.SubResource != "" {
		return pass
	}
	if r.Operation != admissionv1.Create && r.Operation != admissionv1.Update {
		return pass
	}
	// Whose it is comes first: another's may be written in a way that stile cannot read.
	var meta metav1.PartialObjectMetadata
	if json.Unmarshal(r.Object.Raw, &meta) == nil && rules.Owns != nil && !rules.Owns(r.Namespace, meta.Labels) {
		return pass
	}
	plugin, err := readPlugin(r.Object.Raw)
	old, oldErr := readPlugin(r.OldObject.Raw)
	if err != nil {
		if r.Operation == admissionv1.Update && oldErr != nil {
			pass.Warnings = append(pass.Warnings, "stile cannot read this plugin, and could not before; it is not used as it is: compare the cluster's WasmPlugin CRD with stile's")
			return pass
		}
		return refuse(r, []v1alpha1.Finding{{Severity: v1alpha1.SeverityError, Reason: v1alpha1.ReasonSyntax,
			Message: "is no WasmPlugin that stile can read: compare the cluster's WasmPlugin CRD with stile's"}}, nil)
	}
	plugin.Namespace = r.Namespace
	if plugin.Name == "" && plugin.GenerateName != "" {
		plugin.Name = strings.TrimRight(plugin.GenerateName, "-.") + "-x" // it gets its name later, and that one is legal
	}
	found := rules.findings(plugin)
	if r.Operation == admissionv1.Update && oldErr == nil {
		old.Namespace = r.Namespace
		before := rules.findings(old)
		for i := range found {
			if found[i].Severity == v1alpha1.SeverityError && slices.Contains(before, found[i]) {
				found[i].Severity = v1alpha1.SeverityWarning
				found[i].Message += " (it is so already; the plugin is not used as it is)"
			}
		}
		if (old.Spec.Type == v1alpha1.TypeNetwork) != (plugin.Spec.Type == v1alpha1.TypeNetwork) {
			found = append(found, v1alpha1.Finding{Field: "spec.type", Severity: v1alpha1.SeverityError, Reason: v1alpha1.ReasonInvalid,
				Message: "cannot be changed: delete the plugin and create it anew"})
		}
	}
	var faults []v1alpha1.Finding
	for _, f := range found {
		if f.Severity == v1alpha1.SeverityError {
			faults = append(faults, f)
			continue
		}
		pass.Warnings = append(pass.Warnings, f.Field+": "+f.Message)
	}
	if len(faults) > 0 {
		return refuse(r, faults, pass.Warnings)
	}
	return pass
}

// readPlugin reads what an author writes. A status is another's affair, and another's may
// have text where ours has numbers.
func readPlugin(raw []byte) (*v1alpha1.WasmPlugin, error) {
	var o struct {
		metav1.ObjectMeta `json:"metadata"`

		Spec v1alpha1.WasmPluginSpec `json:"spec"`
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	return &v1alpha1.WasmPlugin{ObjectMeta: o.ObjectMeta, Spec: o.Spec}, nil
}

func (rules PluginRules) findings(p *v1alpha1.WasmPlugin) []v1alpha1.Finding {
	found := p.Validate()
	if rules.HostEnv != nil {
		found = append(found, p.ValidateHostEnv(rules.HostEnv)...)
	}
	return found
}

// causes are the words that Kubernetes has for reasons.
var causes = map[string]metav1.CauseType{
	v1alpha1.ReasonRequired:   metav1.CauseTypeFieldValueRequired,
	v1alpha1.ReasonDuplicate:  metav1.CauseTypeFieldValueDuplicate,
	v1alpha1.ReasonNotAllowed: metav1.CauseTypeForbidden,
}

func refuse(r *admissionv1.AdmissionRequest, faults []v1alpha1.Finding, warnings []string) *admissionv1.AdmissionResponse {
	details := &metav1.StatusDetails{Group: v1alpha1.Group, Kind: v1alpha1.WasmPluginKind, Name: r.Name}
	words := make([]string, 0, len(faults))
	for _, f := range faults {
		cause, ok := causes[f.Reason]
		if !ok {
			cause = metav1.CauseTypeFieldValueInvalid
		}
		details.Causes = append(details.Causes, metav1.StatusCause{Type: cause, Field: f.Field, Message: f.Message})
		if f.Field != "" {
			words = append(words, fmt.Sprintf("%s: %s", f.Field, f.Message))
		} else {
			words = append(words, f.Message)
		}
	}
	return &admissionv1.AdmissionResponse{Warnings: warnings, Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: strings.Join(words, "; "), Details: details,
	}}
}
