// Package replicas lets the replicas of a stile know how many proxies each of them
// serves, so that a plugin's status speaks of all. Its one rule: it counts; nothing that
// is decided about a proxy depends on another replica.
//
// Each replica keeps one ConfigMap in stile's own namespace, labelled [Label], and reads
// those of the others. It needs to get, list, watch, create, update and delete
// ConfigMaps there.
package replicas

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/stileproject/stile/internal/source"
)

// Label marks the ConfigMaps by which replicas know of each other.
const Label = "stile.dev/replica"

const (
	dataKey    = "counts.json.gz"
	renewedKey = "stile.dev/renewed"

	every    = 10 * time.Second // changes are written at most so often
	renew    = time.Minute      // what did not change is renewed so often, while there is anybody to hear it
	lost     = 3 * time.Minute  // a replica that has not renewed for so long counts no more
	buried   = 30 * time.Minute // and after this its ConfigMap is deleted
	maxBytes = 16 << 20         // of what another says, unpacked
)

// Counts are the proxies of one plugin, as package xds counts them.
type Counts struct {
	Matched, Sent, Accepted, Rejected, Unproven int
}

func (c *Counts) add(o Counts) {
	c.Matched += o.Matched
	c.Sent += o.Sent
	c.Accepted += o.Accepted
	c.Rejected += o.Rejected
	c.Unproven += o.Unproven
}

// Config is who the replica is and what it tells. All but Pod, Changed and Log are
// required.
type Config struct {
	REST      *rest.Config
	Namespace string // stile's own
	Name      string // of this replica, a DNS label: its pod's name
	// Pod is the UID of the pod Name, which takes the ConfigMap with it; empty: there is
	// no pod.
	Pod string
	// Own counts this replica's proxies, for plugins that have any. It must not wait.
	Own func() map[source.Key]Counts
	// News says that Own may have changed.
	News <-chan struct{}
	// Changed is told that Others counts differently. It must not wait.
	Changed func()
	Log     *slog.Logger
}

// Replicas is what this replica tells and knows of the others. Others may be called at
// any time from anywhere.
type Replicas struct {
	cfg    Config
	client kubernetes.Interface
	log    *slog.Logger
	met    chan struct{} // capacity 1: another replica was heard for the first time

	mu     sync.RWMutex      // guards what follows
	others map[string]*other // by ConfigMap
	sum    map[source.Key]Counts
}

// other is what another replica said last, and when that was heard here.
type other struct {
	version string
	heard   time.Time
	counts  map[source.Key]Counts
}

// New returns the Replicas of cfg, which have not begun.
func New(cfg Config) (*Replicas, error) {
	client, err := kubernetes.NewForConfig(cfg.REST)
	if err != nil {
		return nil, fmt.Errorf("replicas: %w", err)
	}
	r := &Replicas{cfg: cfg, client: client, log: cfg.Log, met: make(chan struct{}, 1), others: map[string]*other{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r, nil
}

// Others counts the proxies that other replicas serve of a plugin.
func (r *Replicas) Others(k source.Key) Counts {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.sum[k]
}

func (r *Replicas) name() string { return "stile-replica-" + r.cfg.Name }

// Run tells and listens until ctx ends; then it takes back what it told and returns nil.
func (r *Replicas) Run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactoryWithOptions(r.client, 0, informers.WithNamespace(r.cfg.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = Label + "=true" }))
	informer := factory.Core().V1().ConfigMaps().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { r.hear(o) },
		UpdateFunc: func(_, o any) { r.hear(o) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if m, ok := o.(*corev1.ConfigMap); ok {
				r.drop(m.Name)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("replicas: %w", err)
	}
	factory.Start(ctx.Done())
	r.tell(ctx)
	r.takeBack()
	// An informer that waits for an API server to come back does not hear that it shall
	// end, for up to half a minute; nobody waits for it.
	ended := make(chan struct{})
	go func() { factory.Shutdown(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
	return nil
}

// tell writes what this replica counts, when it changes and now and then.
func (r *Replicas) tell(ctx context.Context) {
	var (
		told  map[source.Key]Counts
		at    time.Time // zero: never
		timer = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.cfg.News:
			if wait := time.Until(at.Add(every)); wait > 0 {
				timer.Reset(wait)
				continue
			}
		case <-r.met:
		case <-timer.C:
		}
		now := time.Now()
		r.bury(ctx, now)
		own := r.cfg.Own()
		if at.IsZero() || !maps.Equal(own, told) || now.Sub(at) >= renew && r.heard() {
			if err := r.write(ctx, own, now); err != nil && ctx.Err() == nil {
				r.log.Warn("the other replicas cannot be told of this one's proxies; asked again", "configmap", r.cfg.Namespace+"/"+r.name(), "error", err)
				timer.Reset(every)
				continue
			}
			told, at = own, now
		}
		timer.Reset(renew)
	}
}

// write makes the ConfigMap say counts.
func (r *Replicas) write(ctx context.Context, counts map[source.Key]Counts, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, every)
	defer cancel()
	packed, err := pack(counts)
	if err != nil {
		return err
	}
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.cfg.Namespace, Name: r.name(),
			Labels:      map[string]string{Label: "true", "app.kubernetes.io/name": "stile"},
			Annotations: map[string]string{renewedKey: now.UTC().Format(time.RFC3339)},
		},
		BinaryData: map[string][]byte{dataKey: packed},
	}
	if r.cfg.Pod != "" {
		m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: r.cfg.Name, UID: types.UID(r.cfg.Pod)}}
	}
	configMaps := r.client.CoreV1().ConfigMaps(r.cfg.Namespace)
	if _, err = configMaps.Update(ctx, m, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
		_, err = configMaps.Create(ctx, m, metav1.CreateOptions{})
	}
	return err
}

