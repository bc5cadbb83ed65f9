package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/kubetest"
	"github.com/stileproject/stile/internal/oci/localregistry"
)

// The story of docs/install.md: namespace, secret and plugin by kubectl; a proxy gets the
// module, the status says so, and kubectl wait returns.
func TestStory_AppliedAndProgrammed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t), "team-a")
	c.push("team-a", "team-a/auth:v1", badge)
	r := c.start("stile-0", "")
	a := c.as("team-a").Plugin("auth", "team-a/auth:v1")
	p := a.proxy(r, "gw-0", "auth")
	p.Runs(a, "auth", sum(badge))
	c.api.Kubectl(t, "wait", "-n", a.namespace, "--for=condition=Programmed", "--timeout=30s", "wasmplugin/auth")
	got := a.read("auth").Status
	if got.ModuleSHA256 != sum(badge) || got.Proxies == nil || got.Proxies.Accepted != 1 || !strings.HasPrefix(got.Digest, "sha256:") {
		t.Errorf("the status: %+v", got)
	}
	c.noCanary("the API", c.api.Kubectl(t, "get", "wasmplugins,events", "-n", a.namespace, "-o", "yaml"))
}

// P2, P4, P5: tenants see what is theirs, and why not what is not.
func TestStory_Tenants(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t), "team-a", "team-b")
	c.push("team-a", "team-a/auth:v1", badge)
	c.push("team-b", "team-b/own:v1", toll)
	r := c.start("stile-0", "")
	a, b := c.as("team-a"), c.as("team-b")

	a.Plugin("auth", "team-a/auth:v1").Sees("auth", "ResolvedRefs", "True", "Resolved")
	b.Plugin("theirs", "team-a/auth:v1").Sees("theirs", "ResolvedRefs", "False", "Unauthorized")
	b.Plugin("own", "team-b/own:v1").Sees("own", "Programmed", "True", "NoMatchingProxies")
	pa, pb := a.proxy(r, "gw-a", "auth"), b.proxy(r, "gw-b", "theirs", "own")
	pa.Runs(a, "auth", sum(badge))
	pb.Runs(b, "own", sum(toll))
	pb.Runs(b, "theirs", "standin")

	// The life of a Secret.
	within := func(what string, took time.Duration) {
		t.Helper()
		if took > 2*time.Second {
			t.Errorf("%s was seen after %v", what, took)
		}
	}
	b.Delete("secret", "regcred")
	within("a deleted secret", b.Sees("own", "ResolvedRefs", "False", "PullSecretNotFound"))
	b.Sees("own", "Programmed", "True", "ServingLastGood")
	b.Apply("apiVersion: v1\nkind: Secret\nmetadata: { name: regcred }\ntype: Opaque\nstringData: { .dockerconfigjson: '{}' }\n")
	within("a secret of the wrong type", b.Sees("own", "ResolvedRefs", "False", "PullSecretInvalid"))
	b.Delete("secret", "regcred")
	b.secret("regcred", c.words["team-b"])
	within("a secret made anew", b.Sees("own", "ResolvedRefs", "True", "Resolved"))
	b.secret("regcred", "CANARY-wrong")
	b.Sees("own", "ResolvedRefs", "False", "Unauthorized")
	b.secret("regcred", c.words["team-b"])
	b.Sees("own", "Programmed", "True", "Programmed")

	// The registry takes the right back.
	c.registry.Revoke("team-b", "team-b/own")
	b.Sees("own", "ResolvedRefs", "False", "Unauthorized")
	c.registry.Allow("team-b", "team-b/own", localregistry.Pull)
	b.Sees("own", "ResolvedRefs", "True", "Resolved")

	// An outage is no denial.
	_ = c.registry.Close()
	a.Plugin("other", "team-a/other:v1").Sees("other", "ResolvedRefs", "False", "RegistryUnreachable")
	a.Sees("auth", "ResolvedRefs", "True", "Resolved")
	pa.Runs(a, "auth", sum(badge))
	c.noCanary("the API", c.api.Kubectl(t, "get", "wasmplugins,events", "-A", "-o", "yaml"))
}

// Any replica serves with the same bytes and URLs, whoever leads.
func TestStory_Replicas(t *testing.T) {
	t.Parallel()
	c := newCluster(t, kubetest.API(t), "team-a")
	c.push("team-a", "team-a/auth:v1", badge)
	first := c.start("stile-0", "")
	a := c.as("team-a").Plugin("auth", "team-a/auth:v1")
	p0 := a.proxy(first, "gw-0", "auth")
	p0.Runs(a, "auth", sum(badge))
	a.Sees("auth", "Programmed", "True", "Programmed")

	// The tag moves; the second replica, which starts only now, serves what the first does.
	c.push("team-a", "team-a/auth:v1", toll)
	second := c.start("stile-1", "")
	c.front.to.Store(&first.at.Modules) // plan from one, fetch from the other
	p1 := a.proxy(second, "gw-1", "auth")
	p1.Runs(a, "auth", sum(badge))
	same(a, sum(badge), first, second)
	kubetest.Eventually(t, func() string {
		if n := a.read("auth").Status.Proxies; n == nil || n.Matched != 4 || n.Accepted != 4 {
			return fmt.Sprintf("the status counts %+v, want the proxies of both", n)
		}
		return ""
	})

	// The leader is killed: another leads, and nobody's configuration changes.
	c.front.to.Store(&second.at.Modules)
	first.kill()
	kubetest.Within(t, time.Minute, func() string {
		if holder := c.api.Kubectl(t, "get", "lease", "stile", "-n", c.system, "-o", "jsonpath={.spec.holderIdentity}"); holder != "stile-1" {
			return "the lease is held by " + holder
		}
		return ""
	})
	p1.Quiet(3*time.Second, "the leader was killed and nothing else happened")

	// The new leader writes: an edit is seen, and a third replica follows it.
	a.Plugin("auth", "team-a/auth:v1", "imagePullPolicy: Always").Sees("auth", "ResolvedRefs", "True", "Resolved")
	p1.Runs(a, "auth", sum(toll))
	third := c.start("stile-2", "")
	c.front.to.Store(&third.at.Modules)
	same(a, sum(toll), second, third)
	second.stop()
	third.stop()
}

// same wants proxies that start now to be sent the same bytes by all replicas.
func same(a *tenant, want string, replicas ...*replica) {
	a.Helper()
	var first string
	for i, r := range replicas {
		p := a.proxy(r, "gw-late-"+r.name, "auth")
		p.Runs(a, "auth", want)
		if sent := p.Sent(a, "auth"); i == 0 {
			first = sent
		} else if sent != first {
			a.Errorf("%s and %s do not send the same bytes:\n%q\n%q", replicas[0].name, r.name, first, sent)
		}
	}
}

// P8: an API server that restarts changes nothing.
func TestStory_TheAPIServerRestarts(t *testing.T) {
	t.Parallel()
	api := kubetest.Start(t, kubetest.Options{})
	c := newCluster(t, api, "team-a")
	c.push("team-a", "team-a/auth:v1", badge)
	c.push("team-a", "team-a/auth:v2", toll)
	r := c.start("stile-0", "")
	a := c.as("team-a").Plugin("auth", "team-a/auth:v1")
	p := a.proxy(r, "gw-0", "auth")
	p.Runs(a, "auth", sum(badge))
	api.Down(t)
	p.Quiet(2*time.Second, "the API server alone is down")
	api.Up(t)
	a.Plugin("auth", "team-a/auth:v2")
	p.Runs(a, "auth", sum(toll))
	a.Sees("auth", "Programmed", "True", "Programmed")
}
