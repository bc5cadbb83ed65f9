// Package rbac is the one table of what stile may do in a cluster, and makes the chart's
// roles from it. Its one rule: a right that no row gives a reason for does not exist.
package rbac

import (
	"fmt"
	"strings"
)

// Scope says where a rule holds.
type Scope int

// The scopes. Each becomes one role of the chart.
const (
	Plugins   Scope = iota // where plugins are served: every namespace, or those of plugins.namespaces
	Cluster                // objects that have no namespace, and pods, which placement finds anywhere
	Own                    // stile's own namespace
	Secrets                // the namespaces of secrets.namespaces; every one if secrets.clusterWide
	PullPlace              // the namespace of placement.pullSecret
	Uninstall              // the account of the job that lets pods go before the chart is uninstalled
)

// Rule is one row: what, where, when and why. Names and When are text of Helm templates.
type Rule struct {
	Scope     Scope
	Group     string // API group; "" is the core
	Resources []string
	Verbs     []string
	Names     []string // resourceNames; none means all
	When      string   // condition of a template; "" is always
	Why       string
}

const (
	selfSigned = `and (include "stile.webhooks" .) (eq .Values.webhook.certificates "self")`
	placement  = `.Values.placement.enabled`
)

// Rules are all rights of stile's accounts.
var Rules = []Rule{
	{Plugins, "extensions.istio.io", []string{"wasmplugins"}, []string{"get", "list", "watch"}, nil, "",
		"what is to be served"},
	{Plugins, "extensions.istio.io", []string{"wasmplugins/status"}, []string{"patch"}, nil, "",
		"what became of it; the plugin itself is its author's alone"},
	{Plugins, "events.k8s.io", []string{"events"}, []string{"create", "patch"}, nil, "",
		"the same, where people look first"},
	{Plugins, "gateway.networking.k8s.io", []string{"gateways"}, []string{"list", "watch"}, nil, "",
		"what targetRefs name"},

	{Own, "", []string{"configmaps"}, []string{"list", "watch"}, nil, "",
		"listeners of proxies, and what the other replicas count"},
	{Own, "", []string{"configmaps"}, []string{"create", "update", "delete"}, nil, "",
		"what this replica counts; names differ with the pods, so none can be listed"},
	{Own, "coordination.k8s.io", []string{"leases"}, []string{"create"}, nil, "",
		"the election of the one that writes statuses; a name cannot be asked of a create"},
	{Own, "coordination.k8s.io", []string{"leases"}, []string{"get", "update"}, []string{"stile"}, "",
		"the same"},
	{Own, "", []string{"secrets"}, []string{"get", "create", "update", "patch"}, []string{`{{ include "stile.webhook" . }}-tls`}, selfSigned,
		"the webhook's certificates, made by a server-side apply, which has a name; no other Secret here can be read, the root key is mounted"},

	{Secrets, "", []string{"secrets"}, []string{"get", "watch"}, []string{"{{ .Values.secrets.resourceNames }}"}, "",
		"pull secrets that plugins and pods name, by name: there is no list"},
	{PullPlace, "", []string{"secrets"}, []string{"get", "watch"}, []string{"{{ .Values.placement.pullSecret.name }}"}, placement,
		"the cluster-wide pull secret"},

	{Cluster, "apiextensions.k8s.io", []string{"customresourcedefinitions"}, []string{"get", "watch"},
		[]string{"wasmplugins.extensions.istio.io", "gateways.gateway.networking.k8s.io"}, "",
		"what the CRD that is there lacks, and whether there are Gateways"},
	{Cluster, "admissionregistration.k8s.io", []string{"validatingwebhookconfigurations"}, []string{"get", "watch", "patch"},
		[]string{`{{ include "stile.webhook" . }}`}, selfSigned,
		"the authority of the certificates that stile makes for itself"},
	{Cluster, "admissionregistration.k8s.io", []string{"mutatingwebhookconfigurations"}, []string{"get", "watch", "patch"},
		[]string{`{{ include "stile.webhook" . }}`}, selfSigned,
		"the same; it is looked for also while there is none"},
	{Cluster, "", []string{"pods"}, []string{"get", "list", "watch", "patch"}, nil, placement,
		"pods that carry the gate; what may change on them a ValidatingAdmissionPolicy says"},
	{Cluster, "events.k8s.io", []string{"events"}, []string{"create", "patch"}, nil, placement,
		"why a pod was held, and let go"},

	{Uninstall, "", []string{"pods"}, []string{"list", "patch"}, nil, "",
		"to take the gate off whatever pod carries it"},
	{Uninstall, "admissionregistration.k8s.io", []string{"mutatingwebhookconfigurations"}, []string{"delete"}, []string{`{{ include "stile.webhook" . }}`}, "",
		"no new pod is held any more"},
	{Uninstall, "admissionregistration.k8s.io", []string{"mutatingadmissionpolicybindings"}, []string{"delete"}, []string{`{{ include "stile.name" . }}-gate`}, "",
		"the same"},
}

