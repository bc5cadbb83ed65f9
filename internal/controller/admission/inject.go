package admission

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// The pace of injection.
const (
	watchFor      = 5 * time.Minute // then it is read again, whatever the watch said
	followRetry   = time.Second
	followMax     = 30 * time.Second
	injectBurst   = 5 // injections at once, then one per injectEvery: somebody else may insist on another bundle
	injectEvery   = 10 * time.Second
	notRead       = "not read yet"
	caBundleField = "caBundle"
)

// injector keeps the caBundle of one webhook configuration.
type injector struct {
	client  dynamic.ResourceInterface
	kind    string // its resource
	name    string
	log     *slog.Logger
	changed func() // called when another caBundle is seen than was wanted last

	mu    sync.Mutex // guards what follows
	known bool       // config is what the API server has
	why   string     // why it is not known
	seen  *unstructured.Unstructured
	want  []byte
	left  float64 // injections that may be made at once
	at    time.Time
}

func newInjector(client dynamic.Interface, kind, name string, log *slog.Logger, changed func()) *injector {
	return &injector{kind: kind, name: name, log: log, changed: changed, why: notRead, left: injectBurst,
		client: client.Resource(schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: kind})}
}

// trusts says why the configuration does not trust the roots yet; nil too where there is no
// such configuration.
func (i *injector) trusts(roots []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case !i.known:
		return fmt.Errorf("%s/%s: %s", i.kind, i.name, i.why)
	case len(i.wrong(roots)) > 0:
		return fmt.Errorf("%s/%s: caBundle is not injected yet", i.kind, i.name)
	}
	return nil
}

// wrong returns the webhooks with another caBundle. It is called with mu held.
func (i *injector) wrong(roots []byte) []int {
	if i.seen == nil {
		return nil
	}
	var all []int
	hooks, _, _ := unstructured.NestedSlice(i.seen.Object, "webhooks")
	for n, hook := range hooks {
		h, _ := hook.(map[string]any)
		bundle, _, _ := unstructured.NestedString(h, "clientConfig", caBundleField)
		if have, err := base64.StdEncoding.DecodeString(bundle); err != nil || !bytes.Equal(have, roots) {
			all = append(all, n)
		}
	}
	return all
}

// see takes over what the API server has; nil is nothing of that name.
func (i *injector) see(u *unstructured.Unstructured) {
	i.mu.Lock()
	if u != nil && i.seen != nil && older(u.GetResourceVersion(), i.seen.GetResourceVersion()) {
		i.mu.Unlock()
		return // the watch lags behind our own patch
	}
	first := !i.known
	i.known, i.why, i.seen = true, "", u
	changed := first || i.want != nil && len(i.wrong(i.want)) > 0
	i.mu.Unlock()
	if changed {
		i.changed()
	}
}

// older reports whether version a is before b; what cannot be compared is not.
func older(a, b string) bool {
	n, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && n < 0
}

// inject makes the configuration trust the roots, if there is one and it does not.
func (i *injector) inject(ctx context.Context, roots []byte) error {
	i.mu.Lock()
	i.want = roots
	wrong := i.wrong(roots)
	if len(wrong) == 0 {
		i.mu.Unlock()
		return nil
	}
	if !i.spend(time.Now()) {
		i.mu.Unlock()
		return fmt.Errorf("inject into %s/%s: somebody else keeps setting its caBundle: leave that to stile, or give stile's webhooks a certificate by certFile", i.kind, i.name)
	}
	version := i.seen.GetResourceVersion()
	i.mu.Unlock()

	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	patch := []operation{{"test", "/metadata/resourceVersion", version}} // the places of webhooks are those that were seen
	for _, n := range wrong {
		patch = append(patch, operation{"add", fmt.Sprintf("/webhooks/%d/clientConfig/%s", n, caBundleField), base64.StdEncoding.EncodeToString(roots)})
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("inject into %s/%s: %w", i.kind, i.name, err)
	}
	u, err := i.client.Patch(ctx, i.name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsConflict(err):
		return nil // it has changed meanwhile: the watch tells
	case err != nil:
		return fmt.Errorf("inject into %s/%s: %w", i.kind, i.name, err)
	}
	i.log.Info("webhooks: caBundle is injected", "kind", i.kind, "name", i.name)
	i.see(u)
	return nil
}

// spend takes one from what may be injected. It is called with mu held.
func (i *injector) spend(now time.Time) bool {
	i.left = min(injectBurst, i.left+float64(now.Sub(i.at))/float64(injectEvery))
	i.at = now
	if i.left < 1 {
		return false
	}
	i.left--
	return true
}

// follow sees what becomes of the configuration until ctx ends.
func (i *injector) follow(ctx context.Context) {
	retry := followRetry
	for ctx.Err() == nil {
		err := i.watch(ctx)
		pause := followRetry
		if err != nil && ctx.Err() == nil {
			i.log.Warn("webhooks: a configuration cannot be followed, it is tried again", "kind", i.kind, "name", i.name, "in", retry, "error", err)
			i.mu.Lock()
			if !i.known {
				i.why = err.Error()
			}
			i.mu.Unlock()
			pause, retry = retry, min(2*retry, followMax)
		} else {
			retry = followRetry
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait.Jitter(pause, 0.2)):
		}
	}
}

// watch reads the configuration and follows it, by its name alone, until the watch ends.
func (i *injector) watch(ctx context.Context) error {
	reading, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	options := metav1.ListOptions{FieldSelector: "metadata.name=" + i.name, TimeoutSeconds: new(int64(watchFor / time.Second))}
	u, err := i.client.Get(reading, i.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		i.see(nil)
	case err != nil:
		return err
	default:
		i.see(u)
		options.ResourceVersion = u.GetResourceVersion()
	}
	w, err := i.client.Watch(ctx, options)
	if err != nil {
		return err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		switch event.Type {
		case watch.Added, watch.Modified:
			if u, ok := event.Object.(*unstructured.Unstructured); ok {
				i.see(u)
			}
		case watch.Deleted:
			i.see(nil)
		case watch.Error:
			return apierrors.FromObject(event.Object)
		}
	}
	return nil
}
