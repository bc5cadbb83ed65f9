package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/xds"
)

// inCluster is a status query that goes through a Kubernetes API: plugins from their own
// status, proofs and proxies from every replica that can be reached.
type inCluster struct {
	api       v1alpha1.KubernetesConfig
	namespace string // of plugins; "" is all
	home      string // stile's own namespace
	all       bool   // as kubectl plugin: the API is asked even where no flag names one

	plugins  dynamic.Interface
	pods     kubernetes.Interface
	rest     *rest.Config
	forwards map[string]string // the pod's name: local address of its admin port
}

// replicaReport says of one replica whether it was asked.
type replicaReport struct {
	Pod   string `json:"pod"`
	Asked bool   `json:"asked"`
	Error string `json:"error,omitempty"`
}

// podLabel marks the chart's pods; adminPort is where their admin API listens, on their loopback.
const (
	podLabel  = "app.kubernetes.io/name=stile"
	adminPort = 18002
)

var wasmPlugins = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "wasmplugins"}

// calledByKubectl reports whether this program runs as "kubectl stile".
func calledByKubectl() bool { return strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-") }

// wanted reports whether a Kubernetes API is to be asked.
func (c *inCluster) wanted() bool {
	return c.all || c.api.Kubeconfig != "" || c.api.Context != "" || c.namespace != ""
}

// open finds the API.
func (c *inCluster) open() (err error) {
	if c.rest, _, err = kubernetesAPI(&c.api); err != nil {
		return err
	}
	if c.plugins, err = dynamic.NewForConfig(c.rest); err == nil {
		c.pods, err = kubernetes.NewForConfig(c.rest)
	}
	if err != nil {
		return fail(Usage, fmt.Errorf("status: %w", err), "name a kubeconfig with --kubeconfig, and one of its contexts with --context")
	}
	c.forwards = map[string]string{}
	return nil
}

// ask reads the plugins' status, then proofs and proxies of every ready replica. Replicas
// that cannot be reached take nothing away from the answer but what only they know.
func (c *inCluster) ask(ctx context.Context, q statusQuery) (*statusAnswers, error) {
	s := &statusAnswers{report: statusReport{APIVersion: apiVersion, Kind: "Status",
		Plugins: []json.RawMessage{}, Proofs: []json.RawMessage{}, Proxies: []json.RawMessage{}, Replicas: []replicaReport{}}}
	if err := c.readPlugins(ctx, q, s); err != nil {
		return nil, err
	}
	if q.name != "" && len(s.plugins) == 0 {
		return nil, fail(NotFound, fmt.Errorf("status: there is no WasmPlugin %s", q.name), `"stile status -o name" lists those there are`)
	}
	for _, r := range c.replicas(ctx, q.timeout) {
		if r.Error == "" {
			if err := c.readReplica(ctx, q, r.Pod, s); err != nil {
				r.Error = err.Error()
			} else {
				r.Asked = true
			}
		}
		s.report.Replicas = append(s.report.Replicas, r)
	}
	if interruptedBy(ctx) != nil {
		return nil, context.Cause(ctx)
	}
	return s, nil
}

// readPlugins reads WasmPlugins with their status.
func (c *inCluster) readPlugins(ctx context.Context, q statusQuery, s *statusAnswers) error {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	list, err := c.plugins.Resource(wasmPlugins).Namespace(c.namespace).List(ctx, metav1.ListOptions{})
	switch {
	case interruptedBy(ctx) != nil:
		return context.Cause(ctx)
	case apierrors.IsNotFound(err):
		return fail(NotFound, errors.New("status: this cluster knows no WasmPlugin"), "install the CRD: docs/install.md")
	case apierrors.IsForbidden(err):
		return fail(Failed, fmt.Errorf("status: %w", err), "use an account that may list wasmplugins, or name a namespace with -n")
	case err != nil:
		return fail(Unavailable, fmt.Errorf("status: %w", err), "check --kubeconfig and --context, then try again")
	}
	for _, o := range list.Items {
		p := &v1alpha1.WasmPlugin{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, p); err != nil {
			p.Namespace, p.Name = o.GetNamespace(), o.GetName() // of another schema: what can be said of it is its name
		}
		if q.name != "" && p.Namespace+"/"+p.Name != q.name {
			continue
		}
		one := statusOf(p)
		raw, err := json.Marshal(one)
		if err != nil {
			return fail(Failed, fmt.Errorf("status: %w", err), "")
		}
		s.plugins, s.report.Plugins = append(s.plugins, one), append(s.report.Plugins, raw)
	}
	return nil
}

// statusOf is a plugin's own status as the admin API writes it.
func statusOf(p *v1alpha1.WasmPlugin) engine.PluginStatus {
	s := engine.PluginStatus{
		Namespace: p.Namespace, Name: p.Name, Generation: p.Generation, URL: v1alpha1.DisplayURL(p.Spec.URL), Conditions: []engine.Condition{},
		Digest: p.Status.Digest, ModuleSHA256: p.Status.ModuleSHA256, Size: p.Status.Size,
		Resolved: p.Status.ResolvedDigest, ServedGeneration: p.Status.ServedGeneration,
	}
	for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionResolvedRefs, v1alpha1.ConditionProgrammed} {
		i := slices.IndexFunc(p.Status.Conditions, func(c metav1.Condition) bool { return c.Type == kind })
		if i < 0 {
			s.Conditions = append(s.Conditions, engine.Condition{Type: kind, Status: string(metav1.ConditionUnknown), Reason: v1alpha1.ReasonPending,
				Message: "no stile has written a status for it"})
			continue
		}
		c := p.Status.Conditions[i]
		s.Conditions = append(s.Conditions, engine.Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message,
			ObservedGeneration: c.ObservedGeneration, LastTransitionTime: c.LastTransitionTime.Time})
		s.ServingLastGood = s.ServingLastGood || c.Reason == v1alpha1.ReasonServingLastGood
	}
	if n := p.Status.Proxies; n != nil {
		s.Proxies = xds.Counts{Matched: int(n.Matched), Accepted: int(n.Accepted), Rejected: int(n.Rejected)}
	}
	return s
}

