package oci

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stileproject/stile/internal/secret"
)

// maxTokens bounds the tokens of one session: one per repository and right.
const maxTokens = 512

// The rights that a token is asked for.
const (
	pull     = "pull"
	pullPush = "pull,push"
)

// tokenKey says what a token is good for. The credential is the session's.
type tokenKey struct{ realm, service, scope string }

type token struct {
	value   secret.Secret
	minted  time.Time // when it was asked for
	useless time.Time // from then on it is not used
}

// mintKey tells those who want a fresh token from those who take any: the former must
// not share what was asked for before they began.
type mintKey struct {
	tokenKey
	fresh bool
}

// permit is what a request carries to be let in.
type permit struct {
	header string // the Authorization header; empty = none
	minted bool   // the token was made for this request: asking for another one changes nothing
}

// ask sends q with what the registry asks for, and once more if a held token or the
// challenge turns out to be out of date.
func (s *session) ask(ctx context.Context, q call, r Reference, rights string, fresh bool) (*answer, error) {
	scope := "repository:" + r.Repository() + ":" + rights
	p, err := s.authorize(ctx, scope, fresh)
	if err != nil {
		return nil, err
	}
	q.authorization = s.only(q.url, p.header)
	a, err := s.send(ctx, q)
	if err != nil || a.StatusCode != http.StatusUnauthorized || a.redirected || s.only(q.url, "own") == "" {
		return a, err // a challenge that is met after a redirect or elsewhere is never answered
	}
	asked := readChallenge(a.Header)
	// A refusal that asks for nothing known says nothing new: what the ping said stays.
	if changed := asked.scheme != schemeOther && s.learn(asked); !s.another(p, asked, changed) {
		a.account = strings.HasPrefix(p.header, "Basic ")
		return a, nil
	}
	_ = a.Body.Close()
	if p, err = s.authorize(ctx, scope, true); err != nil {
		return nil, err
	}
	q.authorization = s.only(q.url, p.header)
	a, err = s.send(ctx, q)
	if err == nil {
		a.account = a.StatusCode == http.StatusUnauthorized && !a.redirected && strings.HasPrefix(p.header, "Basic ")
	}
	return a, err
}

// another reports whether a request that was refused with p in it is worth sending
// again: with a token, if the one sent was held or another realm gives them; with the
// user name and password, if they were not sent.
func (s *session) another(p permit, asked challenge, changed bool) bool {
	switch asked.scheme {
	case schemeBearer:
		return s.credential.bearer.Empty() && (changed || !p.minted)
	case schemeBasic:
		return s.credential.bearer.Empty() && s.basic() != "" && s.basic() != p.header
	}
	return false
}

// only returns header if u is at the registry itself: uploads may lead elsewhere.
func (s *session) only(u *url.URL, header string) string {
	if u.Scheme != s.base.Scheme || hostPort(u) != hostPort(s.base) {
		return ""
	}
	return header
}

// authorize returns what a request needs for scope.
func (s *session) authorize(ctx context.Context, scope string, fresh bool) (permit, error) {
	if !s.credential.bearer.Empty() {
		return permit{header: "Bearer " + string(s.credential.bearer.Reveal())}, nil
	}
	asked, err := s.challenge(ctx)
	if err != nil {
		return permit{}, err
	}
	switch asked.scheme {
	case schemeBasic:
		return permit{header: s.basic()}, nil
	case schemeBearer:
		return s.token(ctx, asked, scope, fresh)
	}
	return permit{}, nil
}

// basic returns the header of the user name and password; empty for the anonymous.
func (s *session) basic() string {
	if s.credential.username.Empty() && s.credential.password.Empty() {
		return ""
	}
	pair := string(s.credential.username.Reveal()) + ":" + string(s.credential.password.Reveal())
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))
}

// challenge returns what the registry asks for: pinged once per session, and known
// from then on.
func (s *session) challenge(ctx context.Context) (challenge, error) {
	s.mu.Lock()
	known := s.asked
	s.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	return s.pings.do(ctx, struct{}{}, s.ping)
}

