package kube

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
)

// keptWhileRefused is how long what is known of a Secret outlives the right to read it: a role that is replaced must not
// end what runs, one that is taken away must.
const keptWhileRefused = 2 * time.Minute

// pullSecretKeys are all that is kept of a Secret's data.
var pullSecretKeys = map[corev1.SecretType]string{
	oci.SecretTypeDockerConfigJSON: corev1.DockerConfigJsonKey,
	oci.SecretTypeDockerCfg:        corev1.DockerConfigKey,
}

// Secrets reads Secrets by name alone: with get, and with a watch on exactly that name. It never lists, so that a role
// that allows only those two in some namespaces is all it needs. It is safe for concurrent use.
//
// Of a Secret that is no pull secret nothing but its type is kept. What is known of a Secret stays while the API server
// cannot be asked; where the right to read it is taken away, for two minutes.
type Secrets struct {
	client kubernetes.Interface
	log    *slog.Logger
	pace   *pace
	key    secret.Key    // content is compared by its fingerprint
	kept   time.Duration // keptWhileRefused

	mu       sync.Mutex
	ctx      context.Context // of Run; nil before and after
	running  sync.WaitGroup
	wants    map[string]map[source.Key]bool // by user
	held     map[source.Key]*held
	onChange []func(source.Key)
}

// held is what is known of one Secret that somebody wants.
type held struct {
	since        time.Time // wanted since
	cancel       context.CancelFunc
	secret       *document.Secret
	print        secret.Fingerprint
	known        bool
	why          error
	refusedSince time.Time
}

// Unread is why a Secret could not be read. Its text says what to do and holds nothing that the API server wrote.
type Unread struct {
	Key     source.Key
	Refused bool // the API server knows us and does not let us; else it could not be asked
	fault   string
}

func (u *Unread) Error() string {
	if u.Refused {
		return fmt.Sprintf("Secret %s may not be read: %s: allow stile's ServiceAccount get and watch on secrets in namespace %s", u.Key, u.fault, u.Key.Namespace)
	}
	return fmt.Sprintf("Secret %s could not be read: %s: it is tried again", u.Key, u.fault)
}

// NewSecrets returns Secrets that nobody wants anything of yet. A nil log discards.
func NewSecrets(client kubernetes.Interface, log *slog.Logger) *Secrets {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	seed := make([]byte, secret.Size)
	_, _ = rand.Read(seed)               // it never fails
	root, _ := secret.NewRoot(seed, nil) // nor does this, of that size
	return &Secrets{client: client, log: log, pace: newPace(), key: root.Key(secret.ForFingerprints), kept: keptWhileRefused,
		wants: map[string]map[source.Key]bool{}, held: map[source.Key]*held{}}
}

// OnChange makes f be called with the name of each Secret that has changed: that there is one, what it holds, or why it
// cannot be read. f must not wait; it may call Get and Why. It is called before Run.
func (s *Secrets) OnChange(f func(key source.Key)) { s.onChange = append(s.onChange, f) }

