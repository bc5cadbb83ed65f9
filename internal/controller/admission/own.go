package admission

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// The keys of the Secret beside tls.crt, tls.key and ca.crt, and its annotation.
const (
	nextCert         = "next.crt"
	nextKey          = "next.key"
	stagedAnnotation = "stile.dev/staged"
)

// The pace of keeping certificates.
const (
	turnEvery      = time.Minute // between looks at the Secret; a replica that lags so far behind is trusted still
	turnRetry      = time.Second // after a failure, doubling up to turnEvery
	requestTimeout = 10 * time.Second
	maxConflicts   = 5
)

// own is a certificate that the replicas of stile make and share.
type own struct {
	cfg    Config
	names  []string
	log    *slog.Logger
	now    func() time.Time
	http   *http.Client
	secret typedcorev1.SecretInterface
	name   string // of the Secret
	inject []*injector
	poked  chan struct{}

	serving atomic.Pointer[tls.Certificate]

	mu   sync.Mutex // guards held
	held material   // what the Secret last held
}

func newOwn(cfg Config) (*own, error) {
	if cfg.REST == nil || cfg.Namespace == "" || cfg.Service == "" {
		return nil, errors.New("a client, a namespace and the name of the Service must be set where no certFile is")
	}
	config := rest.CopyConfig(cfg.REST)
	config.QPS = -1 // a handful of requests a minute
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	core, err := typedcorev1.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	dynamic, err := dynamic.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	host := cfg.Service + "." + cfg.Namespace
	o := &own{cfg: cfg, log: cfg.Log, now: time.Now, http: httpClient, poked: make(chan struct{}, 1),
		names:  append([]string{host + ".svc", host, cfg.Service, host + ".svc.cluster.local"}, cfg.Hosts...),
		secret: core.Secrets(cfg.Namespace), name: cfg.Service + "-tls"}
	for _, kind := range []string{"validatingwebhookconfigurations", "mutatingwebhookconfigurations"} {
		o.inject = append(o.inject, newInjector(dynamic, kind, cfg.Service, cfg.Log, o.poke))
	}
	return o, nil
}

func (o *own) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := o.serving.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("there is no certificate yet")
}

func (o *own) ready() error {
	if o.serving.Load() == nil {
		return fmt.Errorf("webhooks: no certificate yet: may Secret %s/%s be read and written?", o.cfg.Namespace, o.name)
	}
	roots := o.material().roots
	for _, i := range o.inject {
		if err := i.trusts(roots); err != nil {
			return fmt.Errorf("webhooks: %w", err)
		}
	}
	return nil
}

// poke asks for a turn soon.
func (o *own) poke() {
	select {
	case o.poked <- struct{}{}:
	default:
	}
}

// run keeps the certificate until ctx ends.
func (o *own) run(ctx context.Context) {
	var all sync.WaitGroup
	defer o.http.CloseIdleConnections()
	defer all.Wait()
	for _, i := range o.inject {
		all.Go(func() { i.follow(ctx) })
	}
	retry := turnRetry
	for {
		pause := wait.Jitter(turnEvery, 0.2)
		if err := o.turn(ctx); err != nil && ctx.Err() == nil {
			o.log.Warn("webhooks: the certificate is not kept as it should be, it is tried again", "in", retry, "error", err)
			pause, retry = retry, min(2*retry, turnEvery)
		} else {
			retry = turnRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-o.poked:
		case <-time.After(pause):
		}
	}
}

// turn reads the Secret, brings it up to date, and makes the API server trust it.
func (o *own) turn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m, err := o.keep(ctx)
	if err != nil {
		return err
	}
	certificate, err := m.serving.usable(m.roots, o.names, o.now())
	if err != nil {
		return err
	}
	o.mu.Lock()
	o.held = m
	o.mu.Unlock()
	if old := o.serving.Swap(certificate); old == nil || !bytes.Equal(old.Certificate[0], certificate.Certificate[0]) {
		o.log.Info("webhooks: a certificate serves", "until", certificate.Leaf.NotAfter)
	}
	var all error
	for _, i := range o.inject {
		all = errors.Join(all, i.inject(ctx, m.roots))
	}
	return all
}

func (o *own) material() material {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held
}

// keep returns what the Secret holds, after bringing it up to date.
func (o *own) keep(ctx context.Context) (material, error) {
	for conflicts := 0; ; conflicts++ {
		stored, err := o.secret.Get(ctx, o.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			stored, err = nil, nil
		}
		if err != nil {
			return material{}, fmt.Errorf("read Secret %s/%s: %w", o.cfg.Namespace, o.name, err)
		}
		have := o.material() // a Secret that was deleted is made anew as it was
		if stored != nil {
			have = unpack(stored)
		}
		next, changed, err := have.advance(o.names, o.now(), o.trusted(have.roots))
		if err != nil || stored != nil && !changed {
			return next, err
		}
		err = o.write(ctx, stored, next)
		if err == nil {
			return next, nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) || conflicts == maxConflicts {
			return material{}, fmt.Errorf("write Secret %s/%s: %w", o.cfg.Namespace, o.name, err)
		}
		// Another replica was first: what it has written counts.
	}
}

func (o *own) trusted(roots []byte) bool {
	for _, i := range o.inject {
		if i.trusts(roots) != nil {
			return false
		}
	}
	return true
}

// write makes the Secret, unless another replica has, or changes the one that was read.
func (o *own) write(ctx context.Context, stored *corev1.Secret, m material) error {
	if stored != nil {
		changed := stored.DeepCopy()
		m.pack(changed)
		_, err := o.secret.Update(ctx, changed, metav1.UpdateOptions{FieldManager: fieldManager})
		return err
	}
	s := &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Namespace: o.cfg.Namespace, Name: o.name, Labels: map[string]string{"app.kubernetes.io/managed-by": "stile"}},
		Type:       corev1.SecretTypeTLS,
	}
	m.pack(s)
	body, err := json.Marshal(s)
	if err != nil {
		return errors.New("the Secret cannot be encoded")
	}
	// Whoever comes second meets fields of another's, which is a conflict: it does not force.
	_, err = o.secret.Patch(ctx, o.name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: fieldManager + "-" + rand.Text()})
	return err
}

// fieldManager is how stile is called in managedFields.
const fieldManager = "stile"

func unpack(s *corev1.Secret) material {
	m := material{
		serving: pair{s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]},
		next:    pair{s.Data[nextCert], s.Data[nextKey]},
		roots:   s.Data[corev1.ServiceAccountRootCAKey],
	}
	m.staged, _ = time.Parse(time.RFC3339, s.Annotations[stagedAnnotation]) // none is long ago
	return m
}

// pack leaves what is not ours in the Secret.
func (m material) pack(s *corev1.Secret) {
	if s.Data == nil {
		s.Data = map[string][]byte{}
	}
	s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey], s.Data[corev1.ServiceAccountRootCAKey] = m.serving.cert, m.serving.key, m.roots
	if m.next.isZero() {
		delete(s.Data, nextCert)
		delete(s.Data, nextKey)
		delete(s.Annotations, stagedAnnotation)
		return
	}
	s.Data[nextCert], s.Data[nextKey] = m.next.cert, m.next.key
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[stagedAnnotation] = m.staged.UTC().Format(time.RFC3339)
}
