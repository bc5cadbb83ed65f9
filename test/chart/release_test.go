package chart

import (
	"context"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/stileproject/stile/internal/kubetest"
)

// helm is one release on a real API server, handled as the helm command does it.
type helm struct {
	server          *kubetest.Server
	name, namespace string
	configuration   *action.Configuration
	dynamic         dynamic.Interface
}

func newHelm(t testing.TB, server *kubetest.Server, name, namespace string) *helm {
	t.Helper()
	settings := cli.New()
	settings.KubeConfig = server.Kubeconfig(t, nil)
	settings.SetNamespace(namespace)
	h := &helm{server: server, name: name, namespace: namespace, configuration: action.NewConfiguration()}
	if err := h.configuration.Init(settings.RESTClientGetter(), namespace, "secret"); err != nil {
		t.Fatal(err)
	}
	var err error
	if h.dynamic, err = dynamic.NewForConfig(server.Config); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *helm) tryInstall(t testing.TB, c *chartv2.Chart, text string) (string, error) {
	t.Helper()
	install := action.NewInstall(h.configuration)
	install.ReleaseName, install.Namespace, install.WaitStrategy = h.name, h.namespace, kube.HookOnlyStrategy
	done, err := install.Run(c, values(t, text))
	if err != nil {
		return "", err
	}
	return done.(*release.Release).Info.Notes, nil
}

func (h *helm) install(t testing.TB, text string) (notes string) {
	t.Helper()
	return h.installChart(t, load(t), text)
}

func (h *helm) installChart(t testing.TB, c *chartv2.Chart, text string) (notes string) {
	t.Helper()
	notes, err := h.tryInstall(t, c, text)
	if err != nil {
		t.Fatal(err)
	}
	return notes
}

func (h *helm) tryUpgrade(t testing.TB, text string) error {
	t.Helper()
	upgrade := action.NewUpgrade(h.configuration)
	upgrade.Namespace, upgrade.WaitStrategy = h.namespace, kube.HookOnlyStrategy
	upgrade.ServerSideApply = "auto"
	_, err := upgrade.Run(h.name, load(t), values(t, text))
	return err
}

func (h *helm) upgrade(t testing.TB, text string) {
	t.Helper()
	if err := h.tryUpgrade(t, text); err != nil {
		t.Fatal(err)
	}
}

// uninstall leaves hooks out: no kubelet is here to run a Job.
func (h *helm) uninstall(t testing.TB) {
	t.Helper()
	uninstall := action.NewUninstall(h.configuration)
	uninstall.DisableHooks, uninstall.WaitStrategy, uninstall.Timeout = true, kube.HookOnlyStrategy, time.Minute
	if _, err := uninstall.Run(h.name); err != nil {
		t.Fatal(err)
	}
}

var (
	secrets = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	crds    = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

func (h *helm) get(t testing.TB, r schema.GroupVersionResource, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	o, err := h.dynamic.Resource(r).Namespace(namespace).Get(context.Background(), name, getOptions)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// hooks are the manifests of the release's hooks.
func (h *helm) hooks(t testing.TB) (all []string) {
	t.Helper()
	done, err := action.NewGet(h.configuration).Run(h.name)
	if err != nil {
		t.Fatal(err)
	}
	for _, hook := range done.(*release.Release).Hooks {
		all = append(all, hook.Manifest)
	}
	return all
}
