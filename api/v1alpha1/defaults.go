package v1alpha1

// EffectivePhase returns the phase, PhaseUnspecified where it is unset.
func (s *WasmPluginSpec) EffectivePhase() PluginPhase {
	if s.Phase == "" {
		return PhaseUnspecified
	}
	return s.Phase
}

// EffectivePriority returns the priority, 0 where it is unset.
func (s *WasmPluginSpec) EffectivePriority() int32 {
	if s.Priority == nil {
		return 0
	}
	return *s.Priority
}

// EffectiveType returns TypeNetwork, or TypeHTTP for everything else.
func (s *WasmPluginSpec) EffectiveType() PluginType {
	if s.Type == TypeNetwork {
		return TypeNetwork
	}
	return TypeHTTP
}

// EffectiveFailStrategy returns the fail strategy; FailClose where it is unset or is
// no strategy at all: what is not understood must not open.
func (s *WasmPluginSpec) EffectiveFailStrategy() FailStrategy {
	switch s.FailStrategy {
	case FailOpen, FailReload:
		return s.FailStrategy
	}
	return FailClose
}

// EffectivePullPolicy returns PullAlways or PullIfNotPresent. What is pinned by a digest
// never changes, so its policy is PullIfNotPresent whatever is written. Unset, it is
// PullAlways for an image tagged latest or not tagged at all, as in Kubernetes.
func (s *WasmPluginSpec) EffectivePullPolicy() PullPolicy {
	u, err := ParseModuleURL(s.URL)
	pinned := s.SHA256 != "" || err == nil && u.Image.Digest() != ""
	switch {
	case pinned:
		return PullIfNotPresent
	case s.ImagePullPolicy == PullAlways || s.ImagePullPolicy == PullIfNotPresent:
		return s.ImagePullPolicy
	case err == nil && u.Scheme == SchemeOCI && u.Image.Tag() == "latest":
		return PullAlways
	}
	return PullIfNotPresent
}

// EffectiveMode returns the mode; ModeClientAndServer where it is unset.
func (t *TrafficSelector) EffectiveMode() WorkloadMode {
	if t.Mode == ModeClient || t.Mode == ModeServer {
		return t.Mode
	}
	return ModeClientAndServer
}

// ECDSName returns the name under which proxies ask for the plugin.
func (p *WasmPlugin) ECDSName() string {
	return ECDSNamePrefix + p.Namespace + "." + p.Name
}

// ECDSNamePrefix begins the name of every extension configuration that is a plugin.
const ECDSNamePrefix = "extensions.istio.io/wasmplugin/"
