package oci

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/secret"
)

func TestTrust_AllowList(t *testing.T) {
	t.Parallel()
	c := newClient(t, Settings{Allow: []string{"r.example", "p.example:5000", "*.apps.example", "*.ports.example:5000", "docker.io", "UPPER.example:443"}})
	for host, want := range map[string]bool{
		"r.example": true, "R.Example": true, "r.example:443": true, "r.example:5000": false, "x.r.example": false, "xr.example": false,
		"p.example:5000": true, "p.example": false,
		"a.apps.example": true, "a.b.apps.example": true, "apps.example": false, "xapps.example": false, "a.apps.example:5000": false, ".apps.example": false,
		"a.ports.example:5000": true, "a.ports.example": false,
		"docker.io": true, "index.docker.io": true, "registry-1.docker.io": true, "upper.example": true, "": false, "other.example": false, "127.0.0.1": false,
	} {
		tr, err := c.Trust(host, "ns")
		if want && (err != nil || tr.Fingerprint().IsZero()) || !want && (!errors.Is(err, Blocked) || tr != Trust{}) {
			t.Errorf("%q: %+v, %v; want %v", host, tr, err, want)
		}
	}
	for _, bad := range []string{"", "*", "*example", "a.*.example", "https://r.example", "u@r.example", "r.example/a"} {
		if _, err := NewClient(Settings{Key: testKey(t), Allow: []string{bad}}); !errors.Is(err, Invalid) {
			t.Errorf("allow %q: %v", bad, err)
		}
	}
}

func TestTrust_NamespacesAndCertificates(t *testing.T) {
	t.Parallel()
	cert := testAuthority().certificate(t, "stile-client")
	trustIn := func(r Registry, namespace string) (Trust, error) {
		t.Helper()
		c, err := NewClient(Settings{Key: testKey(t), Registries: []Registry{r}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.Trust(r.Host, namespace)
	}
	const host = "r.example:5000"
	for name, one := range map[string]struct {
		registry    Registry
		namespace   string
		blocked     bool
		certificate bool
	}{
		"no namespaces":                         {Registry{}, "team-a", false, false},
		"listed":                                {Registry{Namespaces: []string{"team-a"}}, "team-a", false, false},
		"not listed":                            {Registry{Namespaces: []string{"team-a"}}, "team-b", true, false},
		"star":                                  {Registry{Namespaces: []string{"*"}}, "team-b", false, false},
		"no namespace is not everybody":         {Registry{Namespaces: []string{"team-a"}}, "", true, false},
		"the operator":                          {Registry{Namespaces: []string{"team-a"}}, Operator, false, false},
		"certificate without namespaces":        {Registry{Certificate: &cert}, "team-a", false, false},
		"certificate for the listed":            {Registry{Certificate: &cert, Namespaces: []string{"team-a"}}, "team-a", false, true},
		"certificate for the others":            {Registry{Certificate: &cert, Namespaces: []string{"team-a"}}, "team-b", true, false},
		"certificate for the operator":          {Registry{Certificate: &cert}, Operator, false, true},
		"certificate for all, if it is written": {Registry{Certificate: &cert, Namespaces: []string{"*"}}, "team-b", false, true},
	} {
		one.registry.Host = host
		tr, err := trustIn(one.registry, one.namespace)
		if one.blocked != errors.Is(err, Blocked) || !one.blocked && err != nil || tr.value().certificate != one.certificate {
			t.Errorf("%s: %+v, %v", name, tr, err)
		}
	}

	// One way to speak to a host is one fingerprint; another way is another.
	seen := map[secret.Fingerprint]string{}
	for name, r := range map[string]Registry{
		"none": {}, "token host": {TokenHosts: []string{"auth.example"}}, "other token host": {TokenHosts: []string{"login.example"}},
		"token hosts": {TokenHosts: []string{"auth.example", "login.example"}}, "plain": {PlainHTTP: true}, "CA": {CA: testAuthority().pem}, "CA and certificate": {CA: testAuthority().pem, Certificate: &cert, Namespaces: []string{"*"}},
		"certificate": {Certificate: &cert, Namespaces: []string{"*"}},
	} {
		r.Host = host
		a, err := trustIn(r, "team-a")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := trustIn(r, "team-b"); err != nil || a != b {
			t.Errorf("%s: two namespaces that speak alike differ: %v", name, err)
		}
		if other := seen[a.Fingerprint()]; other != "" {
			t.Errorf("%s and %s have one fingerprint", name, other)
		}
		seen[a.Fingerprint()] = name
	}
}

func TestSettings_AllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := NewClient(Settings{Key: testKey(t), Registries: []Registry{
		{Host: "https://a.example"}, {Host: "b.example", CA: []byte("no PEM")}, {Host: "c.example", PlainHTTP: true, Certificate: &tls.Certificate{}},
		{Host: "d.example"}, {Host: "D.example:443"}, {Host: ""},
	}})
	if !errors.Is(err, Invalid) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"registries[0] https://a.example: host:", "registries[1] b.example: CA:", "registries[2] c.example: plainHTTP:", "registries[4] D.example:443: the host is named twice", "registries[5]"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}
