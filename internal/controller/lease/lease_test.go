package lease

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kubetest.Options{})) }

// account returns a client that has exactly the rights of the package comment.
func account(t *testing.T, s *kubetest.Server, namespace string) *rest.Config {
	t.Helper()
	config := s.ServiceAccount(t, namespace, "stile")
	s.Apply(t, nil, fmt.Sprintf(`
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {namespace: %[1]s, name: lease}, rules: [
  {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]},
  {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [stile], verbs: [get, update]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {namespace: %[1]s, name: lease},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: lease}, subjects: [{kind: ServiceAccount, namespace: %[1]s, name: stile}]}`, namespace))
	return config
}

// candidate is a replica that takes part until stop is called.
type candidate struct {
	*Lease
	stop context.CancelFunc
	done chan struct{}
}

// quick is as short as a Lease allows, which counts in whole seconds.
func quick(config *rest.Config, namespace, identity string) Config {
	return Config{REST: config, Namespace: namespace, Name: "stile", Identity: identity,
		Duration: 2 * time.Second, Deadline: 1200 * time.Millisecond, Retry: 100 * time.Millisecond}
}

func run(t *testing.T, cfg Config, release bool) *candidate {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.release = release
	ctx, cancel := context.WithCancel(context.Background())
	c := &candidate{Lease: l, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		if err := l.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-c.done })
	return c
}

func leads(t *testing.T, c *candidate) time.Duration {
	t.Helper()
	return kubetest.Within(t, 30*time.Second, func() string {
		if !c.Leads() {
			return c.cfg.Identity + " to lead"
		}
		return ""
	})
}

// never fails the test if both lead at once, as long as the test runs.
func never(t *testing.T, a, b *candidate) {
	t.Helper()
	stop, watching := make(chan struct{}), sync.WaitGroup{}
	var both atomic.Bool
	watching.Go(func() {
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if a.Leads() && b.Leads() {
					both.Store(true)
				}
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		watching.Wait()
		if both.Load() {
			t.Error("two replicas led at once")
		}
	})
}

func TestALeaderThatEndsGivesTheLeadBack(t *testing.T) {
	t.Parallel()
	s := kubetest.API(t)
	w := canary.Watch(t)
	namespace := s.Namespace(t)
	config := account(t, s, namespace)
	w.Track(config.BearerToken)
	registry := prometheus.NewPedanticRegistry()

	first := quick(config, namespace, "stile-0")
	first.Duration, first.Deadline, first.Retry = 0, 0, 0 // the defaults: nobody would take a lease of 15 s within this test
	first.Log, first.Registerer = w.Log(), registry
	a := run(t, first, true)
	leads(t, a)
	<-a.Changes()
	second := quick(config, namespace, "stile-1")
	second.Log = w.Log()
	b := run(t, second, true)
	never(t, a, b)
	if err := testutil.CollectAndCompare(registry, strings.NewReader(
		"# HELP stile_leader 1 in the replica that writes status, 0 in the others.\n# TYPE stile_leader gauge\nstile_leader 1\n")); err != nil {
		t.Error(err)
	}

	a.stop()
	<-a.done
	if a.Leads() {
		t.Error("who has ended does not lead")
	}
	<-a.Changes()
	if took := leads(t, b); took > 10*time.Second {
		t.Errorf("the lead was given back and taken after %v", took)
	}
	<-b.Changes()
}

func TestALeaderThatIsKilledIsSucceeded(t *testing.T) {
	t.Parallel()
	s := kubetest.API(t)
	namespace := s.Namespace(t)
	config := account(t, s, namespace)
	a := run(t, quick(config, namespace, "stile-0"), false)
	leads(t, a)
	b := run(t, quick(config, namespace, "stile-1"), true)
	never(t, a, b)

	begin := time.Now()
	a.stop()
	<-a.done
	leads(t, b)
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("a lease that was not given back was taken after %v", took)
	}
}

// cut is a network that can be cut.
type cut struct {
	next http.RoundTripper
	off  atomic.Bool
}

func (c *cut) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.off.Load() {
		<-r.Context().Done() // nothing is refused: nothing answers
		return nil, r.Context().Err()
	}
	return c.next.RoundTrip(r)
}

func TestALeaderThatIsCutOffStopsBeforeAnotherBeginsAndComesBack(t *testing.T) {
	t.Parallel()
	s := kubetest.API(t)
	namespace := s.Namespace(t)
	config := account(t, s, namespace)
	network := &cut{}
	torn := rest.CopyConfig(config)
	torn.Wrap(func(next http.RoundTripper) http.RoundTripper { network.next = next; return network })
	a := run(t, quick(torn, namespace, "stile-0"), true)
	leads(t, a)
	b := run(t, quick(config, namespace, "stile-1"), true)
	never(t, a, b)

	network.off.Store(true)
	leads(t, b)
	if a.Leads() {
		t.Error("the replica that was cut off believes that it leads")
	}
	select {
	case <-a.done:
		t.Fatal("losing the lease ended the replica's part in the election")
	default:
	}

	network.off.Store(false)
	b.stop()
	<-b.done
	leads(t, a)
}

func TestAWrongConfigurationIsTold(t *testing.T) {
	t.Parallel()
	good := Config{REST: &rest.Config{Host: "127.0.0.1:1"}, Namespace: "stile-system", Name: "stile", Identity: "stile-0"}
	for name, change := range map[string]func(*Config){
		"no identity":                     func(c *Config) { c.Identity = "" },
		"a lease of no whole second":      func(c *Config) { c.Duration = 900 * time.Millisecond },
		"a deadline longer than the term": func(c *Config) { c.Deadline = 20 * time.Second },
		"a TLS file that is not there": func(c *Config) {
			c.REST = &rest.Config{Host: "https://127.0.0.1:1", TLSClientConfig: rest.TLSClientConfig{CAFile: "/nowhere"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := good
			change(&c)
			if _, err := New(c); err == nil || !strings.HasPrefix(err.Error(), "leader election: ") {
				t.Errorf("want an error, got %v", err)
			}
		})
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}
