package kube

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/source"
)

func TestFirstWorldHoldsEverything(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) +
		wasmPlugin("A", "broken", `url: "oci://registry.example/BROKEN:v1"`) +
		wasmPlugin("B", "open", `url: "oci://registry.example/open:v1"`) +
		c.pullSecret("A", "regcred", c.canary.Credential()) +
		c.pullSecret("A", "unrelated", c.canary.Credential()) +
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: edge, namespace: OWN, labels: {stile.dev/envoy: 'true'}}\ndata: {edge.yaml: 'listeners: []', README.md: text}\n")
	if c.watchFirst(); c.worlds != 1 {
		t.Errorf("%d Worlds until everything was there, want the first to be complete", c.worlds)
	}
	w := c.last
	if got := has(c.a+"/auth 1", c.a+"/broken 1", c.b+"/open 1")(w); got != "" {
		t.Error(got)
	}
	if got := secretIs(c.a, "regcred", "kubernetes.io/dockerconfigjson", true)(w); got != "" || len(w.Secrets) != 1 {
		t.Errorf("%s; %d Secrets, want the one that is named", got, len(w.Secrets))
	}
	if faults := w.Invalid[source.Key{Namespace: c.a, Name: "broken"}]; len(faults) != 1 || faults[0].Field != "spec.url" {
		t.Errorf("the plugin that the API server cannot judge: %+v", faults)
	}
	if len(w.Findings) != 1 || len(w.Invalid) != 1 {
		t.Errorf("findings %+v, invalid %+v", w.Findings, w.Invalid)
	}
	if diff := cmp.Diff(map[string][]byte{"edge": []byte("listeners: []")}, w.EnvoyFiles); diff != "" {
		t.Error(diff)
	}
	if !c.source.Synced() || len(c.source.Missing()) != 0 {
		t.Errorf("synced %v, missing %q", c.source.Synced(), c.source.Missing())
	}
}

// The ServiceAccount of every test may get and watch Secrets, not list them; here it is made certain of.
func TestSecretsAreReadByNameAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	as, err := kubernetes.NewForConfig(c.account)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := as.CoreV1().Secrets(c.a).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("list Secrets as stile's ServiceAccount: want forbidden, got %v", err)
	}
	before := len(c.requests.all())
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) + c.pullSecret("A", "regcred", c.canary.Credential()))
	c.watchFirst()
	get, watch := 0, 0
	for _, r := range c.requests.all()[before:] {
		switch {
		case !strings.Contains(r, "/secrets"):
		case strings.HasPrefix(r, "GET /api/v1/namespaces/"+c.a+"/secrets/regcred"):
			get++
		case strings.HasPrefix(r, "GET /api/v1/namespaces/"+c.a+"/secrets?") && strings.Contains(r, "watch=true") && strings.Contains(r, "fieldSelector=metadata.name%3Dregcred&"):
			watch++
			// However a watch ends, or does not: within five minutes the Secret is asked for anew.
			_, query, _ := strings.Cut(r, "?")
			values, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			if seconds, err := strconv.Atoi(values.Get("timeoutSeconds")); err != nil || seconds < 240 || seconds > 300 {
				t.Errorf("a watch of %q seconds, want 240 to 300", values.Get("timeoutSeconds"))
			}
		default:
			t.Errorf("asked %s", r)
		}
	}
	if get != 1 || watch != 1 {
		t.Errorf("%d gets and %d watches, want one each", get, watch)
	}
	if got := secretIs(c.a, "regcred", "kubernetes.io/dockerconfigjson", true)(c.last); got != "" {
		t.Error(got)
	}
}

