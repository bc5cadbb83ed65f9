package engine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

// envoyFile is one Envoy file: the bytes as last read, and what they last said that
// could be used.
type envoyFile struct {
	data   []byte
	parsed *xds.EnvoyFile
}

// group is all proxies that differ in nothing that a plan looks at.
type group struct {
	node    plugin.Node // of any of them
	version string      // of Envoy
	file    string      // the name of the Envoy file; empty: none
	streams int
	plan    plugin.Plan
	plugins map[plugin.Key]bool // served to the group
	alone   []plugin.Key        // of those, served without a listener of ours
	fresh   bool                // not planned yet
}

// proxyEvent takes proxies into groups and out of them.
func (e *Engine) proxyEvent(ev xds.Event) {
	switch ev.Kind {
	case xds.Connected:
		node, file := ev.Node.Assigned(e.cfg.Nodes)
		name := groupName(node, file, ev.EnvoyVersion)
		g := e.groups[name]
		if g == nil {
			g = &group{node: node, version: ev.EnvoyVersion, file: file, fresh: true}
			e.groups[name] = g
		}
		g.streams++
		e.streams[ev.Stream] = name
		e.rooms.Proxies.Join(ev.Stream, name)
	case xds.Gone:
		name, ok := e.streams[ev.Stream]
		if !ok {
			return
		}
		delete(e.streams, ev.Stream)
		if g := e.groups[name]; g.streams > 1 {
			g.streams--
		} else {
			delete(e.groups, name)
			e.rooms.Proxies.Publish(name, nil)
		}
	}
}

// groupName spells all that a plan looks at. Proxies whose names are equal are sent
// the same snapshot, so no two that differ in anything may have one name, whatever a
// peer writes into its node: every part tells its length, every list its number.
func groupName(n plugin.Node, file, version string) string {
	var b []byte
	field := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	for _, s := range []string{file, version, n.Cluster, n.Namespace, n.Gateway, n.GatewayClass} {
		field(s)
	}
	b = binary.AppendUvarint(b, uint64(len(n.Labels)))
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		field(k)
		field(n.Labels[k])
	}
	for _, list := range [][]string{n.Services, n.ServiceEntries, n.Extensions} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, s := range slices.Sorted(slices.Values(list)) {
			field(s)
		}
	}
	return string(b)
}

// setFiles reads the Envoy files that changed, and returns their names. One that is
// broken keeps its last good content, and says so.
func (e *Engine) setFiles(files map[string][]byte) map[string]bool {
	changed := map[string]bool{}
	for name, data := range files {
		f := e.files[name]
		if f == nil {
			f = &envoyFile{}
			e.files[name] = f
		}
		if f.data != nil && bytes.Equal(f.data, data) {
			continue
		}
		f.data = data
		parsed, problems := xds.ParseEnvoy(name, data)
		broken := parsed == nil
		for _, p := range problems {
			broken = broken || p.Severity == xds.SeverityError
			e.log.Warn("envoy file", "file", name, "severity", p.Severity, "problem", p.Error())
		}
		if broken {
			e.log.Warn("envoy file is broken: its last good content stays; without one its proxies are not answered", "file", name)
			continue
		}
		f.parsed = parsed
		changed[name] = true
	}
	for name := range e.files {
		if _, ok := files[name]; !ok {
			delete(e.files, name)
			changed[name] = true
		}
	}
	return changed
}

// file returns the Envoy file of a group: the one it is assigned, else the default, else
// nil. It is not usable if there is one of which nothing good is known: an answer would
// then take from proxies what they run.
func (e *Engine) file(g *group) (file *xds.EnvoyFile, usable bool) {
	for _, name := range []string{g.file, e.defaultFile()} {
		if f := e.files[name]; f != nil {
			return f.parsed, f.parsed != nil
		}
		if e.world.UnreadableEnvoy[name] {
			return nil, false
		}
	}
	return nil, true
}

func (e *Engine) defaultFile() string {
	return strings.TrimSuffix(e.cfg.EnvoyDefault, path.Ext(e.cfg.EnvoyDefault))
}

