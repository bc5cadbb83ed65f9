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

// Classed returns n with the class of the Gateway that it serves, where n does not say it
// itself. classes are the classes of the Gateways that are known.
func (n Node) Classed(classes map[Key]string) Node {
	if name, class := n.gateway(); name != "" && class == "" {
		n.GatewayClass = classes[Key{Namespace: n.Namespace, Name: name}]
	}
	return n
}

func (n *Node) waypoint() bool {
	_, class := n.gateway()
	return class == waypointClass || len(n.Services) > 0 || len(n.ServiceEntries) > 0
}

// Attaches reports whether a plugin concerns a node at all, whatever the node's listeners;
// if not, why. It looks at namespaces, target references and the selector. In Skip, a
// zero Reason means that it attaches.
func Attaches(rootNamespace string, p *v1alpha1.WasmPlugin, n *Node) Skip {
	return attaches(rootNamespace, p, n, true)
}

// Concerns reports whether a plugin attaches to a node: Attaches without the reason, and
// without an allocation. Who holds many nodes asks it which of them a changed plugin concerns.
func Concerns(rootNamespace string, p *v1alpha1.WasmPlugin, n *Node) bool {
	return attaches(rootNamespace, p, n, false).Reason == ""
}

// attaches is Attaches; unless it is to explain, without messages.
func attaches(rootNamespace string, p *v1alpha1.WasmPlugin, n *Node, explain bool) Skip {
	skip := func(reason, format string, args ...any) Skip {
		if !explain {
			return Skip{Plugin: KeyOf(p), Reason: reason}
		}
		return Skip{Plugin: KeyOf(p), Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	if p.Namespace != n.Namespace && p.Namespace != rootNamespace {
		if !explain { // most plugins concern other namespaces: this must cost nothing
			return Skip{Reason: SkipNamespaceMismatch}
		}
		if n.Namespace == "" {
			return skip(SkipNamespaceMismatch, "the proxy does not say its namespace (metadata.NAMESPACE of its node); only plugins of the root namespace %q reach it", rootNamespace)
		}
		return skip(SkipNamespaceMismatch, "the proxy is in namespace %q; plugins apply within their own namespace, or from the root namespace %q", n.Namespace, rootNamespace)
	}
	refs := p.Spec.TargetRefs
	if len(refs) == 0 && p.Spec.TargetRef != nil {
		refs = []v1alpha1.TargetReference{*p.Spec.TargetRef}
	}
	if len(refs) > 0 {
		if !targeted(rootNamespace, p, refs, n) {
			return skip(SkipTargetMismatch, "%s", untargeted(rootNamespace, p, refs, n, explain))
		}
		return Skip{}
	}
	if n.waypoint() {
		return skip(SkipTargetMismatch, "the proxy is a waypoint, which takes plugins by targetRefs alone")
	}
	if p.Spec.Selector == nil {
		return Skip{}
	}
	want := p.Spec.Selector.MatchLabels
	if !explain {
		for name, value := range want {
			if have, ok := n.Labels[name]; !ok || have != string(value) {
				return skip(SkipSelectorMismatch, "")
			}
		}
		return Skip{}
	}
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

// targeted reports whether one of refs names what n serves.
func targeted(rootNamespace string, p *v1alpha1.WasmPlugin, refs []v1alpha1.TargetReference, n *Node) bool {
	gateway, class := n.gateway()
	own := p.Namespace == n.Namespace
	return slices.ContainsFunc(refs, func(r v1alpha1.TargetReference) bool {
		switch r.Kind {
		case "Gateway":
			return own && gateway != "" && r.Name == gateway
		case "GatewayClass":
			return p.Namespace == rootNamespace && class != "" && r.Name == class
		case "Service":
			return own && slices.Contains(n.Services, r.Name)
		case "ServiceEntry":
			return own && slices.Contains(n.ServiceEntries, r.Name)
		}
		return false
	})
}

// untargeted says why none of refs names what n serves.
func untargeted(rootNamespace string, p *v1alpha1.WasmPlugin, refs []v1alpha1.TargetReference, n *Node, explain bool) string {
	gateway, _ := n.gateway()
	switch {
	case !explain:
		return ""
	case gateway == "" && !n.waypoint():
		return "the proxy is no Gateway; plugins with target references run on Gateways and waypoints alone"
	case len(refs) == 1 && refs[0].Kind == "GatewayClass" && p.Namespace != rootNamespace:
		return fmt.Sprintf("a GatewayClass may be targeted from the root namespace %q alone", rootNamespace)
	}
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = r.Kind + " " + p.Namespace + "/" + r.Name
		if r.Kind == "GatewayClass" { // of no namespace
			names[i] = r.Kind + " " + r.Name
		}
	}
	return fmt.Sprintf("the proxy serves %s; the plugin targets %s", serves(n), strings.Join(names, ", "))
}

// serves names everything that targets are compared with.
func serves(n *Node) string {
	var names []string
	gateway, class := n.gateway()
	for _, of := range []struct {
		kind  string
		names []string
	}{{"Gateway", []string{gateway}}, {"Service", n.Services}, {"ServiceEntry", n.ServiceEntries}} {
		for _, name := range of.names {
			if name != "" {
				names = append(names, of.kind+" "+n.Namespace+"/"+name)
			}
		}
	}
	if class != "" {
		names = append(names, "GatewayClass "+class)
	}
	return strings.Join(names, ", ")
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
			return slices.ContainsFunc(ports, func(have uint32) bool { return int64(have) == int64(p.Number) })
		}) {
			return true
		}
	}
	return false
}
