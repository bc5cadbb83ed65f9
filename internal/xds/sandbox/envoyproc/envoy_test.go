package envoyproc_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/envoyproc"
	"github.com/stileproject/stile/internal/xds/sandbox/proxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// binary finds the Envoy that make test fetches, or the one the environment names.
func binary(t *testing.T) string {
	t.Helper()
	if os.Getenv("STILE_NO_ENVOY") == "1" {
		t.Skip("STILE_NO_ENVOY=1: nothing here is checked against a real Envoy")
	}
	if path := os.Getenv("STILE_ENVOY"); path != "" {
		return path
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "stile", "envoy-1.40.0", "envoy")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no Envoy: set STILE_ENVOY, or let make fetch %s, or set STILE_NO_ENVOY=1 to go without", path)
	}
	return path
}

func TestEnvoy(t *testing.T) {
	t.Parallel()
	proxytest.Run(t, starter(binary(t)))
}

func TestEnvoy_WithStile(t *testing.T) {
	t.Parallel()
	proxytest.RunStile(t, starter(binary(t)))
}

func starter(path string) proxytest.Start {
	return func(t *testing.T, xds string, node sandbox.Node) sandbox.Proxy {
		t.Helper()
		return start(t, envoyproc.Options{Path: path, XDSAddress: xds, Node: node, DrainTime: time.Second})
	}
}

func start(t *testing.T, o envoyproc.Options) *envoyproc.Envoy {
	t.Helper()
	o.Log = testLog{t}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	e, err := envoyproc.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// testLog hands Envoy's log to the test's.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}
