package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"
)

const demoLong = `Everything on loopback, each part on a port of its own: a registry that asks for
passwords, two tenants with their pull secrets and plugins, stile itself, and a proxy
for each tenant. The demo pushes two Wasm modules, sends requests, takes rights away and
gives them back, and shows at each step what became of it.

With --once it ends after the story, with exit code 1 if any step failed. Without, it
stays up and prints the addresses and the folder: edit a file there and see the change.
Ctrl-C ends everything and leaves nothing behind.`

func demoVerb(a *app) *cobra.Command {
	d := newDemo(a)
	cmd := &cobra.Command{
		Use:   "demo [--once] [--proxy auto|envoy|sandbox]",
		Short: "Show everything on loopback, with nothing installed",
		Long:  demoLong,
		Args:  arguments(0, 0, ""),
		Example: `  stile demo                    stay up, for a look around
  stile demo --once -o json     run the story and report`,
	}
	cmd.Flags().BoolVar(&d.once, "once", false, "end after the story")
	cmd.Flags().Var(newChoice(&d.proxyKind, "auto", "auto", "envoy", "sandbox"), "proxy",
		"the proxy: a real Envoy (STILE_ENVOY, or envoy on the PATH), the sandbox in this binary, or whichever is at hand")
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return d.main(cmd.Context(), out) }
	return cmd
}

// DemoReport is the answer of "stile demo --once -o json".
type DemoReport struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Passed     bool       `json:"passed"`
	Proxy      string     `json:"proxy"` // "envoy" or "sandbox"
	Steps      []DemoStep `json:"steps"`
}

// DemoStep is one thing that the demo shows.
type DemoStep struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	Detail string `json:"detail"`
}

// demo is one run of the verb.
type demo struct {
	*app
	once      bool
	proxyKind string

	// For tests. An open registry lets everybody in, and then the story must fail.
	openRegistry bool
	patience     time.Duration
	password     func(user string) string
	tokenMarker  string           // part of every token of the registry
	remote       bool             // every module travels by URL
	afterStory   func(*demoWorld) // while everything still runs

	tell   io.Writer // where the story is told while it happens; nil: nowhere
	report DemoReport
}

// newDemo returns a demo as the verb runs it.
func newDemo(a *app) *demo {
	// How long one step waits for what it expects. The demo's intervals are seconds, so a
	// step that takes longer has failed.
	return &demo{app: a, patience: 15 * time.Second, password: func(string) string { return rand.Text() }}
}

func (d *demo) main(ctx context.Context, out *output) error {
	people := out.format == "table" || out.format == "wide"
	if people {
		d.tell = d.stdout
	}
	w, err := d.build(ctx)
	if err != nil {
		return err
	}
	err = d.story(ctx, w)
	if d.afterStory != nil {
		d.afterStory(w)
	}
	if err == nil && !d.once && d.report.Passed {
		err = d.stay(ctx, w)
	}
	if err = errors.Join(err, w.end()); err != nil {
		return err
	}
	d.say("")
	d.say("%s", d.verdict())
	if !people {
		if err := out.print(d.stdout, answer{Value: d.report, Names: d.stepNames()}); err != nil {
			return err
		}
	}
	switch {
	case !d.report.Passed:
		return silent(Failed)
	case interruptedBy(ctx) == os.Interrupt:
		return silent(Interrupted)
	}
	return nil
}

// stay keeps everything running until the user has seen enough.
func (d *demo) stay(ctx context.Context, w *demoWorld) error {
	d.say("")
	d.say("Everything stays up. Look around, edit a file, see the change; Ctrl-C ends it.")
	for _, line := range w.addresses() {
		d.say("  %s", line)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-w.died:
		return fmt.Errorf("demo: serve ended: %w", err)
	}
}

func (d *demo) verdict() string {
	failed := 0
	for _, s := range d.report.Steps {
		if !s.Passed {
			failed++
		}
	}
	if failed == 0 {
		return fmt.Sprintf("All %d steps passed.", len(d.report.Steps))
	}
	return fmt.Sprintf("%d of %d steps failed.", failed, len(d.report.Steps))
}

func (d *demo) stepNames() []string {
	var names []string
	for _, s := range d.report.Steps {
		names = append(names, s.Name)
	}
	return names
}

// say tells people what happens.
func (d *demo) say(format string, args ...any) {
	if d.tell != nil {
		_, _ = fmt.Fprintf(d.tell, format+"\n", args...)
	}
}

// chooseProxy returns the path of a real Envoy, or "" for the sandbox.
func (d *demo) chooseProxy() (string, error) {
	if d.proxyKind == "sandbox" {
		return "", nil
	}
	path := d.env.get("STILE_ENVOY")
	if path == "" {
		path, _ = exec.LookPath("envoy")
	} else if info, err := os.Stat(path); err != nil || info.IsDir() {
		return "", fail(Usage, fmt.Errorf("demo: STILE_ENVOY is %s, which is no program", path), "set it to the path of an envoy binary, or unset it")
	}
	if path == "" && d.proxyKind == "envoy" {
		return "", fail(Usage, errors.New("demo: no Envoy at hand"), "set STILE_ENVOY to the path of an envoy binary, or use --proxy sandbox")
	}
	return path, nil
}
