package admission

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/kubetest"
)

func TestThePluginThatStileWouldNotUseIsRefusedWithEveryReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	registry := prometheus.NewPedanticRegistry()
	cfg := w.config()
	cfg.Registerer = registry
	r := w.run(cfg, nil)
	w.hook("ValidatingWebhookConfiguration", ValidatePath, "Fail", r.url)
	w.ready(r)

	// What CEL cannot say, twice.
	_, stderr, err := w.TryKubectl(t, nil, "apply", "-f", w.file(w.plugin("two", `url: "oci://my registry", verificationKey: "no key", phase: AUTHN, failStrategy: FAIL_OPEN`)))
	if err == nil {
		t.Fatal("a plugin with faults was taken")
	}
	_ = stderr
	err = w.TryApply(nil, w.plugin("two", `url: "http://[::1:80/a.wasm", verificationKey: "no key"`))
	if err == nil || !strings.Contains(err.Error(), "spec.url: ") || !strings.Contains(err.Error(), "spec.verificationKey: ") {
		t.Errorf("want both findings, got %v", err)
	}
	out, stderr, err := w.TryKubectl(t, nil, "apply", "-f", w.file(w.plugin("warned", `url: oci://r.example/a, phase: AUTHN, failStrategy: FAIL_OPEN`)))
	if err != nil || !strings.Contains(stderr, "Warning: spec.failStrategy: FAIL_OPEN lets every request pass") {
		t.Errorf("want a warning, got %s %s %v", out, stderr, err)
	}
	if n := testutil.ToFloat64(r.metrics.requests.WithLabelValues(ValidatePath, denied)); n < 2 {
		t.Errorf("%v refusals counted", n)
	}
	if n := testutil.ToFloat64(r.metrics.requests.WithLabelValues(ValidatePath, allowed)); n < 1 {
		t.Errorf("%v passes counted", n)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

// file writes text to a file for kubectl.
func (w *world) file(text string) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "object.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func TestAPluginThatIsInvalidAlreadyCanBeEditedAndDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// Stored before there was a webhook.
	w.Apply(t, nil, w.plugin("old", `url: oci://r.example/a, verificationKey: "no key"`))
	r := w.run(w.config(), nil)
	w.hook("ValidatingWebhookConfiguration", ValidatePath, "Fail", r.url)
	w.ready(r)

	kubectl := func(args ...string) (string, error) {
		_, stderr, err := w.TryKubectl(t, nil, append(args, "--namespace", w.namespace)...)
		return stderr, err
	}
	for _, edit := range [][]string{
		{"label", "wasmplugin", "old", "team=a"},
		{"patch", "wasmplugin", "old", "--type=merge", "-p", `{"metadata":{"finalizers":["example.com/hold"]}}`},
		{"patch", "wasmplugin", "old", "--subresource=status", "--type=merge", "-p", `{"status":{"digest":"sha256:0"}}`},
		{"patch", "wasmplugin", "old", "--type=merge", "-p", `{"spec":{"priority":7}}`},
	} {
		stderr, err := kubectl(edit...)
		if err != nil {
			t.Errorf("kubectl %s: %s", strings.Join(edit, " "), stderr)
		}
	}
	if stderr, err := kubectl("patch", "wasmplugin", "old", "--type=merge", "-p", `{"spec":{"vmConfig":{"env":[{"name":"A","valueFrom":"INLINE"}]}}}`); err != nil || !strings.Contains(stderr, "Warning: spec.verificationKey: ") {
		t.Errorf("want the old fault as a warning, got %q %v", stderr, err)
	}
	if stderr, err := kubectl("patch", "wasmplugin", "old", "--type=merge", "-p", `{"spec":{"verificationKey":"another that is none"}}`); err == nil && !strings.Contains(stderr, "Warning") {
		t.Errorf("another fault of the same field passed silently: %q", stderr)
	}
	if stderr, err := kubectl("patch", "wasmplugin", "old", "--type=merge", "-p", `{"spec":{"url":"http://[::1:80/a.wasm"}}`); err == nil {
		t.Errorf("a new fault was taken: %s", stderr)
	}
	if stderr, err := kubectl("delete", "wasmplugin", "old", "--wait=false"); err != nil {
		t.Errorf("a deletion was refused: %s", stderr)
	}
	if stderr, err := kubectl("patch", "wasmplugin", "old", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`); err != nil {
		t.Errorf("a finalizer could not be removed: %s", stderr)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	object := func(spec, labels string) []byte {
		return fmt.Appendf(nil, `{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"p","labels":{%s}},"spec":{%s}}`, labels, spec)
	}
	const good, bad = `"url":"oci://r.example/a"`, `"url":"oci://r.example/a","verificationKey":"no key"`
	for _, test := range []struct {
		name      string
		rules     PluginRules
		operation admissionv1.Operation
		sub       string
		now, old  []byte
		faults    string
		warns     int
	}{
		{name: "a good one", operation: admissionv1.Create, now: object(good, "")},
		{name: "a bad one", operation: admissionv1.Create, now: object(bad, ""), faults: "spec.verificationKey"},
		{name: "a bad one of another revision", operation: admissionv1.Create, now: object(bad, `"istio.io/rev":"stable"`),
			rules: PluginRules{Owns: func(_ string, labels map[string]string) bool { return labels["istio.io/rev"] == "" }}},
		{name: "a status", operation: admissionv1.Update, sub: "status", now: object(bad, ""), old: object(good, "")},
		{name: "a deletion", operation: admissionv1.Delete, old: object(bad, "")},
		{name: "a fault that is new", operation: admissionv1.Update, now: object(bad, ""), old: object(good, ""), faults: "spec.verificationKey"},
		{name: "a fault that was there", operation: admissionv1.Update, now: object(bad+`,"priority":1`, ""), old: object(bad, ""), warns: 1},
		{name: "a type that changes", operation: admissionv1.Update, now: object(good+`,"type":"NETWORK"`, ""), old: object(good, ""), faults: "spec.type"},
		{name: "a type that changes beside an old fault", operation: admissionv1.Update, now: object(bad, ""), old: object(bad+`,"type":"NETWORK"`, ""), faults: "spec.type", warns: 1},
		{name: "a type that is only written out", operation: admissionv1.Update, now: object(good+`,"type":"HTTP"`, ""), old: object(good, "")},
		{name: "an environment that the operator does not give", operation: admissionv1.Create, rules: PluginRules{HostEnv: []string{"POD_NAME"}},
			now: object(good+`,"vmConfig":{"env":[{"name":"HOME","valueFrom":"HOST"},{"name":"POD_NAME","valueFrom":"HOST"}]}`, ""), faults: "spec.vmConfig.env[0].name"},
		{name: "what cannot be read", operation: admissionv1.Create, now: []byte(`{"spec":{"url":7}}`), faults: "<no field>"},
		{name: "what could not be read before either", operation: admissionv1.Update, now: []byte(`{"metadata":{},"spec":{"url":7}}`),
			old: []byte(`{"metadata":{"finalizers":["example.com/hold"]},"spec":{"url":7}}`), warns: 1},
		{name: "what could be read before", operation: admissionv1.Update, now: []byte(`{"spec":{"url":7}}`), old: object(good, ""), faults: "<no field>"},
		{name: "what cannot be read, of another revision", operation: admissionv1.Create, now: []byte(`{"metadata":{"labels":{"istio.io/rev":"stable"}},"spec":{"url":7}}`),
			rules: PluginRules{Owns: func(_ string, labels map[string]string) bool { return labels["istio.io/rev"] == "" }}},
		{name: "a status in another's words", operation: admissionv1.Update, old: object(good, ""),
			now: []byte(`{"metadata":{"name":"p"},"spec":{` + good + `},"status":{"observedGeneration":"3","conditions":[{"status":true}]}}`)},
		{name: "a name that is made later", operation: admissionv1.Create,
			now: []byte(`{"metadata":{"generateName":"auth-"},"spec":{"url":"oci://r.example/a"}}`)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			request := &admissionv1.AdmissionRequest{UID: "1", Operation: test.operation, SubResource: test.sub, Namespace: "team-a", Name: "p",
				Kind: metav1.GroupVersionKind{Group: "extensions.istio.io", Version: "v1alpha1", Kind: "WasmPlugin"}}
			request.Object.Raw, request.OldObject.Raw = test.now, test.old
			response := test.rules.judge(request)
			var faults []string
			if response.Result != nil && response.Result.Details != nil {
				for _, c := range response.Result.Details.Causes {
					if c.Field == "" {
						c.Field = "<no field>"
					}
					faults = append(faults, c.Field)
				}
			}
			if got := strings.Join(faults, ","); got != test.faults || response.Allowed != (test.faults == "") {
				t.Errorf("allowed %v, faults %q, want %q", response.Allowed, got, test.faults)
			}
			if len(response.Warnings) != test.warns {
				t.Errorf("warnings %q, want %d", response.Warnings, test.warns)
			}
		})
	}
}

// What a tenant writes into a plugin may be a credential: nothing that is said of it repeats it.
func TestP3_ARefusalRepeatsNothingOfThePlugin(t *testing.T) {
	t.Parallel()
	w := canary.Watch(t)
	secret := w.Credential()
	quoted, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	inner := strings.Trim(string(quoted), `"`)
	said := 0
	for _, spec := range []string{
		`"url":"https://user:%s@h.example/a.wasm"`, `"url":"https://h.example/?token=%s"`, `"url":"oci://user:%s@r.example/a"`, `"url":"oci://r.example/a@%s"`, `"url":"oci://r.example/a:v1?token=%s"`,
		`"url":"oci://r.example/a","sha256":"%s"`, `"url":"oci://r.example/a","verificationKey":"%s"`, `"url":"oci://r.example/a","imagePullSecret":"%s"`,
		`"url":"oci://r.example/a","vmConfig":{"env":[{"name":"A","valueFrom":"HOST","value":"%[1]s"},{"name":"%[1]s"},{"name":"B","value":"%[1]s","valueFrom":"%[1]s"}]}`,
		`"url":"oci://r.example/a","pluginConfig":{"a":"%s","b":1e999}`, `"url":"oci://r.example/a","phase":"%s"`, `"url":7,"pluginConfig":"%s"`, `"url":"oci://r.example/a","priority":"%s"`,
		`"url":"oci://r.example/a","targetRef":{"kind":"%[1]s","name":"%[1]s"}`, `"url":"oci://r.example/a","match":[{"mode":"%s"}]`,
	} {
		object := `{"metadata":{"name":"p"},"spec":{` + strings.NewReplacer("%[1]s", inner, "%s", inner).Replace(spec) + `}}`
		request := &admissionv1.AdmissionRequest{UID: "u", Operation: admissionv1.Create, Namespace: "team-a", Name: "p",
			Kind: metav1.GroupVersionKind{Group: "extensions.istio.io", Version: "v1alpha1", Kind: "WasmPlugin"}}
		request.Object.Raw = []byte(object)
		response := PluginRules{HostEnv: []string{}}.judge(request)
		if response.Allowed {
			t.Logf("taken: %s", spec)
		} else {
			said++
		}
		body, err := json.Marshal(response)
		if err != nil {
			t.Fatal(err)
		}
		w.Add(spec, body)
	}
	if said < 10 {
		t.Errorf("only %d refusals were looked at", said)
	}
}

