package chart

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"

	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/secret"
)

var (
	getOptions  = metav1.GetOptions{}
	listOptions = metav1.ListOptions{}
)

// restricted are the labels of a namespace in which Pod Security holds pods to its strictest profile.
var restricted = []string{"pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/enforce-version=latest"}

// Pods made from the chart's templates are admitted where Pod Security says restricted; the API server decides.
func TestPodsAreAdmittedUnderRestricted(t *testing.T) {
	api := kubetest.API(t)
	client := kubernetes.NewForConfigOrDie(api.Config)
	for name, text := range map[string]string{
		"deployment":  "placement: {enabled: true}",
		"statefulset": "store: {volume: persistent}\nwebhook: {certificates: cert-manager}\nplacement: {enabled: true, via: policy}",
	} {
		namespace := api.Namespace(t, restricted...)
		objects, _ := render(t, text)
		var templates []corev1.PodTemplateSpec
		for _, o := range objects {
			switch o.GetKind() {
			case "Deployment":
				templates = append(templates, as[appsv1.Deployment](t, o).Spec.Template)
			case "StatefulSet":
				templates = append(templates, as[appsv1.StatefulSet](t, o).Spec.Template)
			case "Job":
				templates = append(templates, as[batchv1.Job](t, o).Spec.Template)
			}
		}
		if len(templates) != 2 {
			t.Fatalf("%s: want the service's pods and the job's, got %d", name, len(templates))
		}
		for i, template := range templates {
			api.Apply(t, nil, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: "+template.Spec.ServiceAccountName+", namespace: "+namespace+"}\n")
			pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
			if name == "statefulset" && i == 0 { // what the controller adds
				pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "store", VolumeSource: corev1.VolumeSource{
					PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "store-stile-0"}}})
			}
			pod.GenerateName = "pod-"
			if _, err := client.CoreV1().Pods(namespace).Create(context.Background(), pod, metav1.CreateOptions{}); err != nil {
				t.Errorf("%s: pod %d: %v", name, i, err)
			}
			loose := pod.DeepCopy() // the control: this server does refuse
			loose.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation = nil
			if _, err := client.CoreV1().Pods(namespace).Create(context.Background(), loose, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
				t.Errorf("%s: a pod that restricted refuses: want Forbidden, got %v", name, err)
			}
		}
	}
}

// The root key is made once. An upgrade keeps it, one's own Secret is used as it is.
func TestRootKeyIsMadeOnce(t *testing.T) {
	api := kubetest.API(t)
	namespace := api.Namespace(t, restricted...)
	h := newHelm(t, api, "stile-key", namespace)
	h.install(t, "{}")
	key := func() string {
		text, _, _ := unstructured.NestedString(h.get(t, secrets, namespace, "stile-key-keys").Object, "data", "keys.yaml")
		file, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := secret.ParseRoot(file); err != nil {
			t.Fatalf("serve cannot read it: %v", err)
		}
		return string(file)
	}
	before := key()
	h.upgrade(t, "replicas: 3")
	if key() != before {
		t.Error("an upgrade changed the root key")
	}
	// What the operator has rotated by hand stays, too.
	rotated := before + "previous: " + strings.Repeat("ab", 32) + "\n"
	api.Apply(t, nil, "apiVersion: v1\nkind: Secret\nmetadata: {name: stile-key-keys, namespace: "+namespace+"}\ndata: {keys.yaml: "+base64.StdEncoding.EncodeToString([]byte(rotated))+"}\n")
	h.upgrade(t, "replicas: 2")
	if key() != rotated {
		t.Error("an upgrade took a rotation back")
	}
	h.uninstall(t)

	h = newHelm(t, api, "stile-own", namespace)
	h.install(t, "keys: {existingSecret: mine}")
	if _, err := h.dynamic.Resource(secrets).Namespace(namespace).Get(context.Background(), "stile-own-keys", getOptions); !apierrors.IsNotFound(err) {
		t.Errorf("a key is made beside the operator's own: %v", err)
	}
	h.uninstall(t)
}

// foreign is the CRD as another mesh installs it: other labels, another schema, and no word for Helm.
const foreign = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: wasmplugins.extensions.istio.io
  labels: {app: istio-pilot, release: istio, heritage: Tiller}
spec:
  group: extensions.istio.io
  names: {kind: WasmPlugin, listKind: WasmPluginList, plural: wasmplugins, singular: wasmplugin}
  scope: Namespaced
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const crdName = "wasmplugins.extensions.istio.io"

