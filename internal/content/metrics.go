package content

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stileproject/stile/internal/wasm"
)

type metrics struct {
	resolved *prometheus.CounterVec
	duration prometheus.Histogram
	bytes    prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		resolved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stile_content_fetches_total",
			Help: "Tries to bring a module, by result: ok or the reason of the problem.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "stile_content_fetch_duration_seconds", Help: "How long a try to bring a module took.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60, 300},
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stile_content_fetched_bytes_total", Help: "Bytes of the unpacked modules that were fetched.",
		}),
	}
	m.resolved.WithLabelValues("ok")
	if r != nil {
		r.MustRegister(m.resolved, m.duration, m.bytes)
	}
	return m
}

type progressKey struct{}

// WithProgress returns a context under which Fetch and FetchURL add to n what they
// read of layers and downloads, in bytes as they are sent.
func WithProgress(ctx context.Context, n *atomic.Int64) context.Context {
	return context.WithValue(ctx, progressKey{}, n)
}

func progressOf(ctx context.Context) *atomic.Int64 {
	n, _ := ctx.Value(progressKey{}).(*atomic.Int64)
	return n
}

// counting adds what is read to n, unless that is nil.
type counting struct {
	r io.Reader
	n *atomic.Int64
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if c.n != nil {
		c.n.Add(int64(n))
	}
	return n, err
}

// limited fails beyond n bytes, so that no server can send for ever.
func limited(r io.Reader, n int64) io.Reader { return &limitedReader{r: r, left: n, limit: n} }

type limitedReader struct {
	r           io.Reader
	left, limit int64
}

func (l *limitedReader) Read(b []byte) (int, error) {
	if l.left <= 0 {
		var one [1]byte
		if n, err := l.r.Read(one[:]); n == 0 {
			return 0, err
		}
		return 0, &wasm.LimitError{What: "archive", Limit: l.limit, Raise: "raise fetch.maxModuleSize if the module is really that large"}
	}
	n, err := l.r.Read(b[:min(int64(len(b)), l.left)])
	l.left -= int64(n)
	return n, err
}
