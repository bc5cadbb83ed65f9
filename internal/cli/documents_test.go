package cli

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
	"github.com/stileproject/stile/modules"
)

// scene are the flags that name the scene under testdata.
func sceneFlags(verb string, more ...string) []string {
	scene := filepath.Join("testdata", "scene")
	return append([]string{verb, "-f", scene + "/resources", "--node", scene + "/node.yaml", "--envoy", scene + "/envoy"}, more...)
}

const faulty = `apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: { name: auth, namespace: team-a }
spec:
  url: oci://registry.example/a/p:v1
  sha256: short
  urll: x
---
apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
`

func TestValidate_Report(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write(t, folder, "a.yaml", faulty)
	write(t, folder, "sub/broken.yml", "a: [")
	write(t, folder, "notes.txt", "a: [")
	for format, file := range map[string]string{"json": "validate.json", "table": "validate.txt", "wide": "validate-wide.txt", "name": "validate-names.txt"} {
		r := stile(t, nil, "validate", "-f", folder, "-o", format).want(t, Findings)
		if r.stderr != "" {
			t.Errorf("stderr: %s", r.stderr)
		}
		golden(t, file, strings.ReplaceAll(r.stdout, folder, "FOLDER"))
	}
	r := decode[document.ValidationReport](t, stile(t, nil, "validate", "-f", folder, "-o", "json").stdout)
	if r.APIVersion != apiVersion || r.Kind != "ValidationReport" || r.Checked != 1 {
		t.Errorf("%+v", r)
	}
}

