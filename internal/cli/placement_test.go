package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/plugin"
)

// put uploads a manifest or a blob as the good user and returns its digest.
func (r *registry) put(kind, mediaType string, body []byte) string {
	r.t.Helper()
	sum := sha256.Sum256(body)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	send := func(method, url string, body []byte) *http.Response {
		req, err := http.NewRequestWithContext(r.t.Context(), method, url, bytes.NewReader(body))
		if err != nil {
			r.t.Fatal(err)
		}
		text, err := os.ReadFile(r.good)
		if err != nil {
			r.t.Fatal(err)
		}
		var file struct {
			Auths map[string]struct{ Auth string }
		}
		if err := json.Unmarshal(text, &file); err != nil {
			r.t.Fatal(err)
		}
		login, err := base64.StdEncoding.DecodeString(file.Auths[r.Host()].Auth)
		if err != nil {
			r.t.Fatal(err)
		}
		user, password, _ := strings.Cut(string(login), ":")
		req.SetBasicAuth(user, password)
		req.Header.Set("Content-Type", mediaType)
		resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
		if err != nil {
			r.t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode >= 300 {
			r.t.Fatalf("%s %s: %s", method, url, resp.Status)
		}
		return resp
	}
	base := "http://" + r.Host()
	if kind == "blob" {
		to := send(http.MethodPost, base+"/v2/a/p/blobs/uploads/", nil).Header.Get("Location")
		if !strings.HasPrefix(to, "http") {
			to = base + to
		}
		send(http.MethodPut, to+"?digest="+digest, body)
		return digest
	}
	send(http.MethodPut, base+"/v2/a/p/manifests/"+kind, body)
	return digest
}

const (
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
)

// image puts an image for a platform under a tag and returns a descriptor of it.
func (r *registry) imageFor(tag, os, architecture string) string {
	r.t.Helper()
	config := []byte(fmt.Sprintf(`{"os":%q,"architecture":%q,"config":{}}`, os, architecture))
	d := r.put("blob", "application/octet-stream", config)
	m := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`, ociManifest, d, len(config)))
	digest := r.put(tag, ociManifest, m)
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":%q,"architecture":%q}}`, ociManifest, digest, len(m), os, architecture)
}

func (r *registry) index(tag string, entries ...string) {
	r.t.Helper()
	r.put(tag, ociIndex, []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, strings.Join(entries, ","))))
}

// placed is a registry with images for several platforms.
func placed(t *testing.T) *registry {
	t.Helper()
	r := newRegistry(t, localregistry.Options{Mode: localregistry.Basic})
	amd, arm, windows := r.imageFor("amd64", "linux", "amd64"), r.imageFor("arm64", "linux", "arm64"), r.imageFor("windows", "windows", "amd64")
	r.index("both", amd, arm)
	r.index("three", amd, arm, windows)
	r.index("mixed", arm, windows)
	return r
}

// shown replaces what differs from run to run.
func (r *registry) shown(text string) string {
	text = strings.ReplaceAll(text, r.Host(), "registry.example")
	return regexp.MustCompile(`fp:[0-9a-f]{12}`).ReplaceAllString(text, "fp:************")
}

func (r *registry) pod(name, rest string, tags ...string) string {
	text := "apiVersion: v1\nkind: Pod\nmetadata: { name: " + name + ", namespace: team-a }\nspec:\n" + rest + "  containers:\n"
	for i, tag := range tags {
		text += fmt.Sprintf("  - { name: c%d, image: %q }\n", i, r.image(":"+tag))
	}
	return text + "---\n"
}

