package content

import (
	"cmp"
	"encoding/json"
	"fmt"
	"mime"
	"regexp"
	"slices"
	"strings"

	"github.com/stileproject/stile/internal/oci"
)

// Limits of what a manifest may say.
const (
	maxLayers    = 256 // images have at most 127 by custom
	maxManifests = 4096
	maxIndexes   = 3 // one index in another
	maxTarLayers = 8 // tar layers that are looked through for the module
)

const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeSchema1        = "application/vnd.docker.distribution.manifest.v1+json"
	typeSchema1Signed  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// Media types of layers that are a module themselves.
var wasmLayers = []string{
	"application/wasm",
	"application/vnd.wasm.content.layer.v1+wasm",
	"application/vnd.module.wasm.content.layer.v1+wasm",
}

// Media types of layers that are archives. Their compression is read off the bytes.
var tarLayers = []string{
	"application/vnd.oci.image.layer.v1.tar",
	"application/vnd.oci.image.layer.v1.tar+gzip",
	"application/vnd.oci.image.layer.v1.tar+zstd",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.diff.tar.gzip",
	"application/vnd.docker.image.rootfs.diff.tar.zstd",
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// descriptor is one as manifests have it. Its urls are left out on purpose: bytes come
// from the repository or not at all.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Platform     *platform         `json:"platform"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

func (d descriptor) oci() oci.Descriptor {
	return oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// manifest is a manifest or an index: which one, kind says.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`
	index         bool
}

// invalid is a Problem that no retry mends: the bytes are what they are.
func invalid(format string, args ...any) *Problem {
	return &Problem{Reason: ReasonModuleInvalid, Message: fmt.Sprintf(format, args...)}
}

// parseManifest reads a manifest or index that was delivered with the given media
// type. Where the document names its own type, that decides.
func parseManifest(raw []byte, mediaType string) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, invalid("the manifest is no JSON that can be read: %v", err)
	}
	if t, _, err := mime.ParseMediaType(mediaType); err == nil {
		mediaType = t
	}
	if m.MediaType == "" {
		m.MediaType = mediaType
	}
	switch m.MediaType {
	case typeOCIManifest, typeDockerManifest:
	case typeOCIIndex, typeDockerList:
		m.index = true
	case typeSchema1, typeSchema1Signed:
		return m, schema1()
	default:
		switch {
		case m.SchemaVersion == 1:
			return m, schema1()
		case len(m.Manifests) > 0 && len(m.Layers) == 0:
			m.index = true
		case len(m.Layers) > 0 && len(m.Manifests) == 0:
		default:
			return m, invalid("the manifest has the media type %q; stile reads OCI and Docker v2 schema 2 manifests and indexes", clip(m.MediaType))
		}
	}
	return m, m.check()
}

func schema1() *Problem {
	return invalid("the image has a Docker schema 1 manifest, which proves nothing about its layers: push it again with a current tool")
}

// check holds the manifest to the limits and its descriptors to their form.
func (m manifest) check() error {
	if len(m.Layers) > maxLayers {
		return invalid("the manifest has %d layers, the limit is %d: build the image with fewer layers", len(m.Layers), maxLayers)
	}
	if len(m.Manifests) > maxManifests {
		return invalid("the index has %d manifests, the limit is %d", len(m.Manifests), maxManifests)
	}
	if m.index && len(m.Layers) > 0 || !m.index && len(m.Manifests) > 0 {
		return invalid("the document has manifests and layers: it is neither an index nor a manifest")
	}
	for _, d := range slices.Concat(m.Layers, m.Manifests) {
		if err := d.check(); err != nil {
			return err
		}
	}
	return nil
}

func (d descriptor) check() error {
	if !digestForm.MatchString(d.Digest) {
		return invalid("the manifest has a descriptor with the digest %q: it must be sha256: and 64 hexadecimal digits", clip(d.Digest))
	}
	if d.Size < 0 {
		return invalid("the manifest has a descriptor of %d bytes (%s)", d.Size, d.Digest)
	}
	return nil
}

// clip makes text from a stranger fit for a message that quotes it.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// platformOrder is how the manifest of an index is chosen.
var platformOrder = []platform{{OS: "wasip1", Architecture: "wasm"}, {OS: "wasi", Architecture: "wasm"}, {OS: "linux", Architecture: "amd64"}}

