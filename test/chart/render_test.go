package chart

import (
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/v1alpha1"
)

// everything turns on whatever can be on at once.
const everything = `
plugins: {namespaces: [team-a, team-b], revision: canary, selector: "app in (edge)"}
secrets: {namespaces: [team-a], resourceNames: [regcred]}
tls: {certManager: {enabled: true, issuerRef: {name: mesh, kind: ClusterIssuer}}}
webhook: {certificates: cert-manager}
store: {volume: persistent, storageClassName: fast}
placement:
  enabled: true
  via: policy
  namespaceSelector: {matchLabels: {placed: "yes"}}
  pullSecret: {namespace: stile-system, name: cluster-pull}
  preferred: [{architecture: arm64, weight: 50}]
  fallbackArchitecture: amd64
monitoring: {serviceMonitor: {enabled: true}, alerts: {enabled: true}, dashboards: {enabled: true}}
config:
  registries: [{host: "registry.example:5000", caFile: /etc/registry/ca.crt}]
  xds: {identities: [{spiffe: "spiffe://cluster.local/ns/team-a/sa/*", namespaces: [team-a]}], warmHold: 10s}
  access: {onRevoked: failStrategy}
`

func TestLintFindsNothing(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"{}", everything} {
		lint := action.NewLint()
		lint.Strict, lint.Namespace = true, "stile-system"
		found := lint.Run([]string{chartFolder}, values(t, text))
		for _, m := range found.Messages {
			if !strings.Contains(m.Err.Error(), "icon is recommended") {
				t.Errorf("%s: %v", m.Path, m.Err)
			}
		}
	}
}

func TestDefaultsAreSafe(t *testing.T) {
	t.Parallel()
	objects, _ := render(t, "{}")
	for _, o := range objects {
		switch o.GetKind() {
		case "CustomResourceDefinition", "Secret":
			t.Errorf("%s/%s is rendered where no cluster can be asked what is there", o.GetKind(), o.GetName())
		case "MutatingWebhookConfiguration", "MutatingAdmissionPolicy", "Job":
			t.Errorf("%s/%s is rendered while placement is off", o.GetKind(), o.GetName())
		case "ClusterRole", "Role":
			if strings.Contains(text(t, o), "pods") {
				t.Errorf("%s/%s may touch pods while placement is off", o.GetKind(), o.GetName())
			}
		}
	}
	d := as[appsv1.Deployment](t, find(t, objects, "Deployment", "stile"))
	if *d.Spec.Replicas != 2 {
		t.Errorf("want 2 replicas, got %d", *d.Spec.Replicas)
	}
	c := d.Spec.Template.Spec.Containers[0]
	for _, p := range c.Ports {
		if p.ContainerPort == 18002 {
			t.Error("the admin API's port is offered")
		}
	}
	for name, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if probe == nil || probe.HTTPGet.Port.StrVal != "health" {
			t.Errorf("the %s probe does not ask the health address", name)
		}
	}
	if c.Lifecycle == nil || c.Lifecycle.PreStop.Sleep == nil {
		t.Error("nothing waits until no Service names the pod any more")
	}
	cfg := config(t, objects)
	if !strings.HasPrefix(cfg.Admin.Address, "127.0.0.1:") {
		t.Errorf("the admin API listens on %s", cfg.Admin.Address)
	}
	if cfg.XDS.Insecure || cfg.Modules.Insecure || cfg.XDS.TLS.ClientCAFile == "" || cfg.Modules.TLS.ClientCAFile == "" {
		t.Errorf("proxies need no certificate: %+v %+v", cfg.XDS, cfg.Modules)
	}
}

// stile.yaml of the ConfigMap is read as strictly as serve reads it, and is valid.
func TestConfigurationIsValid(t *testing.T) {
	t.Parallel()
	for name, text := range toggles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects, _ := render(t, text)
			for _, f := range config(t, objects).Findings() {
				t.Errorf("%s: %s", f.Field, f.Message)
			}
		})
	}
}

