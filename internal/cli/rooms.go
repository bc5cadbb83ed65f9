package cli

import (
	"io"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/secret"
)

// What each room is told of the configuration.

func gateConfig(cfg *v1alpha1.Config, log *slog.Logger, registerer prometheus.Registerer, audit io.Writer) access.Config {
	a := cfg.Access
	c := access.Config{
		Recheck: a.Recheck.Duration, Forget: a.Forget.Duration,
		Grace: a.Grace.Duration, GraceWhileAnswering: a.GraceWhileAnswering.Duration,
		Timeout: a.Timeout.Duration, Attempts: a.Retry.Attempts,
		DeniedFirst: a.Denied.First.Duration, DeniedMax: a.Denied.Max.Duration, ConfirmAfter: a.Denied.ConfirmAfter.Duration,
		UnauthorizedFirst: a.Unauthorized.First.Duration, UnauthorizedMax: a.Unauthorized.Max.Duration,
		MaxProofs: a.MaxProofs, MaxPerNamespace: a.MaxPerNamespace, MaxInFlight: cfg.Fetch.MaxInFlight,
		Registries: map[string]access.RegistryConfig{},
		Log:        log, Registerer: registerer, Audit: audit,
	}
	for _, r := range cfg.Registries {
		c.Registries[canonicalHost(r.Host)] = access.RegistryConfig{Grace: r.Grace.Duration, MaxInFlight: r.MaxInFlight}
	}
	return c
}

func contentConfig(cfg *v1alpha1.Config, root secret.Root, log *slog.Logger, registerer prometheus.Registerer) content.Config {
	inline := int64(cfg.XDS.InlineMaxModule)
	if inline == 0 {
		inline = -1 // the configuration's 0 is "none does", the room's is its default
	}
	return content.Config{
		InlineMax: inline, MaxModule: int64(cfg.Fetch.MaxModuleSize), Timeout: cfg.Fetch.Timeout.Duration,
		Keys: rowKeys(root), Log: log, Registerer: registerer,
	}
}

// rowKeys are the keys of stored rows, the one for writing first.
func rowKeys(root secret.Root) []secret.Key {
	keys := []secret.Key{root.Key(secret.ForRows)}
	if previous, ok := root.Previous(secret.ForRows); ok {
		keys = append(keys, previous)
	}
	return keys
}

func engineConfig(cfg *v1alpha1.Config, root secret.Root, log *slog.Logger) engine.Config {
	return engine.Config{
		RootNamespace: cfg.RootNamespace, EnvoyDefault: cfg.Envoy.Default, Nodes: cfg.Envoy.Nodes, Anchors: cfg.Envoy.Anchors,
		ModulesURL: cfg.Modules.URL, InlineMax: int64(cfg.XDS.InlineMaxModule), Runtime: cfg.Wasm.Runtime, HostEnvAllow: cfg.Wasm.HostEnvAllow,
		OnRevoked: cfg.Access.OnRevoked, WarmHold: cfg.XDS.WarmHold.Duration, Rotation: cfg.Access.Rotation.Duration,
		RefreshAlways: cfg.Fetch.RefreshAlways.Duration, Preflight: cfg.Wasm.Preflight,
		Fingerprints: root.Key(secret.ForFingerprints), URLs: root.Key(secret.ForURLs), Log: log,
	}
}
