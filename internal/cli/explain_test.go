package cli

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/plugin"
)

// oneListener is an Envoy file with one HTTP chain, in which a filter of the operator's own
// stands before the router.
const oneListener = `listeners:
- name: NAME
  address: { socket_address: { address: 127.0.0.1, port_value: 8080 } }
  filter_chains:
  - filters:
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: x
        route_config: { name: r }
        http_filters:
        - name: own
          typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor, grpc_service: { envoy_grpc: { cluster_name: c } } }
        - name: router
          typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
`

func pluginText(namespace, name, spec string) string {
	return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: { name: " + name + ", namespace: " + namespace + " }\nspec: { url: 'r.example/a:v1', " + spec + " }\n---\n"
}

// The service takes all of this from its configuration, and explain must not say otherwise.
func TestExplain_PlacesAsTheServiceWouldWithThatConfiguration(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for _, name := range []string{"edge_eu", "assigned", "others"} {
		write(t, folder, "envoy/"+name+".yaml", strings.ReplaceAll(oneListener, "NAME", name))
	}
	write(t, folder, "p.yaml",
		pluginText("edge", "authn", "phase: AUTHN")+
			pluginText("own-root", "of-class", "targetRefs: [{ group: gateway.networking.k8s.io, kind: GatewayClass, name: main }]")+
			pluginText("edge", "of-service", "targetRefs: [{ kind: Service, name: reviews }]")+
			pluginText("edge", "of-gateway", "targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: gw }]")+
			pluginText("edge", "labelled", "selector: { matchLabels: { tier: edge } }")+
			pluginText("edge", "token", "vmConfig: { env: [{ name: TOKEN, valueFrom: HOST }] }")+
			"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: gw, namespace: edge }\nspec: { gatewayClassName: main }\n")
	for name, row := range map[string]struct {
		config, node string
		code         int
		listener     string
		want         []string // plugin < the next filter
	}{
		"none": {"", "{ id: a, cluster: edge/eu, metadata: { NAMESPACE: edge, LABELS: { tier: edge } } }", OK, "edge_eu",
			[]string{"edge/authn<router", "edge/labelled<router", "edge/token<router"}},
		"anchors": {"envoy: { directory: e, anchors: { authn: [envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor] } }\nwasm: { hostEnvAllow: [TOKEN] }\n",
			"{ id: a, cluster: edge/eu, metadata: { NAMESPACE: edge, LABELS: { tier: edge } } }", OK, "edge_eu",
			[]string{"edge/authn<own", "edge/labelled<router", "edge/token<router"}},
		"the class of the Gateway, and the root namespace": {"rootNamespace: own-root\nwasm: { hostEnvAllow: [TOKEN] }\n",
			"{ id: a, cluster: edge/eu, metadata: { NAMESPACE: edge, GATEWAY: gw } }", OK, "edge_eu",
			[]string{"edge/authn<router", "edge/of-gateway<router", "edge/token<router", "own-root/of-class<router"}},
		"facts that the bootstrap lacks": {"wasm: { hostEnvAllow: [TOKEN] }\nenvoy: { directory: e, nodes: [{ cluster: 'edge/*', file: assigned.yaml, namespace: edge, gateway: gw, labels: { tier: edge } }] }\n",
			"{ id: a, cluster: edge/eu }", OK, "assigned",
			[]string{"edge/authn<router", "edge/labelled<router", "edge/of-gateway<router", "edge/token<router"}},
		"a waypoint": {"wasm: { hostEnvAllow: [TOKEN] }\nenvoy: { directory: e, nodes: [{ id: 'wp-*', services: [reviews] }] }\n",
			"{ id: wp-1, cluster: edge/eu, metadata: { NAMESPACE: edge } }", OK, "edge_eu", []string{"edge/of-service<router"}},
		"the file for all others": {"wasm: { hostEnvAllow: [TOKEN] }\nenvoy: { directory: e, default: others.yaml }\n",
			"{ id: a, cluster: elsewhere, metadata: { NAMESPACE: edge } }", OK, "others",
			[]string{"edge/authn<router", "edge/token<router"}},
		"variables that the operator does not give": {"rootNamespace: r\n",
			"{ id: a, cluster: edge/eu, metadata: { NAMESPACE: edge } }", Findings, "edge_eu", []string{"edge/authn<router"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own := t.TempDir()
			args := []string{"explain", "-f", folder + "/p.yaml", "--envoy", folder + "/envoy", "--node", write(t, own, "node.yaml", row.node), "-o", "json"}
			if row.config != "" {
				args = append(args, "--config", write(t, own, "stile.yaml", row.config))
			}
			e := decode[plugin.Explanation](t, stile(t, nil, args...).want(t, row.code).stdout)
			if len(e.Listeners) != 1 || e.Listeners[0].Name != row.listener {
				t.Fatalf("listeners %+v, want the one of %s.yaml", e.Listeners, row.listener)
			}
			var got []string
			for _, p := range e.Listeners[0].Plugins {
				got = append(got, p.Plugin+"<"+p.Before)
			}
			slices.Sort(got)
			if d := cmp.Diff(row.want, got); d != "" {
				t.Errorf("plugins (-want +got):\n%s", d)
			}
			if n := len(e.Listeners[0].Plugins) + len(e.Listeners[0].Skipped); n != 6 {
				t.Errorf("%d of 6 plugins are accounted for", n)
			}
		})
	}
}

