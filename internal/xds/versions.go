package xds

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// setVersion is the version of a state-of-the-world response that holds everything of its type.
func setVersion(items []item) string {
	h := sha256.New()
	for _, i := range items {
		h.Write([]byte(i.name))
		h.Write([]byte{0})
		h.Write([]byte(i.holding.String()))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))[:versionLength]
}

// The state of the world has one version for each type, though a proxy may hold ten extensions
// in versions of their own. A response's version therefore says what the proxy holds once it
// has accepted the response, in a few bytes for each name. The proxy tells it again when it
// reconnects, to this stile or to another replica, and so it is known who runs a real version of
// a plugin and who does not, with nothing remembered here.
const (
	describedPrefix = "w1-"
	describedName   = 6 // bytes of the hash of a name
	describedBits   = 6 // bytes of the hash of a version; none is all zero but a stand-in's
	describedTry    = 2
	describedPlain  = 1<<16 - 1 // in place of a try
	describedEntry  = describedName + describedBits + describedTry
	maxDescribed    = 64 << 10
)

// described is what a proxy says it holds, by the hash of the name.
type described map[[describedName]byte]describedVersion

type describedVersion struct {
	bits [describedBits]byte
	try  uint16
}

// describeAfter returns the version of a response: what the proxy holds once it has accepted
// it. What it said that it held when it connected, and has not been sent since, it still holds.
func (w *watch) describeAfter(a *answer) string {
	after := make(map[string]describedVersion, len(w.names))
	for name := range w.names {
		if h, ok := w.held[name]; ok {
			after[name] = describeOne(h)
		} else if v, ok := w.reported[nameBits(name)]; ok {
			after[name] = v
		}
	}
	for _, i := range a.items {
		after[i.name] = describeOne(i.holding)
	}
	b := make([]byte, 0, len(after)*describedEntry)
	for _, name := range slices.Sorted(maps.Keys(after)) {
		n, v := nameBits(name), after[name]
		b = append(b, n[:]...)
		b = append(b, v.bits[:]...)
		b = binary.BigEndian.AppendUint16(b, v.try)
	}
	return describedPrefix + base64.RawURLEncoding.EncodeToString(b)
}

func describeOne(h holding) describedVersion {
	v := describedVersion{bits: versionBits(h.version), try: uint16(min(h.try, describedPlain-1))} //nolint:gosec // it fits
	if h.plain {
		v.try = describedPlain
	}
	return v
}

// parseDescribed reads a version that describe made; nil if it is anything else.
func parseDescribed(version string) described {
	text, ok := strings.CutPrefix(version, describedPrefix)
	if !ok || len(text) > maxDescribed {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b)%describedEntry != 0 {
		return nil
	}
	d := make(described, len(b)/describedEntry)
	for ; len(b) > 0; b = b[describedEntry:] {
		var v describedVersion
		copy(v.bits[:], b[describedName:])
		v.try = binary.BigEndian.Uint16(b[describedName+describedBits:])
		d[[describedName]byte(b)] = v
	}
	return d
}

func nameBits(name string) (out [describedName]byte) {
	sum := sha256.Sum256([]byte(name))
	copy(out[:], sum[:])
	return out
}

// versionBits is zero for every stand-in, and for nothing else.
func versionBits(version string) (out [describedBits]byte) {
	if isStandIn(version) {
		return out
	}
	sum := sha256.Sum256([]byte(version))
	copy(out[:], sum[:])
	if out == ([describedBits]byte{}) {
		out[0] = 1
	}
	return out
}

// real returns the real version that the proxy says it holds of r. Where that is not the one
// that r believes is kept its version is not known, and "kept" stands for it.
func (d described) real(r *Resource) (holding, bool) {
	v, ok := d[nameBits(r.Name)]
	if !ok || v.bits == ([describedBits]byte{}) {
		return holding{}, false
	}
	if r.KeptVersion != "" && versionBits(r.KeptVersion) == v.bits {
		if v.try == describedPlain {
			return holding{version: r.KeptVersion, plain: true, told: true}, true
		}
		return holding{version: r.KeptVersion, try: int(v.try), told: true}, true
	}
	return holding{version: "kept", told: true}, true
}

// tryOf returns the try in which the proxy says it holds this very version: those bytes, sent
// again, cost it nothing.
func (d described) tryOf(r *Resource) (int, bool) {
	v, ok := d[nameBits(r.Name)]
	if !ok || v.bits != versionBits(r.Version) || r.vary == nil && v.try != 0 {
		return 0, false
	}
	if v.try == describedPlain {
		return 0, false
	}
	return int(v.try), v.try != 0 || !r.plain
}

// plain reports whether the proxy says that it holds the plain form of r.
func (d described) plain(r *Resource) bool {
	v, ok := d[nameBits(r.Name)]
	return ok && r.plain && v.bits == versionBits(r.Version) && v.try == describedPlain
}

// maxMessage bounds what is kept of a proxy's words.
const maxMessage = 1024

var moduleURL = regexp.MustCompile(`(?i)(https?://[^\s"'<>]*?/modules/)[^\s"'<>]+|(/modules/)[^\s"'<>]+`)

// cleanMessage shortens a proxy's words, makes them one line of valid text, and takes out the
// URLs of modules: those are capabilities.
func cleanMessage(s string) string {
	s = moduleURL.ReplaceAllString(s, "${1}${2}<redacted>")
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	if len(s) <= maxMessage {
		return s
	}
	s = s[:maxMessage]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}
