package content

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/store"
)

// maxConfig bounds an image's config: labels and history, rarely more than 100 KiB.
const maxConfig = 4 << 20

func factsName(digest string) string { return "facts " + digest }

// bundleLabel marks operator bundles.
const bundleLabel = "operators.operatorframework.io.bundle.mediatype.v1"

// imageConfig is what is read of a config: of an image or of a Wasm artifact, which
// name their platform alike.
type imageConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	Config       struct {
		Labels map[string]string `json:"Labels"`
	} `json:"config"`
}

// Facts returns what the image's manifest says, from the store if its source has
// delivered it before, else from the registry. It waits, and fetches no layer.
func (c *Contents) Facts(ctx context.Context, p access.Proof) (Facts, error) {
	if !p.Stands() {
		return Facts{}, ErrNotProven
	}
	if f, ok := c.KnownFacts(p); ok {
		return f, nil
	}
	name := factsName(p.Digest())
	f, err := c.fetchFacts(ctx, p)
	if err != nil {
		return Facts{}, problemOf(err)
	}
	// What was delivered is kept for the source; who may hear it is asked anew.
	data, err := json.Marshal(f)
	if err != nil {
		return Facts{}, fmt.Errorf("encode facts: %w", err)
	}
	if err := c.store.Put(store.Record{Source: p.Source(), Name: name, Namespace: p.Namespace(), Data: data}); err != nil {
		c.log.Warn("content: facts cannot be kept", "image", p.Image().String(), "error", err)
	}
	if !p.Stands() {
		return Facts{}, ErrNotProven
	}
	return f, nil
}

// KnownFacts returns what Facts would, if that needs neither a request nor the disk. It
// never waits; false says that the proof does not stand or that nothing is here.
func (c *Contents) KnownFacts(p access.Proof) (Facts, bool) {
	if !p.Stands() {
		return Facts{}, false
	}
	key := itemKey{p.Source(), p.Digest()}
	c.read.Lock()
	f, ok := c.read.facts[key]
	c.read.Unlock()
	if !ok {
		r, kept := c.store.Get(p.Source(), factsName(p.Digest()))
		if !kept || json.Unmarshal(r.Data, &f) != nil {
			return Facts{}, false
		}
		c.read.Lock()
		if len(c.read.facts) >= maxRead {
			clear(c.read.facts)
		}
		c.read.facts[key] = f
		c.read.Unlock()
	}
	f.Platforms = slices.Clone(f.Platforms)
	return f, true
}

// maxRead bounds the facts that are kept as they were read from the store's records:
// reading costs some microseconds, and replicas come in hundreds.
const maxRead = 4096

// readFacts are facts by who delivered them, and their digest.
type readFacts struct {
	sync.Mutex
	facts map[itemKey]Facts
}

func (c *Contents) fetchFacts(ctx context.Context, p access.Proof) (Facts, error) {
	m, raw, err := c.fetchManifest(ctx, p, p.Digest())
	if err != nil {
		return Facts{}, err
	}
	f := Facts{Digest: p.Digest(), MediaType: m.MediaType, Size: int64(len(raw.Raw)), Platforms: []Platform{}}
	if m.index {
		under := &following{contents: c, proof: p}
		if err := under.index(ctx, m, 1); err != nil {
			return Facts{}, err
		}
		f.Platforms = append(f.Platforms, sortedPlatforms(under.platforms)...)
		if f.Bundle, err = under.isBundle(ctx, m, f.Platforms); err != nil {
			return Facts{}, err
		}
		for _, pl := range f.Platforms {
			f.Wasm = f.Wasm || pl.Architecture == "wasm"
		}
		return f, nil
	}
	if layers, packaging, err := m.candidates(); err == nil && len(layers) > 0 {
		f.Wasm = packaging != "tar"
	}
	config, err := c.fetchConfig(ctx, p, m.Config)
	if err != nil {
		return Facts{}, err
	}
	f.Platforms = append(f.Platforms, config.platforms()...)
	f.Wasm = f.Wasm || config.Architecture == "wasm"
	_, f.Bundle = config.Config.Labels[bundleLabel]
	return f, nil
}

