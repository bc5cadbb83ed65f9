package access

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a registry of the tests: it answers as it is told, and records who asked.
type world struct {
	mu      sync.Mutex
	answers map[string]func(asked) (string, error) // by user and image, then "user", then ""
	asked   []asked
	forgot  []secret.Fingerprint
}

// asked is one question that reached the registry.
type asked struct {
	user    string
	image   string
	options oci.CheckOptions
	at      time.Time
}

func newWorld() *world { return &world{answers: map[string]func(asked) (string, error){}} }

// says sets what user gets for image; "" for either is any.
func (w *world) says(user, image string, answer func(asked) (string, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[user+" "+image] = answer
}

func (w *world) Check(ctx context.Context, ref oci.Reference, c oci.Credential, _ oci.Trust, o oci.CheckOptions) (oci.Descriptor, error) {
	q := asked{user: c.Origin(), image: ref.String(), options: o, at: time.Now()}
	w.mu.Lock()
	w.asked = append(w.asked, q)
	var answer func(asked) (string, error)
	for _, key := range []string{q.user + " " + q.image, " " + q.image, q.user + " ", " "} {
		if answer = w.answers[key]; answer != nil {
			break
		}
	}
	w.mu.Unlock()
	if answer == nil {
		return oci.Descriptor{}, status(http.StatusUnauthorized)
	}
	digest, err := answer(q)
	if err == nil && digest == "hang" {
		<-ctx.Done()
		return oci.Descriptor{}, &oci.Error{Op: "check", Ref: q.image, Kind: oci.Unavailable, Err: ctx.Err()}
	}
	return oci.Descriptor{Digest: digest}, err
}

func (w *world) Forget(f secret.Fingerprint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forgot = append(w.forgot, f)
}

// questions returns what was asked since it was last called.
func (w *world) questions() []asked {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.asked
	w.asked = nil
	return q
}

// status is a registry's own answer.
func status(code int) *oci.Error {
	kind := oci.Unavailable
	switch code {
	case 401, 403, 412, 451:
		kind = oci.Unauthorized
	case 404, 410:
		kind = oci.NotFound
	case 400, 405, 406, 415:
		kind = oci.Invalid
	}
	return &oci.Error{Op: "check", Ref: "test", Kind: kind, Status: code, FromRegistry: true}
}

// ingress is the same status from somebody before the registry.
func ingress(code int) *oci.Error {
	e := status(code)
	e.FromRegistry = false
	return e
}

func yes(digest string) func(asked) (string, error) {
	return func(asked) (string, error) { return digest, nil }
}

func no(err error) func(asked) (string, error) {
	return func(asked) (string, error) { return "", err }
}

func slowly(d time.Duration, then func(asked) (string, error)) func(asked) (string, error) {
	return func(q asked) (string, error) {
		time.Sleep(d)
		return then(q)
	}
}

func hang(asked) (string, error) { return "hang", nil }

var testRoot = func() secret.Root {
	r, err := secret.NewRoot([]byte("0123456789abcdef0123456789abcdef"), nil)
	if err != nil {
		panic(err)
	}
	return r
}()

var testKey = testRoot.Key(secret.ForFingerprints)

// as returns the credentials of the users, tried in that order.
func as(users ...string) oci.Credentials {
	var c []oci.Credential
	for _, u := range users {
		c = append(c, oci.NewCredential(testKey, u, u, "CANARY-"+u))
	}
	return oci.NewCredentials(testKey, c...)
}

func digest(n int) string { return fmt.Sprintf("sha256:%064x", n) }

func ref(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// plugin makes a request of a plugin "namespace/name".
func plugin(t testing.TB, namespace, image string, c oci.Credentials) Request {
	t.Helper()
	return Request{Image: ref(t, image), Credentials: c, Holder: Holder{Namespace: namespace, Name: "p"}}
}

// running returns a Gate that runs until the test ends, inside a synctest bubble.
func running(t *testing.T, w Registry, c Config) *Gate {
	t.Helper()
	g := New(w, c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	return g
}

func wantState(t *testing.T, v Verdict, state State, reason Reason) {
	t.Helper()
	if v.State != state || v.Reason != reason {
		t.Errorf("got %v %q (%s), want %v %q", v.State, v.Reason, v.Message, state, reason)
	}
}

const (
	image  = "registry.example:5000/a/p"
	tagged = image + ":v1"
)

var pinned = image + "@" + digest(1)

// contextUntil returns a context that ends when stop is closed.
func contextUntil(t *testing.T, stop <-chan struct{}) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-stop
		cancel()
	}()
	return ctx
}
