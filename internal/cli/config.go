package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/cli/config"
)

func configVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config VERB",
		Short: "The configuration of the service",
		Args:  cobra.ArbitraryArgs,
		RunE:  needsVerb,
	}
	cmd.AddCommand(configViewVerb(a))
	return cmd
}

func configViewVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "view",
		Short: "Each value of the configuration, and where it came from",
		Long: `Prints each value of the configuration as "stile serve" would use it, and where it came
from: a flag wins over a STILE_* variable, that over the file, that over the default.
The file is --config, else $STILE_CONFIG, else $XDG_CONFIG_HOME/stile/config.yaml.
"-o wide" shows the variable and the flag of each value. Paths in a file are relative
to that file's folder.`,
		Example: `  stile config view --config stile.yaml
  STILE_XDS_ADDRESS=127.0.0.1:0 stile config view -o json`,
		Args: arguments(0, 0, ""),
	}
	out := outputFlag(cmd)
	flags := configFlags(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		loaded, err := a.loadConfig(flags)
		if err != nil {
			return err
		}
		values, err := config.Values(loaded.shown, loaded.sources)
		if err != nil {
			return err
		}
		return out.print(a.stdout, configAnswer(values))
	}
	return cmd
}

// configReport is the JSON of "stile config view".
type configReport struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Values     []config.Value `json:"values"`
}

func configAnswer(values []config.Value) answer {
	report := configReport{APIVersion: apiVersion, Kind: "ConfigView", Values: values}
	keys := map[string]config.Key{}
	for _, k := range config.Keys(v1alpha1.DefaultConfig()) {
		keys[k.Path] = k
	}
	var names []string
	for _, v := range values {
		names = append(names, v.Key)
	}
	return answer{Value: report, Names: names, Table: func(w io.Writer, wide bool) {
		heading := []string{"KEY", "VALUE", "SOURCE"}
		if wide {
			heading = append(heading, "VARIABLE", "FLAG")
		}
		t := newTable(w, heading...)
		defer t.end()
		for _, v := range values {
			value := string(bytes.Trim(v.Value, `"`))
			if value == "null" {
				value = ""
			}
			row := []string{v.Key, value, v.Source}
			if k, single := keys[v.Key]; wide && single {
				row = append(row, k.Env(), "--"+flagName(k))
			} else if wide {
				row = append(row, "", "")
			}
			t.row(row...)
		}
	}}
}

// shortFlags are the flags whose name is not the path of their key.
var shortFlags = map[string]string{
	"resources.directory": "resources",

	"resources.kubernetes.kubeconfig": "kubeconfig",
	"resources.kubernetes.context":    "context",
	"envoy.directory":                 "envoy",
	"store.directory":                 "store",
}

// shownFlags are the flags of the configuration that --help lists; the others exist all
// the same, and "stile config view -o wide" lists them.
var shownFlags = []string{
	"resources.directory", "resources.kubernetes.kubeconfig", "resources.kubernetes.context", "envoy.directory", "envoy.default", "store.directory", "rootNamespace", "keys.file",
	"xds.address", "xds.insecure", "modules.address", "modules.url", "modules.insecure", "admin.address", "health.address",
	"access.recheck", "access.onRevoked", "fetch.allow", "audit.file",
}

func flagName(k config.Key) string {
	if name, ok := shortFlags[k.Path]; ok {
		return name
	}
	return k.Flag()
}

// textFlag is a flag whose text the loader reads, so that its faults are reported with
// all others.
type textFlag struct {
	text string
	set  bool
	kind string
}

func (f *textFlag) String() string     { return f.text }
func (f *textFlag) Set(s string) error { f.text, f.set = s, true; return nil }
func (f *textFlag) Type() string       { return f.kind }

// configInput is the flags that a verb reads its configuration by.
type configInput struct {
	file string
	keys []config.Key
	text map[string]*textFlag // by path
}

// configFileFlag adds --config alone: for verbs that need the registries of a
// configuration and none of its single values.
func configFileFlag(cmd *cobra.Command) *configInput {
	in := &configInput{}
	cmd.Flags().StringVar(&in.file, "config", "", "configuration file (else $STILE_CONFIG, $XDG_CONFIG_HOME/stile/config.yaml)")
	return in
}

// configFlags adds --config and one flag for each single value of the configuration.
func configFlags(cmd *cobra.Command) *configInput {
	in := configFileFlag(cmd)
	in.keys = config.Keys(v1alpha1.DefaultConfig())
	in.text = map[string]*textFlag{}
	defaults := map[string]string{}
	if values, err := config.Values(v1alpha1.DefaultConfig(), nil); err == nil {
		for _, v := range values {
			defaults[v.Key] = strings.Trim(string(v.Value), `"`)
		}
	}
	for _, k := range in.keys {
		f := &textFlag{kind: "value"}
		in.text[k.Path] = f
		flag := cmd.Flags().VarPF(f, flagName(k), "", "sets "+k.Path)
		if d := defaults[k.Path]; d != "" && d != "null" {
			flag.Usage += " (default " + d + ")"
		}
		if d := defaults[k.Path]; d == "true" || d == "false" {
			flag.NoOptDefVal = "true"
			f.kind = "bool"
		}
		flag.Hidden = !slices.Contains(shownFlags, k.Path)
	}
	return in
}

// loadedConfig is a configuration with where its values came from.
type loadedConfig struct {
	*v1alpha1.Config                  // paths of the file joined to the file's folder
	shown            *v1alpha1.Config // as it was written
	sources          config.Sources
}

