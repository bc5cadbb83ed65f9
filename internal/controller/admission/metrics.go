package admission

import (
	"bytes"
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the room's collectors. A path is one that Handle was given.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// What became of a call; failed is one that got no review for an answer.
const (
	allowed = "true"
	denied  = "false"
	failed  = "error"
)

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_webhook_requests_total", Help: "Calls of webhooks, by path and by what was answered; error is no answer that an API server takes.",
		}, []string{"path", "allowed"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stile_webhook_duration_seconds", Help: "How long webhooks took to answer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9), // 0.1 ms to 6.6 s
		}, []string{"path"}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.duration)
	}
	return m
}

func (m *metrics) add(path string) {
	for _, outcome := range []string{allowed, denied, failed} {
		m.requests.WithLabelValues(path, outcome)
	}
	m.duration.WithLabelValues(path)
}

func (m *metrics) called(path, outcome string, took time.Duration) {
	m.requests.WithLabelValues(path, outcome).Inc()
	m.duration.WithLabelValues(path).Observe(took.Seconds())
}

// answer keeps what a webhook answers, to count it by what it says.
type answer struct {
	http.ResponseWriter
	code int
	body bytes.Buffer
}

func (a *answer) WriteHeader(code int) {
	if a.code == 0 {
		a.code = code
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *answer) Write(p []byte) (int, error) {
	a.body.Write(p)
	return a.ResponseWriter.Write(p)
}

func (a *answer) allowed() string {
	var review struct {
		Response *struct {
			Allowed bool `json:"allowed"`
		} `json:"response"`
	}
	switch err := json.Unmarshal(a.body.Bytes(), &review); {
	case a.code > http.StatusOK || err != nil || review.Response == nil:
		return failed
	case review.Response.Allowed:
		return allowed
	}
	return denied
}
