package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/preflight"
	"github.com/stileproject/stile/internal/source/file"
	"github.com/stileproject/stile/internal/wasm"
)

// readPluginConfig reads YAML or JSON as it stands under spec.pluginConfig, and returns
// the JSON that a module is given.
func readPluginConfig(name string) ([]byte, error) {
	text, err := file.Read(name)
	if err != nil {
		return nil, fail(Usage, fmt.Errorf("--plugin-config: %w", err), "name a file that exists")
	}
	json, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, fail(Usage, fmt.Errorf("--plugin-config %s: %w", name, err), "write it as under spec.pluginConfig")
	}
	var o v1alpha1.Object
	if err := o.UnmarshalJSON(json); err != nil {
		return nil, fail(Usage, fmt.Errorf("--plugin-config %s: %w", name, err), "write it as under spec.pluginConfig")
	}
	config, err := o.Canonical()
	if err != nil {
		return nil, fail(Usage, fmt.Errorf("--plugin-config %s: %w", name, err), "")
	}
	return config, nil
}

// tryModule has a process of its own start the module and give it a configuration. What
// speaks against it is a finding.
func tryModule(ctx context.Context, module, config []byte) ([]wasm.Finding, error) {
	v, err := preflight.Try(ctx, preflight.Subject{
		Size: int64(len(module)), Config: config,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(module)), nil },
	}, preflight.Limits{})
	if err != nil {
		return nil, err
	}
	return v.Findings(), nil
}