// loadConfig joins the layers of the configuration. Every fault is a usage error.
func (a *app) loadConfig(in *configInput) (*loadedConfig, error) {
	name, err := a.configFile(in.file)
	if err != nil {
		return nil, err
	}
	input := config.Input{FileName: name, Env: a.configEnv, Flags: map[string]config.FlagValue{}}
	if name != "" {
		if input.File, err = os.ReadFile(name); err != nil {
			return nil, fail(Usage, fmt.Errorf("configuration: %w", err), "name a file that exists with --config or STILE_CONFIG")
		}
	}
	if in.keys != nil {
		a.noteUnknownVariables(in.keys)
	}
	for _, k := range in.keys {
		if f := in.text[k.Path]; f.set {
			input.Flags[k.Path] = config.FlagValue{Name: flagName(k), Text: f.text}
		}
	}
	written := v1alpha1.DefaultConfig()
	sources, err := config.Load(written, input, func(sources config.Sources) error {
		chooseSource(written, sources)
		return written.Validate()
	})
	if err != nil {
		return nil, fail(Usage, fmt.Errorf("configuration: %w", err), `correct the configuration; "stile config view" shows what is known`)
	}
	used := written.DeepCopy()
	if sources["modules.url"].Layer == config.Default && sources["modules.address"].Layer != config.Default {
		used.Modules.URL = "" // the address that is bound
	}
	resolvePaths(used, sources, filepath.Dir(name))
	return &loadedConfig{Config: used, shown: written, sources: sources}, nil
}

// otherVariables are those that begin with STILE_ and are no part of the configuration.
var otherVariables = []string{"STILE_CONFIG", "STILE_ENVOY", "STILE_NO_ENVOY"}

// noteUnknownVariables warns of STILE_* variables that set nothing. It cannot be an error:
// Kubernetes itself sets STILE_SERVICE_HOST, STILE_PORT and the like beside a Service
// called stile.
func (a *app) noteUnknownVariables(keys []config.Key) {
	known := slices.Clone(otherVariables)
	for _, k := range keys {
		known = append(known, k.Env())
		if short := shortFlags[k.Path]; short != "" {
			known = append(known, config.EnvPrefix+strings.ToUpper(short))
		}
	}
	for _, pair := range a.env {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, config.EnvPrefix) || slices.Contains(known, name) ||
			strings.Contains(name, "_SERVICE_") || strings.Contains(name, "_PORT") {
			continue
		}
		hint := `"stile config view -o wide" lists those that do`
		if near := config.Nearest(name, known); near != "" {
			hint = "did you mean " + near + "?"
		}
		a.note("Warning: the variable %s sets nothing; %s", printable(name), hint)
	}
}

// chooseSource takes back the default folder of resources where Kubernetes is named.
func chooseSource(c *v1alpha1.Config, sources config.Sources) {
	if c.Resources.Kubernetes != nil && sources["resources.directory"].Layer == config.Default {
		c.Resources.Directory = ""
	}
}

// configFile returns the configuration file to read, or "" if there is none.
func (a *app) configFile(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if name := a.env.get("STILE_CONFIG"); name != "" {
		return name, nil
	}
	folder := a.env.get("XDG_CONFIG_HOME")
	if folder == "" {
		home := a.env.get("HOME")
		if home == "" {
			return "", nil
		}
		folder = filepath.Join(home, ".config")
	}
	name := filepath.Join(folder, "stile", "config.yaml")
	switch _, err := os.Stat(name); {
	case err == nil:
		return name, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return "", nil
	default:
		return "", fail(Failed, fmt.Errorf("configuration: %w", err), "")
	}
}

// configEnv returns the variable that sets a key, and its text. The short flags have
// short variables too, except STILE_ENVOY: that is the path of an Envoy to run. An empty
// variable is one that is not set.
func (a *app) configEnv(k config.Key) (variable, text string, ok bool) {
	names := []string{k.Env()}
	if short := shortFlags[k.Path]; short != "" && short != "envoy" {
		names = append(names, config.EnvPrefix+strings.ToUpper(short))
	}
	for _, variable := range names {
		if text := a.env.get(variable); text != "" {
			return variable, text, true
		}
	}
	return "", "", false
}

// resolvePaths joins the relative paths that the file holds to the file's folder, so
// that it does not matter where stile is started. Flags and variables stay relative to
// the working folder.
func resolvePaths(c *v1alpha1.Config, sources config.Sources, folder string) {
	resolve := func(key string, path *string) {
		if sources[key].Layer == config.File && *path != "" && *path != "-" && !filepath.IsAbs(*path) {
			*path = filepath.Join(folder, *path)
		}
	}
	resolve("resources.directory", &c.Resources.Directory)
	resolve("envoy.directory", &c.Envoy.Directory)
	resolve("keys.file", &c.Keys.File)
	resolve("store.directory", &c.Store.Directory)
	resolve("audit.file", &c.Audit.File)
	resolve("webhook.certFile", &c.Webhook.CertFile)
	resolve("webhook.keyFile", &c.Webhook.KeyFile)
	for key, tls := range map[string]*v1alpha1.TLSConfig{"xds.tls": &c.XDS.TLS, "modules.tls": &c.Modules.TLS, "admin.tls": &c.Admin.TLS} {
		resolve(key+".certFile", &tls.CertFile)
		resolve(key+".keyFile", &tls.KeyFile)
		resolve(key+".clientCAFile", &tls.ClientCAFile)
	}
	for i := range c.Registries {
		r := &c.Registries[i]
		for _, path := range []*string{&r.CAFile, &r.CertFile, &r.KeyFile} {
			resolve("registries", path)
		}
	}
	if k := c.Resources.Kubernetes; k != nil {
		resolve("resources.kubernetes", &k.Kubeconfig)
	}
}