// platforms returns the one that the config names, or none. One that names an architecture
// and no system is for Linux, as container runtimes take it; Wasm is for none.
func (c imageConfig) platforms() []Platform {
	system := c.OS
	if system == "" && c.Architecture != "wasm" {
		system = "linux"
	}
	if system == "" || c.Architecture == "" || system == "unknown" || c.Architecture == "unknown" {
		return nil
	}
	return []Platform{{OS: system, Architecture: c.Architecture, Variant: c.Variant}}
}

// maxFollowed bounds the manifests that are read because an index does not say what
// platform they are for.
const maxFollowed = 16

// following collects the platforms of an index. An entry without a platform is legal: an
// index in the index, an image whose config says it, or something that is no image.
type following struct {
	contents  *Contents
	proof     access.Proof
	read      int
	platforms []Platform
	bundle    bool
}

func (f *following) index(ctx context.Context, m manifest, depth int) error {
	f.platforms = append(f.platforms, m.platforms()...)
	for _, d := range m.Manifests {
		if named := d.Platform != nil && d.Platform.OS != "" && d.Platform.Architecture != ""; named || !d.image() || d.ArtifactType != "" {
			continue
		}
		if f.read++; f.read > maxFollowed {
			return invalid("the index has more than %d entries without a platform: have it name them", maxFollowed)
		}
		under, _, err := f.contents.fetchManifest(ctx, f.proof, d.Digest)
		problem, unreadable := errors.AsType[*Problem](err)
		switch {
		case oci.KindOf(err) == oci.NotFound:
			continue // a sparse index: nobody can run what the repository does not have
		case unreadable && problem.Reason == ReasonModuleInvalid:
			continue // of a kind that no node runs: the other entries count
		case err != nil:
			return err
		case under.index && depth == maxIndexes:
			return invalid("the index leads to an index, %d times: give one that leads to manifests", maxIndexes)
		case under.index:
			err = f.index(ctx, under, depth+1)
		default:
			err = f.manifest(ctx, under)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *following) manifest(ctx context.Context, m manifest) error {
	config, err := f.contents.fetchConfig(ctx, f.proof, m.Config)
	if err != nil {
		return err
	}
	f.platforms = append(f.platforms, config.platforms()...)
	if _, bundle := config.Config.Labels[bundleLabel]; bundle {
		f.bundle = true
	}
	return nil
}

// isBundle reports whether an index is an operator bundle. Tools that build for one
// platform wrap its image in an index, which hides the label: it is looked for there. A
// bundle built for several names the platforms on which it is unpacked.
func (f *following) isBundle(ctx context.Context, m manifest, platforms []Platform) (bool, error) {
	i := slices.IndexFunc(m.Manifests, func(d descriptor) bool { return d.image() && d.ArtifactType == "" })
	if len(platforms) != 1 || i < 0 || f.read > 0 {
		return f.bundle, nil
	}
	under, _, err := f.contents.fetchManifest(ctx, f.proof, m.Manifests[i].Digest)
	problem, unreadable := errors.AsType[*Problem](err)
	switch {
	case oci.KindOf(err) == oci.NotFound, unreadable && problem.Reason == ReasonModuleInvalid, err == nil && under.index:
		return false, nil
	case err != nil:
		return false, err
	}
	config, err := f.contents.fetchConfig(ctx, f.proof, under.Config)
	_, bundle := config.Config.Labels[bundleLabel]
	return bundle, err
}

// fetchConfig reads the config of an image. One that is no JSON object, or none at all
// (artifacts may have an empty one), says nothing.
func (c *Contents) fetchConfig(ctx context.Context, p access.Proof, d descriptor) (imageConfig, error) {
	var config imageConfig
	if d.Digest == "" || !strings.HasSuffix(d.MediaType, "json") {
		return config, nil
	}
	if err := d.check(); err != nil {
		return config, err
	}
	if d.Size > maxConfig {
		return config, &Problem{Reason: ReasonModuleTooLarge, Message: fmt.Sprintf("the image's config has %d bytes, the limit is %d", d.Size, maxConfig)}
	}
	blob, err := c.fetcher.Blob(ctx, p.Image(), d.oci(), p.Credential(), p.Trust())
	if err != nil {
		return config, err
	}
	defer func() { _ = blob.Close() }()
	b, err := readSmall(blob, maxConfig)
	if err != nil {
		return config, err
	}
	if json.Unmarshal(b, &config) != nil {
		config = imageConfig{} // it was delivered and verified; it just says nothing
	}
	return config, nil
}
