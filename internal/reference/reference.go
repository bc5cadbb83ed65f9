// Package reference reads image references: host, repository, tag, digest. Its one
// rule: every spelling of an image becomes one comparable value, and nothing is
// looked up.
package reference

import (
	"fmt"
	"hash/maphash"
	"net"
	"regexp"
	"strconv"
	"strings"
	"unique"
)

const (
	// DockerHub is the canonical host of Docker Hub, the host of references that name none.
	DockerHub = "index.docker.io"
	// DefaultTag is the tag of a reference that has neither tag nor digest.
	DefaultTag = "latest"
	// MaxRepository is the longest repository name that registries take, by the
	// distribution specification.
	MaxRepository = 255
)

// Reference is one image: a repository at a registry and, in it, a tag or a digest.
// Equal references name the same image, whatever their spelling was. The zero value
// names nothing. References are immutable, comparable and three words long: the names
// of one image are kept once.
type Reference struct {
	of     unique.Handle[names]
	digest string // of's own
}

// names are what a Reference stands for.
type names struct {
	host, repository string
	tag              string // empty if digest is set: a digest decides alone
	digest           string
}

func intern(n names) Reference {
	of := unique.Make(n)
	return Reference{of: of, digest: of.Value().digest}
}

// names returns what r stands for; nothing for the zero Reference.
func (r Reference) names() names {
	if r.IsZero() {
		return names{}
	}
	return r.of.Value()
}

// seed makes hashes that nobody outside can aim at: names come from strangers.
var seed = maphash.MakeSeed()

// Hash returns a hash of r for tables in memory: equal for equal References within
// one process, and of no meaning outside it. It looks at no text.
func (r Reference) Hash() uint64 { return maphash.Comparable(seed, r.of) }

// ID is the identity of a Reference in one word, without its digest at hand: for tables
// in memory. Equal for equal References; the zero value is that of the zero Reference.
type ID struct{ of unique.Handle[names] }

// ID returns r's identity.
func (r Reference) ID() ID { return ID{r.of} }

// Reference returns what has this identity.
func (id ID) Reference() Reference {
	if id == (ID{}) {
		return Reference{}
	}
	return Reference{of: id.of, digest: id.of.Value().digest}
}

// Is reports whether both name the same image, as == does, and looks at no text.
func (r Reference) Is(other Reference) bool { return r.of == other.of }

