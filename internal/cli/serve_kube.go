package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/admin"
	"github.com/stileproject/stile/internal/controller/admission"
	"github.com/stileproject/stile/internal/controller/callers"
	"github.com/stileproject/stile/internal/controller/gate"
	"github.com/stileproject/stile/internal/controller/lease"
	pods "github.com/stileproject/stile/internal/controller/placement"
	"github.com/stileproject/stile/internal/controller/replicas"
	"github.com/stileproject/stile/internal/controller/status"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/source"
	"github.com/stileproject/stile/internal/source/kube"
	"github.com/stileproject/stile/internal/xds"
)

// leaseName is the Lease by which replicas agree on who leads.
const leaseName = "stile"

// kubernetesPart is what the service has beside its rooms where its resources come from
// a Kubernetes API.
type kubernetesPart struct {
	api       *rest.Config
	namespace string // stile's own
	name      string // of this replica

	source   *kube.Source
	lease    *lease.Lease
	replicas *replicas.Replicas
	status   *status.Writer
	callers  *callers.Callers
	webhooks *admission.Server // nil: there are none
	pods     *pods.Controller  // nil: pods are not placed

	leadChanged, statuses, counts chan struct{} // what several rooms want to hear of
}

// reachKubernetes finds the API that the configuration names.
func (s *service) reachKubernetes() error {
	k := s.cfg.Resources.Kubernetes
	if k == nil {
		return nil
	}
	api, namespace, err := kubernetesAPI(k)
	if err != nil {
		return err
	}
	if s.cfg.Keys.File == "" {
		s.log.Warn("keys.file is not set: replicas with keys of their own serve modules at different URLs, and forget their proofs with their store", "remedy", "name the file of a mounted Secret")
	}
	p := &kubernetesPart{
		api: api, namespace: cmp.Or(k.Namespace, namespace, s.cfg.RootNamespace), name: replicaName(),
		leadChanged: make(chan struct{}, 1), statuses: make(chan struct{}, 1), counts: make(chan struct{}, 1),
	}
	s.kube = p
	return nil
}

// kubernetesAPI returns how to reach the API and, within a cluster, the namespace of the
// pod.
func kubernetesAPI(k *v1alpha1.KubernetesConfig) (api *rest.Config, namespace string, err error) {
	if k.Kubeconfig == "" && k.Context == "" {
		if api, err = rest.InClusterConfig(); err == nil {
			text, _ := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace") // not there: the configuration says
			return tuned(api), strings.TrimSpace(string(text)), nil
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.Kubeconfig
	api, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: k.Context}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		err = errors.New("stile does not run in a cluster, and there is no kubeconfig")
	}
	if err != nil {
		return nil, "", fail(Usage, fmt.Errorf("resources.kubernetes: %w", err), "name a kubeconfig with --kubeconfig, and one of its contexts with --context")
	}
	return tuned(api), "", nil
}

// tuned gives a client room for a cluster of thousands of plugins: the API server's own
// fairness is what bounds it.
func tuned(api *rest.Config) *rest.Config {
	v := currentVersion()
	api.UserAgent = "stile/" + v.Version
	api.QPS, api.Burst = 200, 400
	return api
}

// replicaName is the pod's, else one of this machine and this run.
func replicaName() string {
	if name := os.Getenv("POD_NAME"); name != "" {
		return name
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "stile"
	}
	var run [4]byte
	_, _ = rand.Read(run[:]) // it never fails
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	return host + "-" + hex.EncodeToString(run[:])
}

// openKubernetes makes what the engine is made with.
func (s *service) openKubernetes(cfg *engine.Config) (err error) {
	p, k := s.kube, s.cfg.Resources.Kubernetes
	if p.source, err = kube.New(kube.Config{
		REST: p.api, Namespaces: k.Namespaces, Revision: k.Revision, Selector: k.Selector,
		Namespace: p.namespace, Log: s.log, Registerer: s.metrics,
	}); err != nil {
		return fail(Usage, fmt.Errorf("resources.kubernetes: %w", err), "")
	}
	if p.lease, err = lease.New(lease.Config{REST: p.api, Namespace: p.namespace, Name: leaseName, Identity: p.name, Log: s.log, Registerer: s.metrics}); err != nil {
		return fail(Usage, err, "")
	}
	if p.replicas, err = replicas.New(replicas.Config{
		REST: p.api, Namespace: p.namespace, Name: p.name, Pod: os.Getenv("POD_UID"),
		Own: s.ownProxies, News: p.counts, Changed: func() { s.engine.Reconsider() }, Log: s.log,
	}); err != nil {
		return fail(Usage, err, "")
	}
	if p.callers, err = callers.New(p.api); err != nil {
		return fail(Usage, err, "")
	}
	cfg.Leads = p.lease.Leads
	cfg.Others = func(k plugin.Key) xds.Counts { return xds.Counts(p.replicas.Others(k)) }
	s.source = p.source
	return nil
}

