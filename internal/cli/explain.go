package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/source/file"
	"github.com/stileproject/stile/internal/xds"
)

// nodeInput is the flags by which a verb is told of one proxy and its listeners.
type nodeInput struct {
	config        *configInput
	paths         *[]string
	node, envoy   string
	rootNamespace string
}

// nodeFlags adds them; config is the verb's --config.
func nodeFlags(cmd *cobra.Command, config *configInput) *nodeInput {
	in := &nodeInput{config: config, paths: pathFlags(cmd)}
	flags := cmd.Flags()
	flags.StringVar(&in.node, "node", "", "file with Envoy's Node message (id, cluster, metadata), JSON or YAML")
	flags.StringVar(&in.envoy, "envoy", "", "Envoy file, or folder of <cluster>.yaml files")
	flags.StringVar(&in.rootNamespace, "root-namespace", "", "namespace whose plugins reach the proxies of all namespaces (else that of the configuration)")
	return in
}

// scene is one proxy, its listeners and the plugins there are.
type scene struct {
	docs   *documents
	node   plugin.Node
	file   *xds.EnvoyFile
	inputs plugin.Inputs
	faulty bool // a document or the Envoy file has errors
}

// read reads everything that nodeInput names, and tells of faults on stderr.
func (in *nodeInput) read(ctx context.Context, a *app, verb string, args []string) (*scene, error) {
	switch {
	case in.node == "":
		return nil, usagef("%s: --node FILE is missing: the proxy's Node message, with id, cluster and metadata", verb)
	case in.envoy == "":
		return nil, usagef("%s: --envoy FILE or folder is missing: the proxy's own listeners", verb)
	}
	loaded, err := a.loadConfig(in.config)
	if err != nil {
		return nil, err
	}
	rules, err := a.rules(in.config)
	if err != nil {
		return nil, err
	}
	docs, err := a.readByRules(ctx, verb, append(slices.Clone(*in.paths), args...), rules)
	if err != nil {
		return nil, err
	}
	for _, f := range docs.report.Findings {
		a.note("%s", line(f, false))
	}
	s := &scene{docs: docs, faulty: docs.report.HasErrors()}
	text, err := file.Read(in.node)
	if err != nil {
		return nil, fail(Usage, fmt.Errorf("%s: --node: %w", verb, err), "name a file that exists")
	}
	if s.node, err = xds.ParseNode(text); err != nil {
		return nil, fail(Usage, fmt.Errorf("%s: --node %s: %w", verb, in.node, err), "")
	}
	node, name := s.node.Assigned(loaded.Envoy.Nodes)
	if err := in.readEnvoy(a, verb, s, name, loaded.Envoy.Default); err != nil {
		return nil, err
	}
	s.node = node.Classed(docs.classes)
	s.inputs = plugin.Inputs{
		RootNamespace: cmp.Or(in.rootNamespace, loaded.RootNamespace), Plugins: docs.plugins, Invalid: docs.invalid,
		Node: s.node, Listeners: s.file.Listeners(), ExtraAnchors: loaded.Envoy.Anchors,
	}
	return s, nil
}

// readEnvoy reads the Envoy file; in a folder the one that is the node's, or else the default.
func (in *nodeInput) readEnvoy(a *app, verb string, s *scene, own, otherwise string) error {
	name, err := fileOf(in.envoy, own, otherwise)
	if err != nil {
		return fail(Usage, fmt.Errorf("%s: --envoy: %w", verb, err), "name a file, or a folder with a file for the node's cluster")
	}
	text, err := file.Read(name)
	if err != nil {
		return fail(Usage, fmt.Errorf("%s: --envoy: %w", verb, err), "name a file that can be read")
	}
	parsed, problems := xds.ParseEnvoy(name, text)
	for _, p := range problems {
		a.note("%s", printable(p.Severity+": "+p.Error()))
		s.faulty = s.faulty || p.Severity == xds.SeverityError
	}
	if parsed == nil {
		return fail(Findings, fmt.Errorf("%s: --envoy %s: cannot be used", verb, name), "correct what is said above")
	}
	s.file = parsed
	return nil
}

