// Package gate puts the scheduling gate on new pods: the webhook /gate-pod. Its one rule:
// it looks nothing up and refuses nothing; what it cannot read is created as it is.
package gate

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/stileproject/stile/internal/placement"
)

// Path is where the API server finds the Handler.
const Path = "/gate-pod"

// maxReview bounds an admission review: the API server takes objects of 3 MiB, and JSON
// may need more for the same.
const maxReview = 8 << 20

// Config says what the Handler leaves alone.
type Config struct {
	// Namespace is stile's own, whose pods are never held; empty = none.
	Namespace string
	// Log receives what cannot be read; nil = nothing is logged.
	Log *slog.Logger
	// Registerer receives the metrics; nil = none.
	Registerer prometheus.Registerer
}

// Handler answers admission reviews of pods. It is safe for concurrent use.
type Handler struct {
	namespace string
	log       *slog.Logger
	pods      *prometheus.CounterVec
	took      prometheus.Histogram
}

// New returns a Handler. It fails if its metrics are registered already.
func New(c Config) (*Handler, error) {
	h := &Handler{
		namespace: c.Namespace,
		log:       c.Log,
		pods: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stile_gate_pods_total",
			Help: "Pods that were asked about on creation: gated, excluded (left alone) or unreadable."}, []string{"result"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "stile_gate_duration_seconds",
			Help: "Time to answer about one pod.", Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .05, .25, 1}}),
	}
	for _, result := range []string{"gated", "excluded", "unreadable"} {
		h.pods.WithLabelValues(result)
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if c.Registerer != nil {
		if err := errors.Join(c.Registerer.Register(h.pods), c.Registerer.Register(h.took)); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// review is as much of an AdmissionReview (admission.k8s.io/v1) as is needed. The object
// is read once, and no further than placement looks.
type review struct {
	metav1.TypeMeta `json:",inline"`
	Request         *request  `json:"request,omitempty"`
	Response        *response `json:"response,omitempty"`
}

type request struct {
	UID         types.UID                   `json:"uid"`
	Resource    metav1.GroupVersionResource `json:"resource"`
	SubResource string                      `json:"subResource"`
	Namespace   string                      `json:"namespace"`
	Operation   string                      `json:"operation"`
	Object      *pod                        `json:"object"`
}

// pod is what decides about the gate. All else of a pod, which may be much, is skipped.
type pod struct {
	Metadata struct {
		OwnerReferences []metav1.OwnerReference `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		NodeName     string            `json:"nodeName"`
		NodeSelector map[string]string `json:"nodeSelector"`
		Affinity     *struct {
			NodeAffinity *corev1.NodeAffinity `json:"nodeAffinity"`
		} `json:"affinity"`
		SchedulingGates []corev1.PodSchedulingGate `json:"schedulingGates"`
	} `json:"spec"`
}

type response struct {
	UID       types.UID `json:"uid"`
	Allowed   bool      `json:"allowed"`
	Patch     []byte    `json:"patch,omitempty"`
	PatchType string    `json:"patchType,omitempty"`
}

// ServeHTTP answers one review: the pod is always allowed, with a patch that adds the
// gate unless placement has no say about the pod or it is gated already. A dry run is
// answered alike: nothing is changed anywhere.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
	var in review
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	if err != nil || in.Request == nil || in.Request.UID == "" {
		h.pods.WithLabelValues("unreadable").Inc()
		h.log.Warn("gate: a request is no admission review of a pod")
		http.Error(w, "want an AdmissionReview of admission.k8s.io/v1", http.StatusBadRequest)
		return
	}
	out := review{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Response: &response{UID: in.Request.UID, Allowed: true}}
	result := "excluded"
	if patch := h.patch(in.Request); patch != nil {
		result = "gated"
		out.Response.Patch, out.Response.PatchType = patch, "JSONPatch"
	}
	h.pods.WithLabelValues(result).Inc()
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		h.log.Debug("gate: the API server did not wait for the answer", "error", err)
	}
	h.took.Observe(time.Since(begin).Seconds())
}

// patch returns the JSON patch that adds the gate, or nil if the pod is left alone.
func (h *Handler) patch(r *request) []byte {
	if r.Object == nil || r.Operation != "CREATE" || r.SubResource != "" || r.Resource.Resource != "pods" || r.Resource.Group != "" {
		return nil
	}
	if Reserved(r.Namespace, h.namespace) {
		return nil
	}
	p := r.Object.asPod()
	if placement.Gated(p) {
		return nil
	}
	if _, out := placement.Excluded(p); out {
		return nil
	}
	if p.Spec.SchedulingGates == nil {
		return []byte(`[{"op":"add","path":"/spec/schedulingGates","value":[{"name":"` + placement.Gate + `"}]}]`)
	}
	return []byte(`[{"op":"add","path":"/spec/schedulingGates/-","value":{"name":"` + placement.Gate + `"}}]`)
}

// asPod returns the pod with nothing but what was read.
func (p *pod) asPod() *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: p.Metadata.OwnerReferences},
		Spec: corev1.PodSpec{NodeName: p.Spec.NodeName, NodeSelector: p.Spec.NodeSelector, SchedulingGates: slices.Clip(p.Spec.SchedulingGates)}}
	if a := p.Spec.Affinity; a != nil {
		out.Spec.Affinity = &corev1.Affinity{NodeAffinity: a.NodeAffinity}
	}
	return out
}

// Reserved reports whether placement keeps out of a namespace: the control plane's
// (kube-*) and stile's own.
func Reserved(namespace, own string) bool {
	return strings.HasPrefix(namespace, "kube-") || namespace == own && own != ""
}