// The CRD is installed where there is none, kept up to date where it is ours, and left alone where it is somebody else's.
func TestCRDIsInstalledOnlyIfAbsentOrOurs(t *testing.T) {
	t.Parallel()
	api := kubetest.Start(t, kubetest.Options{NoCRD: true})
	namespace := api.Namespace(t)
	ours := newHelm(t, api, "stile", namespace)
	crd := func() *unstructured.Unstructured { t.Helper(); return ours.get(t, crds, "", crdName) }
	plugin := "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: precious, namespace: " + namespace + "}\nspec: {url: oci://registry.example/a/p:v1}\n"
	served := func() string { // the first object after its definition takes a moment
		if err := api.TryApply(nil, plugin); err != nil {
			return err.Error()
		}
		return ""
	}
	there := func() { t.Helper(); api.Kubectl(t, "get", "wasmplugin", "-n", namespace, "precious") }

	// Absent: installed, with what marks it as ours. It is of an older chart.
	ours.installChart(t, older(t), "{}")
	if l := crd().GetLabels(); l["app.kubernetes.io/name"] != "stile" || crd().GetAnnotations()["helm.sh/resource-policy"] != "keep" {
		t.Errorf("labels %v, annotations %v", l, crd().GetAnnotations())
	}
	kubetest.Eventually(t, served)

	// An upgrade brings it up to date, and nothing stored is lost.
	known := func() bool {
		_, found, _ := unstructured.NestedFieldNoCopy(first(t, crd(), "spec", "versions"), "schema", "openAPIV3Schema", "properties", "spec", "properties", "vmConfig")
		return found
	}
	if known() {
		t.Fatal("the older chart's CRD is the new one")
	}
	ours.upgrade(t, "{}")
	if !known() {
		t.Error("an upgrade left the CRD of the version before")
	}
	there()

	// Uninstalled: the CRD and all plugins stay, and the next installation takes it up again.
	ours.uninstall(t)
	there()
	ours.install(t, "{}")
	there()

	// Another release beside: it leaves the first one's CRD alone.
	before := crd().GetResourceVersion()
	other := newHelm(t, api, "stile-two", api.Namespace(t))
	if notes := other.install(t, "{}"); !strings.Contains(notes, "not of this release") {
		t.Errorf("the notes do not say that the CRD is left as it is:\n%s", notes)
	}
	other.upgrade(t, "replicas: 1")
	other.uninstall(t)
	if crd().GetResourceVersion() != before {
		t.Error("another release touched the CRD")
	}

	// Replaced by a foreign one that says nothing to Helm: an upgrade would delete it, and is refused.
	api.Kubectl(t, "replace", "-f", writeFile(t, foreign))
	if err := ours.tryUpgrade(t, "{}"); err == nil || !strings.Contains(err.Error(), "kubectl annotate crd") {
		t.Errorf("want a refusal that says what to do, got %v", err)
	}
	there()
	api.Kubectl(t, "annotate", "crd", crdName, "helm.sh/resource-policy=keep")
	untouched(t, crd, func() {
		ours.upgrade(t, "{}")
		ours.upgrade(t, "replicas: 1") // and once more, from a release that knows nothing of the CRD
		ours.uninstall(t)
	})
	there()

	// Foreign from the beginning.
	api.Kubectl(t, "annotate", "crd", crdName, "helm.sh/resource-policy-")
	untouched(t, crd, func() {
		ours.install(t, "{}")
		ours.upgrade(t, "crd: {install: always}")
		ours.uninstall(t)
	})
	there()
}

// untouched fails unless the CRD is the same object of the same version after f.
func untouched(t *testing.T, crd func() *unstructured.Unstructured, f func()) {
	t.Helper()
	before := crd()
	f()
	if after := crd(); after.GetUID() != before.GetUID() || after.GetResourceVersion() != before.GetResourceVersion() {
		t.Errorf("the foreign CRD was touched: %v", after.GetManagedFields())
	}
}

// Where no cluster is asked, what is rendered holds no CRD: applied over a foreign one it would replace it.
func TestRenderedManifestsHoldNoCRDUnlessAsked(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"{}": false, "crd: {install: never}": false, "crd: {install: always}": true} {
		objects, _ := render(t, text)
		if got := strings.Contains(strings.Join(names(objects), " "), "CustomResourceDefinition"); got != want {
			t.Errorf("%s: want a CRD: %v, got %v", text, want, got)
		}
	}
}

// older is the chart as it was before its CRD had vmConfig.
func older(t *testing.T) *chartv2.Chart {
	t.Helper()
	c := load(t)
	for _, f := range c.Files {
		if f.Name != "files/crd.yaml" {
			continue
		}
		o := decode(t, string(f.Data))[0]
		spec := first(t, o, "spec", "versions")
		unstructured.RemoveNestedField(spec, "schema", "openAPIV3Schema", "properties", "spec", "properties", "vmConfig")
		if err := unstructured.SetNestedSlice(o.Object, []any{spec}, "spec", "versions"); err != nil {
			t.Fatal(err)
		}
		f.Data = []byte(text(t, o))
	}
	return c
}

func first(t *testing.T, o *unstructured.Unstructured, path ...string) map[string]any {
	t.Helper()
	list, found, err := unstructured.NestedSlice(o.Object, path...)
	if err != nil || !found || len(list) == 0 {
		t.Fatalf("%v: %v %v", path, found, err)
	}
	return list[0].(map[string]any)
}
