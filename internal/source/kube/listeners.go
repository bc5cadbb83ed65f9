package kube

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/source"
)

// ListenersLabel marks, with the value "true", the ConfigMaps whose keys <cluster>.yaml hold Envoy's listeners.
const ListenersLabel = "stile.dev/envoy"

// kept ends the message of every finding beside which the last good content is used.
const kept = "; the last good content stays in force"

// listeners are the files of Envoy's listeners, as the folder source has them: what is broken or missing says so and
// changes nothing.
type listeners map[filePlace]*listenerFile

// filePlace is a key of a ConfigMap.
type filePlace struct{ namespace, name, key string }

func (p filePlace) String() string { return "configmap/" + p.namespace + "/" + p.name + "/" + p.key }

func (p filePlace) compare(q filePlace) int {
	return cmp.Or(cmp.Compare(p.namespace, q.namespace), cmp.Compare(p.name, q.name), cmp.Compare(p.key, q.key))
}

// cluster is the name of the cluster that a key is for; "" if it is no file of listeners.
func (p filePlace) cluster() string {
	switch ext := path.Ext(p.key); strings.ToLower(ext) {
	case ".yaml", ".yml", ".json":
		return strings.TrimSuffix(p.key, ext)
	}
	return ""
}

// listenerFile is what is known of one file.
type listenerFile struct {
	text    string // what was read last, good or not
	read    bool   // there is a text
	data    []byte // the last good content
	has     bool   // there is a last good content
	present bool
	fault   *document.Finding // of what was read last
}

// add reads the files of the ConfigMaps and adds them to w by the name of their cluster.
func (l listeners) add(w *source.World, objects []*listenerObject) {
	for _, f := range l {
		f.present = false
	}
	present := map[string]bool{} // clusters
	for _, o := range objects {
		for key, text := range o.files {
			p := filePlace{o.Namespace, o.Name, key}
			if p.cluster() == "" {
				continue
			}
			f := l[p]
			if f == nil {
				f = &listenerFile{}
				l[p] = f
			}
			f.present = true
			present[p.cluster()] = true
			f.refresh(p, text)
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(l), filePlace.compare) {
		f, cluster := l[p], p.cluster()
		if !f.present {
			if !f.has || present[cluster] { // nobody needs it, or it has moved
				delete(l, p)
				continue
			}
			f.read = false
			f.say(p, "Missing", "is no longer there")
		}
		if f.fault != nil {
			w.Findings = append(w.Findings, *f.fault)
		}
		if !f.has {
			w.UnreadableEnvoy[cluster] = true
			continue
		}
		if _, twice := w.EnvoyFiles[cluster]; twice {
			w.Findings = append(w.Findings, finding(p, v1alpha1.ReasonDuplicate,
				fmt.Sprintf("a second file for the cluster %q: this one is not used; keep one of them", cluster)))
			continue
		}
		w.EnvoyFiles[cluster] = f.data
	}
	for cluster := range w.EnvoyFiles {
		delete(w.UnreadableEnvoy, cluster) // another file of that name is whole
	}
}

// refresh takes over a text unless it is not YAML. What Envoy would say of it is judged where it is translated.
func (f *listenerFile) refresh(p filePlace, text string) {
	if f.read && f.text == text {
		return
	}
	f.text, f.read = text, true
	if strings.TrimSpace(text) == "" {
		f.say(p, "Empty", "the file is empty")
		return
	}
	var node yaml.Node
	if err := yaml.Unmarshal([]byte(text), &node); err != nil {
		f.say(p, v1alpha1.ReasonSyntax, "not YAML: "+strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	f.data, f.has, f.fault = []byte(text), true, nil
}

func (f *listenerFile) say(p filePlace, reason, message string) {
	if f.has {
		message += kept
	}
	found := finding(p, reason, message)
	f.fault = &found
}

func finding(p filePlace, reason, message string) document.Finding {
	return document.Finding{File: p.String(), Kind: "ConfigMap", Namespace: p.namespace, Name: p.name, Field: "data[" + p.key + "]",
		Severity: v1alpha1.SeverityError, Reason: reason, Message: message}
}
