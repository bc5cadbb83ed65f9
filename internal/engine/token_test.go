package engine_test

import (
	"regexp"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

var tokenForm = regexp.MustCompile(`/modules/([0-9a-f]{64})`)

// token reads the token out of what proxies are sent: the one place where it is.
func (h *house) token(namespace, name string) string {
	h.t.Helper()
	h.proxies.mu.Lock()
	defer h.proxies.mu.Unlock()
	for _, s := range h.proxies.published {
		if r := s.Resource(xds.ExtensionType, xds.ResourceName(plugin.Key{Namespace: namespace, Name: name})); r != nil {
			if m := tokenForm.FindSubmatch(r.Any.GetValue()); m != nil {
				return string(m[1])
			}
		}
	}
	h.t.Fatalf("no module URL for %s/%s", namespace, name)
	return ""
}
