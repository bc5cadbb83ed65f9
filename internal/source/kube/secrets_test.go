package kube

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/source"
)

// reader is Secrets on their own, as placement uses them.
type reader struct {
	*cluster
	secrets *Secrets

	mu      sync.Mutex
	changes []source.Key
}

func newReader(c *cluster, prepare func(*Secrets)) *reader {
	c.Helper()
	client, err := kubernetes.NewForConfig(c.account)
	if err != nil {
		c.Fatal(err)
	}
	r := &reader{cluster: c, secrets: NewSecrets(client, c.canary.Log())}
	r.secrets.OnChange(func(key source.Key) {
		_, _ = r.secrets.Get(key) // it may
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changes = append(r.changes, key)
	})
	if prepare != nil {
		prepare(r.secrets)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := r.secrets.Run(ctx); err != nil {
			c.Error(err)
		}
	}()
	c.Cleanup(func() { cancel(); <-ended })
	return r
}

// is wants a Secret to be there, with content, or known to be absent.
func (r *reader) is(key source.Key, present bool) {
	r.Helper()
	if took := kubetest.Within(r, 30*time.Second, func() string {
		s, known := r.secrets.Get(key)
		if !known || (s != nil) != present {
			return key.String() + " as it is"
		}
		return ""
	}); took > soon {
		r.Errorf("%s: seen after %v, want %v", key, took, soon)
	}
}

// What several users want is read once, and followed as long as anybody wants it.
func TestSecrets_AreSharedAndGivenUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(c.pullSecret("A", "one", c.canary.Credential()) + c.pullSecret("A", "two", c.canary.Credential()))
	one, two, none := source.Key{Namespace: c.a, Name: "one"}, source.Key{Namespace: c.a, Name: "two"}, source.Key{Namespace: c.a, Name: "none"}
	r := newReader(c, func(s *Secrets) { s.Want("first", []source.Key{one}) }) // before Run, too
	r.secrets.Want("second", []source.Key{one, two, none, none})
	r.is(one, true)
	r.is(two, true)
	r.is(none, false)
	if r.secrets.Why(none) != nil {
		t.Errorf("a Secret that is not there: %v", r.secrets.Why(none))
	}
	if n := c.requests.count("/secrets"); n != 6 {
		t.Errorf("%d requests for three Secrets, want a get and a watch each", n)
	}
	before, _ := r.secrets.Get(one)
	r.secrets.Want("second", nil)
	if s, known := r.secrets.Get(one); s != before || !known {
		t.Error("the first user still wants it")
	}
	if _, known := r.secrets.Get(two); known {
		t.Error("nobody wants it any longer")
	}
	r.mu.Lock()
	r.changes = nil
	r.mu.Unlock()
	c.apply(c.pullSecret("A", "two", c.canary.Credential()) + c.pullSecret("A", "one", c.canary.Credential()))
	kubetest.Eventually(t, func() string {
		if s, _ := r.secrets.Get(one); s == before {
			return "the new content"
		}
		return ""
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range r.changes {
		if key != one {
			t.Errorf("told of %s, which nobody wants", key)
		}
	}
}

// A right that is taken away ends what was read, but not at once: a role that is replaced must not.
func TestSecrets_OutliveTheRightForAWhile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		kept time.Duration
	}{{"kept", time.Hour}, {"ended", 0}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, kubetest.API(t))
			cut := c.cuttable()
			c.apply(c.pullSecret("A", "one", c.canary.Credential()))
			key := source.Key{Namespace: c.a, Name: "one"}
			r := newReader(c, func(s *Secrets) { s.kept = test.kept })
			r.secrets.Want("u", []source.Key{key})
			r.is(key, true)
			before, _ := r.secrets.Get(key)
			c.server.Kubectl(t, "delete", "rolebinding", "stile-secrets", "-n", c.a)
			cut()
			kubetest.Eventually(t, func() string { // the authorizer may not have heard yet when it is asked first
				why := r.secrets.Why(key)
				if why == nil {
					cut()
					return "word that it may not be read"
				}
				if u, ok := errors.AsType[*Unread](why); !ok || !u.Refused || !strings.Contains(why.Error(), "get and watch on secrets in namespace "+c.a) {
					t.Fatalf("%#v", why)
				}
				c.canary.Errors(why)
				return ""
			})
			if test.kept > 0 {
				if s, known := r.secrets.Get(key); s != before || !known {
					t.Error("it has ended with the role")
				}
			} else {
				kubetest.Eventually(t, func() string {
					if s, known := r.secrets.Get(key); s != nil || !known {
						return "a Secret that has ended"
					}
					return ""
				})
			}
			c.mayReadSecrets(c.a)
			kubetest.Eventually(t, func() string {
				if s, _ := r.secrets.Get(key); s == nil || r.secrets.Why(key) != nil {
					return "the Secret that may be read again"
				}
				return ""
			})
		})
	}
}

// Many Secrets that may not be read are not asked for more often than a few, and are all there once one is.
func TestSecrets_RefusedOnesArePaced(t *testing.T) {
	t.Parallel()
	p := newPace()
	if got := p.countRefused(1); got != refusedFirst {
		t.Errorf("one: every %v, want %v", got, refusedFirst)
	}
	if got := p.countRefused(999); got != 1000*refusedPace {
		t.Errorf("a thousand: every %v, want %v", got, 1000*refusedPace)
	}
	woken := p.woken("secrets in a")
	p.wake("secrets in b")
	select {
	case <-woken:
		t.Error("another namespace's right has woken")
	default:
	}
	p.wake("secrets in a")
	<-woken
}

func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t))
	c.apply(wasmPlugin("A", "auth", `url: a, imagePullSecret: regcred`) + wasmPlugin("B", "auth", `url: a, imagePullSecret: regcred`) +
		wasmPlugin("A", "other", `url: a, imagePullSecret: none`) + c.pullSecret("A", "regcred", c.canary.Credential()))
	c.watchFirst()
	problems, err := testutil.GatherAndLint(c.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	want := `
# HELP stile_kube_plugins WasmPlugins that are watched.
# TYPE stile_kube_plugins gauge
stile_kube_plugins 3
# HELP stile_kube_secrets Pull secrets that WasmPlugins name, by whether there is one and it can be read.
# TYPE stile_kube_secrets gauge
stile_kube_secrets{state="absent"} 1
stile_kube_secrets{state="present"} 1
stile_kube_secrets{state="unreadable"} 1
`
	if err := testutil.GatherAndCompare(c.registry, strings.NewReader(want), "stile_kube_plugins", "stile_kube_secrets"); err != nil {
		t.Error(err)
	}
}
