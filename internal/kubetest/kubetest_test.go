package kubetest

import (
	"context"
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

func TestMain(m *testing.M) { os.Exit(Main(m, Options{})) }

const plugin = `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: auth, namespace: NS}
spec: {url: "oci://registry.example/a:v1"}
`

func TestOurCRDIsServedAndAsksItsRules(t *testing.T) {
	t.Parallel()
	s := API(t)
	ns := s.Namespace(t)
	s.Apply(t, nil, strings.ReplaceAll(plugin, "NS", ns))
	if got := s.Kubectl(t, "get", "wasmplugins", "-n", ns, "-o", "name"); got != "wasmplugin.extensions.istio.io/auth\n" {
		t.Errorf("kubectl get: %q", got)
	}
	err := s.TryApply(nil, strings.ReplaceAll(strings.ReplaceAll(plugin, "NS", ns), "oci://", "ftp://"))
	if !apierrors.IsInvalid(err) {
		t.Errorf("want the server to refuse ftp://, got %v", err)
	}
}

// A client has exactly the rights that roles give it.
func TestRightsAreThoseOfTheRoles(t *testing.T) {
	t.Parallel()
	s := API(t)
	ns := s.Namespace(t)
	account := s.ServiceAccount(t, ns, "reader")
	user := s.User(t, "team-b:"+ns, "tenants")
	s.Apply(t, nil, strings.ReplaceAll(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: get-secrets, namespace: NS}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: get-secrets, namespace: NS}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: get-secrets}
subjects: [{kind: ServiceAccount, name: reader, namespace: NS}]
`, "NS", ns))
	ctx := context.Background()
	as, err := kubernetes.NewForConfig(account)
	if err != nil {
		t.Fatal(err)
	}
	Eventually(t, func() string { // the authorizer learns of roles by a watch
		if _, err := as.CoreV1().Secrets(ns).Get(ctx, "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return "a ServiceAccount that may get: " + err.Error()
		}
		return ""
	})
	if _, err := as.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list secrets as the ServiceAccount: want forbidden, got %v", err)
	}
	if err := s.TryApply(user, strings.ReplaceAll(plugin, "NS", ns)); !apierrors.IsForbidden(err) {
		t.Errorf("apply as a user without a role: want forbidden, got %v", err)
	}
	if _, stderr, err := s.TryKubectl(t, user, "get", "secrets", "-n", ns); err == nil || !strings.Contains(stderr, `User "team-b:`+ns) {
		t.Errorf("kubectl as that user: %v %s", err, stderr)
	}
}

// A restart keeps port, data, users and tokens.
func TestRestartKeepsEverything(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	ns := s.Namespace(t)
	s.Apply(t, nil, strings.ReplaceAll(plugin, "NS", ns))
	account := s.ServiceAccount(t, ns, "reader")
	host := s.Config.Host
	for range 2 {
		s.Restart(t)
	}
	if s.Config.Host != host {
		t.Errorf("the address moved from %s to %s", host, s.Config.Host)
	}
	s.Kubectl(t, "get", "wasmplugin/auth", "-n", ns)
	if got, stderr, err := s.TryKubectl(t, account, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"); err != nil ||
		got != "system:serviceaccount:"+ns+":reader" {
		t.Errorf("whoami with the token of before: %q %v %s", got, err, stderr)
	}
}

func TestPodsAreScheduledToNodesThatFit(t *testing.T) {
	t.Parallel()
	s := API(t)
	ns := s.Namespace(t)
	s.Node(t, "kubetest-amd64", "linux", "amd64")
	s.Node(t, "kubetest-arm64", "linux", "arm64")
	s.Scheduler(t)
	s.Apply(t, nil, strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: NS}
spec:
  nodeSelector: {kubernetes.io/arch: arm64}
  containers: [{name: c, image: registry.example/c}]
`, "NS", ns))
	Eventually(t, func() string {
		if node := s.Kubectl(t, "get", "pod/p", "-n", ns, "-o", "jsonpath={.spec.nodeName}"); node != "kubetest-arm64" {
			return "a pod on kubetest-arm64, it is on " + node
		}
		return ""
	})
}

func TestFlagsAndCRDByOption(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{NoCRD: true, Args: []string{"--disable-admission-plugins=ServiceAccount,NamespaceLifecycle"}, AdmissionPlugins: []string{"AlwaysPullImages"}})
	if _, stderr, err := s.TryKubectl(t, nil, "get", "wasmplugins"); err == nil || !strings.Contains(stderr, "doesn't have a resource type") {
		t.Errorf("want no WasmPlugins without the CRD, got %v %s", err, stderr)
	}
	s.Apply(t, nil, `
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: default}
spec: {containers: [{name: c, image: registry.example/c:v1}]}
`)
	if got := s.Kubectl(t, "get", "pod/p", "-o", "jsonpath={.spec.containers[0].imagePullPolicy}"); got != "Always" {
		t.Errorf("imagePullPolicy %q: the admission plugin is not on", got)
	}
}
