package oci

import (
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/oci/localregistry"
)

// An error names the operation and the image, says what happened, and what to do
// where something can be done.
func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	foreign := newAuthority().certificate(t, "127.0.0.1")
	other := testAuthority().certificate(t, "other.test")
	plain, unsigned, misnamed := newServer(t, "127.0.0.1", nil), newServer(t, "127.0.0.1", &foreign), newServer(t, "127.0.0.1", &other)
	c := newClient(t, Settings{AllowLoopback: true})
	c.roots = testAuthority().pool
	c.guard.resolver = (&names{answers: map[string][]string{"private.test": {"10.0.0.1"}, "metadata.test": {"169.254.169.254"}}}).resolver()
	for host, want := range map[string]string{
		plain.host:      "unavailable: the port does not speak TLS: if it must be plain HTTP, name the host under registries with plainHTTP",
		unsigned.host:   "unavailable: the certificate is signed by an unknown authority: give its CA under registries",
		misnamed.host:   "unavailable: the certificate is for another host",
		"127.0.0.1:1":   "unavailable: connection refused",
		"unknown.test":  "unavailable: the host's name is not known",
		"private.test":  "blocked: 10.0.0.1 is a private address: name the host under registries to allow it",
		"metadata.test": "blocked: 169.254.169.254 is an address that is never asked (link-local, metadata, unspecified, multicast or reserved)",
	} {
		r := ref(t, host+"/a/p:v1")
		_, err := c.Check(t.Context(), r, Credential{}, trust(t, c, r), CheckOptions{})
		if err == nil || err.Error() != "check "+r.String()+": "+want {
			t.Errorf("%s:\n got %v\nwant check %s: %s", host, err, r, want)
		}
	}
	f := newFixture(t, localregistry.Options{}, Settings{})
	for name, one := range map[string]struct {
		credential Credential
		want       string
	}{
		"no right":       {f.bob, "unauthorized (401)"},
		"wrong password": {NewCredential(testKey(t), "s", "bob", "x"), "unauthorized (401): the registry's token endpoint refuses the credential"},
		"nobody":         {Credential{}, "unauthorized (401): asked without a credential, because no pull secret has an entry for this repository"},
	} {
		_, err := f.client.Check(t.Context(), f.image, one.credential, f.trust, CheckOptions{})
		if err == nil || !strings.HasPrefix(err.Error(), "check "+f.image.String()+": "+one.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
