package plugin

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/stileproject/stile/api/v1alpha1"
)

// Assigned applies the operator's assignments to what a proxy says of itself, the first
// that matches alone, and names its Envoy file: without extension, and never a path,
// since the cluster comes from the peer ("/" is written "_"). n itself is not changed.
func (n Node) Assigned(assignments []v1alpha1.EnvoyNode) (Node, string) {
	file := strings.ReplaceAll(n.Cluster, "/", "_")
	i := slices.IndexFunc(assignments, func(a v1alpha1.EnvoyNode) bool {
		return globMatches(a.Cluster, n.Cluster) && globMatches(a.ID, n.ID)
	})
	if i < 0 {
		return n, file
	}
	a := &assignments[i]
	for _, field := range []struct {
		to   *string
		from string
	}{{&file, strings.TrimSuffix(a.File, path.Ext(a.File))}, {&n.Namespace, a.Namespace}, {&n.Gateway, a.Gateway}} {
		if field.from != "" {
			*field.to = field.from
		}
	}
	if len(a.Labels) > 0 {
		labels := make(map[string]string, len(n.Labels)+len(a.Labels))
		maps.Copy(labels, n.Labels)
		maps.Copy(labels, a.Labels)
		n.Labels = labels
	}
	if len(a.Services) > 0 || len(a.ServiceEntries) > 0 {
		n.Services, n.ServiceEntries = a.Services, a.ServiceEntries
	}
	return n, file
}

// globMatches reports whether s matches a glob; the empty glob matches everything.
func globMatches(glob, s string) bool {
	if glob == "" {
		return true
	}
	// path.Match stops "*" at "/", which clusters may contain.
	ok, err := path.Match(strings.ReplaceAll(glob, "/", "\x00"), strings.ReplaceAll(s, "/", "\x00"))
	return err == nil && ok
}