func TestPlacementExplain_SaysWhatWouldBeSetAndWhy(t *testing.T) {
	t.Parallel()
	r := placed(t)
	secret, err := os.ReadFile(r.pullSecret)
	if err != nil {
		t.Fatal(err)
	}
	workload := func(kind, apiVersion, path, tag string) string {
		indent, text := "", "apiVersion: "+apiVersion+"\nkind: "+kind+"\nmetadata: { name: of-"+strings.ToLower(kind)+", namespace: team-a }\n"
		for _, key := range strings.Split(path, ".") {
			text += indent + key + ":\n"
			indent += "  "
		}
		return text + indent + "spec: { imagePullSecrets: [ { name: regcred } ], containers: [ { name: c, image: '" + r.image(":"+tag) + "' } ] }\n---\n"
	}
	named := "  imagePullSecrets: [ { name: regcred } ]\n"
	docs := string(secret) + "---\n" +
		r.pod("both", named, "both", "arm64") +
		r.pod("pairs", named, "three") +
		r.pod("terms", named+"  affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [ { matchExpressions: [ { key: zone, operator: In, values: [ a ] } ] }, {} ] } } }\n", "mixed") +
		r.pod("chosen", named+"  nodeSelector: { kubernetes.io/arch: amd64 }\n", "both") +
		workload("Deployment", "apps/v1", "spec.template", "both") +
		workload("CronJob", "batch/v1", "spec.jobTemplate.spec.template", "amd64") +
		workload("DaemonSet", "apps/v1", "spec.template", "amd64") +
		workload("PodTemplate", "v1", "template", "both") +
		strings.Replace(r.pod("of-system", named, "both"), "team-a", "kube-system", 1) +
		workload("Rollout", "argoproj.example/v1", "spec.template", "arm64") +
		"apiVersion: v1\nkind: ConfigMap\nmetadata: { name: other }\n---\n"
	folder := t.TempDir()
	config := write(t, folder, "stile.yaml", "placement: { preferred: [ { architecture: arm64, weight: 30 } ] }\n")
	file := write(t, folder, "pods.yaml", docs)
	for form, name := range map[string]string{"json": "placement.json", "yaml": "placement.yaml", "table": "placement.txt", "wide": "placement-wide.txt", "name": "placement-names.txt"} {
		out := r.stile("placement", "explain", "-f", file, "--config", config, "-o", form).want(t, OK)
		golden(t, name, strings.ReplaceAll(r.shown(out.stdout), file, "pods.yaml"))
		if out.stderr != "" {
			t.Errorf("stderr: %s", out.stderr)
		}
	}
	e := decode[placementExplanation](t, r.stile("placement", "explain", "-f", file, "-o", "json").want(t, OK).stdout)
	if len(e.Pods) != 10 || e.Requests == 0 {
		t.Errorf("%d pods, %d requests", len(e.Pods), e.Requests)
	}
	// What kubectl hands over is the same, and by stdin.
	list := `{"apiVersion":"v1","kind":"List","items":[` + `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"` + r.image(":both") + `"}]}}]}`
	out := stileIn(t.Context(), t, r.env, list, "placement", "explain", "-f", "-", "--secret", r.pullSecret, "--plain-http", r.Host(), "-o", "name").want(t, OK)
	if out.stdout != "default/p Placed\n" {
		t.Errorf("stdin: %q", out.stdout)
	}
}

