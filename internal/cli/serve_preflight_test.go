package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A module that refuses its configuration never reaches a proxy where preflight is
// enforced: the version before it runs on, and the status says why.
func TestServe_PreflightEnforced(t *testing.T) {
	t.Parallel()
	p := startProxied(t, "wasm: { preflight: enforce }\n")
	plugins := "http://" + p.at.Admin + "/api/v1/plugins"
	eventually(t, plugins, func(_ int, body string) bool { return strings.Contains(body, `"reason":"Programmed"`) })
	p.edit(t, "pluginConfig: { name: badge }", "pluginConfig: { nope: 1 }")
	body := eventually(t, plugins, func(_ int, body string) bool { return strings.Contains(body, "ModuleRejectedConfig") })
	if !strings.Contains(body, `"servingLastGood":true`) {
		t.Errorf("the version before does not run on: %s", body)
	}
	p.edit(t, "pluginConfig: { nope: 1 }", "pluginConfig: { name: mended }")
	eventually(t, plugins, func(_ int, body string) bool {
		return strings.Contains(body, `"reason":"Programmed"`) && strings.Contains(body, `"servingLastGood":false`)
	})
}

// edit replaces text in the plugin's document.
func (p *proxied) edit(t *testing.T, from, to string) {
	t.Helper()
	const name = "resources/a.yaml"
	text, err := os.ReadFile(filepath.Join(p.folder, name))
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.folder, name, strings.ReplaceAll(string(text), from, to))
}