func TestValidate_Paths(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	bad := write(t, folder, "bad/a.yaml", faulty)
	good := write(t, folder, "good/b.yaml", somePlugin)
	warning := write(t, folder, "warning/c.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: settings }\n")
	if err := os.Mkdir(filepath.Join(folder, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	stile(t, nil, "validate", "-f", good).want(t, OK)
	stile(t, nil, "validate", "-f", good, "-f", bad).want(t, Findings)
	stile(t, nil, "validate", "-f", good, bad).want(t, Findings) // as a shell writes -f *.yaml
	stile(t, nil, "validate", "-f", warning).want(t, OK)
	stile(t, nil, "validate", "-f", folder+"/missing").want(t, Usage, folder+"/missing")
	stile(t, nil, "validate").want(t, Usage, "-f PATH is missing")
	if out := stile(t, nil, "validate", "-f", folder+"/empty", "-o", "json").want(t, OK, "holds no .yaml").stdout; !strings.Contains(out, `"checked": 0`) || !strings.Contains(out, `"findings": []`) {
		t.Errorf("empty folder: %s", out)
	}
	stileIn(t.Context(), t, nil, faulty, "validate", "-f", "-").want(t, Findings)
	stileIn(t.Context(), t, nil, "", "validate", "-f", "-").want(t, OK)
	stile(t, nil, "validate", "-f", folder+"/empty", "-q").want(t, OK)
}

func TestExplain_Golden(t *testing.T) {
	t.Parallel()
	for format, file := range map[string]string{"json": "explain.json", "table": "explain.txt", "wide": "explain-wide.txt", "name": "explain-names.txt"} {
		golden(t, file, stile(t, nil, sceneFlags("explain", "-o", format)...).want(t, OK).stdout)
	}
	decode[plugin.Explanation](t, stile(t, nil, sceneFlags("explain", "-o", "json")...).stdout)
}

func TestExplain_BadInput(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	bad := write(t, folder, "bad.yaml", faulty)
	scene := filepath.Join("testdata", "scene")
	node, envoy := scene+"/node.yaml", scene+"/envoy"
	noCluster := write(t, folder, "nobody.yaml", "id: x\n")
	stranger := write(t, folder, "stranger.yaml", "id: x\ncluster: elsewhere\n")
	notANode := write(t, folder, "notanode.yaml", "[1, 2]\n")
	brokenEnvoy := write(t, folder, "broken.yaml", "listeners: [\n")
	for name, row := range map[string]struct {
		args   []string
		code   int
		stderr []string
	}{
		"an invalid document":    {[]string{"-f", bad, "--node", node, "--envoy", envoy}, Findings, []string{"spec.sha256"}},
		"no path":                {[]string{"--node", node, "--envoy", envoy}, Usage, []string{"-f PATH is missing"}},
		"no node":                {[]string{"-f", bad, "--envoy", envoy}, Usage, []string{"--node FILE is missing"}},
		"no envoy":               {[]string{"-f", bad, "--node", node}, Usage, []string{"--envoy FILE or folder is missing"}},
		"missing node":           {[]string{"-f", bad, "--node", "missing", "--envoy", envoy}, Usage, []string{"missing"}},
		"not a node":             {[]string{"-f", bad, "--node", notANode, "--envoy", envoy}, Usage, []string{"notanode.yaml"}},
		"missing envoy":          {[]string{"-f", bad, "--node", node, "--envoy", "missing"}, Usage, []string{"missing"}},
		"node without a cluster": {[]string{"-f", bad, "--node", noCluster, "--envoy", envoy}, Usage, []string{"cannot be the name of a file"}},
		"cluster without a file": {[]string{"-f", bad, "--node", stranger, "--envoy", envoy}, Usage, []string{"elsewhere.yaml"}},
		"broken envoy file":      {[]string{"-f", bad, "--node", node, "--envoy", brokenEnvoy}, Findings, []string{"broken.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, verb := range []string{"explain", "translate"} {
				args := append([]string{verb}, row.args...)
				if verb == "translate" {
					args = append(args, "--offline")
				}
				stile(t, nil, args...).want(t, row.code, row.stderr...)
			}
		})
	}
}

func TestTranslate_OfflineIsGolden(t *testing.T) {
	t.Parallel()
	store := "STILE_STORE=" + t.TempDir()
	golden(t, "translate.json", stile(t, []string{store}, sceneFlags("translate", "--offline")...).want(t, OK, "stile-system/last: the stand-in").stdout)
	golden(t, "translate-snippet.yaml", stile(t, []string{store}, sceneFlags("translate", "--offline", "--snippet")...).want(t, OK).stdout)
	golden(t, "translate-envoy.yaml", stile(t, []string{store}, sceneFlags("translate", "--offline", "--format", "envoy")...).want(t, OK).stdout)
	golden(t, "translate-names.txt", stile(t, []string{store}, sceneFlags("translate", "--offline", "-o", "name")...).want(t, OK).stdout)
	stile(t, nil, sceneFlags("translate", "--offline", "--snippet", "--format", "envoy")...).want(t, Usage, "exclude each other")
	r := decode[xds.Report](t, stile(t, []string{store}, sceneFlags("translate", "--offline")...).stdout)
	if r.Kind != "EnvoyResources" || len(r.Listeners) != 1 || len(r.ExtensionConfigs) != 3 {
		t.Errorf("%+v", r)
	}
}

func TestTranslate_ResolvesAsTheServiceDoes(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, localregistry.Options{Mode: localregistry.Bearer})
	digest := r.push()
	inline := base64.StdEncoding.EncodeToString(modules.Badge())
	secret, err := os.ReadFile(r.pullSecret)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(publicKey(t))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	doc := func(name, more string) string {
		return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: { name: " + name + ", namespace: team-a }\nspec: { url: 'oci://" + r.image(":v1") + "'" + more + " }\n---\n"
	}
	write(t, folder, "resources/a.yaml", doc("good", ", imagePullSecret: regcred")+doc("none", "")+doc("lost", ", imagePullSecret: lost")+
		doc("network", ", imagePullSecret: regcred, type: NETWORK")+doc("unsigned", ", imagePullSecret: regcred, verificationKey: '"+strings.ReplaceAll(string(key), "\n", "\n\n")+"'")+
		doc("wrong", ", imagePullSecret: regcred, sha256: '"+strings.Repeat("0", 64)+"'")+string(secret))
	node := write(t, folder, "node.yaml", "id: gw\ncluster: edge\nmetadata: { NAMESPACE: team-a }\n")
	args := func(more ...string) []string {
		return append([]string{"translate", "-f", folder + "/resources", "--node", node, "--envoy", "testdata/scene/envoy"}, more...)
	}
	out := r.stile(args()...).want(t, OK,
		"team-a/none: the stand-in", "(Unauthorized)", "the pull secret team-a/lost is not among the documents", "team-a/wrong: the stand-in", "spec.sha256 says",
		"team-a/network: the stand-in", "exports no NETWORK callback", "team-a/unsigned: the stand-in", "SignatureInvalid")
	if n := strings.Count(out.stdout, inline); n != 1 {
		t.Errorf("want one module inline, got %d: %s", n, out.stderr)
	}
	config := write(t, folder, "stile.yaml", "xds: { inlineMaxModule: 0 }\nmodules: { url: 'http://modules.example:8080' }\n")
	out = r.stile(args("--config", config)...).want(t, OK)
	if !strings.Contains(out.stdout, "http://modules.example:8080/modules/<redacted>") || strings.Contains(out.stdout, inline) {
		t.Errorf("stdout: %s", out.stdout)
	}

	// Offline, the service's store has what its sources delivered, for what is pinned.
	served, serving := serveFolder(t, "registries: [{ host: '"+r.Host()+"', plainHTTP: true }]\n")
	pinned := strings.ReplaceAll(doc("good", ", imagePullSecret: regcred")+string(secret), r.image(":v1"), r.image("@"+digest))
	write(t, served, "resources/a.yaml", pinned)
	t.Run("the service fetches it", func(t *testing.T) {
		at := started(t, serving)
		eventually(t, "http://"+at.Admin+"/api/v1/plugins", func(_ int, body string) bool {
			return strings.Contains(body, `"delivery":"inline"`)
		})
	})
	before := r.RequestCount()
	offline := []string{"translate", "-f", served + "/resources", "--node", node, "--envoy", "testdata/scene/envoy", "--offline", "--config", serving}
	if out := r.stile(offline...).want(t, OK); strings.Count(out.stdout, inline) != 1 {
		t.Errorf("not from the store: %s", out.stderr)
	}
	if r.RequestCount() != before {
		t.Error("--offline asked the registry")
	}
}

