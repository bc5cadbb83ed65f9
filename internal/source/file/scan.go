package file

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/source"
)

// state is what is known of one file.
type state struct {
	stamp    stamp
	sum      [sha256.Size]byte // of what was read last, good or not
	read     bool              // there is a sum
	good     []document.Document
	data     []byte             // the last good content, of an Envoy file
	has      bool               // there is a last good content
	findings []document.Finding // of what was read last
}

// The reasons of findings about files themselves.
const (
	reasonEmpty      = "Empty"
	reasonMissing    = "Missing"
	reasonUnreadable = "Unreadable"
)

// kept ends the message of every finding beside which the last good content is used.
const kept = "; the last good content stays in force"

// scan reads what may have changed and makes a World of everything. complete is false
// while the resources have never been read.
func (s *Source) scan() (world *source.World, folders []string, complete bool) {
	b := newBuilder(s.plugins)
	watched, ok := s.scanResources(b)
	if !ok && s.last == nil {
		s.log.Warn("resources cannot be read yet", "folder", s.resources)
		return nil, append(watched, filepath.Dir(s.resources)), false
	}
	watched = append(watched, s.scanEnvoy(b)...)
	for _, root := range []string{s.resources, s.envoy} {
		if root != "" {
			watched = append(watched, filepath.Dir(root)) // a root may itself be swapped
		}
	}
	world, s.plugins = b.world()
	return world, watched, true
}

// scanResources reads the resource files and adds what they hold.
func (s *Source) scanResources(b *builder) (folders []string, ok bool) {
	files, folders, err := listFolder(s.resources)
	keep := true // whatever is there now, what was there before counts
	switch {
	case err != nil:
		b.fault(s.resources, unreadable(err), describe(err)+kept)
		files = slices.Sorted(maps.Keys(s.files))
	case len(files) == 0 && len(s.files) > 0:
		b.fault(s.resources, reasonEmpty, "the folder has become empty"+kept+"; to remove everything, leave a file that holds only a comment")
		files = slices.Sorted(maps.Keys(s.files))
	default:
		keep = false
		for path := range s.files {
			if _, there := slices.BinarySearch(files, path); !there {
				delete(s.files, path)
			}
		}
	}
	for _, path := range files {
		st := s.files[path]
		if st == nil {
			st = &state{}
			s.files[path] = st
		}
		if !keep {
			st.refresh(path, st.takeDocuments)
		}
		b.findings = append(b.findings, st.findings...)
		if !st.has {
			b.w.Unreadable = append(b.w.Unreadable, path)
		}
		for i := range st.good {
			b.add(&st.good[i])
		}
	}
	return folders, err == nil
}

