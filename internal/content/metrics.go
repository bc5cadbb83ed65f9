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

// Progress is how far a fetch is. It may be read at any time.
type Progress struct {
	Read  atomic.Int64 // bytes of layers and downloads that came, as they are sent
	Total atomic.Int64 // bytes that are to come; 0 = nobody has said
}

// WithProgress returns a context under which Fetch and FetchURL keep p true, where Run
// does not run.
func WithProgress(ctx context.Context, p *Progress) context.Context {
	return context.WithValue(ctx, progressKey{}, p)
}

func progressOf(ctx context.Context) *Progress {
	if p, ok := ctx.Value(progressKey{}).(*Progress); ok {
		return p
	}
	return &Progress{} // nobody looks at it
}

// counting adds what is read to n.
type counting struct {
	r io.Reader
	n *atomic.Int64
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
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
