package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// Push puts a module into an image at ref and returns the manifest's digest. Blobs
// that the repository has are not sent again. Equal modules in one layout have one
// digest; a ref with a digest must have that one.
func (c *Client) Push(ctx context.Context, module []byte, ref Reference, layout Layout, cred Credential, t Trust) (string, error) {
	im, err := lay(module, layout)
	if err != nil {
		return "", &Error{Op: "push", Ref: ref.String(), Kind: Invalid, Err: err}
	}
	if d := ref.Digest(); d != "" && d != im.manifest.Digest {
		return "", &Error{Op: "push", Ref: ref.String(), Kind: Mismatch, Err: fmt.Errorf("the image is %s", im.manifest.Digest)}
	}
	s, err := c.session(ref.Host(), cred, t)
	if err == nil {
		err = s.push(ctx, ref, im)
	}
	if err != nil {
		return "", in("push", ref.String(), err)
	}
	return im.manifest.Digest, nil
}

func (s *session) push(ctx context.Context, ref Reference, im image) error {
	for _, b := range im.blobs {
		if err := s.pushBlob(ctx, ref, b); err != nil {
			return err
		}
	}
	_, err := s.tell(ctx, ref, call{
		method: http.MethodPut, url: s.manifestURL(ref), body: im.manifest.content,
		header: http.Header{"Content-Type": {im.manifest.MediaType}},
	}, http.StatusCreated)
	return err
}

func (s *session) pushBlob(ctx context.Context, ref Reference, b blob) error {
	if _, err := s.tell(ctx, ref, call{method: http.MethodHead, url: s.at(ref, "blobs", b.Digest)}, http.StatusOK); err == nil {
		return nil
	}
	header, err := s.tell(ctx, ref, call{method: http.MethodPost, url: s.at(ref, "blobs", "uploads", ""), body: []byte{}}, http.StatusAccepted)
	if err != nil {
		return err
	}
	to, err := destination(s.base, header.Get("Location"))
	if err != nil {
		return err
	}
	query := to.Query()
	query.Set("digest", b.Digest)
	to.RawQuery = query.Encode()
	_, err = s.tell(ctx, ref, call{
		method: http.MethodPut, url: to, body: b.content,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
	}, http.StatusCreated)
	return err
}

// tell sends q with the right to push and expects a status.
func (s *session) tell(ctx context.Context, ref Reference, q call, want int) (http.Header, error) {
	a, err := s.ask(ctx, q, ref, pullPush, false)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Body.Close() }()
	if a.StatusCode != want {
		return nil, refusal(a)
	}
	return a.Header, nil
}

// destination returns where a Location header points.
func destination(from *url.URL, location string) (*url.URL, error) {
	fault := func(kind Kind, what string) (*url.URL, error) {
		return nil, &Error{Kind: kind, Err: errors.New(what)}
	}
	to, err := from.Parse(location)
	switch {
	case location == "" || err != nil:
		return fault(Unavailable, "it redirects to nowhere")
	case to.Scheme == "http" && from.Scheme == "https":
		return fault(Blocked, "it redirects from https to http")
	case to.Scheme != "http" && to.Scheme != "https", to.User != nil, to.Hostname() == "":
		return fault(Blocked, "it redirects to what is no plain https URL")
	}
	to.Fragment = ""
	return to, nil
}
