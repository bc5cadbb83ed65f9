package gate

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/placement"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{NoCRD: true})) }

// pods are what the webhook and the policy must say the same of: gated or left alone.
var pods = []struct {
	name  string
	spec  string // of the pod, as YAML; containers are added
	meta  string
	gated bool
	gates string // of a pod that is gated, all of them
}{
	{name: "plain", gated: true},
	{name: "empty-affinity", spec: `affinity: {}`, gated: true},
	{name: "empty-node-affinity", spec: `affinity: {nodeAffinity: {}}`, gated: true},
	{name: "pod-affinity-alone", spec: `affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {}}]}}`, gated: true},
	{name: "prefers-an-architecture", spec: `affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [arm64]}]}}]}}`, gated: true},
	{name: "on-a-node", spec: `nodeName: somewhere`},
	{name: "of-a-daemonset", meta: `ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: d, uid: u, controller: true}]`},
	{name: "owned-beside-a-daemonset", meta: `ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: d, uid: u}]`},
	{name: "of-somebody-elses-daemonset", meta: `ownerReferences: [{apiVersion: apps.kruise.io/v1alpha1, kind: DaemonSet, name: d, uid: u, controller: true}]`, gated: true},
	{name: "of-a-replicaset", meta: `ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: d, uid: u, controller: true}]`, gated: true},
	{name: "chooses-zone", spec: `nodeSelector: {zone: a}`, gated: true},
	{name: "chooses-system", spec: `nodeSelector: {kubernetes.io/os: linux}`, gated: true},
	{name: "chooses-architecture", spec: `nodeSelector: {kubernetes.io/arch: arm64}`},
	{name: "chooses-architecture-of-old", spec: `nodeSelector: {zone: a, beta.kubernetes.io/arch: arm64}`},
	{name: "on-the-control-plane", spec: `nodeSelector: {node-role.kubernetes.io/control-plane: ""}`},
	{name: "on-a-master", spec: `nodeSelector: {node-role.kubernetes.io/master: ""}`},
	{name: "term-with-architecture", spec: required(`{matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [arm64]}]}`)},
	{name: "each-term-with-architecture", spec: required(`{matchExpressions: [{key: zone, operator: Exists}, {key: kubernetes.io/arch, operator: NotIn, values: [arm64]}]}`, `{matchExpressions: [{key: beta.kubernetes.io/arch, operator: Exists}]}`)},
	{name: "one-term-without-architecture", spec: required(`{matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [arm64]}]}`, `{matchExpressions: [{key: zone, operator: Exists}]}`), gated: true},
	{name: "term-with-fields", spec: required(`{matchFields: [{key: metadata.name, operator: In, values: [n]}]}`), gated: true},
	{name: "empty-term", spec: required(`{}`)},
	{name: "empty-term-beside-architecture", spec: required(`{}`, `{matchExpressions: [{key: kubernetes.io/arch, operator: Exists}]}`)},
	{name: "empty-term-beside-zone", spec: required(`{}`, `{matchExpressions: [{key: zone, operator: Exists}]}`), gated: true},
	{name: "gated-already", spec: `schedulingGates: [{name: stile.dev/architecture}]`, gated: true},
	{name: "gated-by-another", spec: `schedulingGates: [{name: kueue.x-k8s.io/admission}]`, gated: true, gates: "kueue.x-k8s.io/admission stile.dev/architecture"},
	{name: "gated-by-both", spec: `schedulingGates: [{name: stile.dev/architecture}, {name: kueue.x-k8s.io/admission}]`, gated: true, gates: "stile.dev/architecture kueue.x-k8s.io/admission"},
	{name: "no-gates-written-out", spec: `schedulingGates: []`, gated: true},
}

func required(terms ...string) string {
	return fmt.Sprintf(`affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [%s]}}}`, strings.Join(terms, ", "))
}

func podOf(t testing.TB, name, meta, spec string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{}
	text := fmt.Sprintf("metadata: {name: %s%s}\nspec:\n  containers: [{name: c, image: registry.example/app:v1}]\n", name, map[bool]string{true: ", " + meta}[meta != ""])
	if spec != "" {
		text += "  " + spec + "\n"
	}
	if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return p
}

