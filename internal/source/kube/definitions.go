package kube

import (
	"context"
	"slices"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/stileproject/stile/api/crd"
	"github.com/stileproject/stile/api/v1alpha1"
)

// The definitions on which it depends what can be watched.
const (
	pluginsCRD  = crd.WasmPluginName
	gatewaysCRD = "gateways." + gatewayGroup

	gatewayGroup = "gateway.networking.k8s.io"
)

var (
	wasmPlugins = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "wasmplugins"}
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

func gatewaysOf(version string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: gatewayGroup, Version: version, Resource: "gateways"}
}

// Whether a kind is installed.
const (
	unknown = iota // the API server has not answered yet
	there
	notThere
)

// presence is what is known of a definition.
type presence struct {
	state      int
	fault      string // why the API server has not answered
	version    string // that is served
	generation int64  // of the definition; 0 where it may not be read
	missing    []string
}

func (p presence) is(state int) bool { return p.state == state }

// followDefinitions begins to follow the definitions. They are read by name, with get and a watch on that name.
func (s *Source) followDefinitions(ctx context.Context, running *sync.WaitGroup) {
	definitions := s.extensions.ApiextensionsV1().CustomResourceDefinitions()
	c := client{
		get: func(ctx context.Context, name string, o metav1.GetOptions) (runtime.Object, error) {
			return definitions.Get(ctx, name, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return definitions.Watch(ctx, o)
		},
	}
	pace := newPace()
	for name, judge := range map[string]func(*apiextensionsv1.CustomResourceDefinition) presence{
		pluginsCRD: judgePlugins, gatewaysCRD: judgeGateways,
	} {
		f := &followed{client: c, pace: pace, name: name, right: "customresourcedefinitions",
			seen: func(o runtime.Object) {
				d, _ := o.(*apiextensionsv1.CustomResourceDefinition)
				s.setPresence(name, judge(d))
			},
			failed: func(err error) {
				if refused(err) {
					s.setPresence(name, s.discover(ctx, name))
				} else {
					s.setPresence(name, presence{state: unknown, fault: describe(err)})
				}
			},
		}
		running.Go(func() { f.run(ctx) })
	}
}

func (s *Source) setPresence(name string, p presence) {
	s.mu.Lock()
	known := s.crds[name]
	same := known.state == p.state && known.version == p.version && known.generation == p.generation && slices.Equal(known.missing, p.missing)
	switch {
	case p.state == unknown && known.state == unknown:
		same = p.fault == known.fault
		s.crds[name] = p
	case p.state == unknown: // what was known stays
		same = true
	default:
		s.crds[name] = p
	}
	s.mu.Unlock()
	if !same {
		s.changed()
	}
}

// served reports whether the API server serves what d defines.
func served(d *apiextensionsv1.CustomResourceDefinition) bool {
	return d != nil && slices.ContainsFunc(d.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
}

func judgePlugins(d *apiextensionsv1.CustomResourceDefinition) presence {
	if !served(d) {
		return presence{state: notThere, missing: []string{
			"the CustomResourceDefinition " + pluginsCRD + " is not installed: install the one that comes with stile; until then there are no plugins"}}
	}
	p := presence{state: there, version: v1alpha1.Version, generation: d.Generation, missing: missing(d)}
	if _, ok := version(d); !ok {
		p.state = notThere
	}
	return p
}

// judgeGateways chooses the version to read: v1 where it is served.
func judgeGateways(d *apiextensionsv1.CustomResourceDefinition) presence {
	if served(d) {
		for _, want := range []string{"v1", "v1beta1"} {
			for _, v := range d.Spec.Versions {
				if v.Name == want && v.Served {
					return presence{state: there, version: want}
				}
			}
		}
	}
	return presence{state: notThere}
}

// discover asks what is served where the definitions themselves may not be read.
func (s *Source) discover(ctx context.Context, name string) presence {
	group, resource, versions := gatewayGroup, "gateways", []string{"v1", "v1beta1"}
	p := presence{state: notThere}
	if name == pluginsCRD {
		group, resource, versions = v1alpha1.Group, "wasmplugins", []string{v1alpha1.Version}
		p.missing = []string{"the CustomResourceDefinition " + pluginsCRD + " may not be read: what it lacks is not known: allow stile's ServiceAccount get and watch on it"}
	}
	for _, version := range versions {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		var list metav1.APIResourceList
		err := s.core.Discovery().RESTClient().Get().AbsPath("/apis/" + group + "/" + version).Do(ctx).Into(&list)
		cancel()
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return presence{state: unknown}
		}
		if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }) {
			p.state, p.version = there, version
			return p
		}
	}
	if name == pluginsCRD {
		p.missing = judgePlugins(nil).missing
	}
	return p
}
