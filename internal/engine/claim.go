package engine

import (
	"errors"
	"fmt"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
)

// claim is what a plugin asks of the rooms: where its module is, who it is there, and
// how that host may be reached. It is made from the plugin and the world alone and
// kept until either changes.
type claim struct {
	url         v1alpha1.ModuleURL
	keyring     oci.Keyring // of the plugin's pull secret
	credentials oci.Credentials
	trust       oci.Trust
	always      bool     // pull policy Always
	refused     *refusal // why nothing can be asked
	unsure      bool     // the Secret may be where nothing can be read
}

// refusal is a reason of ResolvedRefs and what to do about it.
type refusal struct{ reason, message string }

// secretSource identifies a Secret's content: sources make a new value when it changes.
type secretSource = document.Secret

// claim reads what the plugin asks. Secrets are parsed once and shared.
func (e *Engine) claim(p *v1alpha1.WasmPlugin) claim {
	u, err := v1alpha1.ParseModuleURL(p.Spec.URL)
	if err != nil {
		return claim{refused: &refusal{v1alpha1.ReasonSourceNotAllowed, err.Error()}}
	}
	if p.Spec.VerificationKey != "" && u.Scheme != v1alpha1.SchemeOCI {
		return claim{refused: &refusal{v1alpha1.ReasonSignatureInvalid, "only images carry signatures, and nothing is run unverified: push the module to a registry, or remove spec.verificationKey"}}
	}
	c := claim{url: u, always: p.Spec.EffectivePullPolicy() == v1alpha1.PullAlways}
	switch u.Scheme {
	case v1alpha1.SchemeFile:
		return c
	case v1alpha1.SchemeOCI:
		c.keyring, c.refused = e.keyring(p)
		if c.refused != nil {
			c.unsure = c.refused.reason == v1alpha1.ReasonPullSecretNotFound &&
				(len(e.world.Unreadable) > 0 || e.world.UnreadableSecrets[secretOf(p)].Unsure)
			return c
		}
		c.credentials, err = c.keyring.For(u.Image)
		if err != nil {
			c.refused = &refusal{v1alpha1.ReasonPullSecretInvalid, err.Error()}
			return c
		}
	}
	c.trust, err = e.rooms.Registries.Trust(u.Host(), p.Namespace)
	if err != nil {
		c.refused = &refusal{v1alpha1.ReasonSourceNotAllowed, err.Error()}
	}
	return c
}

// keyring returns the entries of the plugin's pull secret: none if it names none. A
// Secret that is named and missing is a refusal, never an anonymous try.
func (e *Engine) keyring(p *v1alpha1.WasmPlugin) (oci.Keyring, *refusal) {
	name := p.Spec.ImagePullSecret
	if name == "" {
		return oci.Keyring{}, nil
	}
	s := e.world.Secrets[secretOf(p)]
	if why := e.world.UnreadableSecrets[secretOf(p)].Why; s == nil && why != "" {
		return oci.Keyring{}, &refusal{v1alpha1.ReasonPullSecretNotFound, why}
	}
	if s == nil {
		return oci.Keyring{}, &refusal{
			v1alpha1.ReasonPullSecretNotFound,
			fmt.Sprintf("pull secret %s/%s does not exist: create it in the plugin's namespace, or remove spec.imagePullSecret", p.Namespace, name),
		}
	}
	if k, ok := e.keyrings[s]; ok {
		return k, nil
	}
	k, err := oci.ParsePullSecret(e.cfg.Fingerprints, "pull secret "+p.Namespace+"/"+name, s.Type, s.Data)
	if err != nil {
		return oci.Keyring{}, &refusal{v1alpha1.ReasonPullSecretInvalid, message(err)}
	}
	for _, w := range k.Warnings() {
		e.log.Warn("pull secret has an entry that cannot be used", "secret", p.Namespace+"/"+name, "fault", w)
	}
	e.keyrings[s] = k
	return k, nil
}

// secretOf names the plugin's pull secret.
func secretOf(p *v1alpha1.WasmPlugin) plugin.Key {
	return plugin.Key{Namespace: p.Namespace, Name: p.Spec.ImagePullSecret}
}

// message is an error in words for a status: an oci.Error says more than its kind.
func message(err error) string {
	var oe *oci.Error
	if errors.As(err, &oe) {
		return oe.Error()
	}
	return err.Error()
}