func gatesOf(p *corev1.Pod) string {
	var names []string
	for _, g := range p.Spec.SchedulingGates {
		names = append(names, g.Name)
	}
	return strings.Join(names, " ")
}

// TestWebhookAndPolicySayTheSame: both put the gate on the same pods, and on no other, by
// the API server's own hand.
func TestWebhookAndPolicySayTheSame(t *testing.T) {
	t.Parallel()
	api := kubetest.API(t)
	quiet := rest.CopyConfig(api.Config)
	quiet.WarningHandler = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(quiet)
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		name string
		on   func(testing.TB) string // returns the namespace
	}{
		{"webhook", func(t testing.TB) string { return withWebhook(t, api) }},
		{"policy", func(t testing.TB) string { return withPolicy(t, api) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			ns := way.on(t)
			kubetest.Eventually(t, func() string { // it has reached the API server
				p := podOf(t, "probe", "", "")
				made, err := client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{DryRun: []string{"All"}})
				switch {
				case err != nil:
					return err.Error()
				case gatesOf(made) == "":
					return "a gate on a dry run"
				}
				return ""
			})
			for _, row := range pods {
				p := podOf(t, row.name, row.meta, row.spec)
				made, err := client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
				if err != nil {
					t.Errorf("%s: %v", row.name, err)
					continue
				}
				want := map[bool]string{true: placement.Gate}[row.gated]
				if row.gates != "" {
					want = row.gates
				}
				if got := gatesOf(made); got != want {
					t.Errorf("%s: gates %q, want %q", row.name, got, want)
				}
				made.Spec.SchedulingGates = nil
				p.Spec.SchedulingGates = nil
				if diff := cmp.Diff(p.Spec.Affinity, made.Spec.Affinity); diff != "" {
					t.Errorf("%s: more than the gate was changed: %s", row.name, diff)
				}
			}
			for _, reserved := range []string{"kube-system", "stile-system"} {
				made, err := client.CoreV1().Pods(reserved).Create(t.Context(), podOf(t, "reserved-"+way.name, "", ""), metav1.CreateOptions{})
				if err != nil || gatesOf(made) != "" {
					t.Errorf("in %s: gates %q, %v", reserved, gatesOf(made), err)
				}
			}
		})
	}
}

func file(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../../charts/stile/files/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// only makes a file of the chart act in one namespace and the reserved ones, so that
// tests do not meet.
func only(ns, text string) string {
	return strings.ReplaceAll(text, "namespaceSelector: {}", "namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: ["+ns+", kube-system, stile-system]}]}")
}

func ownNamespace(t testing.TB, api *kubetest.Server) {
	t.Helper()
	api.Apply(t, nil, `{apiVersion: v1, kind: Namespace, metadata: {name: stile-system}}`)
}

func withPolicy(t testing.TB, api *kubetest.Server) string {
	t.Helper()
	ownNamespace(t, api)
	ns := api.Namespace(t)
	api.Apply(t, nil, only(ns, file(t, "gate-policy.yaml")))
	t.Cleanup(func() {
		api.Kubectl(t, "delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", "stile-gate")
	})
	return ns
}

func withWebhook(t testing.TB, api *kubetest.Server) string {
	t.Helper()
	h, err := New(Config{Namespace: "stile-system"})
	if err != nil {
		t.Fatal(err)
	}
	return serveWebhook(t, api, h)
}

// serveWebhook serves h over TLS and has the API server ask it, by the chart's own
// configuration but for the address.
func serveWebhook(t testing.TB, api *kubetest.Server, h http.Handler) string {
	t.Helper()
	certificate, ca := selfSigned(t)
	server := httptest.NewUnstartedServer(http.NewServeMux())
	mux := http.NewServeMux()
	mux.Handle(Path, h)
	server.Config.Handler = mux
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	ownNamespace(t, api)
	ns := api.Namespace(t)
	text := only(ns, file(t, "gate-webhook.yaml"))
	text = strings.Replace(text, "service: {namespace: stile-system, name: stile-webhook, path: /gate-pod, port: 443}",
		fmt.Sprintf("url: %s%s\n    caBundle: %s", server.URL, Path, b64(ca)), 1)
	api.Apply(t, nil, text)
	t.Cleanup(func() {
		client := rest.CopyConfig(api.Config)
		k, err := kubernetes.NewForConfig(client)
		if err == nil {
			err = k.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), "stile-webhook", metav1.DeleteOptions{})
		}
		if err != nil {
			t.Error(err)
		}
	})
	return ns
}

