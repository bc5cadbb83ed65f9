package v1alpha1

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"

	"strings"

	"github.com/stileproject/stile/internal/reference"
)

// ModuleURL is where a module comes from, read from spec.url. The zero value is not valid.
//
// +kubebuilder:object:generate=false
type ModuleURL struct {
	// Scheme is "oci", "http", "https" or "file".
	Scheme string
	// Image is the image, for oci alone.
	Image reference.Reference
	// Raw is the URL to ask, for http and https alone. It may hold a query, which may hold a
	// secret: show String instead.
	Raw string
	// Path is the file in the proxy's file system, for file alone.
	Path string
}

// The schemes of module URLs.
const (
	SchemeOCI   = "oci"
	SchemeHTTP  = "http"
	SchemeHTTPS = "https"
	SchemeFile  = "file"
)

// ParseModuleURL reads spec.url. Without a scheme it is an image reference, whatever
// it looks like: 10.0.0.1:5000/a, my_reg:5000/a and [::1]:5000/a are images. Errors
// say what is wrong and never repeat a user name, a password or a query.
func ParseModuleURL(s string) (ModuleURL, error) {
	if s == "" {
		return ModuleURL{}, errors.New("must not be empty: name an image, or a module by http(s):// or file://")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xfffd }) {
		return ModuleURL{}, errors.New("must not contain spaces, control characters or text that is not UTF-8")
	}
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		return parseImage(s)
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case SchemeOCI:
		return parseImage(rest)
	case SchemeHTTP, SchemeHTTPS:
		return parseHTTP(s)
	case SchemeFile:
		if rest == "" || strings.HasSuffix(rest, "/") {
			return ModuleURL{}, errors.New("must name a file: file:///path/in/the/proxy.wasm")
		}
		return ModuleURL{Scheme: SchemeFile, Path: rest}, nil
	default:
		return ModuleURL{}, errors.New("the scheme must be one of oci, http, https and file")
	}
}

// parseImage reads an image reference. What may hide a credential is refused before
// the reference's own parser, whose errors repeat what they were given.
func parseImage(s string) (ModuleURL, error) {
	if s == "" {
		return ModuleURL{}, errors.New("must name an image: oci://host/repository:tag")
	}
	if strings.ContainsAny(s, "?#") {
		return ModuleURL{}, errors.New("an image takes no query and no fragment: remove everything from '?' or '#' on")
	}
	if _, after, found := strings.Cut(s, "@"); found && !strings.HasPrefix(after, "sha256:") {
		if strings.Contains(after, "/") {
			return ModuleURL{}, errors.New("must not hold a user name or password: put them into a Secret and name it in imagePullSecret")
		}
		return ModuleURL{}, errors.New("the digest must be sha256: and 64 lower-case hexadecimal digits")
	}
	r, err := reference.Parse(s)
	if err != nil {
		return ModuleURL{}, err
	}
	return ModuleURL{Scheme: SchemeOCI, Image: r}, nil
}

func parseHTTP(s string) (ModuleURL, error) {
	u, err := url.Parse(s)
	if err != nil {
		// The parser's own error repeats the URL, with whatever secret it holds.
		return ModuleURL{}, errors.New("is not a URL: want http(s)://host[:port]/path")
	}
	switch {
	case u.User != nil:
		return ModuleURL{}, errors.New("must not hold a user name or password")
	case u.Hostname() == "":
		return ModuleURL{}, errors.New("must name a host: http(s)://host[:port]/path")
	case u.Path == "" || u.Path == "/":
		return ModuleURL{}, errors.New("must name a file at the host: http(s)://host[:port]/path")
	}
	if p := u.Port(); p != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return ModuleURL{}, errors.New("the port must be a number from 1 to 65535")
		}
	}
	u.Fragment, u.RawFragment = "", ""
	u.Scheme, u.Host = strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	return ModuleURL{Scheme: u.Scheme, Raw: u.String()}, nil
}

// IsZero reports whether u names nothing.
func (u ModuleURL) IsZero() bool { return u == ModuleURL{} }

// Host returns the registry or server, with its port if one is written; "" for file.
func (u ModuleURL) Host() string {
	switch u.Scheme {
	case SchemeOCI:
		return u.Image.Host()
	case SchemeHTTP, SchemeHTTPS:
		if p, err := url.Parse(u.Raw); err == nil {
			return p.Host
		}
	}
	return ""
}

// String returns the URL as it may be shown to anyone: canonical, and each value of
// a query written as "…".
func (u ModuleURL) String() string {
	switch u.Scheme {
	case SchemeOCI:
		return "oci://" + u.Image.String()
	case SchemeFile:
		return "file://" + u.Path
	case SchemeHTTP, SchemeHTTPS:
		return hideQuery(u.Raw)
	}
	return ""
}

// Format writes String for every verb, so that a query is not printed by accident.
func (u ModuleURL) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(u.String())) }

// MarshalText returns String; JSON and YAML encoders use it.
func (u ModuleURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// hideQuery replaces the values of a URL's query; a part without "=" is hidden whole,
// since it may be a token.
func hideQuery(raw string) string {
	before, query, found := strings.Cut(raw, "?")
	if !found {
		return raw
	}
	parts := strings.Split(query, "&")
	for i, p := range parts {
		if name, _, valued := strings.Cut(p, "="); valued {
			parts[i] = name + "=…"
		} else {
			parts[i] = "…"
		}
	}
	return before + "?" + strings.Join(parts, "&")
}

// DisplayURL returns s as it may be shown to anyone, valid or not: without user name and
// password, each value of a query written as "…".
func DisplayURL(s string) string {
	if u, err := ParseModuleURL(s); err == nil {
		return u.String()
	}
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		scheme, rest = "", s
	} else {
		scheme += "://"
	}
	at := strings.LastIndex(rest, "@")
	if at >= 0 && strings.HasPrefix(rest[at:], "@sha256:") {
		at = strings.LastIndex(rest[:at], "@")
	}
	if at >= 0 {
		rest = "…" + rest[at:]
	}
	if before, _, cut := strings.Cut(rest, "#"); cut {
		rest = before + "#…"
	}
	return hideQuery(scheme + rest)
}
