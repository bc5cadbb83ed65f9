// Package file reads resources from a watched folder. Its one rule: what is broken,
// empty or missing says so and changes nothing; the last good content stays.
//
// A resource file that is removed takes its resources with it, for that is how a person
// deletes them. A folder that is missing or suddenly empty does not: that is how a lost
// mount looks. A file of Envoy's listeners stays in force until stile starts anew.
package file

import (
	"context"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/stileproject/stile/internal/document"
	"github.com/stileproject/stile/internal/source"
)

// Source watches a folder of resources and a folder of Envoy files.
type Source struct {
	resources, envoy string
	log              *slog.Logger
	worlds           chan *source.World

	// How long the folders must be quiet before they are read again, how long that may be
	// put off, and how often they are read though nothing was heard.
	settle, patience, rescan time.Duration

	files   map[string]*state // resource files
	proxies map[string]*state // Envoy files
	plugins generations
	last    *source.World
}

// New returns a Source that has not begun. envoy may be empty: there are no Envoy files.
// A nil log discards.
func New(resources, envoy string, log *slog.Logger) *Source {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Source{
		resources: resources, envoy: envoy, log: log,
		worlds: make(chan *source.World, 1),
		settle: 50 * time.Millisecond, patience: time.Second, rescan: 5 * time.Second,
		files: map[string]*state{}, proxies: map[string]*state{},
		plugins: generations{},
	}
}

// Worlds returns the channel on which each new World arrives, the first one once
// everything has been read. It holds one World; a later one takes the place of one that
// nobody has taken.
func (s *Source) Worlds() <-chan *source.World { return s.worlds }

// Run reads and watches until ctx ends, and then returns nil. It is called once.
func (s *Source) Run(ctx context.Context) error {
	events, watch, stop := s.watcher()
	defer stop()
	settled := time.NewTimer(0) // at once: the first read
	defer settled.Stop()
	again := time.NewTicker(s.rescan)
	defer again.Stop()
	var heard time.Time // the first event since the last read
	for {
		select {
		case <-ctx.Done():
			return nil
		case name := <-events:
			if !s.concerns(name) {
				continue
			}
			if heard.IsZero() {
				heard = time.Now()
			}
			settled.Reset(max(0, min(s.settle, time.Until(heard.Add(s.patience)))))
		case <-settled.C:
			heard = time.Time{}
			if watch(s.read()) {
				settled.Reset(0) // what changed before it was watched
			}
		case <-again.C:
			if heard.IsZero() && watch(s.read()) {
				settled.Reset(0)
			}
		}
	}
}

// read reads what may have changed, publishes the World if anything did, and returns
// the folders to watch.
func (s *Source) read() (folders []string) {
	world, folders, complete := s.scan()
	if !complete || (s.last != nil && same(s.last, world)) {
		return folders
	}
	s.tell(world)
	s.last = world
	select {
	case <-s.worlds:
	default:
	}
	s.worlds <- world
	return folders
}

// same reports whether two Worlds say the same. Objects are compared by pointer: what
// did not change was not read again.
func same(a, b *source.World) bool {
	if len(a.Plugins) != len(b.Plugins) || len(a.Secrets) != len(b.Secrets) || len(a.Gateways) != len(b.Gateways) || len(a.EnvoyFiles) != len(b.EnvoyFiles) {
		return false
	}
	for i := range a.Plugins {
		if a.Plugins[i] != b.Plugins[i] {
			return false
		}
	}
	for k, v := range a.Secrets {
		if b.Secrets[k] != v {
			return false
		}
	}
	for k, v := range a.Gateways {
		if b.Gateways[k] != v {
			return false
		}
	}
	for k, v := range a.EnvoyFiles {
		if w, ok := b.EnvoyFiles[k]; !ok || string(v) != string(w) {
			return false
		}
	}
	return reflect.DeepEqual(a.Findings, b.Findings) && reflect.DeepEqual(a.Invalid, b.Invalid)
}

// tell logs what is new: each finding once, and the size of the World.
func (s *Source) tell(w *source.World) {
	known := map[document.Finding]bool{}
	if s.last != nil {
		for _, f := range s.last.Findings {
			known[f] = true
		}
	}
	for _, f := range w.Findings {
		if !known[f] {
			s.log.Warn("resource", "file", f.File, "document", f.Document, "kind", f.Kind, "namespace", f.Namespace, "name", f.Name,
				"field", f.Field, "severity", f.Severity, "reason", f.Reason, "message", f.Message)
		}
	}
	s.log.Info("resources read", "plugins", len(w.Plugins), "secrets", len(w.Secrets), "envoyFiles", len(w.EnvoyFiles), "findings", len(w.Findings))
}

// concerns reports whether an event at this path can change what the folders hold.
func (s *Source) concerns(path string) bool {
	for _, root := range []string{s.resources, s.envoy} {
		if root == "" {
			continue
		}
		rel, err := filepath.Rel(root, path)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// watcher starts listening to the file system. Where that cannot be had, the folders
// are read every second instead. The names of what changed arrive on events. watch adds
// folders and reports whether any of them was not watched before.
func (s *Source) watcher() (events <-chan string, watch func([]string) bool, stop func()) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Warn("folders cannot be watched and are read every second instead", "error", err)
		s.rescan = min(s.rescan, time.Second)
		return nil, func([]string) bool { return false }, func() {}
	}
	names := make(chan string)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			var name string
			select {
			case <-done:
				return
			case e, ok := <-w.Events:
				if !ok {
					return
				}
				name = e.Name
			case _, ok := <-w.Errors: // an overflow: something changed, nobody knows what
				if !ok {
					return
				}
				name = s.resources
			}
			select {
			case names <- name:
			case <-done:
				return
			}
		}
	}()
	failed, fresh := map[string]bool{}, map[string]bool{}
	watch = func(folders []string) (added bool) {
		watched := map[string]bool{}
		for _, f := range w.WatchList() {
			watched[filepath.Clean(f)] = true
		}
		before := fresh
		fresh = map[string]bool{}
		for _, f := range folders {
			switch err := w.Add(f); {
			case err == nil && !watched[filepath.Clean(f)]:
				fresh[f] = true
				// Of two links to one folder the system lists one: the other is new only once.
				added = added || !before[f]
			case err == nil:
			case !failed[f]:
				failed[f] = true
				s.log.Warn("folder cannot be watched and is read every few seconds instead", "folder", f, "error", err)
			}
		}
		return added
	}
	return names, watch, func() {
		close(done)
		_ = w.Close()
		<-ended
	}
}
