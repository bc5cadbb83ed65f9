package engine

import (
	"errors"
	"io"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/preflight"
)

// Trials tries modules before they ship. Verdict answers from memory and never waits.
type Trials interface {
	Verdict(preflight.Subject) (preflight.Verdict, error)
	Changes() <-chan struct{}
}

// tried asks whether a module starts and takes its configuration, where the operator
// wants to know. It reports whether the module must not ship: it failed and that is
// enforced, or it is enforced and not known yet.
func (e *Engine) tried(ps *pluginState, o outcome, m content.Module, open func() (io.ReadSeekCloser, error)) (outcome, bool) {
	if e.rooms.Trials == nil || e.cfg.Preflight == v1alpha1.PreflightOff || e.cfg.Preflight == "" {
		return o, false
	}
	config, err := ps.spec.Spec.PluginConfig.Canonical()
	if err != nil {
		return o, false // translation says so
	}
	verdict, err := e.rooms.Trials.Verdict(preflight.Subject{
		Namespace: ps.key.Namespace, SHA256: m.SHA256, Size: m.Size, Config: config, Env: inlineEnv(ps.spec),
		Open: func() (io.ReadCloser, error) { return open() },
	})
	enforced := e.cfg.Preflight == v1alpha1.PreflightEnforce
	switch {
	case errors.Is(err, preflight.ErrPending):
		if enforced {
			return o.because(pending, v1alpha1.ReasonPending, "the module is being tried with its configuration"), true
		}
	case err != nil:
		e.log.Warn("a module could not be tried", "plugin", ps.key, "fault", err)
	case verdict.Outcome == preflight.Rejected && enforced:
		return o.because(refused, v1alpha1.ReasonModuleRejectedConfig, "%s: %s", verdict.Message, verdict.Fix), true
	case verdict.Outcome == preflight.Rejected && ps.warned != m.SHA256:
		ps.warned = m.SHA256
		e.log.Warn("a module will be refused by proxies", "plugin", ps.key, "fault", verdict.Message, "remedy", verdict.Fix)
	}
	return o, false
}

// inlineEnv are the variables whose values the document itself gives.
func inlineEnv(p *v1alpha1.WasmPlugin) map[string]string {
	if p.Spec.VMConfig == nil {
		return nil
	}
	env := map[string]string{}
	for _, v := range p.Spec.VMConfig.Env {
		if v.ValueFrom != v1alpha1.EnvHost && v.Value != nil {
			env[v.Name] = *v.Value
		}
	}
	return env
}
