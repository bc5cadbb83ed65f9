// Package callers asks the Kubernetes API who a caller of the admin API is, and what it
// may see. Its one rule: no answer is a refusal.
//
// It needs to create TokenReviews and SubjectAccessReviews (the ClusterRole
// system:auth-delegator). Callers need the verb get, or post, on the non-resource URL
// that they ask for after /stile.dev, such as /stile.dev/api/v1/plugins: what begins with
// /api Kubernetes itself lets everybody get.
package callers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The refusals.
var (
	ErrUnknown   = errors.New("send a Kubernetes token: Authorization: Bearer …")
	ErrForbidden = errors.New("a role must allow it: nonResourceURLs [/stile.dev and this path], verbs [get] or [post]")
)

// An answer is relied on for so long; a token that is withdrawn opens nothing after it.
const (
	reliedOn = 10 * time.Second
	patience = 5 * time.Second
	maxKept  = 1024 // answers
)

const prefix = "/stile.dev" // of the paths that roles speak of

// Callers are those of the admin API. Admit may be called by many at a time.
type Callers struct {
	client kubernetes.Interface

	mu   sync.Mutex // guards kept
	kept map[question]answer
}

// question is a token that is not kept, and what it wants.
type question struct {
	token        [sha256.Size]byte
	verb, target string
}

type answer struct {
	refused error
	until   time.Time
}

// New returns the Callers that the API at config knows.
func New(config *rest.Config) (*Callers, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("callers: %w", err)
	}
	return &Callers{client: client, kept: map[question]answer{}}, nil
}

// Admit returns nil if r carries a token whose owner may do what r asks, ErrUnknown or
// ErrForbidden if not, and another error if the API gives no answer.
func (c *Callers) Admit(r *http.Request) error {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		return ErrUnknown
	}
	q := question{token: sha256.Sum256([]byte(token)), verb: strings.ToLower(r.Method), target: r.URL.Path}
	if q.verb == "head" {
		q.verb = "get"
	}
	now := time.Now()
	c.mu.Lock()
	a, known := c.kept[q]
	c.mu.Unlock()
	if known && now.Before(a.until) {
		return a.refused
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	refused := c.ask(ctx, token, q)
	if refused == nil || errors.Is(refused, ErrUnknown) || errors.Is(refused, ErrForbidden) {
		c.keep(q, answer{refused, now.Add(reliedOn)})
	}
	return refused
}

func (c *Callers) ask(ctx context.Context, token string, q question) error {
	review, err := c.client.AuthenticationV1().TokenReviews().Create(ctx,
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return errors.New("the Kubernetes API does not say whose token it is: may stile create TokenReviews?")
	}
	if !review.Status.Authenticated {
		return ErrUnknown
	}
	user := review.Status.User
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	access, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: prefix + q.target, Verb: q.verb},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return errors.New("the Kubernetes API does not say what the caller may do: may stile create SubjectAccessReviews?")
	}
	if !access.Status.Allowed {
		return ErrForbidden
	}
	return nil
}

func (c *Callers) keep(q question, a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) >= maxKept {
		clear(c.kept)
	}
	c.kept[q] = a
}