func TestExplain_TheFileOfANodeIsNeverOutsideTheFolder(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write(t, folder, "secret.yaml", strings.ReplaceAll(oneListener, "NAME", "secret"))
	write(t, folder, "envoy/a.yaml", oneListener)
	for _, cluster := range []string{"../secret", `..\\secret`, "", ".", ".."} {
		node := write(t, t.TempDir(), "node.yaml", `{ id: a, cluster: "`+cluster+`" }`)
		stile(t, nil, "explain", "-f", folder+"/envoy", "--envoy", filepath.Join(folder, "envoy"), "--node", node).want(t, Usage, "--envoy")
	}
}

// Without a configuration nobody has decided which variables a proxy gives away.
func TestValidate_HostVariablesAreCheckedWhereThereIsAConfiguration(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	doc := write(t, folder, "p.yaml", pluginText("edge", "a", "vmConfig: { env: [{ name: POD_NAME, valueFrom: HOST }, { name: TOKEN, valueFrom: HOST }] }"))
	def, all, none := write(t, folder, "default.yaml", "rootNamespace: r\n"), write(t, folder, "all.yaml", "wasm: { hostEnvAllow: [POD_NAME, TOKEN] }\n"), write(t, folder, "none.yaml", "wasm: { hostEnvAllow: [] }\n")
	for _, row := range []struct {
		env  []string
		args []string
		want []string
	}{
		{nil, nil, nil},
		{nil, []string{"--config", def}, []string{"spec.vmConfig.env[1].name"}},
		{[]string{"STILE_CONFIG=" + def}, nil, []string{"spec.vmConfig.env[1].name"}},
		{nil, []string{"--config", all}, nil},
		{nil, []string{"--config", none}, []string{"spec.vmConfig.env[0].name", "spec.vmConfig.env[1].name"}},
	} {
		code := OK
		if row.want != nil {
			code = Findings
		}
		r := decode[document.ValidationReport](t, stile(t, row.env, append([]string{"validate", "-f", doc, "-o", "json"}, row.args...)...).want(t, code).stdout)
		var got []string
		for _, f := range r.Findings {
			got = append(got, f.Field)
			if f.Reason != "NotAllowed" || f.Severity != "error" || f.Line != 4 || f.Name != "a" {
				t.Errorf("%+v", f)
			}
		}
		if d := cmp.Diff(row.want, got); d != "" {
			t.Errorf("%v %v (-want +got):\n%s", row.env, row.args, d)
		}
	}
	stile(t, nil, "validate", "-f", doc, "--config", folder+"/missing.yaml").want(t, Usage, "missing.yaml")
}

func TestValidate_AFileNamedTwiceIsReadOnce(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	doc := write(t, folder, "p.yaml", pluginText("edge", "a", ""))
	r := decode[document.ValidationReport](t, stile(t, nil, "validate", "-f", folder, "-f", doc, folder+"/./p.yaml", "-o", "json").want(t, OK).stdout)
	if r.Checked != 1 || len(r.Findings) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestExplain_TableTellsWhichRoutesSwitchAPluginOff(t *testing.T) {
	t.Parallel()
	e := plugin.Explanation{Listeners: []plugin.ExplainedListener{{Name: "l", Plugins: []plugin.ExplainedPlugin{
		{Plugin: "edge/a", Type: "HTTP", Before: "router", DisabledFor: []string{"virtual host all", "route all/1"}}, {Plugin: "edge/b", Before: "router"},
	}}}}
	var b strings.Builder
	explainAnswer(e).Table(&b, false)
	if !strings.Contains(b.String(), "\n  off edge/a: virtual host all, route all/1\n") || strings.Contains(b.String(), "off edge/b") {
		t.Error(b.String())
	}
}
