// Package release lets every held pod go, for when stile is taken away. Its one rule: it
// ends only when no pod carries the gate, or says how many do.
package release

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/internal/placement"
)

const (
	page       = 500 // pods of one list
	atATime    = 8   // patches under way
	quiet      = 2 * time.Second
	retryFirst = 200 * time.Millisecond
	retryMax   = 10 * time.Second
	oneTry     = 30 * time.Second
)

// Names of what puts the gate on new pods, as the chart calls them by default.
const (
	WebhookName = "stile-webhook"
	PolicyName  = "stile-gate"
)

// Disarm removes what puts the gate on new pods: the configuration of the webhook and the
// binding of the policy with these names (WebhookName, PolicyName). What is not there is
// fine; what may not be removed is an error.
func Disarm(ctx context.Context, client kubernetes.Interface, webhook, policy string) error {
	admission := client.AdmissionregistrationV1()
	var errs []error
	for what, remove := range map[string]func(context.Context) error{
		"MutatingWebhookConfiguration " + webhook: func(ctx context.Context) error {
			return admission.MutatingWebhookConfigurations().Delete(ctx, webhook, metav1.DeleteOptions{})
		},
		"MutatingAdmissionPolicyBinding " + policy: func(ctx context.Context) error {
			return admission.MutatingAdmissionPolicyBindings().Delete(ctx, policy, metav1.DeleteOptions{})
		},
	} {
		if err := patiently(ctx, func(ctx context.Context) error { return remove(ctx) }); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove %s: %w", what, err))
		}
	}
	return errors.Join(errs...)
}

// All takes the gate, and nothing else, from every pod that carries it, in all
// namespaces, until for two seconds there is none: pods that are still being created are
// let go, too. Where the API server is busy or away it tries again until ctx ends. It
// returns how many pods it let go; with an error, some may be left.
func All(ctx context.Context, client kubernetes.Interface, log *slog.Logger) (released int, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var total atomic.Int64
	for clean := false; ; {
		found, err := sweep(ctx, client, log, &total)
		if err != nil {
			return int(total.Load()), fmt.Errorf("release pods: %w", err)
		}
		if found == 0 && clean {
			return int(total.Load()), nil
		}
		clean = found == 0
		if clean {
			if err := wait(ctx, quiet); err != nil {
				return int(total.Load()), fmt.Errorf("release pods: %w", err)
			}
		}
	}
}

// sweep goes through all pods once and returns how many carried the gate. One that cannot
// be let go holds up no other.
func sweep(ctx context.Context, client kubernetes.Interface, log *slog.Logger, total *atomic.Int64) (found int, err error) {
	pods := make(chan types.NamespacedName)
	var workers sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	for range atATime {
		workers.Go(func() {
			for pod := range pods {
				if err := letGo(ctx, client, pod); err != nil {
					mu.Lock()
					failed = append(failed, fmt.Errorf("pod %s: %w", pod, err))
					mu.Unlock()
					continue
				}
				if n := total.Add(1); n%1000 == 0 {
					log.Info("pods released", "count", n)
				}
			}
		})
	}
	found, err = gated(ctx, client, pods)
	close(pods)
	workers.Wait()
	if n := len(failed); n > 0 {
		return found, errors.Join(err, fmt.Errorf("%d pods still carry the gate, the first for this: %w", n, failed[0]))
	}
	return found, err
}

// gated sends each pod that carries the gate, page by page. A list that has expired
// meanwhile begins anew.
func gated(ctx context.Context, client kubernetes.Interface, to chan<- types.NamespacedName) (found int, err error) {
	options := metav1.ListOptions{FieldSelector: "spec.nodeName=", Limit: page}
	for {
		var list *corev1.PodList
		err := patiently(ctx, func(ctx context.Context) error {
			list, err = client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, options)
			return err
		})
		switch {
		case apierrors.IsResourceExpired(err) && options.Continue != "":
			options.Continue = ""
			continue
		case err != nil:
			return found, fmt.Errorf("list pods: %w", err)
		}
		for i := range list.Items {
			p := &list.Items[i]
			if !placement.Gated(p) {
				continue
			}
			found++
			select {
			case to <- types.NamespacedName{Namespace: p.Namespace, Name: p.Name}:
			case <-ctx.Done():
				return found, context.Cause(ctx)
			}
		}
		if options.Continue = list.Continue; options.Continue == "" {
			return found, nil
		}
	}
}

// body takes our gate out by its name and leaves all others.
var body = []byte(`{"spec":{"schedulingGates":[{"$patch":"delete","name":"` + placement.Gate + `"}]}}`)

// letGo takes the gate from one pod. One that is gone needs nothing any more.
func letGo(ctx context.Context, client kubernetes.Interface, pod types.NamespacedName) error {
	err := patiently(ctx, func(ctx context.Context) error {
		_, err := client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{FieldManager: "stile-placement"})
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// patiently does something until it succeeds, fails for good, or ctx ends.
func patiently(ctx context.Context, do func(context.Context) error) error {
	delay := retryFirst
	for {
		try, cancel := context.WithTimeout(ctx, oneTry)
		err := do(try)
		cancel()
		if err == nil || final(err) {
			return err
		}
		if wait(ctx, delay/2+rand.N(delay)) != nil { //nolint:gosec // jitter is no secret
			return err
		}
		delay = min(2*delay, retryMax)
	}
}

// final reports an answer that the API server would give again.
func final(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) ||
		apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsResourceExpired(err) || apierrors.IsMethodNotSupported(err)
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