func b64(b []byte) string {
	return base64.StdEncoding.EncodeToString(b)
}

func selfSigned(t testing.TB) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// reviewOf is what the API server sends about a pod.
func reviewOf(t testing.TB, namespace string, p *corev1.Pod) []byte {
	t.Helper()
	object, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1","kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},"namespace":%q,"operation":"CREATE","userInfo":{"username":"x"},"object":%s,"oldObject":null,"dryRun":false,"options":null}}`, namespace, object)
}

func ask(h http.Handler, body []byte) (int, string) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, Path, bytes.NewReader(body))
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// TestHandlerRefusesNothing: whatever else is asked, the answer is yes, without a patch.
func TestHandlerRefusesNothing(t *testing.T) {
	t.Parallel()
	h, err := New(Config{Namespace: "stile-system"})
	if err != nil {
		t.Fatal(err)
	}
	body := string(reviewOf(t, "team-a", podOf(t, "p", "", "")))
	for _, row := range []struct{ name, body, want string }{
		{"a pod", body, `"patchType":"JSONPatch"`},
		{"an update", strings.Replace(body, "CREATE", "UPDATE", 1), `"allowed":true}`},
		{"a subresource", strings.Replace(body, `"operation"`, `"subResource":"binding","operation"`, 1), `"allowed":true}`},
		{"no pod", strings.Replace(body, `"resource":"pods"`, `"resource":"configmaps"`, 1), `"allowed":true}`},
		{"no object", strings.Replace(body, `"object":{`, `"other":{`, 1), `"allowed":true}`},
		{"kube-public", strings.Replace(body, "team-a", "kube-public", 1), `"allowed":true}`},
		{"own namespace", strings.Replace(body, "team-a", "stile-system", 1), `"allowed":true}`},
	} {
		code, got := ask(h, []byte(row.body))
		if code != http.StatusOK || !strings.Contains(got, row.want) || !strings.Contains(got, `"uid":"u-1"`) {
			t.Errorf("%s: %d %s", row.name, code, got)
		}
	}
	for _, bad := range []string{"", "{", "[]", "null", `{"request":null}`, `{"request":{"uid":""}}`, strings.Repeat(" ", maxReview+1)} {
		if code, _ := ask(h, []byte(bad)); code != http.StatusBadRequest {
			t.Errorf("%.20q: %d", bad, code)
		}
	}
}

func FuzzHandler(f *testing.F) {
	h, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	for _, row := range pods {
		f.Add(reviewOf(f, "team-a", podOf(f, row.name, row.meta, row.spec)))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		code, got := ask(h, body)
		if code != http.StatusOK {
			return
		}
		var out struct {
			Response struct {
				Allowed bool
				Patch   []byte
			}
		}
		if err := json.Unmarshal([]byte(got), &out); err != nil || !out.Response.Allowed {
			t.Errorf("%s: %v", got, err)
		}
	})
}

// BenchmarkHandler answers about a pod of 10 KiB, as sidecars and volumes make them.
func BenchmarkHandler(b *testing.B) {
	h, err := New(Config{Namespace: "stile-system"})
	if err != nil {
		b.Fatal(err)
	}
	body := reviewOf(b, "team-a", large(b))
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	begin := processorTime(b)
	for b.Loop() {
		if code, _ := ask(h, body); code != http.StatusOK {
			b.Fatal(code)
		}
	}
	b.ReportMetric(float64((processorTime(b)-begin).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// processorTime is what this process has used: what else runs on the machine is not in it.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// large is a pod as people have them.
func large(t testing.TB) *corev1.Pod {
	t.Helper()
	p := podOf(t, "p", "labels: {app: a}", `nodeSelector: {zone: a}`)
	for i := range 40 {
		p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprint("VARIABLE_", i), Value: strings.Repeat("x", 120)})
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: fmt.Sprint("v", i), VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}})
	}
	return p
}