// takeBack deletes the ConfigMap: who ends in order counts no more at once.
func (r *Replicas) takeBack() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := r.client.CoreV1().ConfigMaps(r.cfg.Namespace).Delete(ctx, r.name(), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		r.log.Warn("what the other replicas were told could not be taken back; they forget it in a few minutes", "error", err)
	}
}

// hear takes what another replica says.
func (r *Replicas) hear(o any) {
	m, ok := o.(*corev1.ConfigMap)
	if !ok || m.Name == r.name() {
		return
	}
	r.mu.RLock()
	before := r.others[m.Name]
	r.mu.RUnlock()
	if before != nil && before.version == m.ResourceVersion {
		return
	}
	if before == nil {
		select {
		case r.met <- struct{}{}:
		default:
		}
	}
	counts, err := unpack(m.BinaryData[dataKey])
	if err != nil {
		r.log.Warn("what another replica counts cannot be read", "configmap", m.Namespace+"/"+m.Name, "error", err)
	}
	r.mu.Lock()
	r.others[m.Name] = &other{version: m.ResourceVersion, heard: time.Now(), counts: counts}
	changed := r.add(time.Now())
	r.mu.Unlock()
	r.told(changed)
}

// heard reports whether there is any other replica.
func (r *Replicas) heard() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.others) > 0
}

func (r *Replicas) drop(name string) {
	r.mu.Lock()
	delete(r.others, name)
	changed := r.add(time.Now())
	r.mu.Unlock()
	r.told(changed)
}

func (r *Replicas) told(changed bool) {
	if changed && r.cfg.Changed != nil {
		r.cfg.Changed()
	}
}

// add sums up those who were heard lately. mu is held.
func (r *Replicas) add(now time.Time) (changed bool) {
	sum := map[source.Key]Counts{}
	for _, o := range r.others {
		if now.Sub(o.heard) > lost {
			continue
		}
		for k, c := range o.counts {
			s := sum[k]
			s.add(c)
			sum[k] = s
		}
	}
	changed = !maps.Equal(sum, r.sum)
	r.sum = sum
	return changed
}

// bury forgets those who fell silent, and deletes what they left long ago.
func (r *Replicas) bury(ctx context.Context, now time.Time) {
	var dead []string
	r.mu.Lock()
	for name, o := range r.others {
		if now.Sub(o.heard) > buried {
			dead = append(dead, name)
		}
	}
	changed := r.add(now)
	r.mu.Unlock()
	r.told(changed)
	for _, name := range dead {
		ctx, cancel := context.WithTimeout(ctx, every)
		err := r.client.CoreV1().ConfigMaps(r.cfg.Namespace).Delete(ctx, name, metav1.DeleteOptions{})
		cancel()
		if err != nil && !apierrors.IsNotFound(err) {
			r.log.Warn("what a lost replica left cannot be deleted", "configmap", r.cfg.Namespace+"/"+name, "error", err)
		}
	}
}

// pack writes counts as a ConfigMap can hold them for 10,000 plugins: its limit is 1 MiB.
func pack(counts map[source.Key]Counts) ([]byte, error) {
	rows := make(map[string][5]int, len(counts))
	for k, c := range counts {
		rows[k.Namespace+"/"+k.Name] = [5]int{c.Matched, c.Sent, c.Accepted, c.Rejected, c.Unproven}
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if err := json.NewEncoder(z).Encode(rows); err != nil {
		return nil, fmt.Errorf("pack counts: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("pack counts: %w", err)
	}
	return packed.Bytes(), nil
}

func unpack(packed []byte) (map[source.Key]Counts, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpack counts: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(z, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("unpack counts: %w", err)
	}
	if len(text) > maxBytes {
		return nil, errors.New("unpack counts: more than " + strconv.Itoa(maxBytes) + " bytes")
	}
	var rows map[string][5]int
	if err := json.Unmarshal(text, &rows); err != nil {
		return nil, fmt.Errorf("unpack counts: %w", err)
	}
	counts := make(map[source.Key]Counts, len(rows))
	for name, n := range rows {
		ns, plugin, ok := strings.Cut(name, "/")
		if !ok || min(n[0], n[1], n[2], n[3], n[4]) < 0 {
			return nil, errors.New("unpack counts: a row is malformed")
		}
		counts[source.Key{Namespace: ns, Name: plugin}] = Counts{n[0], n[1], n[2], n[3], n[4]}
	}
	return counts, nil
}