// choose returns the manifest of an index that holds the module: by platform, or the
// only one there is.
func (m manifest) choose() (descriptor, error) {
	usable := slices.DeleteFunc(slices.Clone(m.Manifests), func(d descriptor) bool { return !d.image() })
	for _, want := range platformOrder {
		for _, d := range usable {
			if d.Platform != nil && d.Platform.OS == want.OS && d.Platform.Architecture == want.Architecture {
				return d, nil
			}
		}
	}
	if len(usable) == 1 {
		return usable[0], nil
	}
	var have []string
	for _, d := range usable {
		have = append(have, d.Platform.String())
	}
	slices.Sort(have)
	return descriptor{}, invalid("the index has no manifest for wasip1/wasm, wasi/wasm or linux/amd64; it has: %s", listing(have))
}

// image reports whether the descriptor is one of an image that runs somewhere: no
// attestation, signature or the like.
func (d descriptor) image() bool {
	if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
		return false
	}
	switch d.MediaType {
	case typeOCIManifest, typeOCIIndex, typeDockerManifest, typeDockerList, "":
	default:
		return false
	}
	return d.Platform == nil || d.Platform.OS != "unknown" && d.Platform.Architecture != "unknown"
}

// String returns os/architecture[/variant]; a missing platform is "none given".
func (p *platform) String() string {
	if p == nil {
		return "none given"
	}
	s := clip(p.OS) + "/" + clip(p.Architecture)
	if p.Variant != "" {
		s += "/" + clip(p.Variant)
	}
	return s
}

// listing joins names for a message, at most ten of them.
func listing(names []string) string {
	const most = 10
	if len(names) == 0 {
		return "nothing"
	}
	for i := range names {
		names[i] = fmt.Sprintf("%q", clip(names[i]))
	}
	if n := len(names); n > most {
		names = append(names[:most:most], fmt.Sprintf("and %d more", n-most))
	}
	return strings.Join(names, ", ")
}

// candidates returns the layers in which the module may be, in the order in which
// they are to be looked into, and its packaging. A layer that is itself a module
// decides; several of those are an error. Of archives, the upper layer hides the lower.
func (m manifest) candidates() ([]descriptor, string, error) {
	var modules, archives []descriptor
	var types []string
	for _, l := range m.Layers {
		types = append(types, l.MediaType)
		switch {
		case slices.Contains(wasmLayers, l.MediaType):
			modules = append(modules, l)
		case slices.Contains(tarLayers, l.MediaType):
			archives = append(archives, l)
		}
	}
	switch {
	case len(modules) == 1:
		if m.declaresWasm() {
			return modules, "artifact", nil
		}
		return modules, "layer", nil
	case len(modules) > 1:
		var have []string
		for _, l := range modules {
			have = append(have, l.MediaType+" "+l.Digest)
		}
		return nil, "", invalid("the manifest has %d layers that are modules, and which one is meant cannot be told: %s; push one module to an image", len(modules), listing(have))
	case len(archives) > 0:
		slices.Reverse(archives)
		return archives[:min(len(archives), maxTarLayers)], "tar", nil
	default:
		return nil, "", invalid("the manifest has no layer that is a Wasm module or an archive; its layers are: %s", listing(types))
	}
}

// declaresWasm reports whether the config or artifact type says Wasm artifact.
func (m manifest) declaresWasm() bool {
	return strings.HasPrefix(m.Config.MediaType, "application/vnd.wasm.config.") || strings.HasPrefix(m.ArtifactType, "application/vnd.wasm.config.")
}

// platforms returns those of an index's images, sorted, without duplicates.
func (m manifest) platforms() []Platform {
	var all []Platform
	for _, d := range m.Manifests {
		if p := d.Platform; p != nil && d.image() && p.OS != "" && p.Architecture != "" {
			all = append(all, Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
		}
	}
	return sortedPlatforms(all)
}

func sortedPlatforms(all []Platform) []Platform {
	slices.SortFunc(all, func(a, b Platform) int {
		return cmp.Or(cmp.Compare(a.OS, b.OS), cmp.Compare(a.Architecture, b.Architecture), cmp.Compare(a.Variant, b.Variant))
	})
	return slices.Compact(all)
}
