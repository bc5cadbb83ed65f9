package localregistry

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// grant is one right of one user in one repository.
type grant struct {
	user, repository string
	right            Right
}

// issued is what a token lets its bearer do, as of its making.
type issued struct {
	user    string
	rights  []grant
	expires time.Time
}

// Allow gives user rights in a repository; without any named, the right to pull.
func (r *Registry) Allow(user, repository string, rights ...Right) {
	if len(rights) == 0 {
		rights = []Right{Pull}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, right := range rights {
		r.rights[grant{user, repository, right}] = true
	}
}

// Revoke takes all rights of user in a repository, or with Everywhere in all of them.
// Tokens that were issued keep theirs until they expire.
func (r *Registry) Revoke(user, repository string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for g := range r.rights {
		if g.user == user && (g.repository == repository || repository == Everywhere) {
			delete(r.rights, g)
		}
	}
}

// RevokeTokens makes every token that was issued useless.
func (r *Registry) RevokeTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// may reports whether user has a right. The caller holds r.mu.
func (r *Registry) may(user, repository string, right Right) bool {
	for _, who := range []string{user, Anonymous} { // what all may, each may
		if r.rights[grant{who, repository, right}] || r.rights[grant{who, Everywhere, right}] {
			return true
		}
	}
	return false
}

// login returns the user of a request's user name and password. It is nobody if there
// is none, and not ok if they are wrong. The caller holds r.mu.
func (r *Registry) login(req *http.Request) (user string, ok bool) {
	name, password, given := req.BasicAuth()
	if !given {
		return Anonymous, req.Header.Get("Authorization") == ""
	}
	known, exists := r.users[name]
	if !exists || subtle.ConstantTimeCompare(known.Reveal(), []byte(password)) != 1 {
		return name, false
	}
	return name, true
}

// refusedAs is the answer to whoever lacks a right.
type refusedAs struct {
	status    int
	code      string
	challenge string
}

// judge returns who asks and, if it may not, the answer. As the distribution server
// does, a bearer registry answers 401 with insufficient_scope to a user it knows, a
// basic one 403.
func (r *Registry) judge(req *http.Request) (user string, no *refusedAs) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open {
		return Anonymous, nil
	}
	repository, right := asked(req)
	if r.options.Mode == Basic {
		user, ok := r.login(req)
		if !ok || user == Anonymous && (repository == "" || !r.may(user, repository, right)) {
			return user, &refusedAs{http.StatusUnauthorized, "UNAUTHORIZED", `Basic realm="local registry"`}
		}
		if repository != "" && !r.may(user, repository, right) {
			return user, &refusedAs{status: http.StatusForbidden, code: "DENIED"}
		}
		return user, nil
	}
	challenge := fmt.Sprintf(`Bearer realm="%s",service="local registry"`, r.realm())
	if repository != "" {
		challenge += fmt.Sprintf(`,scope="repository:%s:%s"`, repository, right)
	}
	value, bears := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	t, good := r.tokens[value]
	switch {
	case !bears:
		return Anonymous, &refusedAs{http.StatusUnauthorized, "UNAUTHORIZED", challenge}
	case !good || time.Now().After(t.expires):
		return t.user, &refusedAs{http.StatusUnauthorized, "UNAUTHORIZED", challenge + `,error="invalid_token"`}
	case repository != "" && !slices.Contains(t.rights, grant{t.user, repository, right}):
		return t.user, &refusedAs{http.StatusUnauthorized, "UNAUTHORIZED", challenge + `,error="insufficient_scope"`}
	}
	return t.user, nil
}

func (r *Registry) realm() string {
	if r.options.Realm != "" {
		return r.options.Realm
	}
	scheme := "http"
	if r.options.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.host + "/token"
}

// asked returns the repository that a request is about, if any, and the right it needs.
func asked(req *http.Request) (repository string, right Right) {
	right = Push
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		right = Pull
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	for _, mark := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if i := strings.LastIndex(path, mark); i > 0 {
			return path[:i], right
		}
	}
	return "", right
}

// token is the token endpoint. To a user that it knows it gives a token whatever was
// asked, with those of the rights that the user has: none, perhaps.
func (r *Registry) token(w http.ResponseWriter, req *http.Request) (user string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	user, ok := r.login(req)
	if !ok {
		refuse(w, &refusedAs{http.StatusUnauthorized, "UNAUTHORIZED", `Basic realm="local registry"`})
		return user
	}
	now := time.Now()
	for value, t := range r.tokens {
		if now.After(t.expires) {
			delete(r.tokens, value)
		}
	}
	t := issued{user: user, expires: now.Add(r.options.TokenLife)}
	for _, scope := range req.URL.Query()["scope"] {
		kind, rest, _ := strings.Cut(scope, ":")
		i := strings.LastIndex(rest, ":")
		if kind != "repository" || i < 0 {
			continue
		}
		for right := range strings.SplitSeq(rest[i+1:], ",") {
			if r.may(user, rest[:i], Right(right)) {
				t.rights = append(t.rights, grant{user, rest[:i], Right(right)})
			}
		}
	}
	value := r.options.TokenMarker + rand.Text()
	r.tokens[value] = t
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token": value, "expires_in": int(max(r.options.TokenLife/time.Second, 1)), "issued_at": now.UTC().Format(time.RFC3339),
	})
	return user
}

// refuse writes an answer as the distribution specification has it.
func refuse(w http.ResponseWriter, no *refusedAs) {
	if no.challenge != "" {
		w.Header().Set("WWW-Authenticate", no.challenge)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(no.status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]any{"code": no.code, "message": "access to the requested resource is not authorized"}}})
}
