// Package source says where resources come from. Its one rule: what it hands out is a
// whole world at one moment, which nobody changes afterwards.
package source

import (
	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/plugin"
)

// Key names a resource of any kind by namespace and name.
type Key = plugin.Key

// World is everything that the resources say at one moment. It is immutable and shared;
// an object that did not change is the same pointer as in the World before.
type World struct {
	// Plugins are sorted by namespace and name, each key once; valid or not.
	Plugins []*v1alpha1.WasmPlugin
	// Invalid holds the error findings of the plugins that have any.
	Invalid map[Key][]v1alpha1.Finding
	// Secrets are those that plugins may name.
	Secrets map[Key]*document.Secret
	// Gateways are those that plugins may target.
	Gateways map[Key]*document.Gateway
	// EnvoyFiles are the operator's listener files by the name of their cluster: the file's
	// name without its extension. The bytes must not be changed.
	EnvoyFiles map[string][]byte
	// Unreadable are the resource files of which nothing can be used, and UnreadableEnvoy the
	// clusters of such Envoy files: what they held before a restart is not known here.
	Unreadable      []string
	UnreadableEnvoy map[string]bool
	// UnreadableSecrets are Secrets that plugins name and that could not be read. They are not in
	// Secrets; nil where every Secret can be read.
	UnreadableSecrets map[Key]UnreadableSecret
	// Published is what the leader among several replicas has published of plugins; nil
	// where there are no replicas. A publication that did not change is the same pointer.
	Published map[Key]*Publication
	// Findings is everything that is wrong with the resources, in the order of the files.
	Findings []document.Finding
}

// UnreadableSecret says why a Secret could not be read.
type UnreadableSecret struct {
	// Why is a sentence that says what to do. It holds nothing of the Secret.
	Why string
	// Unsure is true where the source of Secrets could not be asked: there may be one.
	// Otherwise the Secret may not be read, which counts as if there were none.
	Unsure bool
}

// Publication is what the leader has published of one plugin, so that every replica
// serves the same bytes at the same URLs.
type Publication struct {
	// Generation is the one that the publication speaks of. Where the plugin has another
	// by now, the leader has not seen it yet.
	Generation int64
	// URL is the plugin's at that generation, as its author wrote it.
	URL string
	// Resolved is the manifest digest that the tag in URL was resolved to, "" if it was not.
	Resolved string
	// Digest and SHA256 are the manifest and the module that are served, made from the spec
	// of ServedGeneration; "" and 0 if nothing is. Size is the module's, in bytes.
	Digest, SHA256   string
	Size             int64
	ServedGeneration int64
	// Epoch is part of what the module's URL is made from.
	Epoch uint64
	// ServedEpoch is that of what is served: an earlier one where the right to it has ended.
	ServedEpoch uint64
}

// Plugin returns the plugin named k, or nil.
func (w *World) Plugin(k Key) *v1alpha1.WasmPlugin {
	for _, p := range w.Plugins {
		if plugin.KeyOf(p) == k {
			return p
		}
	}
	return nil
}