func TestTheBundleIsInjectedAgainWhenSomebodyResetsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.run(w.config(), nil)
	w.hook("ValidatingWebhookConfiguration", ValidatePath, "Fail", r.url)
	w.hook("MutatingWebhookConfiguration", ValidatePath, "Ignore", r.url)
	w.ready(r)
	hooks := w.admin.AdmissionregistrationV1()
	want, err := hooks.ValidatingWebhookConfigurations().Get(t.Context(), w.service, metav1.GetOptions{})
	if err != nil || len(want.Webhooks[0].ClientConfig.CABundle) == 0 {
		t.Fatalf("no bundle: %v", err)
	}
	for _, value := range []string{`""`, fmt.Sprintf("%q", base64.StdEncoding.EncodeToString([]byte("nonsense\n")))} {
		patch := []byte(`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":` + value + `}]`)
		if value != `""` {
			other, _, err := mint([]string{"x"}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			patch = []byte(`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"` + base64.StdEncoding.EncodeToString(other.cert) + `"}]`)
		}
		if _, err := hooks.ValidatingWebhookConfigurations().Patch(t.Context(), w.service, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := hooks.MutatingWebhookConfigurations().Patch(t.Context(), w.service, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		took := kubetest.Within(t, 10*time.Second, func() string {
			v, err := hooks.ValidatingWebhookConfigurations().Get(t.Context(), w.service, metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			m, err := hooks.MutatingWebhookConfigurations().Get(t.Context(), w.service, metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			return cmp.Diff(want.Webhooks[0].ClientConfig.CABundle, v.Webhooks[0].ClientConfig.CABundle) + cmp.Diff(want.Webhooks[0].ClientConfig.CABundle, m.Webhooks[0].ClientConfig.CABundle)
		})
		t.Logf("injected again after %v", took)
	}

	// So it is when the configuration is made anew, as by an installation.
	if err := hooks.ValidatingWebhookConfigurations().Delete(t.Context(), w.service, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.Ready(); err != nil {
		t.Logf("meanwhile: %v", err)
	}
	w.hook("ValidatingWebhookConfiguration", ValidatePath, "Fail", r.url)
	w.ready(r)
}

func TestTheReplicasShareOneCertificateWhoeverComesFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	replicas := []*replica{w.run(w.config(), nil), w.run(w.config(), nil), w.run(w.config(), nil)}
	w.hook("ValidatingWebhookConfiguration", ValidatePath, "Fail", replicas[0].url, replicas[1].url, replicas[2].url)
	var certificates []string
	for _, r := range replicas {
		w.ready(r)
		certificates = append(certificates, string(r.trust.(*own).serving.Load().Certificate[0]))
	}
	if certificates[0] != certificates[1] || certificates[1] != certificates[2] {
		t.Error("the replicas serve different certificates")
	}
	w.Apply(t, nil, w.plugin("fine", `url: oci://r.example/a`))

	// A Secret that somebody deletes comes back as it was.
	secrets := w.admin.CoreV1().Secrets(w.namespace)
	before, err := secrets.Get(t.Context(), w.service+"-tls", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := secrets.Delete(t.Context(), before.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	replicas[0].trust.(*own).poke()
	kubetest.Eventually(t, func() string {
		after, err := secrets.Get(t.Context(), before.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if diff := cmp.Diff(before.Data, after.Data); diff != "" {
			return "the same certificate as before"
		}
		return ""
	})
}

func TestACertificateIsReplacedAndNoCallFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var ahead atomic.Int64 // of the clock, in ns: it begins long ago, so that what is made is good by the API server's clock too
	day := 24 * time.Hour
	ahead.Store(int64(-renewal - day))
	clock := func(s *Server) {
		s.trust.(*own).now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	replicas := []*replica{w.run(w.config(), clock), w.run(w.config(), clock)}
	w.hook("ValidatingWebhookConfiguration", ValidatePath, "Fail", replicas[0].url, replicas[1].url)
	for _, r := range replicas {
		w.ready(r)
	}
	admin, err := kubernetes.NewForConfig(w.Config)
	if err != nil {
		t.Fatal(err)
	}
	stop, calling := make(chan struct{}), sync.WaitGroup{}
	var calls atomic.Int64
	calling.Go(func() {
		body := []byte(`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"dry"},"spec":{"url":"oci://r.example/a"}}`)
		for {
			select {
			case <-stop:
				return
			default:
			}
			err := admin.CoreV1().RESTClient().Post().AbsPath("/apis/extensions.istio.io/v1alpha1/namespaces/"+w.namespace+"/wasmplugins").
				Param("dryRun", "All").Body(body).Do(context.Background()).Error()
			if err != nil {
				t.Errorf("a call failed: %v", err)
				return
			}
			calls.Add(1)
		}
	})

	secret := func() map[string][]byte {
		s, err := w.admin.CoreV1().Secrets(w.namespace).Get(t.Context(), w.service+"-tls", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s.Data
	}
	poke := func() {
		for _, r := range replicas {
			r.trust.(*own).poke()
		}
	}
	bundle := func() string {
		v, err := w.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), w.service, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return string(v.Webhooks[1].ClientConfig.CABundle)
	}
	someCalls := func() {
		from := calls.Load()
		kubetest.Eventually(t, func() string {
			if n := calls.Load(); n < from+10 {
				return fmt.Sprintf("ten calls, got %d", n-from)
			}
			return ""
		})
	}
	first := secret()
	someCalls()

	ahead.Store(0) // two thirds of its life are over
	poke()
	kubetest.Eventually(t, func() string {
		if len(secret()[nextCert]) == 0 || bundle() != string(secret()["ca.crt"]) {
			return "the next certificate, and trust in it"
		}
		return ""
	})
	if string(secret()["tls.crt"]) != string(first["tls.crt"]) || !strings.Contains(bundle(), string(first["ca.crt"])) {
		t.Error("the next certificate is used before it is trusted, or the last one is trusted no more")
	}

	someCalls()

	ahead.Store(int64(overlap / 2))
	if err := replicas[0].trust.(*own).turn(t.Context()); err != nil {
		t.Error(err)
	}
	if string(secret()["tls.crt"]) != string(first["tls.crt"]) {
		t.Error("the next certificate is used before every API server had time to learn of it")
	}
	ahead.Store(int64(overlap + time.Minute))
	staged := secret()
	kubetest.Eventually(t, func() string {
		poke()
		now := secret()
		if string(now["tls.crt"]) != string(staged[nextCert]) || len(now[nextCert]) != 0 {
			return "the next certificate in use"
		}
		for _, r := range replicas {
			if c := r.trust.(*own).serving.Load(); string(encode("CERTIFICATE", c.Certificate[0])) != string(staged[nextCert]) {
				return "the next certificate served by both"
			}
		}
		return ""
	})
	someCalls()
	close(stop)
	calling.Wait()
	t.Logf("%d calls, none failed", calls.Load())
}

func TestItsRightsAreByName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client, err := kubernetes.NewForConfig(w.account)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for what, try := range map[string]func() error{
		"list secrets": func() error {
			_, err := client.CoreV1().Secrets(w.namespace).List(ctx, metav1.ListOptions{})
			return err
		},
		"read a secret": func() error {
			_, err := client.CoreV1().Secrets(w.namespace).Get(ctx, "regcred", metav1.GetOptions{})
			return err
		},
		"make a secret": func() error {
			_, err := client.CoreV1().Secrets(w.namespace).Patch(ctx, "regcred", types.ApplyPatchType, []byte(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"regcred"}}`), metav1.PatchOptions{FieldManager: "x"})
			return err
		},
		"list configurations": func() error {
			_, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
			return err
		},
		"change another's configuration": func() error {
			_, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(ctx, "istio-sidecar-injector", types.MergePatchType, []byte(`{}`), metav1.PatchOptions{})
			return err
		},
	} {
		if err := try(); !apierrors.IsForbidden(err) {
			t.Errorf("stile may %s: %v", what, err)
		}
	}
}

func TestACertificateThatIsOverOrBrokenIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	now := time.Now()
	names := []string{"hook.stile-system.svc", "127.0.0.1"}
	good, _, err := material{}.advance(names, now, false)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		m     material
		names []string
		at    time.Time
	}{
		"it is over":              {good, names, now.Add(lifetime + time.Minute)},
		"another name":            {good, []string{"other.stile-system.svc"}, now},
		"another name besides":    {good, append([]string{"10.0.0.7"}, names...), now},
		"another key":             {material{serving: pair{good.serving.cert, []byte("nonsense")}, roots: good.roots}, names, now},
		"nothing vouches for it":  {material{serving: good.serving}, names, now},
		"a clock that went ahead": {good, names, now.Add(-2 * skew)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			next, changed, err := test.m.advance(test.names, test.at, false)
			if err != nil || !changed {
				t.Fatalf("changed %v, %v", changed, err)
			}
			if _, err := next.serving.usable(next.roots, test.names, test.at); err != nil {
				t.Error(err)
			}
			if again, changed, err := next.advance(test.names, test.at, false); changed || err != nil || string(again.roots) != string(next.roots) {
				t.Errorf("what was made just now is made again: %v", err)
			}
		})
	}
	if _, changed, err := good.advance(names, now.Add(renewal-time.Minute), true); changed || err != nil {
		t.Errorf("a good one is replaced: %v", err)
	}
	staged, changed, err := good.advance(names, now.Add(renewal), true)
	if err != nil || !changed || staged.next.isZero() || string(staged.serving.cert) != string(good.serving.cert) {
		t.Fatalf("no next one: %v", err)
	}
	if _, changed, _ := staged.advance(names, now.Add(renewal+2*overlap), false); changed {
		t.Error("one that nobody trusts yet is used")
	}
	forced, changed, _ := staged.advance(names, now.Add(lifetime-urgent+time.Minute), false)
	if !changed || string(forced.serving.cert) != string(staged.next.cert) {
		t.Error("the last one is used until it is over, though there is another")
	}
}

func TestACertificateFromFilesIsReadAgainAndNothingIsInjected(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	write := func(age time.Duration) string {
		p, _, err := mint([]string{"127.0.0.1"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"tls.crt": p.cert, "tls.key": p.key} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			when := time.Now().Add(-age)
			if err := os.Chtimes(path, when, when); err != nil {
				t.Fatal(err)
			}
		}
		return string(p.cert)
	}
	first := write(time.Hour)
	cfg := w.config()
	cfg.REST, cfg.CertFile, cfg.KeyFile = nil, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	r := w.run(cfg, nil)
	w.hook("ValidatingWebhookConfiguration", ValidatePath, "Ignore", r.url)
	served := func() string {
		c, err := r.trust.certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(encode("CERTIFICATE", c.Certificate[0]))
	}
	if served() != first || r.Ready() != nil {
		t.Error("the file is not served")
	}
	if err := os.WriteFile(filepath.Join(dir, "tls.key"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, func() string {
		if served() != first {
			t.Fatal("a broken file took the last good certificate away")
		}
		if !strings.Contains(w.canary.Logged(), "the last good certificate stays in use") {
			return "a word in the log"
		}
		return ""
	})
	second := write(time.Minute)
	kubetest.Eventually(t, func() string {
		if served() != second {
			return "the new certificate"
		}
		return ""
	})
	v, err := w.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), w.service, metav1.GetOptions{})
	if err != nil || len(v.Webhooks[0].ClientConfig.CABundle) != 0 {
		t.Errorf("a bundle was injected: %v", err)
	}
	if _, err := New(Config{CertFile: "a"}); err == nil {
		t.Error("a certificate without a key was taken")
	}
	if _, err := New(Config{CertFile: "/nowhere", KeyFile: "/nowhere"}); err == nil {
		t.Error("files that are not there were taken")
	}
}

func TestASlowWebhookHoldsUpNobodyForLong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	released, inside := make(chan struct{}), make(chan struct{}, 100)
	r := w.run(w.config(), func(s *Server) {
		s.Handle("/slow", Review(func(ctx context.Context, _ *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
			inside <- struct{}{}
			select {
			case <-released:
			case <-ctx.Done():
			}
			return &admissionv1.AdmissionResponse{Allowed: true}
		}))
	})
	w.hook("ValidatingWebhookConfiguration", ValidatePath, "Fail", r.url)
	w.ready(r)
	w.Apply(t, nil, fmt.Sprintf(`{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, metadata: {name: %s}, webhooks: [
 {name: slow.stile.dev, clientConfig: {url: "%s/slow"}, failurePolicy: Ignore, sideEffects: None, timeoutSeconds: 1, admissionReviewVersions: [v1],
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}, objectSelector: {matchLabels: {slow: "yes"}},
  rules: [{apiGroups: [extensions.istio.io], apiVersions: ["*"], resources: [wasmplugins], operations: [CREATE]}]}]}`, w.service, r.url, w.namespace))
	t.Cleanup(func() {
		_ = w.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), w.service, metav1.DeleteOptions{})
	})
	slow := func(n int) string {
		return strings.Replace(w.plugin(fmt.Sprint("slow", n), "url: oci://r.example/a"), "name: slow", "labels: {slow: 'yes'}, name: slow", 1)
	}
	n := 0
	kubetest.Eventually(t, func() string { // until the API server knows of the hook
		n++
		w.Apply(t, nil, slow(n))
		select {
		case <-inside:
			return ""
		default:
			return "a call of the slow webhook"
		}
	})
	var waiting sync.WaitGroup
	begin := time.Now()
	for range 10 {
		n++
		text := slow(n)
		waiting.Go(func() {
			if err := w.TryApply(nil, text); err != nil {
				t.Errorf("a webhook that does not answer kept a plugin out: %v", err)
			}
		})
	}
	<-inside
	w.Apply(t, nil, w.plugin("quick", "url: oci://r.example/a")) // meanwhile
	quick := time.Since(begin)
	waiting.Wait()
	if all := time.Since(begin); all > 8*time.Second || quick > all {
		t.Errorf("ten slow calls at once took %v, a quick one beside them %v", all, quick)
	}
	close(released)
}

func TestWhatIsNoReviewIsAnErrorAndEndsNothing(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	s, err := New(Config{REST: &rest.Config{Host: "127.0.0.1:1"}, Namespace: "n", Service: "s", Listener: listener})
	if err != nil {
		t.Fatal(err)
	}
	s.Handle(ValidatePath, ValidatePlugins(PluginRules{}))
	s.Handle("/panics", Review(func(context.Context, *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		panic("as a test")
	}))
	review := func(request string) string {
		return `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":` + request + `}`
	}
	fine := review(`{"uid":"u","operation":"DELETE"}`)
	for _, test := range []struct {
		name, method, path, kind, body string
		code                           int
	}{
		{"a review", "POST", ValidatePath, "application/json", fine, 200},
		{"a review with a charset", "POST", ValidatePath + "?timeout=2s", "application/json; charset=utf-8", fine, 200},
		{"a GET", "GET", ValidatePath, "", "", 405},
		{"another path", "POST", "/other", "application/json", fine, 404},
		{"no JSON", "POST", ValidatePath, "application/json", "<html>", 400},
		{"another type", "POST", ValidatePath, "text/html", fine, 415},
		{"another kind", "POST", ValidatePath, "application/json", `{"apiVersion":"v1","kind":"List"}`, 400},
		{"an old review", "POST", ValidatePath, "application/json", strings.Replace(fine, "/v1", "/v1beta1", 1), 400},
		{"no request", "POST", ValidatePath, "application/json", review("null"), 400},
		{"too much", "POST", ValidatePath, "application/json", review(`{"uid":"` + strings.Repeat("x", maxBody) + `"}`), 413},
		{"a panic", "POST", "/panics", "application/json", fine, 500},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := httptest.NewRequestWithContext(t.Context(), test.method, test.path, strings.NewReader(test.body))
			request.Header.Set("Content-Type", test.kind)
			recorder := httptest.NewRecorder()
			s.mux.ServeHTTP(recorder, request)
			if recorder.Code != test.code {
				t.Fatalf("code %d, want %d: %s", recorder.Code, test.code, recorder.Body)
			}
			if test.code == http.StatusOK {
				var review admissionv1.AdmissionReview
				if err := json.NewDecoder(io.LimitReader(recorder.Body, 1<<20)).Decode(&review); err != nil || review.Response.UID != "u" || !review.Response.Allowed {
					t.Errorf("answered %+v, %v", review, err)
				}
			}
		})
	}
	if n := testutil.ToFloat64(s.metrics.requests.WithLabelValues(ValidatePath, failed)); n != 6 {
		t.Errorf("%v failures counted, want 6", n)
	}
	if err := s.Ready(); err == nil {
		t.Error("a server without a certificate is ready")
	}
}
