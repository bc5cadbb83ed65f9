package plugin_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
)

// TestThePlaceOfEachPhaseIsAsDocumented tries every chain of up to six filters against the rule
// of docs/spec/wasmplugin.md, written down once more and as plainly as it goes.
func TestThePlaceOfEachPhaseIsAsDocumented(t *testing.T) {
	t.Parallel()
	kinds := []string{cors, jwt, rbac, stats}
	tried := 0
	var try func(chain []string)
	try = func(chain []string) {
		tried++
		c := httpChain(append(slices.Clone(chain), router)...)
		plan, _ := plugin.Build(inputs([]plugin.Listener{listener(c)}, onePerPhase()...))
		got := map[string]int{}
		for _, p := range plan.Chains[0].HTTP {
			got[p.Phase] = p.At
		}
		for phase, want := range documentedPlaces(chain) {
			if got[phase] != want {
				t.Errorf("%v: %s stands before filter %d, want %d", chain, phase, got[phase], want)
			}
		}
		if len(chain) < 6 {
			for _, k := range kinds {
				try(append(slices.Clone(chain), k))
			}
		}
	}
	try(nil)
	if tried != 5461 {
		t.Errorf("%d chains tried", tried)
	}
}

// documentedPlaces are the indexes before which the phases' plugins stand; the terminal filter
// follows chain.
func documentedPlaces(chain []string) map[string]int {
	lastOf := func(kinds ...string) int {
		for i := len(chain) - 1; i >= 0; i-- {
			if slices.Contains(kinds, chain[i]) {
				return i
			}
		}
		return -1
	}
	firstAfter := func(kind string, i int) int {
		for i++; i < len(chain); i++ {
			if chain[i] == kind {
				return i
			}
		}
		return -1
	}
	terminal := len(chain)
	var authN, authZ, statistics int
	// Before the first stats filter that follows both; without one right after them; without any
	// of them where the next phase stands.
	if statistics = firstAfter(stats, lastOf(jwt, rbac)); statistics < 0 {
		if statistics = lastOf(jwt, rbac) + 1; statistics == 0 {
			statistics = terminal
		}
	}
	// Before the first authorization filter that follows the last authentication filter;
	// without one right after the latter.
	if authZ = firstAfter(rbac, lastOf(jwt)); authZ < 0 {
		if authZ = lastOf(jwt) + 1; authZ == 0 {
			authZ = statistics
		}
	}
	// Before the first authentication filter.
	if authN = firstAfter(jwt, -1); authN < 0 {
		authN = authZ
	}
	return map[string]int{
		string(v1alpha1.PhaseAuthN): authN, string(v1alpha1.PhaseAuthZ): authZ, string(v1alpha1.PhaseStats): statistics,
		string(v1alpha1.PhaseUnspecified): terminal, string(v1alpha1.PhaseRouter): terminal,
	}
}

// TestEveryAnchorIsKnownByItsType puts each filter between two that mean nothing.
func TestEveryAnchorIsKnownByItsType(t *testing.T) {
	t.Parallel()
	const (
		ext      = "envoy.extensions.filters."
		none     = "authn=3 authz=3 stats=3"
		authN    = "authn=1 authz=2 stats=2"
		authZ    = "authn=1 authz=1 stats=2"
		statsOne = "authn=1 authz=1 stats=1"
	)
	for _, tc := range []struct{ level, url, want string }{
		{"HTTP", "io.istio.http.peer_metadata.Config", none},
		{"HTTP", ext + "http.jwt_authn.v3.JwtAuthentication", authN},
		{"HTTP", ext + "http.oauth2.v3.OAuth2", authN},
		{"HTTP", ext + "http.basic_auth.v3.BasicAuth", authN},
		{"HTTP", ext + "http.api_key_auth.v3.ApiKeyAuth", authN},
		{"HTTP", "istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig", authN},
		{"HTTP", ext + "http.rbac.v3.RBAC", authZ},
		{"HTTP", ext + "http.ext_authz.v3.ExtAuthz", authZ},
		{"HTTP", "stats.PluginConfig", statsOne},
		{"HTTP", ext + "http.grpc_stats.v3.FilterConfig", statsOne},
		{"HTTP", ext + "http.gcp_authn.v3.GcpAuthnFilterConfig", none},
		{"HTTP", ext + "http.aws_request_signing.v3.AwsRequestSigning", none},
		{"HTTP", ext + "http.credential_injector.v3.CredentialInjector", none},
		{"HTTP", ext + "http.csrf.v3.CsrfPolicy", none},
		{"HTTP", ext + "http.fault.v3.HTTPFault", none},
		{"HTTP", ext + "http.ratelimit.v3.RateLimit", none},
		{"HTTP", ext + "http.local_ratelimit.v3.LocalRateLimit", none},
		{"HTTP", ext + "http.ext_proc.v3.ExternalProcessor", none},
		{"HTTP", ext + "http.tap.v3.Tap", none},
		{"HTTP", ext + "http.health_check.v3.HealthCheck", none},
		{"HTTP", ext + "http.lua.v3.Lua", none},
		{"HTTP", ext + "http.wasm.v3.Wasm", none},
		{"HTTP", ext + "network.rbac.v3.RBAC", none},
		{"NETWORK", "envoy.tcp.metadataexchange.config.MetadataExchange", none},
		{"NETWORK", ext + "network.rbac.v3.RBAC", authZ},
		{"NETWORK", ext + "network.ext_authz.v3.ExtAuthz", authZ},
		{"NETWORK", "stats.PluginConfig", statsOne},
		{"NETWORK", ext + "network.connection_limit.v3.ConnectionLimit", none},
		{"NETWORK", ext + "network.sni_cluster.v3.SniCluster", none},
		{"NETWORK", ext + "http.rbac.v3.RBAC", none},
	} {
		list := []plugin.Filter{{Name: "a"}, {Name: "jwt_authn rbac stats", TypeURLs: []string{"type.googleapis.com/" + tc.url}}, {Name: "b"}, {Name: "terminal"}}
		c := plugin.Chain{Type: plugin.ChainTCP, Network: list}
		if tc.level == "HTTP" {
			c = plugin.Chain{Type: plugin.ChainHTTP, Network: filters(hcm), HTTP: list}
		}
		kind := func(w *v1alpha1.WasmPlugin) { w.Spec.Type = v1alpha1.PluginType(tc.level) }
		plan, _ := plugin.Build(inputs([]plugin.Listener{listener(c)},
			wasm("authn", kind, phase(v1alpha1.PhaseAuthN)), wasm("authz", kind, phase(v1alpha1.PhaseAuthZ)), wasm("stats", kind, phase(v1alpha1.PhaseStats))))
		var got []string
		for _, p := range append(plan.Chains[0].HTTP, plan.Chains[0].Network...) {
			if p.Type == tc.level {
				got = append(got, fmt.Sprintf("%s=%d", p.Plugin.Name, p.At))
			}
		}
		if text := strings.Join(got, " "); text != tc.want {
			t.Errorf("%s %s: %s, want %s", tc.level, tc.url, text, tc.want)
		}
	}
}
