package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// accept lists the manifests and indexes that stile understands. Registries answer
// 404 for an image of another form than those listed.
var accept = http.Header{"Accept": {strings.Join([]string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}, ", ")}}

var digestForm = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)

// Check asks whether the credential may read r, and what digest it is. It costs one
// request once a token is held: a HEAD, and a GET only where the HEAD was answered
// badly, without a digest, or with a refusal that does not look like a registry's.
// Every failure is an *Error.
func (c *Client) Check(ctx context.Context, r Reference, cred Credential, t Trust, o CheckOptions) (Descriptor, error) {
	d, err := c.check(ctx, r, cred, t, o)
	if err != nil {
		return Descriptor{}, in("check", r.String(), err)
	}
	return d, nil
}

func (c *Client) check(ctx context.Context, r Reference, cred Credential, t Trust, o CheckOptions) (Descriptor, error) {
	s, err := c.session(r.Host(), cred, t)
	if err != nil {
		return Descriptor{}, err
	}
	if !o.Get {
		d, settled, err := s.head(ctx, r, o.FreshToken)
		if settled {
			return d, s.explain(err)
		}
		o.FreshToken = false // what head used is fresh enough
	}
	m, err := s.manifest(ctx, r, o.FreshToken)
	return m.Descriptor, s.explain(err)
}

// explain says of a refusal that it was met without any credential. It says no more
// than that: a verdict is shared by those who have the same right, and the name of
// one's Secret is not the others' business.
func (s *session) explain(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != Unauthorized || !s.credential.Anonymous() {
		return err
	}
	own := *e
	own.Err = errors.New("asked without a credential, because no pull secret has an entry for this repository")
	if e.Err != nil {
		own.Err = fmt.Errorf("%w: %w", own.Err, e.Err)
	}
	return &own
}

// head asks by HEAD. It is not settled where a GET must be asked.
func (s *session) head(ctx context.Context, r Reference, fresh bool) (_ Descriptor, settled bool, _ error) {
	a, err := s.ask(ctx, call{method: http.MethodHead, url: s.manifestURL(r), header: accept, redirects: true}, r, pull, fresh)
	if err != nil {
		return Descriptor{}, true, err
	}
	defer func() { _ = a.Body.Close() }()
	if a.StatusCode == http.StatusOK {
		d := Descriptor{MediaType: mediaType(a.Header), Digest: a.Header.Get("Docker-Content-Digest"), Size: max(a.ContentLength, 0)}
		settled = digestForm.MatchString(d.Digest) && (r.Digest() == "" || r.Digest() == d.Digest)
		return d, settled, nil
	}
	e := refusal(a)
	switch {
	case e.Kind == Invalid, a.StatusCode == http.StatusNotImplemented:
		return Descriptor{}, false, e
	case e.Kind == Unavailable:
		return Descriptor{}, true, e
	}
	return Descriptor{}, e.FromRegistry, e
}

// Manifest reads the manifest or index r, of MaxManifest bytes at most. Its digest is
// computed, and must be r's where r has one and the registry's where that names one.
func (c *Client) Manifest(ctx context.Context, r Reference, cred Credential, t Trust) (Manifest, error) {
	s, err := c.session(r.Host(), cred, t)
	if err != nil {
		return Manifest{}, in("manifest", r.String(), err)
	}
	m, err := s.manifest(ctx, r, false)
	if err != nil {
		return Manifest{}, in("manifest", r.String(), err)
	}
	return m, nil
}

func (s *session) manifest(ctx context.Context, r Reference, fresh bool) (Manifest, error) {
	m, claimed, err := s.read(ctx, s.manifestURL(r), r, fresh)
	switch {
	case err != nil:
		return Manifest{}, err
	case r.Digest() != "" && r.Digest() != m.Digest:
		return Manifest{}, &Error{Kind: Mismatch, Status: http.StatusOK, Err: fmt.Errorf("the registry delivered %s", m.Digest)}
	case digestForm.MatchString(claimed) && claimed != m.Digest:
		return Manifest{}, &Error{Kind: Mismatch, Status: http.StatusOK, Err: errors.New("the registry delivered other bytes than it announced")}
	case r.Digest() == "" && !isManifest(m.Raw):
		// The page of an ingress or a captive portal, perhaps: it answers 200 to anything.
		return Manifest{}, errNoManifest()
	}
	return m, nil
}

// Referrers reads the index of the manifests that name r as their subject: signatures,
// attestations. r must have a digest. The index is made by the registry on each
// request, so its digest is nobody's promise; of a long list that the registry cuts
// into pages it is the first page. Where the registry has no such list, the error is
// of Kind NotFound.
func (c *Client) Referrers(ctx context.Context, r Reference, cred Credential, t Trust) (Manifest, error) {
	if r.Digest() == "" {
		return Manifest{}, &Error{Op: "referrers", Ref: r.String(), Kind: Invalid, Err: errors.New("the reference has no digest")}
	}
	s, err := c.session(r.Host(), cred, t)
	if err != nil {
		return Manifest{}, in("referrers", r.String(), err)
	}
	m, _, err := s.read(ctx, s.at(r, "referrers", r.Digest()), r, false)
	if err == nil && !isManifest(m.Raw) {
		err = errNoManifest()
	}
	if err != nil {
		return Manifest{}, in("referrers", r.String(), err)
	}
	return m, nil
}

func errNoManifest() error {
	return &Error{Kind: Unavailable, Status: http.StatusOK, Err: errors.New("the answer is no manifest")}
}

// read reads a manifest or index of MaxManifest bytes at most, and the digest that the
// registry claims for it.
func (s *session) read(ctx context.Context, u *url.URL, r Reference, fresh bool) (m Manifest, claimed string, err error) {
	a, err := s.ask(ctx, call{method: http.MethodGet, url: u, header: accept, redirects: true}, r, pull, fresh)
	if err != nil {
		return Manifest{}, "", err
	}
	defer func() { _ = a.Body.Close() }()
	if a.StatusCode != http.StatusOK {
		return Manifest{}, "", refusal(a)
	}
	raw, err := io.ReadAll(io.LimitReader(a.Body, MaxManifest+1))
	if err != nil {
		return Manifest{}, "", err
	}
	if len(raw) > MaxManifest {
		return Manifest{}, "", &Error{Kind: TooLarge, Status: a.StatusCode, Err: fmt.Errorf("the manifest is larger than %d bytes", MaxManifest)}
	}
	sum := sha256.Sum256(raw)
	m = Manifest{Descriptor: Descriptor{MediaType: mediaType(a.Header), Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(raw))}, Raw: raw}
	return m, a.Header.Get("Docker-Content-Digest"), nil
}

// isManifest reports whether raw has what every manifest and index has.
func isManifest(raw []byte) bool {
	var m struct {
		SchemaVersion int `json:"schemaVersion"`
	}
	return json.Unmarshal(raw, &m) == nil && m.SchemaVersion > 0
}

func (s *session) manifestURL(r Reference) *url.URL {
	if r.Digest() != "" {
		return s.at(r, "manifests", r.Digest())
	}
	return s.at(r, "manifests", r.Tag())
}

// mediaType returns the Content-Type without parameters; what is no media type is "".
func mediaType(h http.Header) string {
	t, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	t = strings.TrimSpace(t)
	if len(t) > 127 || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return ""
	}
	return t
}