// Each step of a Secret's life is seen within a second.
func TestP5_SecretLife(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`))
	c.watchFirst()
	key := source.Key{Namespace: c.a, Name: "regcred"}
	is := func(kind string, content bool) func(*source.World) string {
		return secretIs(c.a, "regcred", kind, content)
	}
	const docker = "kubernetes.io/dockerconfigjson"
	if got := is("", false)(c.last); got != "" || len(c.last.UnreadableSecrets) != 0 {
		t.Fatal("not there yet: ", got, c.last.UnreadableSecrets)
	}

	c.apply(c.pullSecret("B", "regcred", c.canary.Credential())) // the wrong namespace
	c.apply(c.pullSecret("A", "regcred", c.canary.Credential()))
	c.seesSoon(is(docker, true))
	if len(c.last.Secrets) != 1 {
		t.Errorf("%d Secrets: another namespace's is not the plugin's", len(c.last.Secrets))
	}

	first := c.last.Secrets[key]
	c.apply(c.pullSecret("A", "regcred", c.canary.Credential()))
	c.seesSoon(func(w *source.World) string {
		if w.Secrets[key] == first {
			return "a Secret with new content"
		}
		return ""
	})

	second := c.last.Secrets[key]
	c.server.Kubectl(t, "label", "secret", "regcred", "-n", c.a, "says=nothing-new")
	c.server.Kubectl(t, "delete", "secret", "regcred", "-n", c.a)
	worlds := c.worlds
	c.seesSoon(is("", false))
	if c.worlds != worlds+1 {
		t.Errorf("%d Worlds for a label and a deletion, want 1: %v", c.worlds-worlds, c.last.Secrets[key] == second)
	}

	c.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: regcred, namespace: A}\ntype: Opaque\nstringData: {.dockerconfigjson: '" + c.canary.Credential() + "'}\n")
	c.seesSoon(is("Opaque", false))
	c.delete("secret", "regcred", "-n", c.a)
	c.seesSoon(is("", false))

	c.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: regcred, namespace: A}\ntype: kubernetes.io/dockercfg\nstringData: {.dockercfg: '{}', .dockerconfigjson: '" + c.canary.Credential() + "'}\n")
	c.seesSoon(is("kubernetes.io/dockercfg", true))
	if data := c.last.Secrets[key].Data; len(data) != 1 {
		t.Errorf("%d keys are kept, want the one of its type", len(data))
	}
}

// A plugin that changes to another Secret is never shown without one in between, and one that changes its mind is not
// either.
func TestP8_ASecretThatHasNotBeenReadIsNotAbsent(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: one`) +
		c.pullSecret("A", "one", c.canary.Credential()) + c.pullSecret("A", "two", c.canary.Credential()))
	gate := make(chan struct{})
	c.requests.mu.Lock()
	c.requests.spoil = func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/secrets/two") {
			<-gate
		}
		return nil, nil
	}
	c.requests.mu.Unlock()
	c.watchFirst()
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v2", imagePullSecret: two`) +
		wasmPlugin("A", "other", `url: "oci://registry.example/other:v1"`))
	c.sees(has(c.a+"/auth 1", c.a+"/other 1")) // the neighbour does not wait
	if got := secretIs(c.a, "one", "kubernetes.io/dockerconfigjson", true)(c.last); got != "" {
		t.Error("while the new Secret is being read: ", got)
	}
	close(gate)
	c.seesSoon(has(c.a+"/auth 2", c.a+"/other 1"))
	if got := secretIs(c.a, "two", "kubernetes.io/dockerconfigjson", true)(c.last); got != "" {
		t.Error(got)
	}
	if len(c.last.Secrets) != 1 {
		t.Errorf("%d Secrets, want the one that is named", len(c.last.Secrets))
	}
}

// An invalid generation does not take the Secret of the valid one, which runs on.
func TestP8_TheLastValidGenerationKeepsItsSecret(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: one`) + c.pullSecret("A", "one", c.canary.Credential()))
	c.watchFirst()
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/AUTH:v1", imagePullSecret: two`))
	c.sees(has(c.a + "/auth 2"))
	if got := secretIs(c.a, "one", "kubernetes.io/dockerconfigjson", true)(c.last); got != "" {
		t.Error(got)
	}
}

