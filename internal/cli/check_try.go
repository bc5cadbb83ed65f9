package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/proxywasm"
	"github.com/stileproject/stile/internal/source/file"
	"github.com/stileproject/stile/internal/wasm"
)

const (
	// tryTime is how long a module may take to start and to read its configuration.
	tryTime = 10 * time.Second
	// tryMemory is the most memory that it gets meanwhile, in pages of 64 KiB: 256 MiB.
	tryMemory = 4096
	// tryLines is how many of its own log lines a finding repeats.
	tryLines = 5
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

// tryModule starts a module in the sandbox and gives it a configuration. What it says
// against it is a finding; the error is the end of ctx alone.
func tryModule(ctx context.Context, module, config []byte) ([]wasm.Finding, error) {
	lines := &lastLines{}
	p, err := proxywasm.New(ctx, proxywasm.Options{
		Bytes: module, Name: "check", Config: config, MemoryPages: tryMemory, Timeout: tryTime, Log: slog.New(lines),
	})
	if err == nil {
		return nil, p.Close()
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	f := wasm.Finding{Severity: wasm.SeverityError, Reason: v1alpha1.ReasonModuleRejectedConfig, Message: err.Error() + lines.before(err)}
	switch {
	case errors.Is(err, proxywasm.ErrRefused):
		f.Fix = "correct the configuration, or ask the module's author what it wants"
	case errors.Is(err, proxywasm.ErrFailed):
		f.Fix = "the module stopped by itself or took too much memory or time; its author must correct that"
	default:
		f.Severity, f.Reason = wasm.SeverityWarning, "NotTried"
		f.Fix = "the sandbox cannot run this module, which says nothing about Envoy"
	}
	return []wasm.Finding{f}, nil
}

// lastLines is a log of which the last lines are kept: what a module says of itself.
type lastLines struct {
	mu   sync.Mutex
	text []string
}

func (l *lastLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lastLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lastLines) WithGroup(string) slog.Handler            { return l }

func (l *lastLines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, printable(r.Message))
	l.text = l.text[max(0, len(l.text)-tryLines):]
	return nil
}

// before returns the lines that err does not quote itself, behind "the module says", or
// "" if there are none.
func (l *lastLines) before(err error) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.text
	if n := len(text); n > 0 && strings.Contains(err.Error(), strings.Trim(strconv.Quote(text[n-1]), `"`)) {
		text = text[:n-1]
	}
	if len(text) == 0 {
		return ""
	}
	return "; before, the module said: " + strings.Join(text, " / ")
}