func TestConfigSaysWhatTheValuesSay(t *testing.T) {
	t.Parallel()
	objects, _ := render(t, everything)
	c := config(t, objects)
	if c.Placement.FallbackArchitecture != "amd64" || c.Placement.PullSecret.Name != "cluster-pull" || len(c.Placement.Preferred) != 1 ||
		c.Placement.NamespaceSelector.MatchLabels["placed"] != "yes" || !c.Placement.Enabled {
		t.Errorf("placement: %+v", c.Placement)
	}
	if c.Registries[0].Host != "registry.example:5000" || c.XDS.Identities[0].Namespaces[0] != "team-a" || c.XDS.WarmHold.String() != "10s" || c.Access.OnRevoked != "failStrategy" {
		t.Errorf("what is under config: is lost: %+v %+v", c.Registries, c.XDS)
	}
	if k := c.Resources.Kubernetes; k.Revision != "canary" || k.Selector != "app in (edge)" || !slices.Equal(k.Namespaces, []string{"team-a", "team-b"}) || k.Namespace != "stile-system" {
		t.Errorf("resources.kubernetes: %+v", k)
	}
	if c.Webhook.Service != "stile-webhook" || c.Webhook.CertFile == "" {
		t.Errorf("webhook: %+v", c.Webhook)
	}
}

// toggles are the ways the chart can be set, one after the other and all at once.
var toggles = map[string]string{
	"nothing":                            "{}",
	"everything":                         everything,
	"insecure":                           "tls: {insecure: true}",
	"no webhook":                         "webhook: {enabled: false}",
	"placement by webhook":               "placement: {enabled: true}",
	"placement, webhook by cert-manager": "placement: {enabled: true}\nwebhook: {certificates: cert-manager, enabled: false}",
	"placement by policy":                "placement: {enabled: true, via: policy}\nwebhook: {enabled: false}",
	"secrets everywhere":                 "secrets: {clusterWide: true}",
	"a volume each":                      "store: {volume: persistent}",
	"own names":                          "fullnameOverride: fence\nserviceAccount: {name: keeper}\nkeys: {existingSecret: k}\ntls: {secretName: t}",
	"one's own listeners":                "config: {envoy: {default: edge.yaml, nodes: [{cluster: \"edge-*\", file: edge.yaml, namespace: team-a}]}}",
	"no account":                         "serviceAccount: {create: false, name: there}",
	"pods":                               "podAnnotations: {a: b}\npodLabels: {c: d}\nnodeSelector: {e: f}\ntolerations: [{operator: Exists}]\naffinity: {nodeAffinity: {}}\npriorityClassName: high\nimagePullSecrets: [pull]\nenv: [{name: X, value: \"1\"}]\nvolumes: [{name: v, emptyDir: {}}]\nvolumeMounts: [{name: v, mountPath: /v}]",
	"bare":                               "networkPolicy: {enabled: false}\npodDisruptionBudget: {enabled: false}\ncrd: {install: always}\nresources: {}",
}

func TestTogglesAddAndRemoveTheirObjects(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		values        string
		with, without []string
	}{
		{"{}", []string{"Deployment/stile", "PodDisruptionBudget/stile", "NetworkPolicy/stile", "Service/stile-xds", "Service/stile-modules", "Service/stile-webhook", "Service/stile-health", "ServiceAccount/stile"},
			[]string{"ServiceMonitor/stile", "PrometheusRule/stile", "ClusterRole/stile-secrets", "Role/stile-secrets", "Certificate/stile"}},
		{toggles["no webhook"], nil, []string{"Service/stile-webhook", "ValidatingWebhookConfiguration/stile-webhook"}},
		{toggles["placement by webhook"], []string{"MutatingWebhookConfiguration/stile-webhook", "ValidatingAdmissionPolicy/stile-pods", "ValidatingAdmissionPolicyBinding/stile-pods", "Job/stile-release", "ServiceAccount/stile-release"},
			[]string{"MutatingAdmissionPolicy/stile-gate"}},
		{toggles["placement by policy"], []string{"MutatingAdmissionPolicy/stile-gate", "MutatingAdmissionPolicyBinding/stile-gate"}, []string{"MutatingWebhookConfiguration/stile-webhook", "Service/stile-webhook"}},
		{toggles["secrets everywhere"], []string{"ClusterRole/stile-secrets"}, []string{"Role/stile-secrets"}},
		{toggles["a volume each"], []string{"StatefulSet/stile"}, []string{"Deployment/stile"}},
		{toggles["own names"], []string{"Deployment/fence", "Service/fence-webhook", "ValidatingWebhookConfiguration/fence-webhook", "ServiceAccount/keeper"}, []string{"Deployment/stile"}},
		{toggles["no account"], nil, []string{"ServiceAccount/there", "ServiceAccount/stile"}},
		{toggles["bare"], []string{"CustomResourceDefinition/wasmplugins.extensions.istio.io"}, []string{"NetworkPolicy/stile", "PodDisruptionBudget/stile"}},
		{everything, []string{"ServiceMonitor/stile", "PrometheusRule/stile", "ConfigMap/stile-dashboard", "Certificate/stile", "Certificate/stile-webhook", "Issuer/stile-webhook", "Role/stile-secrets", "Role/stile-plugins"},
			[]string{"ClusterRole/stile-plugins"}},
	} {
		objects, _ := render(t, row.values)
		have := names(objects)
		for _, want := range row.with {
			if !slices.Contains(have, want) {
				t.Errorf("%s: no %s among %v", row.values, want, have)
			}
		}
		for _, not := range row.without {
			if slices.Contains(have, not) {
				t.Errorf("%s: there is a %s", row.values, not)
			}
		}
	}
}

