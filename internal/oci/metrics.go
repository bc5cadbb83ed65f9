package oci

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what registries were asked. The labels are closed: a host that the
// operator named or "other", a code of the list below or its class.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// knownStatus are the codes that have a label value of their own.
var knownStatus = []int{200, 201, 202, 301, 302, 307, 308, 400, 401, 403, 404, 405, 429, 500, 502, 503, 504}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_registry_requests_total",
			Help: "HTTP requests sent to registries, token endpoints and module servers, by configured registry (or other) and status code (or error).",
		}, []string{"registry", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "stile_registry_request_duration_seconds",
			Help:    "Time until the answer to a request began, by configured registry (or other).",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"registry"}),
	}
	if r == nil {
		return m, nil
	}
	for _, one := range []prometheus.Collector{m.requests, m.duration} {
		if err := r.Register(one); err != nil {
			return nil, errors.Join(errors.New("register metrics of registries"), err)
		}
	}
	return m, nil
}

func (m *metrics) observe(configured bool, host string, resp *http.Response, took time.Duration) {
	registry := "other"
	if configured {
		registry = host
	}
	m.requests.WithLabelValues(registry, codeLabel(resp)).Inc()
	m.duration.WithLabelValues(registry).Observe(took.Seconds())
}

func codeLabel(resp *http.Response) string {
	switch {
	case resp == nil:
		return "error"
	case slices.Contains(knownStatus, resp.StatusCode):
		return strconv.Itoa(resp.StatusCode)
	case resp.StatusCode >= 100 && resp.StatusCode < 600:
		return strconv.Itoa(resp.StatusCode/100) + "xx"
	}
	return "error"
}
