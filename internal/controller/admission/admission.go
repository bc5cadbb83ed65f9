// Package admission serves webhooks to a Kubernetes API server, and sees to it that the
// API server trusts them. Its one rule: no call fails because of a certificate. One is
// made when there is none, replaced long before it ends, and trusted before it is used.
//
// Rights it needs where it makes its own certificate; none where one comes from files:
//
//	in stile's own namespace:
//	secrets/<Service>-tls   get, create, update, patch
//
//	in the cluster, admissionregistration.k8s.io:
//	validatingwebhookconfigurations/<Service>   get, watch, patch
//	mutatingwebhookconfigurations/<Service>     get, watch, patch
//
// All of them are by name, the right to create too: the Secret is made by server-side
// apply, which the API server authorizes with the name. There is no list.
package admission

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
)

// Config says where webhooks are served and how they are trusted.
type Config struct {
	// REST is how the API server is spoken to; it is not needed where CertFile is set.
	REST *rest.Config
	// Listener is where webhooks are served; nil is a new one at Address.
	Listener net.Listener
	Address  string
	// Namespace is stile's own, and Service the name of the Service by which the API server
	// reaches the webhooks. The Secret <Service>-tls holds the certificate; the caBundle of
	// every webhook in the ValidatingWebhookConfiguration and the
	// MutatingWebhookConfiguration named <Service> is kept right, for those that exist.
	Namespace, Service string
	// Hosts are further names or addresses of the certificate, for an API server that
	// reaches the webhooks by URL.
	Hosts []string
	// CertFile and KeyFile, where set, are used instead and read again when they change;
	// then nothing is made, kept or injected.
	CertFile, KeyFile string
	// Log and Registerer may be nil.
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// The limits of a call. An API server waits for 30 s at most.
const (
	maxBody       = 3 << 20 // bytes; the API server takes objects of 1.5 MiB, and an update carries two
	maxInFlight   = 64      // calls whose bodies are in memory
	maxCall       = 10 * time.Second
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	shutdownGrace = 5 * time.Second
)

// Server serves webhooks.
type Server struct {
	cfg      Config
	log      *slog.Logger
	mux      *http.ServeMux
	metrics  *metrics
	trust    trust
	inFlight chan struct{}
}

// trust is where a certificate comes from.
type trust interface {
	run(ctx context.Context)
	certificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// ready says what is missing before an API server can call.
	ready() error
}

// New returns a Server that serves nothing yet. It listens at once where Config names an
// address, so that an address that is taken is told here.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Log, mux: http.NewServeMux(), metrics: newMetrics(cfg.Registerer), inFlight: make(chan struct{}, maxInFlight)}
	var err error
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		return nil, errors.New("webhooks: certFile and keyFile must be set together")
	}
	if cfg.CertFile != "" {
		s.trust, err = newFiles(cfg.CertFile, cfg.KeyFile, cfg.Log)
	} else {
		s.trust, err = newOwn(cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	if s.cfg.Listener == nil {
		if s.cfg.Listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp", cfg.Address); err != nil {
			return nil, fmt.Errorf("webhooks: %w", err)
		}
	}
	return s, nil
}

// Handle adds a webhook: Review makes one of a function. It is called before Run.
func (s *Server) Handle(path string, h http.Handler) {
	s.metrics.add(path)
	s.mux.Handle("POST "+path, s.bounded(path, h))
}

// Ready says what is missing before an API server can call: a certificate, or its trust
// in it. It may be called at any time.
func (s *Server) Ready() error { return s.trust.ready() }

// Run serves until ctx ends, and lets calls that are under way end for 5 s.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { s.trust.run(ctx) })
	server := &http.Server{
		Handler: s.mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: maxCall, WriteTimeout: maxCall + time.Second,
		IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// Every kube-apiserver that is kept speaks 1.3.
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.trust.certificate},
	}
	all.Go(func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	if err := server.ServeTLS(s.cfg.Listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("webhooks: %w", err)
	}
	return nil
}

// bounded gives a call its limits and counts it.
func (s *Server) bounded(path string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), patience(r))
		defer cancel()
		answer := &answer{ResponseWriter: w}
		defer func() {
			if failure := recover(); failure != nil {
				s.log.Error("a webhook failed", "path", path, "panic", fmt.Sprint(failure))
				http.Error(answer, "the webhook failed", http.StatusInternalServerError)
			}
			s.metrics.called(path, answer.allowed(), time.Since(begin))
		}()
		select {
		case s.inFlight <- struct{}{}:
			defer func() { <-s.inFlight }()
		case <-ctx.Done():
			http.Error(answer, "too many calls at once", http.StatusServiceUnavailable)
			return
		}
		r.Body = http.MaxBytesReader(answer, r.Body, maxBody)
		h.ServeHTTP(answer, r.WithContext(ctx))
	})
}

// patience is how long the caller waits: an API server says so.
func patience(r *http.Request) time.Duration {
	if d, err := time.ParseDuration(r.URL.Query().Get("timeout")); err == nil && d > 0 {
		return min(d, maxCall)
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("timeoutSeconds")); err == nil && n > 0 {
		return min(time.Duration(n)*time.Second, maxCall)
	}
	return maxCall
}
