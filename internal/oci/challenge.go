package oci

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// challenge is what a registry asks for before it answers.
type challenge struct {
	scheme  scheme
	realm   string // bearer: where tokens are had
	service string
}

type scheme uint8

const (
	schemeNone   scheme = iota // nothing is asked
	schemeBasic                // user name and password with each request
	schemeBearer               // a token from the realm
	schemeOther                // nothing that stile speaks
)

// readChallenge returns the challenge of a 401: bearer before basic, whatever their
// order. It never fails; what is not understood is schemeOther.
func readChallenge(header http.Header) challenge {
	found := challenge{scheme: schemeOther}
	for _, line := range header.Values("WWW-Authenticate") {
		for _, one := range splitChallenges(line) {
			switch {
			case strings.EqualFold(one.scheme, "bearer") && one.params["realm"] != "":
				return challenge{scheme: schemeBearer, realm: one.params["realm"], service: one.params["service"]}
			case strings.EqualFold(one.scheme, "basic"):
				found = challenge{scheme: schemeBasic}
			}
		}
	}
	return found
}

type rawChallenge struct {
	scheme string
	params map[string]string // keys in lower case
}

// splitChallenges reads one WWW-Authenticate line (RFC 9110, section 11.6.1): a list
// of schemes, each with a list of name=token or name="quoted string" behind it.
func splitChallenges(line string) []rawChallenge {
	var all []rawChallenge
	s := &scanner{rest: line}
	for {
		s.skip(" \t,")
		word := s.token()
		if word == "" {
			return all
		}
		s.skip(" \t")
		if !s.take('=') {
			all = append(all, rawChallenge{scheme: word, params: map[string]string{}})
			continue
		}
		s.skip(" \t")
		value, ok := s.value()
		if !ok || len(all) == 0 {
			return all
		}
		params := all[len(all)-1].params
		if name := strings.ToLower(word); params[name] == "" {
			params[name] = value
		}
	}
}

type scanner struct{ rest string }

func (s *scanner) skip(chars string) { s.rest = strings.TrimLeft(s.rest, chars) }

func (s *scanner) take(c byte) bool {
	if s.rest == "" || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

func (s *scanner) token() string {
	end := strings.IndexFunc(s.rest, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if end < 0 {
		end = len(s.rest)
	}
	word := s.rest[:end]
	s.rest = s.rest[end:]
	return word
}

// value reads a token or a quoted string. Unquoted values that registries write
// against the grammar (URLs) end at a comma or space.
func (s *scanner) value() (string, bool) {
	if !s.take('"') {
		end := strings.IndexAny(s.rest, ", \t")
		if end < 0 {
			end = len(s.rest)
		}
		word := s.rest[:end]
		s.rest = s.rest[end:]
		return word, true
	}
	var b strings.Builder
	for i := 0; i < len(s.rest); i++ {
		switch c := s.rest[i]; c {
		case '"':
			s.rest = s.rest[i+1:]
			return b.String(), true
		case '\\':
			if i++; i < len(s.rest) {
				b.WriteByte(s.rest[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", false // the quote is not closed
}

const (
	// maxTokenAnswer is how much of a token endpoint's answer is read. Tokens of a few
	// KiB are usual; 256 KiB is beyond any header a registry takes.
	maxTokenAnswer = 256 << 10
	// maxToken is the longest token that is sent: servers refuse longer headers.
	maxToken = 64 << 10
	// defaultTokenLife is what the token specification says where expires_in is missing.
	defaultTokenLife = 60 * time.Second
)

// readToken reads a token endpoint's answer. It reports false if there is no token in
// it that could be sent.
func readToken(answer []byte) (token string, life time.Duration, ok bool) {
	var fields struct {
		Token       string          `json:"token"`
		AccessToken string          `json:"access_token"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
	}
	if err := json.Unmarshal(answer, &fields); err != nil {
		return "", 0, false
	}
	token = fields.Token
	if token == "" {
		token = fields.AccessToken
	}
	if token == "" || len(token) > maxToken || !sendable(token) {
		return "", 0, false
	}
	life = defaultTokenLife
	var seconds json.Number
	if json.Unmarshal([]byte(strings.Trim(string(fields.ExpiresIn), `"`)), &seconds) == nil {
		if n, err := seconds.Float64(); err == nil && n > 0 {
			life = time.Duration(min(n, (24*time.Hour).Seconds()) * float64(time.Second))
		}
	}
	return token, life, true
}
