package xds

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/stileproject/stile/internal/plugin"
)

// unknownExtension stands in Node.Extensions for a proxy that lists extensions and has none
// that matters to stile; an empty list would mean that it does not say.
const unknownExtension = "stile.dev/none-of-ours"

// ParseNode reads Envoy's Node message, as a bootstrap has it under node, in JSON or YAML: id,
// cluster, metadata.NAMESPACE, metadata.LABELS and metadata.GATEWAY count, and extensions.
func ParseNode(data []byte) (plugin.Node, error) {
	tree, err := parseTree(data)
	if err != nil {
		return plugin.Node{}, fmt.Errorf("node: %w", err)
	}
	if m, ok := tree.(map[string]any); ok && len(m) == 1 && m["node"] != nil {
		tree = m["node"] // a bootstrap's node, with its key
	}
	if tree == nil {
		return plugin.Node{}, errors.New("node: the file is empty: write at least id and cluster")
	}
	m := &corev3.Node{}
	c := checker{}
	c.message(m.ProtoReflect().Descriptor(), tree, "")
	if len(c.findings) > 0 {
		var all []error
		for _, f := range c.findings {
			all = append(all, fmt.Errorf("node: %s: %s", f.path, f.message))
		}
		return plugin.Node{}, errors.Join(all...)
	}
	text, err := json.Marshal(tree)
	if err == nil {
		err = protojson.Unmarshal(text, m)
	}
	if err != nil {
		return plugin.Node{}, fmt.Errorf("node: %w", cleanJSONError(err))
	}
	node, _ := readNode(m)
	return node, nil
}

// readNode takes from Envoy's Node what stile uses, and the proxy's version. It keeps nothing
// of the message: a proxy's list of extensions alone can be 60 KiB, and there may be ten
// thousand proxies.
func readNode(m *corev3.Node) (plugin.Node, string) {
	metadata := m.GetMetadata().GetFields()
	node := plugin.Node{
		ID:        strings.Clone(m.GetId()),
		Cluster:   strings.Clone(m.GetCluster()),
		Namespace: strings.Clone(metadata["NAMESPACE"].GetStringValue()),
		Gateway:   strings.Clone(metadata["GATEWAY"].GetStringValue()),
		Labels:    labels(metadata["LABELS"]),
	}
	for _, e := range m.GetExtensions() {
		if e.GetDisabled() {
			continue
		}
		for typeURL, name := range extensionNames {
			known := e.GetName() == name || slices.ContainsFunc(e.GetTypeUrls(), func(u string) bool { return sameType(u, typeURL) })
			if known && !slices.Contains(node.Extensions, typeURL) {
				node.Extensions = append(node.Extensions, typeURL)
			}
		}
	}
	slices.Sort(node.Extensions)
	if len(m.GetExtensions()) > 0 && len(node.Extensions) == 0 {
		node.Extensions = []string{unknownExtension}
	}
	version := strings.Clone(m.GetUserAgentVersion())
	if v := m.GetUserAgentBuildVersion().GetVersion(); v != nil {
		version = fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
	}
	return node, version
}

func labels(v *structpb.Value) map[string]string {
	fields := v.GetStructValue().GetFields()
	if len(fields) == 0 {
		return nil
	}
	out := make(map[string]string, len(fields))
	for k, e := range fields {
		if s, ok := e.GetKind().(*structpb.Value_StringValue); ok {
			out[strings.Clone(k)] = strings.Clone(s.StringValue)
		}
	}
	return out
}

// The bounds of what a proxy may say of itself. Its words are kept as long as its stream.
const (
	maxNodeField  = 1 << 10
	maxNodeLabels = 64 << 10 // in all
)

// checkNode refuses a node whose words are longer than anybody's, or not text: they go into logs,
// statuses and memory.
func checkNode(n *plugin.Node, version string) error {
	for _, f := range []struct{ name, value string }{
		{"id", n.ID}, {"cluster", n.Cluster}, {"metadata.NAMESPACE", n.Namespace}, {"metadata.GATEWAY", n.Gateway}, {"user_agent_version", version},
	} {
		if len(f.value) > maxNodeField {
			return fmt.Errorf("the node's %s is longer than %d bytes", f.name, maxNodeField)
		}
		if !isText(f.value) {
			return fmt.Errorf("the node's %s has control characters", f.name)
		}
	}
	size := 0
	for k, v := range n.Labels {
		if size += len(k) + len(v); size > maxNodeLabels {
			return fmt.Errorf("the node's metadata.LABELS are longer than %d bytes", maxNodeLabels)
		}
		if !isText(k) || !isText(v) {
			return errors.New("the node's metadata.LABELS have control characters")
		}
	}
	return nil
}

func isText(s string) bool {
	return !strings.ContainsFunc(s, unicode.IsControl)
}

// nodeKey is what a proxy is remembered by when it connects again.
type nodeKey struct{ id, cluster, namespace string }

func keyOf(n *plugin.Node) nodeKey { return nodeKey{n.ID, n.Cluster, n.Namespace} }

// sameNode reports whether two messages on one stream speak of one proxy.
func sameNode(a, b *plugin.Node) bool {
	return keyOf(a) == keyOf(b) && a.Gateway == b.Gateway && maps.Equal(a.Labels, b.Labels)
}
