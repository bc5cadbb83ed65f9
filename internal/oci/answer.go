package oci

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxErrorBody is how much of an error answer is read to see whose it is.
const maxErrorBody = 64 << 10

// knownCodes are the error codes of the distribution specification and of the Docker
// registry. Only these are repeated in messages: a registry may write anything,
// the credential it was just sent too.
var knownCodes = []string{
	"BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
	"MANIFEST_INVALID", "MANIFEST_UNKNOWN", "MANIFEST_UNVERIFIED", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID",
	"TAG_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS", "UNAVAILABLE", "UNKNOWN",
}

// kindOf says what an HTTP status means for a question about an image. All that is
// not listed is no answer: it turns no yes into a no and no no into a yes.
func kindOf(status int) Kind {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusPreconditionFailed, http.StatusUnavailableForLegalReasons:
		return Unauthorized
	case http.StatusNotFound, http.StatusGone:
		return NotFound
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusUnsupportedMediaType:
		return Invalid
	}
	return Unavailable
}

// refusal turns an answer that is not a success into an Error. It reads the body, and
// the caller closes it.
func refusal(resp *answer) *Error {
	e := &Error{
		Kind:         kindOf(resp.StatusCode),
		Status:       resp.StatusCode,
		Account:      resp.account,
		FromRegistry: resp.Header.Get("Docker-Distribution-Api-Version") != "",
		RetryAfter:   retryAfter(resp.Header, time.Now()),
	}
	codes, ok := errorCodes(resp.Response)
	e.FromRegistry = e.FromRegistry || ok
	if slices.Contains(codes, "TOOMANYREQUESTS") {
		e.Kind = Unavailable // some registries say so with 403
	}
	if len(codes) > 0 {
		e.Err = errors.New("the registry says " + strings.Join(codes, ", "))
	}
	return e
}

// errorCodes returns the known codes of an OCI error answer, and whether it is one.
func errorCodes(resp *http.Response) ([]string, bool) {
	if resp.Body == nil {
		return nil, false
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return nil, false
	}
	var answer struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 || answer.Errors[0].Code == "" {
		return nil, false
	}
	var codes []string
	for _, e := range answer.Errors {
		if slices.Contains(knownCodes, e.Code) && !slices.Contains(codes, e.Code) {
			codes = append(codes, e.Code)
		}
	}
	return codes, true
}

// retryAfter reads Retry-After, seconds or a date, clamped to MaxRetryAfter.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	var d time.Duration
	if n, err := strconv.ParseInt(value, 10, 64); err == nil {
		d = time.Duration(min(max(n, 0), int64(MaxRetryAfter/time.Second))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), MaxRetryAfter)
}

// errStalled is the cause with which a request is cancelled that takes too long.
var errStalled = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

// unanswered turns a failure to get an answer into an Error. Its text is made of
// what stile knows: errors of the http and tls packages quote what the server sent.
func unanswered(ctx context.Context, err error) *Error {
	e := &Error{Kind: Unavailable, Err: errors.New("the connection broke before a whole answer came")}
	if refused, ok := guarded(err); ok {
		return &Error{Kind: Blocked, Err: refused}
	}
	if cause := context.Cause(ctx); cause != nil {
		e.Err = errors.New("given up")
		if errors.Is(cause, errStalled) {
			e.Err = errStalled
		} else if ctx.Err() != nil {
			e.Err = ctx.Err()
		}
		return e
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		e.Err = errors.New("the host's name could not be looked up")
		if dns.IsNotFound {
			e.Err = errors.New("the host's name is not known")
		}
		return e
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		e.Err = errors.New("the port does not speak TLS: if it must be plain HTTP, name the host under registries with plainHTTP")
		return e
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		e.Err = errors.New("the certificate is for another host")
		return e
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		e.Err = errors.New("the certificate is signed by an unknown authority: give its CA under registries")
		return e
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Err = errors.New("the certificate is not valid (expired, or not for this use)")
		return e
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		e.Err = fmt.Errorf("the server ended the TLS handshake: %s", alert.Error())
		return e
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		e.Err = errno
		return e
	}
	return e
}

// in returns err as an Error of operation op on ref.
func in(op, ref string, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return &Error{Op: op, Ref: ref, Kind: Unavailable, Err: err}
	}
	own := *e
	own.Op, own.Ref = op, ref
	return &own
}
