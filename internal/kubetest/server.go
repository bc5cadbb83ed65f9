package kubetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

const (
	assetsVariable = "STILE_KUBE_ASSETS"
	skipVariable   = "STILE_NO_KUBE"
	startTimeout   = 2 * time.Minute // two cores that everybody uses
	crdPath        = "api/crd/extensions.istio.io_wasmplugins.yaml"
)

// Server is an API server with its etcd.
type Server struct {
	// Config is the cluster's administrator, without a limit on its requests. Copy it before you change it.
	Config *rest.Config
	// Assets is the folder of the programs.
	Assets string

	env    *envtest.Environment
	folder string // certificates, kubeconfigs, wrappers; outlives a restart

	mu         sync.Mutex // guards what follows, and adding users
	admin      *client
	namespaces int
	schedulers int
	scheduler  *exec.Cmd
}

// programs returns the folder of the programs, or ends the test as the rules say.
func programs(t testing.TB) string {
	t.Helper()
	folder := os.Getenv(assetsVariable)
	if folder == "" {
		if os.Getenv(skipVariable) == "1" {
			t.Skipf("SKIPPED: %s is not set and %s=1: nothing here was held against a Kubernetes API", assetsVariable, skipVariable)
		}
		t.Fatalf("%s is not set: export %s=$(test/kube/assets.sh), or %s=1 to leave out every test that needs a Kubernetes API",
			assetsVariable, assetsVariable, skipVariable)
	}
	return folder
}

func start(assets string, o Options) (s *Server, err error) {
	folder, err := os.MkdirTemp("", "stile-kubetest-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start an API server: %w", err)
			_ = os.RemoveAll(folder)
		}
	}()
	s = &Server{Assets: assets, folder: folder, env: &envtest.Environment{
		BinaryAssetsDirectory:    assets,
		ControlPlaneStartTimeout: startTimeout,
		ControlPlaneStopTimeout:  startTimeout,
	}}
	if !o.NoCRD {
		root, err := moduleRoot()
		if err != nil {
			return nil, err
		}
		s.env.CRDDirectoryPaths = []string{filepath.Join(root, crdPath)}
		s.env.ErrorIfCRDPathMissing = true
	}
	plane := &s.env.ControlPlane
	api := plane.GetAPIServer()
	api.CertDir = filepath.Join(folder, "certificates") // a folder of its own choice goes with the process, and so would its port
	if err := os.Mkdir(api.CertDir, 0o700); err != nil {
		return nil, err
	}
	if api.Path, err = s.wrap("kube-apiserver"); err != nil {
		return nil, err
	}
	etcd := plane.Etcd
	if etcd == nil {
		etcd = new(envtest.Etcd)
		plane.Etcd = etcd
	}
	if etcd.Path, err = s.wrap("etcd"); err != nil {
		return nil, err
	}
	for _, arg := range o.Args {
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		api.Configure().Set(name, value)
	}
	if len(o.AdmissionPlugins) > 0 {
		api.Configure().Append("enable-admission-plugins", strings.Join(o.AdmissionPlugins, ","))
	}

	config, err := s.env.Start()
	if err != nil {
		_ = s.env.Stop()
		return nil, err
	}
	s.Config = config
	s.Config.QPS = -1
	if s.admin, err = newClient(s.Config); err != nil {
		_ = s.stop()
		return nil, err
	}
	return s, nil
}

// wrap makes a script that runs a program so that it ends when the tests do, however they end.
func (s *Server) wrap(program string) (string, error) {
	path := filepath.Join(s.Assets, program)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s does not hold %s: %w", assetsVariable, program, err)
	}
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		return path, nil //nolint:nilerr // not Linux
	}
	script := filepath.Join(s.folder, program)
	text := fmt.Sprintf("#!/bin/sh\necho $$ > %q\nexec %q --pdeathsig KILL %q \"$@\"\n", script+".pid", setpriv, path)
	return script, os.WriteFile(script, []byte(text), 0o700)
}

func (s *Server) stop() error {
	if s.admin != nil {
		s.admin.close()
	}
	s.kill()
	var err error
	for range 2 { // envtest may not have seen yet that it has ended
		if err = s.env.Stop(); err == nil {
			break
		}
	}
	return errors.Join(err, os.RemoveAll(s.folder))
}

// Down kills the API server, as a crash would, and keeps its data and its port; etcd stays. Up brings it back.
func (s *Server) Down(t testing.TB) {
	t.Helper()
	s.kill()
	Eventually(t, func() string { // until envtest, too, has seen it end
		if err := s.env.ControlPlane.APIServer.Stop(); err != nil {
			return "an API server that has ended: " + err.Error()
		}
		return ""
	})
}

// kill ends the API server at once: asked to end, it waits a minute for watches that are open.
func (s *Server) kill() {
	text, err := os.ReadFile(filepath.Join(s.folder, "kube-apiserver.pid"))
	if err != nil {
		return // not Linux: it will have to be asked
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = wait.PollUntilContextCancel(ctx, 5*time.Millisecond, true, func(context.Context) (bool, error) {
		return syscall.Kill(pid, 0) != nil, nil // reaped
	})
}

// Up brings back what Down has ended, on its port, with its data, certificates and users.
func (s *Server) Up(t testing.TB) {
	t.Helper()
	api := s.env.ControlPlane.APIServer
	api.Args = nil //nolint:staticcheck // the rendered flags of the last start, which this one renders again
	if err := api.Start(); err != nil {
		t.Fatalf("start the API server again: %v", err)
	}
	Eventually(t, func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.admin.ready(ctx); err != nil {
			return "an API server that is ready: " + err.Error()
		}
		return ""
	})
}

// Restart ends the API server and brings it back on its port with its data.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Down(t)
	s.Up(t)
}

// moduleRoot returns the folder of go.mod above the test.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, crdPath)); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("find %s: no folder above the test has it", crdPath)
		}
		dir = up
	}
}