// ping asks the registry what it asks for, without a credential.
func (s *session) ping(ctx context.Context) (challenge, error) {
	a, err := s.send(ctx, call{method: http.MethodGet, url: s.base})
	if err != nil {
		return challenge{}, err
	}
	defer func() { _ = a.Body.Close() }()
	var found challenge
	switch {
	case a.StatusCode == http.StatusUnauthorized:
		found = readChallenge(a.Header)
	case a.StatusCode == http.StatusTooManyRequests, a.StatusCode == http.StatusRequestTimeout, a.StatusCode >= 500:
		return challenge{}, refusal(a)
	}
	s.learn(found)
	return found, nil
}

// learn keeps what the registry asks for, and reports whether that is news.
func (s *session) learn(c challenge) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != nil && *s.asked == c {
		return false
	}
	s.asked = &c
	return true
}

// unlearn makes the next request ask again what the registry asks for.
func (s *session) unlearn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = nil
}

// token returns a bearer token for scope: one that is held, unless a fresh one is
// wanted, or a new one. Fresh is what was
// asked for after this call began.
func (s *session) token(ctx context.Context, asked challenge, scope string, fresh bool) (permit, error) {
	key := tokenKey{realm: asked.realm, service: asked.service, scope: scope}
	began := time.Now()
	if t, ok := s.held(key); ok && !fresh {
		return t.permit(began), nil
	}
	mint := func(ctx context.Context) (token, error) {
		if t, ok := s.held(key); ok && (!fresh || !t.minted.Before(began)) {
			return t, nil
		}
		start := time.Now()
		value, life, err := s.exchange(ctx, asked, scope)
		if err != nil {
			s.unlearn() // the registry may have moved its token endpoint
			return token{}, err
		}
		return s.keep(key, value, start, life), nil
	}
	t, err := s.mints.do(ctx, mintKey{key, fresh}, mint)
	if err == nil && fresh && t.minted.Before(began) { // another's, under way when this call began
		t, err = s.mints.do(ctx, mintKey{key, fresh}, mint)
	}
	if err != nil {
		return permit{}, err
	}
	return t.permit(began), nil
}

func (t token) permit(began time.Time) permit {
	return permit{header: "Bearer " + string(t.value.Reveal()), minted: !t.minted.Before(began)}
}

func (s *session) held(key tokenKey) (token, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[key]
	return t, ok && time.Now().Before(t.useless)
}

// keep holds a token for nine tenths of its life, and never beyond TokenMaxAge, counted
// from when it was asked for.
func (s *session) keep(key tokenKey, value secret.Secret, minted time.Time, life time.Duration) token {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tokens) >= maxTokens {
		for k, t := range s.tokens {
			if !now.Before(t.useless) {
				delete(s.tokens, k)
			}
		}
	}
	if len(s.tokens) >= maxTokens {
		clear(s.tokens) // rare; each then costs one request to have again
	}
	t := token{value: value, minted: minted, useless: minted.Add(min(life*9/10, s.client.settings.TokenMaxAge))}
	s.tokens[key] = t
	return t
}

// exchange asks the realm for a token. The realm's answer is followed nowhere.
func (s *session) exchange(ctx context.Context, asked challenge, scope string) (secret.Secret, time.Duration, error) {
	realm, err := s.realm(asked)
	if err != nil {
		return secret.Secret{}, 0, err
	}
	a, err := s.send(ctx, s.tokenCall(realm, asked.service, scope))
	if err != nil {
		return secret.Secret{}, 0, err
	}
	defer func() { _ = a.Body.Close() }()
	if a.StatusCode != http.StatusOK {
		return secret.Secret{}, 0, s.tokenRefusal(a.Response)
	}
	content, err := io.ReadAll(io.LimitReader(a.Body, maxTokenAnswer+1))
	if err != nil {
		return secret.Secret{}, 0, err
	}
	value, life, ok := readToken(content)
	if len(content) > maxTokenAnswer || !ok {
		return secret.Secret{}, 0, &Error{Kind: Unavailable, Status: a.StatusCode, TokenEndpoint: true, Err: errors.New("the token endpoint answered without a usable token")}
	}
	return secret.New([]byte(value)), life, nil
}