// fileOf returns path itself if it is a file, and else the file in it of a name without
// extension, as the service finds it, or the one that serves all others.
func fileOf(path, own, otherwise string) (string, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return path, err
	}
	for _, base := range []string{own, strings.TrimSuffix(otherwise, filepath.Ext(otherwise))} {
		if base == "" || strings.ContainsAny(base, `/\`) {
			continue
		}
		for _, ext := range []string{".yaml", ".yml", ".json"} {
			name := filepath.Join(path, base+ext)
			if _, err := os.Stat(name); err == nil {
				return name, nil
			}
		}
	}
	if own == "" || strings.ContainsAny(own, `/\`) {
		return "", fmt.Errorf("%s is a folder, and the node's cluster %q cannot be the name of a file in it", path, own)
	}
	return "", fmt.Errorf("%s holds no %s.yaml for the node's cluster", path, own)
}

func explainVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain -f PATH... --node FILE --envoy FILE|DIR",
		Short: "Which plugins run in which chain of a proxy, in which order, and why not the others?",
		Long: `Shows for each filter chain of the proxy's listeners the plugins in the order in which data
meets them, and for every other plugin why it is not there. Nothing is fetched. Of the
configuration, if there is one, rootNamespace, envoy.anchors, envoy.nodes, envoy.default and
wasm.hostEnvAllow count, as they do for the service; Gateways among the documents tell the
class of the one that the proxy serves.

Exits with 3 if a document is invalid; the rest is explained all the same.`,
		Example: `  stile explain -f resources/ --node node.yaml --envoy envoy/
  stile explain -f resources/ --node node.yaml --envoy edge.yaml -o json`,
		Args: cobra.ArbitraryArgs,
	}
	out := outputFlag(cmd)
	in := nodeFlags(cmd, configFileFlag(cmd))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := in.read(cmd.Context(), a, "explain", args)
		if err != nil {
			return err
		}
		e := plugin.Explain(s.inputs)
		for _, p := range e.Problems {
			a.note("%s", problemLine(p))
		}
		if err := out.print(a.stdout, explainAnswer(e)); err != nil {
			return err
		}
		if s.faulty {
			return silent(Findings)
		}
		return nil
	}
	return cmd
}

// problemLine is a problem on one line: of a plugin, or of a place in the listeners.
func problemLine(p plugin.ExplainedProblem) string {
	parts := []string{p.Severity}
	if p.Plugin != "" {
		parts = append(parts, "plugin "+p.Plugin)
	}
	if p.Listener != "" {
		place := "listener " + p.Listener
		if p.FilterChain != nil {
			place += fmt.Sprintf(", filter chain %d", *p.FilterChain)
		}
		parts = append(parts, place)
	}
	return printable(strings.Join(append(parts, p.Message), ": "))
}

func explainAnswer(e plugin.Explanation) answer {
	var names []string
	for _, l := range e.Listeners {
		for _, p := range l.Plugins {
			if !slices.Contains(names, p.Plugin) {
				names = append(names, p.Plugin)
			}
		}
	}
	return answer{Value: e, Names: names, Table: func(w io.Writer, wide bool) {
		_, _ = fmt.Fprintln(w, printable(fmt.Sprintf("node %s, cluster %s, namespace %s", orDash(e.Node.ID), orDash(e.Node.Cluster), orDash(e.Node.Namespace))))
		for _, l := range e.Listeners {
			chain := "filter chain " + strconv.Itoa(l.FilterChain)
			if l.FilterChain < 0 {
				chain = "default filter chain"
			}
			_, _ = fmt.Fprintf(w, "\n%s\n", printable(fmt.Sprintf("listener %s, port %d, %s, %s", l.Name, l.Port, l.Mode, chain)))
			explainPlugins(w, l.Plugins, wide)
			for _, u := range l.Upgrades {
				_, _ = fmt.Fprintf(w, "  upgrade %s\n", printable(u.Type))
				explainPlugins(w, u.Plugins, wide)
			}
			t := newTable(w)
			for _, s := range l.Skipped {
				t.row("  not "+s.Plugin, s.Reason, s.Message)
			}
			t.end()
		}
	}}
}

func explainPlugins(w io.Writer, plugins []plugin.ExplainedPlugin, wide bool) {
	if len(plugins) == 0 {
		_, _ = fmt.Fprintln(w, "  no plugins")
		return
	}
	heading := []string{"  PLUGIN", "TYPE", "PHASE", "PRIORITY", "BEFORE"}
	if wide {
		heading = append(heading, "SELECTOR", "MATCH")
	}
	t := newTable(w, heading...)
	for _, p := range plugins {
		row := []string{"  " + p.Plugin, p.Type, p.Phase, strconv.Itoa(int(p.Priority)), p.Before}
		if wide {
			row = append(row, p.Selector, p.Match)
		}
		t.row(row...)
	}
	t.end()
	for _, p := range plugins {
		if len(p.DisabledFor) > 0 {
			_, _ = fmt.Fprintf(w, "  off %s: %s\n", printable(p.Plugin), printable(strings.Join(p.DisabledFor, ", ")))
		}
	}
}
