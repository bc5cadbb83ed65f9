package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/source/file"
)

// podDocument is a pod as a document gives it: itself, or the template in a workload.
type podDocument struct {
	File      string `json:"file"`
	Document  int    `json:"document"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	pod       *corev1.Pod
}

// podDocuments is what some paths hold of pods, and of Secrets that these may name.
type podDocuments struct {
	pods    []podDocument
	secrets map[plugin.Key]*document.Secret
	faulty  bool // a document could not be read
}

// readPods reads paths, folders recursively. What a document says wrong is told on stderr.
func (a *app) readPods(ctx context.Context, verb string, paths []string) (*podDocuments, error) {
	if len(paths) == 0 {
		return nil, usagef("%s: -f PATH is missing: a file, a folder, or - for stdin", verb)
	}
	all := &podDocuments{secrets: map[plugin.Key]*document.Secret{}}
	seen := map[string]bool{}
	for _, path := range paths {
		if path == "-" {
			data, err := a.readStdin(ctx)
			if err != nil {
				return nil, fail(Failed, fmt.Errorf("%s: read stdin: %w", verb, err), "")
			}
			all.read(a, "-", data)
			continue
		}
		files, _, err := file.List(path)
		if err != nil {
			return nil, fail(Usage, fmt.Errorf("%s: %w", verb, err), "name a file or folder that exists")
		}
		for _, name := range files {
			clean := filepath.Clean(name)
			if seen[clean] {
				continue
			}
			seen[clean] = true
			data, err := file.Read(name)
			if err != nil {
				return nil, fail(Failed, fmt.Errorf("%s: %w", verb, err), "")
			}
			all.read(a, name, data)
		}
	}
	return all, nil
}

// read adds what a file holds.
func (p *podDocuments) read(a *app, name string, data []byte) {
	secrets := gather(document.Read(name, data)).secrets
	for key, s := range secrets {
		if p.secrets[key] == nil {
			p.secrets[key] = s
		}
	}
	reader := kubeyaml.NewYAMLReader(newLines(data))
	for n := 0; ; n++ {
		text, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		var object map[string]any
		if err == nil {
			err = yaml.Unmarshal(text, &object)
		}
		if err != nil {
			a.note("%s", printable(fmt.Sprintf("%s: document %d: cannot be read: %v", name, n, err)))
			p.faulty = true
			continue
		}
		p.object(a, name, n, object)
	}
}

// object adds the pod of one object, and those of the items of a List.
func (p *podDocuments) object(a *app, name string, n int, object map[string]any) {
	kind, _ := object["kind"].(string)
	if items, ok := object["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		for _, item := range items {
			if o, ok := item.(map[string]any); ok {
				if _, named := o["kind"]; !named {
					o["kind"] = strings.TrimSuffix(kind, "List")
				}
				p.object(a, name, n, o)
			}
		}
		return
	}
	template := templateOf(kind, object)
	if template == nil {
		return
	}
	d := podDocument{File: name, Document: n, Kind: kind}
	pod, unknown, err := podOf(template)
	if err == nil && len(pod.Spec.Containers) == 0 {
		err = errors.New("has no containers")
	}
	if meta, ok := object["metadata"].(map[string]any); ok {
		d.Namespace, _ = meta["namespace"].(string)
		d.Name, _ = meta["name"].(string)
		if generated, _ := meta["generateName"].(string); d.Name == "" {
			d.Name = generated
		}
	}
	if d.Namespace == "" {
		d.Namespace = metav1.NamespaceDefault
	}
	what := fmt.Sprintf("%s: document %d: %s %s/%s", name, n, kind, d.Namespace, d.Name)
	if err != nil {
		a.note("%s", printable(fmt.Sprintf("%s: %v", what, err)))
		p.faulty = true
		return
	}
	if unknown != nil {
		a.note("%s", printable(fmt.Sprintf("Warning: %s: %v", what, unknown)))
	}
	pod.Namespace, pod.Name = d.Namespace, d.Name
	if kind == "DaemonSet" {
		yes := true
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: d.Name, Controller: &yes}}
	}
	d.pod = pod
	p.pods = append(p.pods, d)
}

// templateOf returns what has the shape of a pod in an object: the Pod itself, or the pod
// template of a workload, whatever its kind.
func templateOf(kind string, object map[string]any) map[string]any {
	if kind == "Pod" {
		return map[string]any{"metadata": object["metadata"], "spec": object["spec"]}
	}
	for _, path := range [][]string{{"spec", "template"}, {"spec", "jobTemplate", "spec", "template"}, {"template"}} {
		at := object
		for _, key := range path {
			at, _ = at[key].(map[string]any)
		}
		if spec, ok := at["spec"].(map[string]any); ok && spec["containers"] != nil {
			return map[string]any{"metadata": at["metadata"], "spec": spec}
		}
	}
	return nil
}

// podOf reads a pod, or a pod template. A field that the API does not know is told, and
// passed over.
func podOf(template map[string]any) (pod *corev1.Pod, unknown, err error) {
	text, err := json.Marshal(template)
	if err != nil {
		return nil, nil, err
	}
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	pod = &corev1.Pod{}
	unknown = strict.Decode(pod)
	pod = &corev1.Pod{}
	return pod, unknown, json.Unmarshal(text, pod)
}

func newLines(data []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(data)) }
