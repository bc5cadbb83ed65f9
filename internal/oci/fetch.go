package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"regexp"
)

// Blob opens the blob d of r's repository. The reader verifies: the Read that would
// return io.EOF returns an *Error of Kind Mismatch instead if size or digest are not
// d's, so what was read to io.EOF is what the digest says, to the last byte. The
// caller closes it, and limits what it writes: d is the registry's word.
func (c *Client) Blob(ctx context.Context, r Reference, d Descriptor, cred Credential, t Trust) (io.ReadCloser, error) {
	name := r.Source() + "@" + d.Digest
	if !digestForm.MatchString(d.Digest) || d.Size < 0 {
		return nil, &Error{Op: "blob", Ref: r.Source(), Kind: Invalid, Err: errors.New("the descriptor has no sha256 digest or no size")}
	}
	s, err := c.session(r.Host(), cred, t)
	if err != nil {
		return nil, in("blob", name, err)
	}
	q := call{method: http.MethodGet, url: s.at(r, "blobs", d.Digest), redirects: true, stream: true}
	a, err := s.ask(ctx, q, r, pull, false)
	if err != nil {
		return nil, in("blob", name, err)
	}
	if a.StatusCode != http.StatusOK {
		e := refusal(a)
		_ = a.Body.Close()
		return nil, in("blob", name, e)
	}
	return &verified{name: name, body: a.Body, want: d, sum: sha256.New()}, nil
}

// verified reads a blob and compares it with its descriptor.
type verified struct {
	name string
	body io.ReadCloser
	want Descriptor
	sum  hash.Hash
	size int64
	err  error // the end, once reached
}

func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.body.Read(p)
	if over := v.size + int64(n) - v.want.Size; over > 0 {
		n -= int(over) // not a byte beyond the size is handed on
		err = v.mismatch("there are more than %d bytes", v.want.Size)
	}
	v.size += int64(n)
	_, _ = v.sum.Write(p[:n])
	switch {
	case errors.Is(err, io.EOF):
		err = v.end()
	case err != nil:
		err = in("blob", v.name, err)
	}
	v.err = err
	return n, err
}

// end returns io.EOF if all is as the descriptor says.
func (v *verified) end() error {
	if v.size != v.want.Size {
		return v.mismatch("there are %d bytes, not %d", v.size, v.want.Size)
	}
	if got := "sha256:" + hex.EncodeToString(v.sum.Sum(nil)); got != v.want.Digest {
		return v.mismatch("the bytes have the digest %s", got)
	}
	return io.EOF
}

func (v *verified) mismatch(format string, args ...any) error {
	return &Error{Op: "blob", Ref: v.name, Kind: Mismatch, Err: fmt.Errorf(format, args...)}
}

func (v *verified) Close() error { return v.body.Close() }

// Download opens an http or https URL, without any credential but what t says, and
// under the same guard as registries. The bytes are what the server sends, not
// decompressed and not verified: the caller limits and verifies them. A body that
// breaks off is an error and no io.EOF.
func (c *Client) Download(ctx context.Context, rawURL string, t Trust) (io.ReadCloser, error) {
	body, _, err := c.DownloadUnless(ctx, rawURL, t, "")
	return body, err
}

// tagForm is that of an ETag that can be sent back.
var tagForm = regexp.MustCompile(`^(W/)?"[!#-~]{0,256}"$`)

// DownloadUnless is Download of what is no longer the version with the tag, which an
// earlier call returned: the body is nil if it still is. An empty tag downloads in any
// case; the tag returned is empty if the server gives none.
func (c *Client) DownloadUnless(ctx context.Context, rawURL string, t Trust, tag string) (io.ReadCloser, string, error) {
	u, err := parseURL(rawURL)
	if err != nil {
		return nil, "", in("download", "", err)
	}
	name := u.Scheme + "://" + hostOf(u) + u.EscapedPath()
	if u.RawQuery != "" {
		name += "?…"
	}
	u.Fragment = ""
	s, err := c.session(hostOf(u), Credential{}, t)
	if err != nil {
		return nil, "", in("download", name, err)
	}
	q := call{method: http.MethodGet, url: u, redirects: true, stream: true}
	if tag != "" {
		q.header = http.Header{"If-None-Match": {tag}}
	}
	a, err := s.send(ctx, q)
	if err != nil {
		return nil, "", in("download", name, err)
	}
	if a.StatusCode == http.StatusNotModified && tag != "" {
		_ = a.Body.Close()
		return nil, tag, nil
	}
	if a.StatusCode != http.StatusOK {
		e := refusal(a)
		_ = a.Body.Close()
		return nil, "", in("download", name, e)
	}
	if tag = a.Header.Get("ETag"); !tagForm.MatchString(tag) {
		tag = ""
	}
	return &named{name: name, ReadCloser: a.Body}, tag, nil
}

// named gives the errors of a download their name.
type named struct {
	name string
	io.ReadCloser
}

func (n *named) Read(p []byte) (int, error) {
	count, err := n.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = in("download", n.name, err)
	}
	return count, err
}
