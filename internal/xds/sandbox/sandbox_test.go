package sandbox_test

import (
	"log/slog"
	"testing"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/xds/sandbox"
	"github.com/stileproject/stile/internal/xds/sandbox/proxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSandbox(t *testing.T) {
	t.Parallel()
	proxytest.Run(t, start)
}

func TestSandbox_WithStile(t *testing.T) {
	t.Parallel()
	proxytest.RunStile(t, start)
}

func start(t *testing.T, xds string, node sandbox.Node) sandbox.Proxy {
	t.Helper()
	s := sandbox.Start(sandbox.Options{XDSAddress: xds, Node: node, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}
