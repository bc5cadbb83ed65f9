package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/xds"
)

func translateVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "translate -f PATH... --node FILE --envoy FILE|DIR",
		Short: "What would this proxy be sent?",
		Long: `Prints the Envoy resources that the service would send to the proxy. Modules are resolved
through the registries, with the pull secrets that the documents hold, as the service does.
--offline asks nobody: it uses the store of the service (store.directory) for what is pinned by
a digest, and shows the stand-in of the plugin's fail strategy for everything else.

--format envoy prints plain lists, with each plugin's configuration in place, for an Envoy
without a control plane; --snippet prints the filters to paste into one's own listeners.

Exits with 3 if a document or the Envoy file is invalid; the rest is translated all the same.`,
		Example: `  stile translate -f resources/ --node node.yaml --envoy envoy/
  stile translate -f resources/ --node node.yaml --envoy edge.yaml --offline --snippet`,
		Args: cobra.ArbitraryArgs,
	}
	t := &translate{app: a, out: outputFlag(cmd), registries: registryFlags(cmd)}
	t.scene = nodeFlags(cmd, t.registries.config)
	t.out.format = "json" // the resources are for programs
	cmd.Flags().Lookup("output").DefValue = t.out.format
	flags := cmd.Flags()
	flags.Var(newChoice(&t.form, "stile", "stile", "envoy"), "format", "form of the resources: as they are sent (stile), or plain lists for a file (envoy)")
	flags.BoolVar(&t.snippet, "snippet", false, "print the filters alone, to paste into one's own listeners")
	flags.BoolVar(&t.showURLs, "show-urls", false, "print module URLs as they are; whoever has one can fetch the module")
	flags.BoolVar(&t.offline, "offline", false, "ask no registry")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t.chosen = cmd.Flags().Changed("output")
		return t.run(cmd.Context(), args)
	}
	return cmd
}

// translate is one run of the verb.
type translate struct {
	*app
	out        *output
	scene      *nodeInput
	registries *registryInput
	form       string
	snippet    bool
	showURLs   bool
	offline    bool
	chosen     bool // -o was given: what is pasted is YAML unless it says json
}

func (t *translate) run(ctx context.Context, args []string) error {
	if t.snippet && t.form == "envoy" {
		return usagef("translate: --snippet and --format envoy exclude each other")
	}
	s, err := t.scene.read(ctx, t.app, "translate", args)
	if err != nil {
		return err
	}
	plan, problems := plugin.Build(s.inputs)
	for _, p := range problems {
		t.note("%s", printable(p.Severity+": "+p.Message))
	}
	cfg, deliveries, err := t.deliveries(ctx, s, plan.Plugins())
	if err != nil {
		return err
	}
	specs := map[plugin.Key]*v1alpha1.WasmPlugin{}
	for _, p := range s.docs.plugins {
		specs[plugin.KeyOf(p)] = p
	}
	snapshot, faults := xds.Translate(xds.Input{
		Plan: plan, File: s.file, Plugins: specs, Node: s.node,
		Deliver:    func(k plugin.Key) xds.Delivery { return deliveries[k] },
		ModulesURL: cfg.Modules.URL, Runtime: cfg.Wasm.Runtime, Static: t.form == "envoy",
	})
	for _, p := range faults {
		t.note("%s", printable(p.Severity+": "+p.Error()))
	}
	report, err := snapshot.Report(xds.ReportOptions{ShowURLs: t.showURLs, YAMLNames: t.snippet || t.form == "envoy"})
	if err != nil {
		return err
	}
	if err := t.print(report); err != nil {
		return err
	}
	if s.faulty {
		return silent(Findings)
	}
	return nil
}

func (t *translate) print(r xds.Report) error {
	switch {
	case t.snippet:
		return t.printPasted(snippetOf(r))
	case t.form == "envoy":
		return t.printPasted(envoyLists{Listeners: r.Listeners, Routes: r.Routes, Clusters: r.Clusters})
	}
	var names []string
	for _, list := range [][]json.RawMessage{r.Listeners, r.Routes, r.Clusters, r.ExtensionConfigs} {
		for _, one := range list {
			names = append(names, nameOf(one))
		}
	}
	return t.out.print(t.stdout, answer{Value: r, Names: names, Table: func(w io.Writer, _ bool) {
		table := newTable(w, "KIND", "NAME", "BYTES")
		defer table.end()
		for _, kind := range []struct {
			name string
			list []json.RawMessage
		}{{"Listener", r.Listeners}, {"RouteConfiguration", r.Routes}, {"Cluster", r.Clusters}, {"TypedExtensionConfig", r.ExtensionConfigs}} {
			for _, one := range kind.list {
				table.row(kind.name, nameOf(one), fmt.Sprint(len(one)))
			}
		}
	}})
}

// envoyLists is a file of plain lists, as stile itself reads them and a bootstrap has
// them under static_resources.
type envoyLists struct {
	Listeners []json.RawMessage `json:"listeners"`
	Routes    []json.RawMessage `json:"routes,omitempty"`
	Clusters  []json.RawMessage `json:"clusters"`
}

// printYAML prints what people paste: YAML, or JSON where -o json was asked for.
// printPasted prints what is to be pasted into Envoy's own files: YAML, unless -o asks for JSON.
func (t *translate) printPasted(v any) error {
	form := &output{format: "yaml"}
	if t.chosen && t.out.format == "json" {
		form.format = "json"
	}
	return form.print(t.stdout, answer{Value: v})
}

// snippet is the filters of one filter chain, to be pasted into one's own listener.
type snippet struct {
	Listener    string            `json:"listener"`
	Filters     []json.RawMessage `json:"filters,omitempty"`
	HTTPFilters []json.RawMessage `json:"http_filters,omitempty"`
}

// snippetOf picks the filters of plugins out of the listeners, in their order.
func snippetOf(r xds.Report) []snippet {
	all := []snippet{}
	for _, raw := range r.Listeners {
		s := snippet{Listener: nameOf(raw)}
		var tree any
		if json.Unmarshal(raw, &tree) != nil {
			continue
		}
		walkFilters(tree, "", func(list string, filter json.RawMessage) {
			to := &s.Filters
			if list == "http_filters" {
				to = &s.HTTPFilters
			}
			if !slices.ContainsFunc(*to, func(f json.RawMessage) bool { return string(f) == string(filter) }) {
				*to = append(*to, filter)
			}
		})
		if len(s.Filters)+len(s.HTTPFilters) > 0 {
			all = append(all, s)
		}
	}
	return all
}

// walkFilters visits every filter of a plugin in a tree of JSON, with the name of the
// list that it stands in.
func walkFilters(tree any, list string, visit func(list string, filter json.RawMessage)) {
	switch node := tree.(type) {
	case map[string]any:
		if name, _ := node["name"].(string); strings.HasPrefix(name, v1alpha1.ECDSNamePrefix) {
			if text, err := json.Marshal(node); err == nil {
				visit(list, text)
			}
			return
		}
		// The chain's own order is that of its lists; the order of other fields means nothing.
		for _, key := range slices.Sorted(maps.Keys(node)) {
			walkFilters(node[key], key, visit)
		}
	case []any:
		for _, one := range node {
			walkFilters(one, list, visit)
		}
	}
}

func nameOf(resource json.RawMessage) string {
	var named struct{ Name string }
	_ = json.Unmarshal(resource, &named)
	return named.Name
}