// scanEnvoy reads the Envoy files and adds them by the name of their cluster.
func (s *Source) scanEnvoy(b *builder) (folders []string) {
	if s.envoy == "" {
		return nil
	}
	files, folders, err := listFolder(s.envoy)
	if err != nil {
		message := describe(err)
		if len(s.proxies) > 0 {
			message += kept
		}
		if len(s.proxies) > 0 || !errors.Is(err, fs.ErrNotExist) {
			b.fault(s.envoy, unreadable(err), message)
		}
	}
	for _, path := range files {
		if filepath.Dir(path) == filepath.Clean(s.envoy) && s.proxies[path] == nil {
			s.proxies[path] = &state{}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(s.proxies)) {
		st := s.proxies[path]
		if err == nil {
			st.refresh(path, st.takeEnvoy)
		}
		b.findings = append(b.findings, st.findings...)
		cluster := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
		if !st.has {
			b.w.UnreadableEnvoy[cluster] = true
			continue
		}
		if _, twice := b.w.EnvoyFiles[cluster]; twice {
			b.fault(path, v1alpha1.ReasonDuplicate, fmt.Sprintf("a second file for the cluster %q: this one is not used; keep one of them", cluster))
			continue
		}
		b.w.EnvoyFiles[cluster] = st.data
	}
	return folders
}

// refresh reads the file again if it may have changed, and lets take judge the content.
func (st *state) refresh(path string, take func(path string, data []byte)) {
	info, err := os.Stat(path)
	if err == nil && st.stamp.same(info) {
		return
	}
	var data []byte
	if err == nil {
		data, st.stamp, err = read(path)
	}
	if err != nil {
		st.stamp, st.read = stamp{}, false
		st.fault(path, unreadable(err), describe(err))
		return
	}
	sum := sha256.Sum256(data)
	if st.read && sum == st.sum {
		return
	}
	st.sum, st.read = sum, true
	if len(bytes.TrimSpace(data)) == 0 {
		st.fault(path, reasonEmpty, "the file is empty")
		return
	}
	take(path, data)
}

// fault makes the one finding of a file that cannot be used as it is.
func (st *state) fault(path, reason, message string) {
	if st.has {
		message += kept
	}
	st.findings = []document.Finding{{File: path, Severity: v1alpha1.SeverityError, Reason: reason, Message: message}}
}

// takeDocuments takes over what a resource file holds, unless its text is broken: then
// only what there never was a better version of.
func (st *state) takeDocuments(path string, data []byte) {
	docs := document.Read(path, data)
	st.findings = nil
	broken := false
	for _, d := range docs {
		for _, f := range d.Findings {
			if f.Reason == v1alpha1.ReasonSyntax && f.Severity == v1alpha1.SeverityError {
				broken = true
				if st.has {
					f.Message += kept
				}
			}
			st.findings = append(st.findings, f)
		}
	}
	if broken && st.has {
		return
	}
	st.good, st.has = docs, st.has || !broken
}

// takeEnvoy takes over an Envoy file, unless it is not YAML. What Envoy would say of it
// is judged where it is translated.
func (st *state) takeEnvoy(path string, data []byte) {
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		st.fault(path, v1alpha1.ReasonSyntax, "not YAML: "+strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	st.data, st.has, st.findings = data, true, nil
}

func unreadable(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return reasonMissing
	}
	return reasonUnreadable
}

// describe says what a file error is, without the path that the finding names already.
func describe(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return "cannot be read: " + err.Error()
}

// generations are the plugins of the last World: what keeps their pointers and counts
// their generations, as the Kubernetes API does for its objects.
type generations map[source.Key]*v1alpha1.WasmPlugin

// builder gathers a World.
type builder struct {
	before   generations
	now      generations
	w        *source.World
	from     map[string]string // kind and key of every object, to the file it came from
	findings []document.Finding
}

func newBuilder(before generations) *builder {
	return &builder{
		before: before, now: generations{}, from: map[string]string{},
		w: &source.World{
			Invalid:    map[source.Key][]v1alpha1.Finding{},
			Secrets:    map[source.Key]*document.Secret{},
			Gateways:   map[source.Key]*document.Gateway{},
			EnvoyFiles: map[string][]byte{},

			UnreadableEnvoy: map[string]bool{},
		},
	}
}

func (b *builder) fault(path, reason, message string) {
	b.findings = append(b.findings, document.Finding{File: path, Severity: v1alpha1.SeverityError, Reason: reason, Message: message})
}

// add takes the object of a document. Of two of one name the first in the order of the
// files counts, whatever the order of their coming.
func (b *builder) add(d *document.Document) {
	if d.Object == nil {
		return
	}
	key := source.Key{Namespace: d.Namespace, Name: d.Name}
	id := d.Kind + " " + key.String()
	if first, twice := b.from[id]; twice {
		b.findings = append(b.findings, document.Finding{
			File: d.File, Document: d.Index, Kind: d.Kind, Namespace: d.Namespace, Name: d.Name, Field: "metadata.name",
			Severity: v1alpha1.SeverityWarning, Reason: v1alpha1.ReasonDuplicate,
			Message: "a second " + d.Kind + " of this name: the one in " + first + " counts; remove one of them",
		})
		return
	}
	b.from[id] = d.File
	switch o := d.Object.(type) {
	case *v1alpha1.WasmPlugin:
		o = b.generation(key, o)
		d.Object = o // so that the next World has the same pointer
		b.now[key] = o
		if faults := errorsOf(d.Findings); len(faults) > 0 {
			b.w.Invalid[key] = faults
		}
	case *document.Secret:
		b.w.Secrets[key] = o
	case *document.Gateway:
		b.w.Gateways[key] = o
	}
}

// generation returns the object of the last World if o says the same, and else o with
// its generation: one more where the spec changed, beginning with 1.
func (b *builder) generation(key source.Key, o *v1alpha1.WasmPlugin) *v1alpha1.WasmPlugin {
	old := b.before[key]
	switch {
	case old == o:
		return o
	case old == nil:
		o.Generation = 1
		return o
	case !reflect.DeepEqual(old.Spec, o.Spec):
		o.Generation = old.Generation + 1
		return o
	}
	o.Generation = old.Generation
	if reflect.DeepEqual(old.ObjectMeta, o.ObjectMeta) {
		return old
	}
	return o
}

// world returns the World and the plugins to begin the next one with.
func (b *builder) world() (*source.World, generations) {
	for _, key := range slices.SortedFunc(maps.Keys(b.now), func(a, c source.Key) int {
		return strings.Compare(a.Namespace+"\x00"+a.Name, c.Namespace+"\x00"+c.Name)
	}) {
		p := b.now[key]
		b.w.Plugins = append(b.w.Plugins, p)
	}
	b.w.Findings = b.findings
	return b.w, b.now
}

func errorsOf(findings []document.Finding) []v1alpha1.Finding {
	var faults []v1alpha1.Finding
	for _, f := range findings {
		if f.Severity == v1alpha1.SeverityError {
			faults = append(faults, v1alpha1.Finding{Field: f.Field, Severity: f.Severity, Reason: f.Reason, Message: f.Message})
		}
	}
	return faults
}
