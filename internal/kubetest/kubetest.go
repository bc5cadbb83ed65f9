// Package kubetest is a real Kubernetes API for tests: etcd, kube-apiserver, kubectl and kube-scheduler as processes on
// loopback. Its one rule: nothing of the API is imitated, so that what a test sees is what a cluster does.
//
// There is no controller-manager: a namespace has no default ServiceAccount, nothing is garbage-collected, and a namespace
// that is deleted stays Terminating. Authorization is RBAC, so that a User or ServiceAccount may do what its roles say.
//
// The programs are found in the folder that STILE_KUBE_ASSETS names: `export STILE_KUBE_ASSETS=$(test/kube/assets.sh)`
// builds them once. Where it is not set, tests that ask for an API fail; STILE_NO_KUBE=1 makes them skip.
package kubetest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/util/wait"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// Options say what an API server is like. The zero value is one with our CRD, with the admission plugins and the feature
// gates of its version, and with a check for leaked goroutines at the end.
type Options struct {
	// MayLeak leaves out the check that no goroutine is left when all tests have ended.
	MayLeak bool
	// NoCRD leaves out our CustomResourceDefinition.
	NoCRD bool
	// Args are further flags of kube-apiserver, as `--name=value`; they take the place of the defaults of that name.
	Args []string
	// AdmissionPlugins are enabled besides the default ones, such as "AlwaysPullImages".
	AdmissionPlugins []string
}

var shared struct {
	options Options
	once    sync.Once
	server  *Server
	err     error
}

// Main runs the tests of a package and returns the exit code; TestMain calls it: os.Exit(kubetest.Main(m, kubetest.Options{})).
// The package's API server starts with the first test that asks for it and ends with the last.
func Main(m *testing.M, o Options) int {
	ctrllog.SetLogger(logr.Discard())
	shared.options = o
	before := goleak.IgnoreCurrent()
	code := m.Run()
	if shared.server != nil {
		if err := shared.server.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "kubetest:", err)
			code = max(code, 1)
		}
	}
	if code == 0 && !o.MayLeak {
		if err := goleak.Find(before, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1")); err != nil {
			fmt.Fprintln(os.Stderr, "kubetest: after the tests:", err)
			code = 1
		}
	}
	return code
}

// API returns the API server that the tests of a package share. A test that breaks or restarts one takes Start.
func API(t testing.TB) *Server {
	t.Helper()
	assets := programs(t)
	shared.once.Do(func() { shared.server, shared.err = start(assets, shared.options) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// Start returns an API server of the test's own, which ends with it.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := start(programs(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Eventually asks missing until it answers "", which is what is still missing, and fails the test after 30 s.
func Eventually(t testing.TB, missing func() string) {
	t.Helper()
	Within(t, 30*time.Second, missing)
}

// Within is Eventually with a bound of the test's own; it returns how long it took.
func Within(t testing.TB, bound time.Duration, missing func() string) time.Duration {
	t.Helper()
	begin := time.Now()
	last := missing()
	if last == "" {
		return time.Since(begin)
	}
	// Not the test's context: a Cleanup may wait, too.
	err := wait.PollUntilContextTimeout(context.Background(), 10*time.Millisecond, bound, true, func(context.Context) (bool, error) {
		last = missing()
		return last == "", nil
	})
	if err != nil {
		t.Fatalf("after %v still missing: %s", bound, last)
	}
	return time.Since(begin)
}