// BrokenFiles names the Envoy files of which nothing good has been read since the start. The
// proxies that they are for are not answered. Safe to call at any time; what it returns is sorted.
func (e *Engine) BrokenFiles() []string {
	if names := e.broken.Load(); names != nil {
		return *names
	}
	return nil
}

func (e *Engine) noteBroken() {
	var names []string
	for name, f := range e.files {
		if f.parsed == nil {
			names = append(names, name)
		}
	}
	for name, unreadable := range e.world.UnreadableEnvoy {
		if unreadable && e.files[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if before := e.BrokenFiles(); !slices.Equal(before, names) {
		e.broken.Store(&names)
	}
}

// publish plans again for the groups that the news concern, and sends a snapshot to
// those and to the groups that serve a plugin whose delivery changed.
func (e *Engine) publish(n news, changed map[plugin.Key]bool) {
	e.noteBroken()
	for _, name := range slices.Sorted(maps.Keys(e.groups)) {
		g := e.groups[name]
		if _, usable := e.file(g); !usable {
			g.fresh = true
			continue
		}
		if g.fresh || e.concerned(g, n) {
			e.plan(g)
		} else if !g.concerns(changed) {
			continue
		}
		g.fresh = false
		e.rooms.Proxies.Publish(name, e.snapshot(g))
	}
}

// concerned reports whether a group must be planned again.
func (e *Engine) concerned(g *group, n news) bool {
	if n.all || n.files[g.file] || n.files[e.defaultFile()] {
		return true
	}
	node := g.node.Classed(e.classes)
	return slices.ContainsFunc(n.plugins, func(p *v1alpha1.WasmPlugin) bool {
		return plugin.Concerns(e.cfg.RootNamespace, p, &node)
	})
}

func (g *group) concerns(changed map[plugin.Key]bool) bool {
	for key := range changed {
		if g.plugins[key] {
			return true
		}
	}
	return false
}

// plan decides which plugins run where in the group's proxies.
func (e *Engine) plan(g *group) {
	in := plugin.Inputs{
		RootNamespace: e.cfg.RootNamespace,
		Plugins:       make([]*v1alpha1.WasmPlugin, 0, len(e.order)),
		Invalid:       map[plugin.Key][]v1alpha1.Finding{},
		Node:          g.node.Classed(e.classes),
		OmitSkipped:   true,
		ExtraAnchors:  e.cfg.Anchors,
	}
	for _, key := range e.order {
		ps := e.plugins[key]
		in.Plugins = append(in.Plugins, ps.spec)
		if ps.takesNoPart() {
			in.Invalid[key] = ps.invalid
		}
	}
	file, _ := e.file(g)
	g.plugins, g.alone = map[plugin.Key]bool{}, nil
	if file == nil {
		g.plan = plugin.Plan{}
		g.alone = plugin.Attached(in)
	} else {
		in.Listeners = file.Listeners()
		var problems []plugin.Problem
		g.plan, problems = plugin.Build(in)
		for _, p := range problems {
			e.log.Warn("plan", "node", g.node.ID, "plugin", p.Plugin, "listener", p.Listener, "reason", p.Reason, "problem", p.Message)
		}
	}
	for _, key := range slices.Concat(g.plan.Plugins(), g.alone) {
		g.plugins[key] = true
	}
}

// snapshot is what the group's proxies are sent now.
func (e *Engine) snapshot(g *group) *xds.Snapshot {
	specs := make(map[plugin.Key]*v1alpha1.WasmPlugin, len(g.plugins))
	for key := range g.plugins {
		specs[key] = e.plugins[key].delivered()
	}
	file, _ := e.file(g)
	snapshot, problems := xds.Translate(xds.Input{
		Plan: g.plan, File: file, Plugins: specs, Node: g.node, EnvoyVersion: g.version,
		Deliver:    func(key plugin.Key) xds.Delivery { return e.plugins[key].delivery },
		ModulesURL: e.cfg.ModulesURL, Runtime: e.cfg.Runtime, ServeAlone: g.alone,
	})
	slices.SortFunc(problems, func(a, b xds.Problem) int { return cmp.Compare(a.Error(), b.Error()) })
	for _, p := range problems {
		e.log.Warn("translate", "node", g.node.ID, "severity", p.Severity, "problem", p.Error())
	}
	return snapshot
}
