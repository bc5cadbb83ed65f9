package content

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/stileproject/stile/internal/access"
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
	name := factsName(p.Digest())
	if r, ok := c.store.Get(p.Source(), name); ok {
		var f Facts
		if json.Unmarshal(r.Data, &f) == nil {
			return f, nil
		}
	}
	f, err := c.fetchFacts(ctx, p)
	if err != nil {
		return Facts{}, problemOf(err)
	}
	data, err := json.Marshal(f)
	if err != nil {
		return Facts{}, fmt.Errorf("encode facts: %w", err)
	}
	if err := c.store.Put(store.Record{Source: p.Source(), Name: name, Namespace: p.Namespace(), Data: data}); err != nil {
		c.log.Warn("content: facts cannot be kept", "image", p.Image().String(), "error", err)
	}
	return f, nil
}

func (c *Contents) fetchFacts(ctx context.Context, p access.Proof) (Facts, error) {
	m, raw, err := c.fetchManifest(ctx, p, p.Digest())
	if err != nil {
		return Facts{}, err
	}
	f := Facts{Digest: p.Digest(), MediaType: m.MediaType, Size: int64(len(raw.Raw)), Platforms: []Platform{}}
	if m.index {
		f.Platforms = append(f.Platforms, m.platforms()...)
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
	if config.OS != "" && config.Architecture != "" && config.OS != "unknown" {
		f.Platforms = append(f.Platforms, Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant})
	}
	f.Wasm = f.Wasm || config.Architecture == "wasm"
	_, f.Bundle = config.Config.Labels[bundleLabel]
	return f, nil
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
