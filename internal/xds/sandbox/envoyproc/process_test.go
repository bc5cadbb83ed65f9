package envoyproc_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/adstest"
	"github.com/stileproject/stile/internal/xds/sandbox/envoyproc"
)

// Not parallel: it looks at the folder for temporary files, which is the process's.
func TestStop_LeavesNothingBehind(t *testing.T) {
	path := binary(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	e := start(t, envoyproc.Options{Path: path, XDSAddress: adstest.Start(t).Address(), Node: sandbox.Node{ID: "n", Cluster: "c"}})
	if files(t, dir) == 0 {
		t.Error("this test looks in the wrong folder")
	}
	if err := errors.Join(e.Stop(), e.Stop()); err != nil {
		t.Error(err)
	}
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left", n)
	}
	if err := syscall.Kill(e.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
}

func TestStart_SaysWhyNot(t *testing.T) {
	path := binary(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx   context.Context //nolint:containedctx // a row of a table
		o     envoyproc.Options
		words string
	}{
		"no such file":        {t.Context(), envoyproc.Options{Path: dir + "/none", XDSAddress: "127.0.0.1:1"}, "no such file"},
		"no address":          {t.Context(), envoyproc.Options{Path: path, XDSAddress: "here"}, "write host:port"},
		"no port":             {t.Context(), envoyproc.Options{Path: path, XDSAddress: "here:there"}, "the port is no number"},
		"a program that ends": {t.Context(), envoyproc.Options{Path: "/bin/false", XDSAddress: "127.0.0.1:1"}, "envoy ended (exit status 1)"},
		"a bad log level":     {t.Context(), envoyproc.Options{Path: path, XDSAddress: "127.0.0.1:1", LogLevel: "loud"}, "loud"},
		"a caller that left":  {ended, envoyproc.Options{Path: path, XDSAddress: "127.0.0.1:1"}, "context canceled"},
	} {
		e, err := envoyproc.Start(c.ctx, c.o)
		if err == nil {
			t.Errorf("%s: it started", name)
			_ = e.Stop()
			continue
		}
		if !strings.Contains(err.Error(), c.words) || !strings.HasPrefix(err.Error(), "start envoy") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

func TestEnvoy_ThatDiesIsReported(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	e, err := envoyproc.Start(ctx, envoyproc.Options{Path: binary(t), XDSAddress: adstest.Start(t).Address(), Node: sandbox.Node{ID: "n", Cluster: "c"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(e.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Address(ctx, "in"); err == nil || !strings.Contains(err.Error(), "envoy ended (signal: killed)") {
		t.Errorf("Address: %v", err)
	}
	if err := e.Stop(); err == nil || !strings.Contains(err.Error(), "ended by itself") {
		t.Errorf("Stop: %v", err)
	}
}

func files(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
