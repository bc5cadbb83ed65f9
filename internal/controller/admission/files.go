package admission

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// files are a certificate that somebody else keeps, as cert-manager does.
type files struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex // guards what follows; the files are read under it, once a second at most
	current *tls.Certificate
	looked  time.Time
	stamps  [2]time.Time
}

// lookAgain is how often the files are looked at.
const lookAgain = time.Second

func newFiles(certFile, keyFile string, log *slog.Logger) (*files, error) {
	f := &files{certFile: certFile, keyFile: keyFile, log: log}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// load reads the files if they have changed. What is broken leaves the last good one.
func (f *files) load() error {
	var stamps [2]time.Time
	for i, name := range []string{f.certFile, f.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return fmt.Errorf("read the certificate: %w", err)
		}
		stamps[i] = info.ModTime()
	}
	if f.current != nil && stamps == f.stamps {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err != nil {
		return fmt.Errorf("read the certificate: %w", err)
	}
	f.current, f.stamps = &pair, stamps
	return nil
}

func (f *files) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) >= lookAgain {
		f.looked = time.Now()
		if err := f.load(); err != nil {
			f.log.Warn("webhooks: the last good certificate stays in use", "error", err)
		}
	}
	return f.current, nil
}

func (f *files) run(context.Context) {}

func (f *files) ready() error { return nil }