func TestConfigView_EachValueAndItsSource(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	file := write(t, folder, "stile.yaml", "xds: { address: '127.0.0.1:1', warmHold: 5s }\nregistries: [{ host: r.example }]\n")
	r := stile(t, []string{"STILE_XDS_WARM_HOLD=6s", "STILE_STORE=/there", "STILE_CONFIG=" + file}, "config", "view", "--access-recheck", "7s", "--xds-insecure", "-o", "json").want(t, OK)
	view := decode[configReport](t, r.stdout)
	got := map[string]string{}
	for _, v := range view.Values {
		got[v.Key] = string(v.Value) + " " + v.Source
	}
	for key, want := range map[string]string{
		"xds.address":     `"127.0.0.1:1" file ` + file + ":1",
		"xds.warmHold":    `"6s" env STILE_XDS_WARM_HOLD`,
		"store.directory": `"/there" env STILE_STORE`,
		"access.recheck":  `"7s" flag --access-recheck`,
		"xds.insecure":    `true flag --xds-insecure`,
		"admin.address":   `"127.0.0.1:18002" default`,
	} {
		if got[key] != want {
			t.Errorf("%s: want %s, got %s", key, want, got[key])
		}
	}
	if !strings.Contains(got["registries"], "r.example") {
		t.Errorf("registries: %s", got["registries"])
	}
	wide := strings.Join(strings.Fields(stile(t, nil, "config", "view", "-o", "wide").want(t, OK).stdout), " ")
	for _, row := range []string{
		"KEY VALUE SOURCE VARIABLE FLAG apiVersion stile.dev/v1alpha1 default - -",
		"store.directory ./data default STILE_STORE_DIRECTORY --store",
		"xds.inlineMaxModule 8Mi default STILE_XDS_INLINE_MAX_MODULE --xds-inline-max-module",
		"registries - default - -",
	} {
		if !strings.Contains(wide, row) {
			t.Errorf("-o wide lacks %q: %s", row, wide)
		}
	}
	stile(t, []string{"STILE_XDS_WARM_HOLD=soon"}, "config", "view").want(t, Usage, "STILE_XDS_WARM_HOLD: xds.warmHold")
	stile(t, []string{"STILE_XDS_ADRESS=x"}, "config", "view").want(t, OK, "STILE_XDS_ADRESS sets nothing; did you mean STILE_XDS_ADDRESS?")
	quiet := stile(t, []string{"STILE_ENVOY=/bin/envoy", "STILE_SERVICE_HOST=10.0.0.1", "STILE_PORT_18000_TCP=x"}, "config", "view").want(t, OK)
	if quiet.stderr != "" {
		t.Errorf("stderr: %s", quiet.stderr)
	}
}

// Every key of the configuration, as the documentation writes it down, is known.
func TestConfigFile_OfTheContract(t *testing.T) {
	t.Parallel()
	for _, row := range decode[configReport](t, stile(t, nil, "config", "view", "--config", "testdata/contract.yaml", "-o", "json").want(t, OK).stdout).Values {
		if row.Source == "default" && !slices.Contains([]string{"resources.kubernetes", "xds.tls.certFile", "xds.tls.keyFile", "xds.tls.clientCAFile",
			"modules.tls.certFile", "modules.tls.keyFile", "modules.tls.clientCAFile", "admin.tls.certFile", "admin.tls.keyFile", "admin.tls.clientCAFile", "placement.namespaceSelector.matchLabels",
			"placement.namespaceSelector.matchExpressions"}, row.Key) && !strings.HasPrefix(row.Key, "envoy.anchors") {
			t.Errorf("%s is not in testdata/contract.yaml", row.Key)
		}
	}
}

func TestConfigFile_IsFoundWhereItShouldBe(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write(t, folder, "xdg/stile/config.yaml", "rootNamespace: from-xdg\n")
	write(t, folder, "home/.config/stile/config.yaml", "rootNamespace: from-home\n")
	byEnv := write(t, folder, "env.yaml", "rootNamespace: from-env\n")
	byFlag := write(t, folder, "flag.yaml", "rootNamespace: from-flag\n")
	home, xdg, env := "HOME="+folder+"/home", "XDG_CONFIG_HOME="+folder+"/xdg", "STILE_CONFIG="+byEnv
	for _, row := range []struct {
		env  []string
		args []string
		want string
	}{
		{[]string{home}, nil, "from-home"},
		{[]string{home, xdg}, nil, "from-xdg"},
		{[]string{home, xdg, env}, nil, "from-env"},
		{[]string{home, xdg, env}, []string{"--config", byFlag}, "from-flag"},
		{[]string{"HOME=" + folder}, nil, "stile-system"},
	} {
		a := &app{env: row.env}
		in := &configInput{}
		if len(row.args) > 0 {
			in.file = row.args[1]
		}
		loaded, err := a.loadConfig(in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(row.want, loaded.RootNamespace); diff != "" {
			t.Errorf("%v %v: %s", row.env, row.args, diff)
		}
	}
}
