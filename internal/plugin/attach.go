package plugin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stileproject/stile/api/v1alpha1"
)

// The labels by which Kubernetes names the Gateway that a proxy serves, and its class.
const (
	gatewayNameLabel  = "gateway.networking.k8s.io/gateway-name"
	gatewayClassLabel = "gateway.networking.k8s.io/gateway-class-name"
	waypointClass     = "istio-waypoint"
)

// gateway returns the name of the Gateway that n serves, and of its class; empty if it is none.
func (n *Node) gateway() (name, class string) {
	name = cmp.Or(n.Gateway, n.Labels[gatewayNameLabel])
	class = cmp.Or(n.GatewayClass, n.Labels[gatewayClassLabel])
	return name, class
}

func (n *Node) waypoint() bool {
	_, class := n.gateway()
	return class == waypointClass || len(n.Services) > 0 || len(n.ServiceEntries) > 0
}

// Attaches reports whether a plugin concerns a node at all, whatever the node's listeners;
// if not, why. It looks at namespaces, target references and the selector. In Skip, a
// zero Reason means that it attaches.
func Attaches(rootNamespace string, p *v1alpha1.WasmPlugin, n *Node) Skip {
	skip := func(reason, format string, args ...any) Skip {
		return Skip{Plugin: KeyOf(p), Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	if p.Namespace != n.Namespace && p.Namespace != rootNamespace {
		return skip(SkipNamespaceMismatch, "the proxy is in namespace %q; plugins apply within their own namespace, or from the root namespace %q", n.Namespace, rootNamespace)
	}
	refs := p.Spec.TargetRefs
	if len(refs) == 0 && p.Spec.TargetRef != nil {
		refs = []v1alpha1.TargetReference{*p.Spec.TargetRef}
	}
	if len(refs) > 0 {
		if why := targets(rootNamespace, p, refs, n); why != "" {
			return skip(SkipTargetMismatch, "%s", why)
		}
		return Skip{}
	}
	if n.waypoint() && p.Namespace != rootNamespace {
		return skip(SkipTargetMismatch, "the proxy is a waypoint, which takes plugins by targetRefs alone")
	}
	if p.Spec.Selector == nil {
		return Skip{}
	}
	want := p.Spec.Selector.MatchLabels
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch have, ok := n.Labels[name]; {
		case !ok:
			return skip(SkipSelectorMismatch, "the proxy has no label %s; the selector wants %s=%s", name, name, want[name])
		case have != string(want[name]):
			return skip(SkipSelectorMismatch, "the proxy has label %s=%s; the selector wants %s=%s", name, have, name, want[name])
		}
	}
	return Skip{}
}

// targets returns why none of refs names what n serves; empty if one does.
func targets(rootNamespace string, p *v1alpha1.WasmPlugin, refs []v1alpha1.TargetReference, n *Node) string {
	gateway, class := n.gateway()
	if gateway == "" && !n.waypoint() {
		return "the proxy is no Gateway; plugins with target references run on Gateways and waypoints alone"
	}
	own := p.Namespace == n.Namespace
	for _, r := range refs {
		switch r.Kind {
		case "Gateway":
			if own && gateway != "" && r.Name == gateway {
				return ""
			}
		case "GatewayClass":
			if p.Namespace == rootNamespace && class != "" && r.Name == class {
				return ""
			}
		case "Service":
			if own && slices.Contains(n.Services, r.Name) {
				return ""
			}
		case "ServiceEntry":
			if own && slices.Contains(n.ServiceEntries, r.Name) {
				return ""
			}
		}
	}
	if len(refs) == 1 && refs[0].Kind == "GatewayClass" && p.Namespace != rootNamespace {
		return fmt.Sprintf("a GatewayClass may be targeted from the root namespace %q alone", rootNamespace)
	}
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = r.Kind + " " + p.Namespace + "/" + r.Name
	}
	return fmt.Sprintf("the proxy serves Gateway %s/%s, the plugin targets %s", n.Namespace, gateway, strings.Join(names, ", "))
}

// placeFree are the fields that a plugin may have wrong and still have its place: what they
// say decides neither to which traffic it attaches nor where.
var placeFree = []string{
	"spec.url", "spec.sha256", "spec.imagePullPolicy", "spec.imagePullSecret", "spec.verificationKey",
	"spec.pluginConfig", "spec.pluginName", "spec.failStrategy", "spec.vmConfig",
}

// misplaced returns the first error that makes a plugin's place unknown; nil if there is none.
// A field that is not known counts: it may be a selector with a typing error, and its
// plugin must not stand in for the whole namespace.
func misplaced(found []v1alpha1.Finding) *v1alpha1.Finding {
	for i, f := range found {
		if f.Severity == v1alpha1.SeverityError && !slices.ContainsFunc(placeFree, func(free string) bool {
			return f.Field == free || strings.HasPrefix(f.Field, free) && strings.IndexByte(".[", f.Field[len(free)]) >= 0
		}) {
			return &found[i]
		}
	}
	return nil
}

// matches reports whether a plugin wants the traffic of a listener's chain.
func matches(match []v1alpha1.TrafficSelector, mode string, ports []uint32) bool {
	if len(match) == 0 {
		return true
	}
	for i := range match {
		m := &match[i]
		if want := m.EffectiveMode(); want != v1alpha1.ModeClientAndServer && string(want) != mode {
			continue
		}
		if len(m.Ports) == 0 || slices.ContainsFunc(m.Ports, func(p v1alpha1.PortSelector) bool {
			return p.Number > 0 && slices.Contains(ports, uint32(p.Number))
		}) {
			return true
		}
	}
	return false
}