// Template returns the chart's template of accounts' roles and bindings.
func Template() string {
	var b strings.Builder
	b.WriteString("{{- /* Made from charts/rbac by \"go test ./charts/rbac -update\": each rule says why. */}}\n")
	b.WriteString("{{- $name := include \"stile.name\" . }}\n")
	b.WriteString("{{- $account := include \"stile.account\" . }}\n")

	b.WriteString("{{- if .Values.plugins.namespaces }}\n{{- range $namespace := .Values.plugins.namespaces }}\n{{- with $ }}\n")
	role(&b, Plugins, "Role", "{{ $name }}-plugins", "{{ $namespace }}", "{{ $account }}")
	b.WriteString("{{- end }}\n{{- end }}\n{{- else }}\n")
	role(&b, Plugins, "ClusterRole", "{{ $name }}-plugins", "", "{{ $account }}")
	b.WriteString("{{- end }}\n")

	role(&b, Own, "Role", "{{ $name }}", "{{ .Release.Namespace }}", "{{ $account }}")

	b.WriteString("{{- if .Values.secrets.clusterWide }}\n")
	role(&b, Secrets, "ClusterRole", "{{ $name }}-secrets", "", "{{ $account }}")
	b.WriteString("{{- else }}\n{{- range $namespace := .Values.secrets.namespaces }}\n{{- with $ }}\n")
	role(&b, Secrets, "Role", "{{ $name }}-secrets", "{{ $namespace }}", "{{ $account }}")
	b.WriteString("{{- end }}\n{{- end }}\n{{- end }}\n")

	b.WriteString("{{- if and .Values.placement.enabled .Values.placement.pullSecret.name (not .Values.secrets.clusterWide) }}\n")
	role(&b, PullPlace, "Role", "{{ $name }}-pull-secret", "{{ .Values.placement.pullSecret.namespace }}", "{{ $account }}")
	b.WriteString("{{- end }}\n")

	role(&b, Cluster, "ClusterRole", "{{ $name }}", "", "{{ $account }}")

	b.WriteString("{{- if and .Values.placement.enabled .Values.placement.releaseOnUninstall }}\n")
	role(&b, Uninstall, "ClusterRole", "{{ $name }}-release", "", "{{ $name }}-release")
	b.WriteString("{{- end }}\n")
	return b.String()
}

// role writes the role of a scope, and its binding to an account.
func role(b *strings.Builder, scope Scope, kind, name, namespace, account string) {
	head := func(kind string) {
		fmt.Fprintf(b, "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: %s\nmetadata:\n  name: %s\n", kind, name)
		if namespace != "" {
			fmt.Fprintf(b, "  namespace: %s\n", namespace)
		}
		b.WriteString("  labels:\n    {{- include \"stile.labels\" . | nindent 4 }}\n")
		if scope == Uninstall {
			b.WriteString("  annotations:\n    {{- include \"stile.uninstall\" \"-5\" | nindent 4 }}\n")
		}
	}
	head(kind)
	b.WriteString("rules:\n")
	for _, r := range Rules {
		if r.Scope == scope {
			rule(b, r)
		}
	}
	head(kind + "Binding")
	fmt.Fprintf(b, "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: %s, name: %s}\n", kind, name)
	fmt.Fprintf(b, "subjects:\n  - {kind: ServiceAccount, name: %s, namespace: {{ .Release.Namespace }}}\n", account)
}

func rule(b *strings.Builder, r Rule) {
	if r.When != "" {
		fmt.Fprintf(b, "  {{- if %s }}\n", r.When)
	}
	fmt.Fprintf(b, "  # %s\n", r.Why)
	fmt.Fprintf(b, "  - apiGroups: [%q]\n    resources: [%s]\n    verbs: [%s]\n", r.Group, strings.Join(r.Resources, ", "), strings.Join(r.Verbs, ", "))
	switch list, is := listOf(r.Names); {
	case is:
		fmt.Fprintf(b, "    {{- with %s }}\n    resourceNames: {{ toJson . }}\n    {{- end }}\n", list)
	case len(r.Names) > 0:
		fmt.Fprintf(b, "    resourceNames: [%s]\n", strings.Join(r.Names, ", "))
	}
	if r.When != "" {
		b.WriteString("  {{- end }}\n")
	}
}

// listOf returns the value that stands for a whole list of names, which may be empty.
func listOf(names []string) (string, bool) {
	if len(names) != 1 || !strings.HasPrefix(names[0], "{{ .Values.secrets.") {
		return "", false
	}
	return strings.TrimSuffix(strings.TrimPrefix(names[0], "{{ "), " }}"), true
}