// replicas lists the service's pods, sorted; of those that are not ready, or cannot be
// listed, it says why.
func (c *inCluster) replicas(ctx context.Context, timeout time.Duration) []replicaReport {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list, err := c.pods.CoreV1().Pods(c.home).List(ctx, metav1.ListOptions{LabelSelector: podLabel})
	if err != nil {
		return []replicaReport{{Error: err.Error()}}
	}
	if len(list.Items) == 0 {
		return []replicaReport{{Error: "no pod labelled " + podLabel + " in namespace " + c.home + ": name stile's own with --service-namespace"}}
	}
	var all []replicaReport
	for i := range list.Items {
		r := replicaReport{Pod: list.Items[i].Name}
		if !podReady(&list.Items[i]) {
			r.Error = "not ready"
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b replicaReport) int { return strings.Compare(a.Pod, b.Pod) })
	return all
}

func podReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// readReplica adds what one replica knows: each has proxies and proofs of its own.
func (c *inCluster) readReplica(ctx context.Context, q statusQuery, pod string, s *statusAnswers) error {
	address, err := c.forward(ctx, q.timeout, pod)
	if err != nil {
		return err
	}
	q.server = address
	var proofs, proxies []json.RawMessage
	var readProofs []proofItem
	var readProxies []xds.Proxy
	if err := errors.Join(
		fetchList(ctx, q, "proofs", &proofs, &readProofs, func(p proofItem) bool { return q.name == "" || slices.Contains(p.Users, q.name) }),
		fetchList(ctx, q, "proxies", &proxies, &readProxies, func(p xds.Proxy) bool { return q.name == "" || has(p, q.name) }),
	); err != nil {
		delete(c.forwards, pod) // the next time it is dialled anew
		return err
	}
	s.report.Proofs, s.proofs = append(s.report.Proofs, proofs...), append(s.proofs, readProofs...)
	s.report.Proxies, s.proxies = append(s.report.Proxies, proxies...), append(s.proxies, readProxies...)
	return nil
}

// forward makes the admin port of a pod a port of this machine's loopback, as "kubectl
// port-forward" does, until ctx ends, and returns its address.
func (c *inCluster) forward(ctx context.Context, timeout time.Duration, pod string) (string, error) {
	if address, ok := c.forwards[pod]; ok {
		return address, nil
	}
	url := c.pods.CoreV1().RESTClient().Post().Resource("pods").Namespace(c.home).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.rest)
	if err != nil {
		return "", err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	if web, err := portforward.NewSPDYOverWebsocketDialer(url, c.rest); err == nil {
		dialer = portforward.NewFallbackDialer(web, dialer, func(err error) bool {
			return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
		})
	}
	ready := make(chan struct{})
	f, err := portforward.NewOnAddressesWithContext(ctx, dialer, []string{"127.0.0.1"}, []string{"0:" + strconv.Itoa(adminPort)}, ready, io.Discard, io.Discard)
	if err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }() // ends with ctx
	select {
	case <-ready:
	case err := <-ended:
		if err == nil {
			err = errors.New("the connection ended")
		}
		return "", err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-time.After(timeout):
		return "", fmt.Errorf("no connection to its port %d within %s (--timeout)", adminPort, timeout)
	}
	ports, err := f.GetPorts()
	if err != nil {
		return "", err
	}
	c.forwards[pod] = "127.0.0.1:" + strconv.Itoa(int(ports[0].Local))
	return c.forwards[pod], nil
}

// notAsked says on stderr of which replicas the answer knows nothing.
func (a *app) notAsked(replicas []replicaReport) {
	for _, r := range replicas {
		switch {
		case r.Pod == "":
			a.note("Proofs and proxies are left out: %s", printable(r.Error))
		case !r.Asked:
			a.note("Proofs and proxies of pod %s are left out: %s", r.Pod, printable(r.Error))
		}
	}
}