// A Secret that may not be read holds up nobody, is said in words that help, and is there as soon as it may.
func TestForbiddenSecret(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	secret := c.canary.Credential()
	c.apply(wasmPlugin("B", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) +
		wasmPlugin("A", "open", `url: "oci://registry.example/open:v1"`) + c.pullSecret("B", "regcred", secret))
	c.watchFirst()
	key := source.Key{Namespace: c.b, Name: "regcred"}
	u, ok := c.last.UnreadableSecrets[key]
	if !ok || u.Unsure || !strings.Contains(u.Why, "forbidden") || !strings.Contains(u.Why, "get and watch on secrets in namespace "+c.b) {
		t.Errorf("unreadable: %+v", c.last.UnreadableSecrets)
	}
	if !strings.Contains(c.canary.Logged(), "pull secret cannot be read") {
		t.Error("nothing in the log")
	}
	c.mayReadSecrets(c.b)
	c.seesSoon(secretIs(c.b, "regcred", "kubernetes.io/dockerconfigjson", true))
	if len(c.last.UnreadableSecrets) != 0 {
		t.Errorf("still %+v", c.last.UnreadableSecrets)
	}
}

// Where the chart names namespaces, Secrets elsewhere are not even asked for.
func TestSecretNamespaces(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.mayReadSecrets(c.b)
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) + c.pullSecret("A", "regcred", c.canary.Credential()) +
		wasmPlugin("B", "auth", `url: "oci://registry.example/auth:v1", imagePullSecret: regcred`) + c.pullSecret("B", "regcred", c.canary.Credential()))
	c.watch(Config{SecretNamespaces: []string{c.b}})
	c.sees(secretIs(c.b, "regcred", "kubernetes.io/dockerconfigjson", true))
	if u := c.last.UnreadableSecrets[source.Key{Namespace: c.a, Name: "regcred"}]; !strings.Contains(u.Why, "stile reads Secrets in "+c.b+" alone") || u.Unsure {
		t.Errorf("unreadable: %+v", c.last.UnreadableSecrets)
	}
	if n := c.requests.count(c.a + "/secrets"); n != 0 {
		t.Errorf("%d requests for Secrets elsewhere", n)
	}
}

// Plugins that are somebody else's do not exist here.
func TestRevisionSelectorAndNamespaces(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(wasmPlugin("A", "none", "url: a") +
		strings.Replace(wasmPlugin("A", "other, labels: {istio.io/rev: canary, team: x}", "url: a"), "other,", "other,", 1) +
		wasmPlugin("A", "ours, labels: {istio.io/rev: stile, team: x}", "url: a") +
		wasmPlugin("A", "teamless, labels: {istio.io/rev: stile}", "url: a") +
		wasmPlugin("B", "elsewhere, labels: {istio.io/rev: stile, team: x}", "url: a"))
	c.watch(Config{Revision: "stile", Selector: "team in (x, y)", Namespaces: []string{c.a}})
	c.sees(has(c.a + "/ours 1"))
	c.server.Kubectl(t, "label", "wasmplugin", "none", "-n", c.a, "istio.io/rev=stile", "team=y")
	c.seesSoon(has(c.a+"/ours 1", c.a+"/none 1"))
	c.server.Kubectl(t, "label", "wasmplugin", "ours", "-n", c.a, "istio.io/rev-")
	c.seesSoon(has(c.a + "/none 1"))
}

func TestConfigThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{{}, {REST: kubetestConfig(), Selector: "a in"}, {REST: kubetestConfig(), Revision: "not a label!"}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v: want an error", c)
		}
	}
}