// ownProxies counts the proxies of this replica alone.
func (s *service) ownProxies() map[source.Key]replicas.Counts {
	own := map[source.Key]replicas.Counts{}
	for _, p := range s.engine.Plugins() {
		k := source.Key{Namespace: p.Namespace, Name: p.Name}
		if n := s.proxies.Counts(k); n.Matched > 0 {
			own[k] = replicas.Counts(n)
		}
	}
	return own
}

// told is the engine as the status writer sees it.
type told struct {
	*engine.Engine
	changed <-chan struct{}
}

func (t told) Changed() <-chan struct{} { return t.changed }

// openControllers makes what speaks to the API, once the engine is there.
func (s *service) openControllers() (err error) {
	if s.kube == nil {
		return nil
	}
	p, k := s.kube, s.cfg.Resources.Kubernetes
	if p.status, err = status.New(status.Config{
		REST: p.api, Leads: p.lease.Leads, LeadChanges: p.leadChanged, Statuses: told{s.engine, p.statuses},
		Namespaces: k.Namespaces, Identity: p.name, Log: s.log, Registerer: s.metrics,
	}); err != nil {
		return fail(Usage, err, "")
	}
	if err := s.openPlacement(); err != nil {
		return err
	}
	if s.bound.webhook == nil {
		return nil
	}
	if p.webhooks, err = admission.New(admission.Config{
		REST: p.api, Listener: s.bound.webhook, Namespace: p.namespace, Service: s.cfg.Webhook.Service,
		CertFile: s.cfg.Webhook.CertFile, KeyFile: s.cfg.Webhook.KeyFile, Log: s.log, Registerer: s.metrics,
	}); err != nil {
		return fail(Usage, fmt.Errorf("webhook: %w", err), "")
	}
	p.webhooks.Handle(admission.ValidatePath, admission.ValidatePlugins(admission.PluginRules{Owns: p.source.Owns, HostEnv: append([]string{}, s.cfg.Wasm.HostEnvAllow...)}))
	gated, err := gate.New(gate.Config{Namespace: p.namespace, Log: s.log, Registerer: s.metrics})
	if err != nil {
		return err
	}
	p.webhooks.Handle("/gate-pod", gated)
	return nil
}

// openPlacement makes the controller of gated pods.
func (s *service) openPlacement() (err error) {
	p, c := s.kube, s.cfg.Placement
	if !c.Enabled {
		return nil
	}
	p.pods, err = pods.New(pods.Config{
		REST: p.api, Gate: s.gate, Contents: s.contents, Registries: s.client, Secrets: p.source.Secrets(),
		Fingerprints: s.root.Key(secret.ForFingerprints), Namespace: p.namespace,
		PullSecret: source.Key{Namespace: c.PullSecret.Namespace, Name: c.PullSecret.Name},
		Settings:   placement.Settings{Preferred: c.Preferred, Fallback: c.FallbackArchitecture},
		MaxWait:    c.MaxWait.Duration, Leads: p.lease.Leads, Log: s.log, Registerer: s.metrics,
	})
	return err
}

// runKubernetes runs what speaks to the API.
func (s *service) runKubernetes(room func(string, func(context.Context) error)) {
	p := s.kube
	if p == nil {
		return
	}
	room("lease", p.lease.Run)
	room("replicas", p.replicas.Run)
	room("status", p.status.Run)
	room("news", s.passNews)
	if p.webhooks != nil {
		room("webhook", p.webhooks.Run)
	}
	if p.pods != nil {
		room("pods", p.pods.Run)
	}
}

// passNews tells several rooms what others tell one.
func (s *service) passNews(ctx context.Context) error {
	tell := func(all ...chan struct{}) {
		for _, c := range all {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.engine.Changed():
			tell(s.kube.statuses, s.kube.counts)
		case <-s.kube.lease.Changes():
			s.engine.Reconsider()
			tell(s.kube.leadChanged)
		}
	}
}

// admit says who may ask the admin API off loopback: the owner of a client certificate,
// or of a Kubernetes token whose role allows it.
func (s *service) admit(r *http.Request) error {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return nil
	}
	if s.kube == nil {
		return fmt.Errorf("%w: connect with a client certificate", admin.ErrNobody)
	}
	err := s.kube.callers.Admit(r)
	switch {
	case errors.Is(err, callers.ErrUnknown):
		return fmt.Errorf("%w: %w", admin.ErrNobody, err)
	case errors.Is(err, callers.ErrForbidden):
		return fmt.Errorf("%w: %w", admin.ErrForbidden, err)
	}
	return err
}

// kubernetesNotes are what is wrong with the cluster without making the service unready.
func (s *service) kubernetesNotes() []string {
	if s.kube == nil {
		return nil
	}
	notes := s.kube.source.Missing()
	if s.kube.webhooks != nil {
		if err := s.kube.webhooks.Ready(); err != nil {
			notes = append(notes, "webhook: "+err.Error())
		}
	}
	return notes
}

// kubernetesChecks are what must hold of the cluster before the service is ready.
func (s *service) kubernetesChecks() []admin.Check {
	if s.kube == nil {
		return nil
	}
	return []admin.Check{{Name: "kubernetes", Fault: func() error {
		if s.kube.source.Synced() {
			return nil
		}
		return errors.New("the resources have not all been read yet")
	}}}
}
