package cli

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
)

// demoConfig is the configuration that the demo serves with: intervals of seconds in
// place of hours, so that a person sees every effect.
const demoConfig = `apiVersion: stile.dev/v1alpha1
kind: Config
rootNamespace: stile-system
resources: { directory: %[1]s/resources }
envoy: { directory: %[1]s/envoy, default: demo.yaml }
store: { directory: %[1]s/data }
xds: { address: "127.0.0.1:0", inlineMaxModule: %[3]s }
modules: { address: "127.0.0.1:0" }
admin: { address: "127.0.0.1:0" }
access:
  recheck: 2s
  timeout: 5s
  retry: { attempts: 1 }
  tokenMaxAge: 1s
  denied: { first: 500ms, max: 1s, confirmAfter: 200ms }
  unauthorized: { first: 500ms, max: 1s }
registries: [{ host: %[2]q, plainHTTP: true }]
`

// demoSecret is a pull secret as Kubernetes has them.
func demoSecret(namespace, host, user, password string) string {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config, _ := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": auth}}})
	return fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: { name: registry, namespace: %s }
type: kubernetes.io/dockerconfigjson
data:
  .dockerconfigjson: %s
`, namespace, base64.StdEncoding.EncodeToString(config))
}

// demoPlugin is a WasmPlugin of the module badge, which signs each request with a name.
func demoPlugin(namespace, name, image, phase string, priority int, signs string) string {
	return fmt.Sprintf(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: { name: %s, namespace: %s }
spec:
  url: oci://%s
  imagePullSecret: registry
  phase: %s
  priority: %d
  pluginConfig: { name: %s }
`, name, namespace, image, phase, priority, signs)
}

// demoToll is a WasmPlugin of the module toll, which lets no request pass that badge
// has not signed before it.
func demoToll(namespace, image string) string {
	return fmt.Sprintf(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: { name: toll, namespace: %s }
spec:
  url: oci://%s
  imagePullSecret: registry
  phase: AUTHZ
  priority: 100
  pluginConfig: { header: x-stile-trail }
`, namespace, image)
}

// demoEnvoy is the operator's own Envoy configuration: a listener with authentication,
// authorization and a router, in front of the demo's upstream, whose port replaces %d.
// The key is a public one whose private half nobody kept: Envoy wants one to be there.
const demoEnvoy = `listeners:
- name: http
  address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: demo
        route_config:
          name: demo
          virtual_hosts:
          - name: demo
            domains: ["*"]
            routes: [{ match: { prefix: / }, route: { cluster: upstream } }]
        http_filters:
        - name: envoy.filters.http.jwt_authn
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
            providers:
              demo: { issuer: demo, local_jwks: { inline_string: '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"demo","x":"VdqQApSQ7p8kOr_EU0LRoS7CxW28g2i8YJkfdaJSK8E","y":"79twPjYKCzLEE1til1BGvy0SVeA8VwFv11Ln6hcnesU"}]}' } }
            rules:
            - match: { prefix: / }
              requires: { requires_any: { requirements: [{ provider_name: demo }, { allow_missing: {} }] } }
        - name: envoy.filters.http.rbac
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
            rules:
              action: ALLOW
              policies: { anybody: { permissions: [{ any: true }], principals: [{ any: true }] } }
        - name: envoy.filters.http.router
          typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
clusters:
- name: upstream
  type: STATIC
  load_assignment:
    cluster_name: upstream
    endpoints:
    - lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: %d } } } }]
`