func TestPlacementExplain_ExitCodes(t *testing.T) {
	t.Parallel()
	r := placed(t)
	folder := t.TempDir()
	good, bad := []string{"--authfile", r.good}, []string{"--authfile", r.bad}
	for name, row := range map[string]struct {
		text  string
		flags []string
		code  int
		want  string // of the answer, as JSON
	}{
		"placed":             {r.pod("p", "", "both"), good, OK, `"outcome": "Placed"`},
		"no common platform": {r.pod("p", "", "amd64", "arm64"), good, Findings, `"operator": "DoesNotExist"`},
		"the pod's own system": {r.pod("p", "  os: { name: windows }\n", "both"), good, Findings,
			`the pod asks for windows: no node can run the pod as it is`},
		"denied, and nothing is said of the other": {r.pod("p", "", "both", "amd64"), bad, Unauthorized, `"outcome": "NotAllowed"`},
		"not found": {r.pod("p", "", "both", "none"), good, NotFound, `"reason": "ImageNotFound"`},
		"a name that is none": {"apiVersion: v1\nkind: Pod\nmetadata: { name: p }\nspec: { containers: [ { name: c, image: 'user:CANARY@HOST/a' } ] }\n", good, Findings,
			`"image": "an image"`},
		"never pulled":             {strings.ReplaceAll(r.pod("p", "", "none"), `" }`, `", imagePullPolicy: Never }`), good, OK, `"state": "NotAsked"`},
		"a document that is none":  {r.pod("p", "", "both") + "a: [", good, Findings, `"outcome": "Placed"`},
		"no pod":                   {"apiVersion: v1\nkind: ConfigMap\nmetadata: { name: c }\n", good, Usage, ""},
		"a pod without containers": {"apiVersion: v1\nkind: Pod\nmetadata: { name: p }\nspec: {}\n", good, Findings, `"pods": []`},
		"a secret that is nowhere": {r.pod("p", "  imagePullSecrets: [ { name: elsewhere } ]\n", "both"), nil, Unauthorized, `"NotAllowed"`},
		"a secret that is no pull secret is passed over": {"apiVersion: v1\nkind: Secret\nmetadata: { name: regcred, namespace: team-a }\ntype: Opaque\nstringData: { a: b }\n---\n" + r.pod("p", "  imagePullSecrets: [ { name: regcred } ]\n", "both"),
			good, OK, `"Placed"`},
		"a secret that no kubelet can read": {"apiVersion: v1\nkind: Secret\nmetadata: { name: regcred, namespace: team-a }\ntype: kubernetes.io/dockerconfigjson\nstringData: { .dockerconfigjson: 'user:CANARY' }\n---\n" + r.pod("p", "  imagePullSecrets: [ { name: regcred } ]\n", "both"),
			good, Unauthorized, `"reason": "PullSecretInvalid"`},
		"a registry that stile may not ask": {"apiVersion: v1\nkind: Pod\nmetadata: { name: p }\nspec: { containers: [ { name: c, image: '127.0.0.1:1/a' } ] }\n", nil, Unauthorized,
			`"outcome": "NotInspected"`},
		"a misspelled field is passed": {r.pod("p", "  imagePullSecret: x\n", "both"), good, OK, `"Placed"`},
	} {
		t.Run(name, func(t *testing.T) {
			file := write(t, folder, "f.yaml", row.text)
			out := r.stile(append([]string{"placement", "explain", "-f", file, "-o", "json"}, row.flags...)...).want(t, row.code)
			if !strings.Contains(out.stdout, row.want) {
				t.Errorf("answer lacks %s: %s", row.want, out.stdout)
			}
			if row.code == Unauthorized && strings.Contains(out.stdout, "arm64") {
				t.Errorf("something is said of an image that may not be read: %s", out.stdout)
			}
			if strings.Contains(out.stdout+out.stderr, "user:CANARY") {
				t.Errorf("a password in a name is shown: %s%s", out.stdout, out.stderr)
			}
		})
	}
	stile(t, nil, "placement", "explain").want(t, Usage, "-f PATH is missing")
	stile(t, nil, "placement", "explain", "-f", folder+"/none").want(t, Usage, "none")
	stile(t, nil, "placement", "release").want(t, Usage, "--all is missing")
	stile(t, nil, "placement").want(t, Usage, "explain, release")
	r.SetFaults(localregistry.Fault{Hang: true})
	file := write(t, folder, "f.yaml", r.pod("p", "", "both"))
	out := r.stile("placement", "explain", "-f", file, "--authfile", r.good, "--timeout", "300ms", "-o", "json").want(t, Unavailable)
	if !strings.Contains(out.stdout, `"outcome": "NotInspected"`) {
		t.Errorf("a registry that hangs: %s", out.stdout)
	}
}

func TestInspect_ByAPullSecret(t *testing.T) {
	t.Parallel()
	r := placed(t)
	got := decode[inspection](t, r.stile("inspect", r.image(":three"), "--secret", r.pullSecret, "-o", "json").want(t, OK).stdout)
	var platforms []string
	for _, p := range got.Platforms {
		platforms = append(platforms, p.OS+"/"+p.Architecture)
	}
	if d := cmp.Diff([]string{"linux/amd64", "linux/arm64", "windows/amd64"}, platforms); d != "" {
		t.Error(d)
	}
	r.stile("inspect", r.image(":three"), "--authfile", r.bad).want(t, Unauthorized)
}

func FuzzReadPods(f *testing.F) {
	f.Add("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n---\n- a\n---\n")
	f.Add(`{"kind":"List","items":[{"kind":"Deployment","spec":{"template":{"spec":{"containers":[{}]}}}},null,1]}`)
	f.Add("kind: CronJob\nspec: {jobTemplate: {spec: {template: {metadata: 1, spec: {containers: {}}}}}}")
	f.Add("kind: Pod\nspec: &a {containers: [*a]}")
	f.Fuzz(func(t *testing.T, text string) {
		var stderr bytes.Buffer
		a := &app{stderr: &stderr}
		all := &podDocuments{secrets: map[plugin.Key]*document.Secret{}}
		all.read(a, "f.yaml", []byte(text))
		for _, d := range all.pods {
			if len(d.pod.Spec.Containers) == 0 || d.Namespace == "" {
				t.Errorf("%+v", d)
			}
			placement.Pulls(d.pod)
			placement.Decide(d.pod, nil, placement.Settings{})
		}
	})
}
