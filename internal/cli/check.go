package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/wasm"
)

// checkReport is the JSON of "stile check".
type checkReport struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Reference  string         `json:"reference"`
	Findings   []wasm.Finding `json:"findings"`
}

func checkVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check FILE|IMAGE|URL",
		Short: "Would Envoy load this module?",
		Long: `Reads the module's sections and reports everything that keeps Envoy from loading it, or may,
each with what to do about it. With --plugin-config the module is also started in a sandbox,
with little memory and time, and given that configuration: a refusal is a finding, with
what the module itself logged. Exits with 3 if any finding is an error.`,
		Example: `  stile check filter.wasm
  stile check registry.example/team/filter:v1 --type NETWORK -o json`,
		Args: arguments(1, 1, "FILE|IMAGE|URL"),
	}
	var pluginType, configFile string
	cmd.Flags().Var(newChoice(&pluginType, string(v1alpha1.TypeHTTP), string(v1alpha1.TypeHTTP), string(v1alpha1.TypeNetwork)), "type", "type of the plugin that the module is for: HTTP or NETWORK")
	cmd.Flags().StringVar(&configFile, "plugin-config", "", "file with the plugin's configuration, as under spec.pluginConfig: start the module and give it that")
	out := outputFlag(cmd)
	in := registryFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := a.check(cmd.Context(), in, args[0], pluginType, configFile)
		if err != nil {
			return err
		}
		if err := out.print(a.stdout, checkAnswer(r)); err != nil {
			return err
		}
		if wasm.Invalid(r.Findings) {
			return silent(Findings)
		}
		return nil
	}
	return cmd
}

func (a *app) check(ctx context.Context, in *registryInput, arg, pluginType, configFile string) (*checkReport, error) {
	t, err := parseTarget("check", arg, true)
	if err != nil {
		return nil, err
	}
	var config []byte
	if configFile != "" {
		if config, err = readPluginConfig(configFile); err != nil {
			return nil, err
		}
	}
	m, err := a.examine(ctx, in, t, configFile != "")
	if err != nil {
		return nil, err
	}
	findings := m.findings
	if !wasm.Invalid(findings) {
		findings = append(findings, wasm.CheckType(m.module, pluginType)...)
	}
	if configFile != "" && !wasm.Invalid(findings) {
		tried, err := tryModule(ctx, m.bytes, config)
		if err != nil {
			return nil, err
		}
		findings = append(findings, tried...)
	}
	if findings == nil {
		findings = []wasm.Finding{}
	}
	return &checkReport{APIVersion: apiVersion, Kind: "CheckReport", Reference: displayTarget(t), Findings: findings}, nil
}

// examined is what a module is and what is wrong with it. bytes are there if they were
// asked for and it can be loaded.
type examined struct {
	module   wasm.Module
	findings []wasm.Finding
	bytes    []byte
}

func (a *app) examine(ctx context.Context, in *registryInput, t target, bytes bool) (examined, error) {
	if t.file != "" {
		data, err := readModule("check", t.file)
		if err != nil {
			return examined{}, err
		}
		module, findings := wasm.Inspect(data)
		return examined{module, findings, data}, nil
	}
	ctx, b, err := in.openBench(ctx, a, t)
	if err != nil {
		return examined{}, err
	}
	defer b.close()
	m, err := b.fetch(ctx, in, a, t, "")
	problem, isProblem := errors.AsType[*content.Problem](err)
	switch {
	case isProblem && len(m.Findings) == 0 && problem.Reason == content.ReasonModuleInvalid:
		// An image without a module, or with one that cannot be unpacked: that is what is wrong.
		m.Findings = []wasm.Finding{{
			Severity: wasm.SeverityError, Reason: problem.Reason, Message: problem.Message,
			Fix: "push the module with: stile push FILE IMAGE --layout artifact",
		}}
	case err != nil && len(m.Findings) == 0:
		return examined{}, contentFailure(err)
	}
	e := examined{module: m.Info, findings: m.Findings}
	if !bytes || err != nil {
		return e, nil
	}
	body, err := m.open()
	if err != nil {
		return examined{}, contentFailure(err)
	}
	defer func() { _ = body.Close() }()
	if e.bytes, err = io.ReadAll(body); err != nil {
		return examined{}, contentFailure(err)
	}
	return e, nil
}

func checkAnswer(r *checkReport) answer {
	var names []string
	for _, f := range r.Findings {
		names = append(names, f.Reason)
	}
	return answer{Value: r, Names: names, Table: func(w io.Writer, wide bool) {
		for _, f := range r.Findings {
			text := fmt.Sprintf("%s: %s", f.Severity, f.Message)
			if wide {
				text += " [" + f.Reason + "]"
			}
			_, _ = fmt.Fprintln(w, printable(text))
			if f.Fix != "" {
				_, _ = fmt.Fprintln(w, printable("  "+f.Fix))
			}
		}
		if len(r.Findings) == 0 {
			_, _ = fmt.Fprintln(w, "nothing known keeps Envoy from loading it")
		}
	}}
}