var (
	component = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	tagForm   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	hostForm  = regexp.MustCompile(`^[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)
	digestHex = regexp.MustCompile(`^[a-f0-9]{64}$`)
)

// Parse reads [host[:port]/]repository[:tag][@sha256:digest]. As Docker does, it
// takes the first component for a host if it contains a dot or a colon or is
// "localhost"; without a host the image is Docker Hub's. A tag beside a digest is
// checked and dropped. Errors say what is wrong and what the form is.
func Parse(s string) (Reference, error) {
	bad := func(what string, args ...any) (Reference, error) {
		return Reference{}, fmt.Errorf("image reference %q: %s", shown(s), fmt.Sprintf(what, args...))
	}
	if s == "" {
		return Reference{}, fmt.Errorf("image reference is empty: want [host/]repository[:tag][@sha256:digest]")
	}
	var r names
	rest, digest, pinned := strings.Cut(s, "@")
	if pinned {
		hexPart, ok := strings.CutPrefix(digest, "sha256:")
		if !ok || !digestHex.MatchString(hexPart) {
			return bad("the digest must be sha256: and 64 lower-case hexadecimal digits")
		}
		r.digest = digest
	}
	first, path, hasSlash := strings.Cut(rest, "/")
	if hasSlash && isHost(first) {
		host, err := canonicalHost(first)
		if err != nil {
			return bad("%v", err)
		}
		r.host, rest = host, path
	} else {
		r.host = DockerHub
	}
	repository, tag, tagged := strings.Cut(rest, ":")
	if tagged && !tagForm.MatchString(tag) {
		return bad("the tag must be 1 to 128 letters, digits, '_', '.' or '-', not starting with '.' or '-'")
	}
	if r.host == DockerHub && repository != "" && !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	if repository == "" {
		return bad("the repository is missing")
	}
	if len(repository) > MaxRepository {
		return bad("the repository is longer than %d characters", MaxRepository)
	}
	for _, c := range strings.Split(repository, "/") {
		if !component.MatchString(c) {
			return bad("the repository must be lower-case letters and digits, separated by '.', '_', '-' or '/'")
		}
	}
	r.repository = repository
	switch {
	case pinned:
	case tagged:
		r.tag = tag
	default:
		r.tag = DefaultTag
	}
	return intern(r), nil
}

// shown returns s as an error may quote it: what stands before an "@" that begins no
// digest may be a name and a password.
func shown(s string) string {
	if _, after, ok := strings.Cut(s, "@"); ok && !strings.HasPrefix(after, "sha256:") {
		return "…@" + after
	}
	return s
}

// isHost reports whether the first component of a reference is a registry.
func isHost(s string) bool {
	return strings.ContainsAny(s, ".:[") || s == "localhost"
}

// canonicalHost lowers the host, folds Docker Hub's names into one and drops the
// port that https implies. Underscores are accepted: cluster-internal names have them.
func canonicalHost(s string) (string, error) {
	host, port := s, ""
	if strings.HasPrefix(s, "[") || strings.Count(s, ":") == 1 {
		h, p, err := net.SplitHostPort(s)
		switch {
		case err == nil:
			host, port = h, p
			if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != p {
				return "", fmt.Errorf("the port of %q must be a number from 1 to 65535", s)
			}
		case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
			host = s[1 : len(s)-1]
		default:
			return "", fmt.Errorf("the host %q is malformed", s)
		}
	}
	host = strings.ToLower(host)
	if ip := net.ParseIP(host); ip != nil {
		host = ip.String()
		if ip.To4() == nil {
			host = "[" + host + "]"
		}
	} else if strings.HasPrefix(s, "[") || !hostForm.MatchString(host) || len(host) > 253 {
		return "", fmt.Errorf("the host %q is malformed", s)
	}
	switch host {
	case "docker.io", "registry-1.docker.io", "index.docker.io":
		host = DockerHub
	}
	if port == "" || port == "443" {
		return host, nil
	}
	return host + ":" + port, nil
}

// Host returns the registry, canonical: lower case, with a port unless it is 443.
func (r Reference) Host() string { return r.names().host }

// Repository returns the repository without the host.
func (r Reference) Repository() string { return r.names().repository }

// Source returns host/repository: what delivers bytes, and to whom a digest that
// it delivered may be opened.
func (r Reference) Source() string {
	n := r.names()
	return n.host + "/" + n.repository
}

// Tag returns the tag, or "" where a digest decides.
func (r Reference) Tag() string { return r.names().tag }

// Digest returns the digest as "sha256:" and 64 hexadecimal digits, or "".
func (r Reference) Digest() string { return r.digest }

// At returns the same repository at the given digest, which must have the form that
// Digest returns.
func (r Reference) At(digest string) Reference {
	n := r.names()
	return intern(names{host: n.host, repository: n.repository, digest: digest})
}

// IsZero reports whether r names nothing.
func (r Reference) IsZero() bool { return r.of == unique.Handle[names]{} }

// String returns the canonical spelling, which Parse reads back to an equal Reference.
func (r Reference) String() string {
	n := r.names()
	switch {
	case r.IsZero():
		return ""
	case n.digest != "":
		return n.host + "/" + n.repository + "@" + n.digest
	default:
		return n.host + "/" + n.repository + ":" + n.tag
	}
}

// MarshalText returns String; JSON and YAML encoders use it.
func (r Reference) MarshalText() ([]byte, error) { return []byte(r.String()), nil }