// Run reads what is wanted until ctx ends, and then returns nil. It is called once.
func (s *Secrets) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	for key, h := range s.held {
		s.start(key, h)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.ctx = nil // nothing is started after this
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// Want says which Secrets a user needs from now on, in place of those that it needed before; nil is none. Users are told
// apart by name.
func (s *Secrets) Want(user string, keys []source.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := make(map[source.Key]bool, len(keys))
	for _, key := range keys {
		want[key] = true
		if s.held[key] == nil {
			h := &held{since: time.Now()}
			s.held[key] = h
			s.start(key, h)
		}
	}
	before := s.wants[user]
	if s.wants[user] = want; len(want) == 0 {
		delete(s.wants, user)
	}
	for key := range before {
		if !want[key] && !s.wanted(key) {
			if h := s.held[key]; h.cancel != nil {
				h.cancel()
			}
			delete(s.held, key)
		}
	}
}

func (s *Secrets) wanted(key source.Key) bool {
	for want := range maps.Values(s.wants) {
		if want[key] {
			return true
		}
	}
	return false
}

// Get returns a Secret that somebody wants. nil and true: there is none, or it may not be read, see Why. nil and false: it
// has not been read yet. A Secret whose type and credentials did not change is the same pointer as before.
func (s *Secrets) Get(key source.Key) (found *document.Secret, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[key]; h != nil {
		return h.secret, h.known
	}
	return nil, false
}

// Why returns why a Secret could not be read when it was last tried, an *Unread; nil if it could, or was not tried yet.
func (s *Secrets) Why(key source.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[key]; h != nil {
		return h.why
	}
	return nil
}

// since returns since when a Secret is wanted; zero if it is not.
func (s *Secrets) since(key source.Key) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[key]; h != nil {
		return h.since
	}
	return time.Time{}
}

// start follows a Secret if Run has begun. s.mu is held.
func (s *Secrets) start(key source.Key, h *held) {
	if s.ctx == nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	h.cancel = cancel
	secrets := s.client.CoreV1().Secrets(key.Namespace)
	f := &followed{
		client: client{
			get: func(ctx context.Context, name string, o metav1.GetOptions) (runtime.Object, error) {
				return secrets.Get(ctx, name, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return secrets.Watch(ctx, o) },
		},
		pace: s.pace, name: key.Name, right: "secrets in " + key.Namespace,
		seen:   func(o runtime.Object) { s.seen(key, h, o) },
		failed: func(err error) { s.failed(key, h, err) },
	}
	s.running.Go(func() {
		defer cancel()
		f.run(ctx)
	})
}

// seen takes what the API server says a Secret is.
func (s *Secrets) seen(key source.Key, h *held, o runtime.Object) {
	var now *document.Secret
	var mark secret.Fingerprint
	if o, ok := o.(*corev1.Secret); ok && o != nil {
		now = &document.Secret{Namespace: key.Namespace, Name: key.Name, Type: string(o.Type), Data: map[string]secret.Secret{}}
		parts := [][]byte{[]byte(o.Type)}
		if k := pullSecretKeys[o.Type]; k != "" {
			if v, ok := o.Data[k]; ok {
				now.Data[k] = secret.New(v)
				parts = append(parts, v)
			}
		}
		mark = s.key.Sum(parts...)
	}
	s.update(key, h, func() bool {
		same := h.known && (h.secret == nil) == (now == nil) && h.print == mark
		if !same {
			h.secret, h.print = now, mark
		}
		told := h.why == nil && same
		h.known, h.why, h.refusedSince = true, nil, time.Time{}
		return !told
	})
}

// failed takes that a Secret could not be read.
func (s *Secrets) failed(key source.Key, h *held, err error) {
	u := &Unread{Key: key, Refused: refused(err), fault: describe(err)}
	s.update(key, h, func() bool {
		changed := h.why == nil || h.why.Error() != u.Error()
		h.why = u
		switch {
		case !u.Refused:
			h.refusedSince = time.Time{}
		case h.refusedSince.IsZero():
			h.refusedSince = time.Now()
		}
		if u.Refused && (!h.known || h.secret != nil && time.Since(h.refusedSince) > s.kept) {
			h.secret, h.print, h.known, changed = nil, secret.Fingerprint{}, true, true
		}
		if changed {
			s.log.Warn("pull secret cannot be read", "secret", key.String(), "fault", u.Error())
		}
		return changed
	})
}

// update changes what is held under the lock and tells of it outside.
func (s *Secrets) update(key source.Key, h *held, change func() bool) {
	s.mu.Lock()
	changed := s.held[key] == h && change() // else nobody wants it any longer
	s.mu.Unlock()
	if !changed {
		return
	}
	for _, f := range s.onChange {
		f(key)
	}
}
