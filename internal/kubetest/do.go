package kubetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

func deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}

// Namespace makes a fresh namespace with a name that no other test has, and with labels given as "key=value". It is not
// removed: without a controller-manager it would stay Terminating.
func (s *Server) Namespace(t testing.TB, labels ...string) string {
	t.Helper()
	s.mu.Lock()
	s.namespaces++
	name := fmt.Sprintf("t%03d-%s", s.namespaces, dns(t.Name()))
	s.mu.Unlock()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, l := range labels {
		key, value, _ := strings.Cut(l, "=")
		namespace.Labels[key] = value
	}
	ctx, cancel := deadline()
	defer cancel()
	if _, err := s.admin.typed.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatalf("make namespace %s: %v", name, err)
	}
	return name
}

// dns makes a part of a name of what a test is called: at most 40 letters, digits and dashes.
func dns(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, strings.TrimPrefix(name, "Test"))
	return strings.Trim(name[:min(len(name), 40)], "-")
}

// User returns a client of that name and those groups; it may do what roles bound to them say, and discovery.
func (s *Server) User(t testing.TB, name string, groups ...string) *rest.Config {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	user, err := s.env.AddUser(envtest.User{Name: name, Groups: groups}, &rest.Config{QPS: -1})
	if err != nil {
		t.Fatalf("make user %s: %v", name, err)
	}
	return rest.CopyConfig(user.Config())
}

// ServiceAccount makes a ServiceAccount where there is none and returns a client with a token of it, good for an hour: it
// may do what roles bound to it say, and discovery.
func (s *Server) ServiceAccount(t testing.TB, namespace, name string) *rest.Config {
	t.Helper()
	s.Apply(t, nil, fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %q, name: %q}}", namespace, name))
	ctx, cancel := deadline()
	defer cancel()
	token, err := s.admin.typed.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(3600))}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("ask for a token of ServiceAccount %s/%s: %v", namespace, name, err)
	}
	config := rest.AnonymousClientConfig(s.Config)
	config.BearerToken = token.Status.Token
	config.QPS = -1
	return config
}

// Apply applies one or more YAML documents on the server's side, as that client; nil is the administrator. A document of a
// namespaced kind that names no namespace goes to default.
func (s *Server) Apply(t testing.TB, as *rest.Config, yaml string) {
	t.Helper()
	if err := s.TryApply(as, yaml); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// TryApply is Apply for those who want to see it refused: it stops at the first document that is.
func (s *Server) TryApply(as *rest.Config, yaml string) error {
	c := s.admin
	if as != nil {
		var err error
		if c, err = newClient(as); err != nil {
			return err
		}
		defer c.close()
	}
	ctx, cancel := deadline()
	defer cancel()
	return c.apply(ctx, yaml)
}

// Kubeconfig writes a file for kubectl and --kubeconfig, with one context named kubetest; nil is the administrator.
func (s *Server) Kubeconfig(t testing.TB, as *rest.Config) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := s.writeKubeconfig(path, as); err != nil {
		t.Fatal(err)
	}
	return path
}

// Kubectl runs the real kubectl as the administrator and returns its stdout; a failure fails the test.
func (s *Server) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	stdout, stderr, err := s.TryKubectl(t, nil, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return stdout
}

// TryKubectl runs the real kubectl as that client, nil being the administrator, and returns what it said and how it ended.
func (s *Server) TryKubectl(t testing.TB, as *rest.Config, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := deadline()
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(s.Assets, "kubectl"), args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig(t, as), "HOME="+s.folder)
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	err = command.Run()
	return out.String(), errs.String(), err
}

// Node makes a Node of that operating system and architecture, ready and with room for 110 pods, until the test ends.
// Nothing runs on it: there is no kubelet.
func (s *Server) Node(t testing.TB, name, os, arch string) {
	t.Helper()
	ctx, cancel := deadline()
	defer cancel()
	nodes := s.admin.typed.CoreV1().Nodes()
	capacity := corev1.ResourceList{
		corev1.ResourcePods:   resource.MustParse("110"),
		corev1.ResourceCPU:    resource.MustParse("64"),
		corev1.ResourceMemory: resource.MustParse("256Gi"),
	}
	_, err := nodes.Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelOSStable: os, corev1.LabelArchStable: arch}},
		Status: corev1.NodeStatus{Capacity: capacity, Allocatable: capacity,
			NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: os, Architecture: arch},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("make node %s: %v", name, err)
	}
	t.Cleanup(func() {
		ctx, cancel := deadline()
		defer cancel()
		if err := nodes.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("remove node %s: %v", name, err)
		}
	})
	// A new Node is admitted with a taint that the node controller removes once it is ready.
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		node, err := nodes.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Spec.Taints = nil
		_, err = nodes.Update(ctx, node, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatalf("make node %s ready: %v", name, err)
	}
}

// Scheduler runs a real kube-scheduler until the test ends. Tests that ask for one at the same time share it.
func (s *Server) Scheduler(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.schedulers == 0 {
		if err := s.startScheduler(); err != nil {
			t.Fatalf("start kube-scheduler: %v", err)
		}
	}
	s.schedulers++
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.schedulers--; s.schedulers == 0 {
			_ = s.scheduler.Process.Kill()
			_ = s.scheduler.Wait()
		}
	})
}

func (s *Server) startScheduler() error {
	program, err := s.wrap("kube-scheduler")
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(s.folder, "scheduler.kubeconfig")
	if err := s.writeKubeconfig(kubeconfig, nil); err != nil {
		return err
	}
	// Without health and metrics, there is no port that could be taken.
	s.scheduler = exec.Command(program, "--kubeconfig="+kubeconfig, "--leader-elect=false", "--secure-port=0")
	return s.scheduler.Start()
}