// A mistake is refused before anything is installed, with the value's name and what is wrong.
func TestSchemaRefusesAndSaysWhy(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ values, want string }{
		{"replica: 3", "additional properties 'replica' not allowed"},
		{"replicas: two", "at '/replicas': got string, want integer"},
		{"image: {digest: sha256:abc}", "at '/image/digest'"},
		{"placement: {via: mutation}", "at '/placement/via': value must be one of 'webhook', 'policy'"},
		{"placement: {preferred: [{architecture: arm64, weight: 101}]}", "at '/placement/preferred/0/weight'"},
		{"secrets: {namespaces: [Team_A]}", "at '/secrets/namespaces/0'"},
		{"secrets: {clusterwide: true}", "additional properties 'clusterwide' not allowed"},
		{"config: {admin: {address: \"0.0.0.0:18002\"}}", "at '/config': additional properties 'admin' not allowed"},
		{"config: {xds: {insecure: true}}", "at '/config/xds': additional properties 'insecure' not allowed"},
		{"store: {maxSize: 4 GB}", "at '/store/maxSize'"},
		{"modules: {url: \"ftp://x\"}", "at '/modules/url'"},
		{"tls: {certManager: {enabled: true}}", "tls.certManager.issuerRef: name the issuer"},
	} {
		_, _, err := tryRender(t, row.values)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: want %q, got %v", row.values, row.want, err)
		}
	}
}

func config(t testing.TB, objects []*unstructured.Unstructured) *v1alpha1.Config {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() != "ConfigMap" {
			continue
		}
		if text, ok, _ := unstructured.NestedString(o.Object, "data", "stile.yaml"); ok {
			c := v1alpha1.DefaultConfig()
			if err := yaml.UnmarshalStrict([]byte(text), c); err != nil {
				t.Fatalf("stile.yaml: %v\n%s", err, text)
			}
			return c
		}
	}
	t.Fatal("no ConfigMap has stile.yaml")
	return nil
}

func as[T any](t testing.TB, o *unstructured.Unstructured) *T {
	t.Helper()
	typed := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, typed, true); err != nil {
		t.Fatalf("%s/%s: %v", o.GetKind(), o.GetName(), err)
	}
	return typed
}

func text(t testing.TB, o *unstructured.Unstructured) string {
	t.Helper()
	b, err := yaml.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The alert on pods that are held knows how long they may be; runbooks are where the values say.
func TestAlertsKnowTheValues(t *testing.T) {
	t.Parallel()
	for wait, seconds := range map[string]string{"5m": "> 360", "1h30m": "> 5460", "90s": "> 150"} {
		objects, _ := render(t, "monitoring: {alerts: {enabled: true, runbooks: \"https://wiki.example/stile\"}}\nplacement: {maxWait: "+wait+"}")
		rule := text(t, find(t, objects, "PrometheusRule", "stile"))
		if !strings.Contains(rule, "stile_placement_oldest_held_seconds) "+seconds) {
			t.Errorf("maxWait %s: want %s in\n%s", wait, seconds, rule)
		}
		if strings.Contains(rule, "RUNBOOKS") || !strings.Contains(rule, "https://wiki.example/stile#stileabsent") {
			t.Error("the runbooks' address is not the one that was given")
		}
	}
}