// What the leader writes into a status is published, and changes no plugin.
func TestPublishedComesFromStatus(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v1"`))
	c.watchFirst()
	key := source.Key{Namespace: c.a, Name: "auth"}
	before := c.last.Plugin(key)
	if len(c.last.Published) != 0 {
		t.Errorf("published %+v by nobody", c.last.Published)
	}
	status := func(fields string) {
		c.server.Kubectl(t, "patch", "wasmplugin", "auth", "-n", c.a, "--subresource=status", "--type=merge", "-p", `{"status":{`+fields+`}}`)
	}
	status(`"observedGeneration":1,"resolvedDigest":"sha256:aa","digest":"sha256:bb","moduleSHA256":"cc","size":7,"servedGeneration":1,"epoch":3,"servedEpoch":2`)
	want := source.Publication{Generation: 1, URL: "oci://registry.example/auth:v1", Resolved: "sha256:aa", Digest: "sha256:bb", SHA256: "cc",
		Size: 7, ServedGeneration: 1, Epoch: 3, ServedEpoch: 2}
	is := func(want source.Publication) func(w *source.World) string {
		return func(w *source.World) string {
			p := w.Published[key]
			if p == nil {
				return "a publication"
			}
			return cmp.Diff(want, *p)
		}
	}
	c.seesSoon(is(want))
	published := c.last.Published[key]
	if c.last.Plugin(key) != before {
		t.Error("a status has changed a plugin")
	}

	// Counts and conditions are nobody's business here: no World at all until the next change.
	worlds := c.worlds
	status(`"proxies":{"matched":3,"accepted":2,"rejected":1}`)
	c.apply(wasmPlugin("A", "mark", `url: "oci://registry.example/mark:v1"`))
	c.sees(has(c.a+"/auth 1", c.a+"/mark 1"))
	if c.worlds != worlds+1 || c.last.Published[key] != published || c.last.Plugin(key) != before {
		t.Errorf("%d Worlds, publication the same: %v, plugin the same: %v", c.worlds-worlds, c.last.Published[key] == published, c.last.Plugin(key) == before)
	}

	// The leader has not seen the new generation yet: its word is about the url of before.
	c.apply(wasmPlugin("A", "auth", `url: "oci://registry.example/auth:v2"`))
	c.sees(has(c.a+"/auth 2", c.a+"/mark 1"))
	if got := is(want)(c.last); got != "" {
		t.Error(got)
	}
	status(`"observedGeneration":2`)
	want.Generation, want.URL = 2, "oci://registry.example/auth:v2"
	c.seesSoon(is(want))
	if !c.last.Plugin(key).CreationTimestamp.Time.Equal(before.CreationTimestamp.Time) || c.last.Plugin(key).Status.Epoch != 0 || c.last.Plugin(key).ResourceVersion != "" {
		t.Errorf("%+v", c.last.Plugin(key))
	}
}

// Listeners behave as those of a folder: what is broken or gone says so, and changes nothing.
func TestListeners(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	configMap := func(name string, data ...string) {
		text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + ", namespace: OWN, labels: {stile.dev/envoy: 'true'}}\ndata:\n"
		for i := 0; i < len(data); i += 2 {
			text += fmt.Sprintf("  %s: %q\n", data[i], data[i+1])
		}
		c.apply(text)
	}
	is := func(files map[string]string, unreadable string, reasons ...string) func(w *source.World) string {
		return func(w *source.World) string {
			got, bad := map[string]string{}, []string{}
			for k, v := range w.EnvoyFiles {
				got[k] = string(v)
			}
			for k := range w.UnreadableEnvoy {
				bad = append(bad, k)
			}
			var why []string
			for _, f := range w.Findings {
				why = append(why, f.Name+" "+f.Reason)
			}
			return cmp.Diff([]any{files, unreadable, strings.Join(reasons, ", ")}, []any{got, strings.Join(bad, ","), strings.Join(why, ", ")})
		}
	}
	configMap("one", "edge.yaml", "listeners: [1]", "inner.yml", "listeners: [", "notes.txt", "a: [")
	c.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: unlabelled, namespace: OWN}, data: {other.yaml: 'listeners: []'}}")
	c.watchFirst()
	c.sees(is(map[string]string{"edge": "listeners: [1]"}, "inner", "one Syntax"))
	configMap("one", "edge.yaml", "listeners: [", "inner.yml", "listeners: [2]")
	c.seesSoon(is(map[string]string{"edge": "listeners: [1]", "inner": "listeners: [2]"}, "", "one Syntax"))
	configMap("one", "edge.yaml", "  ", "inner.yml", "listeners: [2]")
	c.seesSoon(is(map[string]string{"edge": "listeners: [1]", "inner": "listeners: [2]"}, "", "one Empty"))
	c.delete("configmap", "one", "-n", c.own)
	c.seesSoon(is(map[string]string{"edge": "listeners: [1]", "inner": "listeners: [2]"}, "", "one Missing", "one Missing"))
	configMap("two", "edge.yaml", "listeners: [3]") // it has moved
	c.seesSoon(is(map[string]string{"edge": "listeners: [3]", "inner": "listeners: [2]"}, "", "one Missing"))
	configMap("three", "edge.yml", "listeners: [4]")
	c.seesSoon(is(map[string]string{"edge": "listeners: [4]", "inner": "listeners: [2]"}, "", "one Missing", "two Duplicate"))
}