// realm returns the URL of the token endpoint if the credential may go there: to the
// registry's own scheme, host and port; or to another host over verified TLS, if the
// registry named it over verified TLS itself and tokenHosts does not exclude it.
func (s *session) realm(asked challenge) (*url.URL, error) {
	refuse := func(why string) (*url.URL, error) {
		return nil, &Error{Kind: Blocked, Err: errors.New("the token endpoint that the registry names is refused: " + why)}
	}
	u, err := url.Parse(asked.realm)
	if err != nil || u.Host == "" || u.Hostname() == "" {
		return refuse("it is no absolute URL")
	}
	if u.User != nil {
		return refuse("it has a user in it")
	}
	u.Fragment = ""
	if u.Scheme == s.base.Scheme && hostPort(u) == hostPort(s.base) {
		return u, nil
	}
	own := s.client.registries[s.key.host]
	switch {
	case u.Scheme != "https":
		return refuse("it is not https")
	case s.base.Scheme != "https":
		return refuse("it is on another host, and the registry named it over plain HTTP")
	case own != nil && len(own.TokenHosts) > 0 && !own.tokenHost(hostOf(u)):
		return refuse("it is on a host that is not among the registry's tokenHosts")
	}
	return u, nil
}

// tokenCall returns the request for a token: OAuth2 for identity tokens, else GET with
// the user name and password, or with nothing for the anonymous.
func (s *session) tokenCall(realm *url.URL, service, scope string) call {
	u := *realm
	query := u.Query()
	if !s.credential.identity.Empty() {
		form := url.Values{
			"grant_type":    {"refresh_token"},
			"refresh_token": {string(s.credential.identity.Reveal())},
			"service":       {service},
			"scope":         {scope},
			"client_id":     {userAgent},
		}
		return call{
			method: http.MethodPost, url: &u, body: []byte(form.Encode()),
			header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		}
	}
	if service != "" {
		query.Set("service", service)
	}
	query.Set("scope", scope)
	u.RawQuery = query.Encode()
	return call{method: http.MethodGet, url: &u, authorization: s.basic()}
}

// tokenRefusal turns a token endpoint's answer into an Error. It judges the account:
// only a refusal of the credential is one, all else says nothing about the image.
func (s *session) tokenRefusal(resp *http.Response) *Error {
	e := &Error{Kind: Unavailable, Status: resp.StatusCode, TokenEndpoint: true, RetryAfter: retryAfter(resp.Header, time.Now())}
	if target, err := redirectTarget(resp.Request.URL, resp); target != nil || err != nil {
		e.Kind, e.Err = Blocked, errors.New("the token endpoint redirects, and a credential follows nowhere")
		return e
	}
	content, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var answer map[string]json.RawMessage
	isJSON := json.Unmarshal(content, &answer) == nil
	e.FromRegistry = isJSON || resp.Header.Get("Docker-Distribution-Api-Version") != ""
	e.Err = errors.New("the answer is the token endpoint's")
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind, e.Err = Unauthorized, errors.New("the registry's token endpoint refuses the credential")
		e.Account = resp.StatusCode == http.StatusUnauthorized && !s.credential.Anonymous()
	case http.StatusBadRequest: // OAuth2 says so of a refresh token that is no longer good
		var code string
		if isJSON && json.Unmarshal(answer["error"], &code) == nil && (code == "invalid_grant" || code == "unauthorized_client" || code == "access_denied") {
			e.Kind, e.Err = Unauthorized, errors.New("the registry's token endpoint refuses the identity token")
			e.Account = true
		}
	}
	return e
}
