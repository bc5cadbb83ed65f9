package cli

import (
	"context"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func TestUsage_ErrorsSayWhatIsKnown(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		args   []string
		stderr []string
	}{
		"no verb":            {nil, []string{"a verb is missing", "validate", "serve"}},
		"unknown verb":       {[]string{"frobnicate"}, []string{`unknown verb "frobnicate"`, "validate", "What to do:"}},
		"near verb":          {[]string{"validat"}, []string{`did you mean "validate"?`}},
		"unknown subverb":    {[]string{"config", "shew"}, []string{`unknown verb "shew"`, "view"}},
		"no subverb":         {[]string{"config"}, []string{"a verb is missing; known: view"}},
		"unknown flag":       {[]string{"validate", "--frob"}, []string{"unknown flag --frob", "--filename", "--output"}},
		"unknown short flag": {[]string{"validate", "-z"}, []string{"unknown flag -z", "--filename"}},
		"flag without value": {[]string{"validate", "-f"}, []string{"flag needs an argument"}},
		"unknown format":     {[]string{"version", "-o", "xml"}, []string{"known: table, wide, json, yaml, name"}},
		"unknown log format": {[]string{"version", "--log-format", "xml"}, []string{"known: text, json"}},
		"argument too many":  {[]string{"version", "now"}, []string{"takes no arguments"}},
		"argument missing":   {[]string{"access"}, []string{"IMAGE is missing"}},
		"help for nothing":   {[]string{"help", "frobnicate"}, []string{`unknown verb "frobnicate"`}},
		"unknown shell":      {[]string{"completion", "tcsh"}, []string{`unknown shell "tcsh"`, "bash"}},
		"push layout":        {[]string{"push", "a", "b", "--layout", "zip"}, []string{"known: artifact, oci, docker"}},
		"check type":         {[]string{"check", "a", "--type", "UDP"}, []string{"known: HTTP, NETWORK"}},
		"bad reference":      {[]string{"access", "UPPER/case"}, []string{"lower-case"}},
		"timeout":            {[]string{"access", "r.example/a:v1", "--timeout", "-1s"}, []string{"must be more than 0"}},
		"explain node":       {[]string{"explain", "-f", "."}, []string{"--node FILE is missing"}},
		"pull output":        {[]string{"pull", "r.example/a:v1"}, []string{"--output FILE is missing"}},
		"pull sum":           {[]string{"pull", "r.example/a:v1", "--output", "x", "--sha256", "abc"}, []string{"want 64 hexadecimal digits"}},
		"status server":      {[]string{"status", "--server", "nowhere"}, []string{"want host:port"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := stile(t, nil, row.args...).want(t, Usage, row.stderr...)
			if r.stdout != "" {
				t.Errorf("stdout: %s", r.stdout)
			}
			if !strings.Contains(r.stderr, "Usage: stile") {
				t.Errorf("stderr lacks the usage line: %s", r.stderr)
			}
		})
	}
}

func TestHelp_GoesToStdout(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--help"}, {"help"}, {"help", "validate"}, {"validate", "--help"}, {"config", "--help"}, {"help", "config", "view"}} {
		r := stile(t, nil, args...).want(t, OK)
		if !strings.Contains(r.stdout, "Usage:") || r.stderr != "" {
			t.Errorf("%q: stdout %q, stderr %q", args, r.stdout, r.stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	r := decode[versionReport](t, stile(t, nil, "version", "-o", "json").want(t, OK).stdout)
	if r.APIVersion != apiVersion || r.Kind != "Version" || r.Version == "" || !strings.HasPrefix(r.Go, "go1.") {
		t.Errorf("%+v", r)
	}
	if out := stile(t, nil, "version").want(t, OK).stdout; !strings.HasPrefix(out, "stile ") {
		t.Errorf("table: %s", out)
	}
	if out := stile(t, nil, "version", "-o", "name").want(t, OK).stdout; strings.TrimSpace(out) != r.Version {
		t.Errorf("name: %s", out)
	}
	if out := stile(t, nil, "version", "-o", "yaml").want(t, OK).stdout; !strings.Contains(out, "kind: Version\n") {
		t.Errorf("yaml: %s", out)
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := stile(t, nil, "completion", shell).want(t, OK).stdout; !strings.Contains(out, "stile") {
			t.Errorf("%s: %s", shell, out)
		}
	}
}

// Every verb that prints an answer has -o, every verb an example or no arguments, and
// every flag says what it is for.
func TestVerbs_AreDescribed(t *testing.T) {
	t.Parallel()
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: says nothing of itself", c.CommandPath())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s: says nothing of itself", c.CommandPath(), f.Name)
			}
		})
		for _, child := range c.Commands() {
			walk(child)
		}
	}
	walk(newRoot(&app{}))
}

func TestEnvironment_TheLastValueCounts(t *testing.T) {
	t.Parallel()
	e := environment{"A=1", "B=2", "A=3", "AB=4"}
	if got := e.get("A") + e.get("B") + e.get("C"); got != "32" {
		t.Errorf("got %q", got)
	}
}

func TestInterrupted_130(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(interruption{os.Interrupt})
	stileIn(ctx, t, nil, "", "access", "127.0.0.1:1/a:v1", "--plain-http", "127.0.0.1:1").want(t, Interrupted, "Interrupted")
}

// A person who presses Ctrl-C while stile waits for stdin is heard.
func TestInterrupted_WhileStdinIsSilent(t *testing.T) {
	t.Parallel()
	silent, end := io.Pipe()
	ctx, cancel := context.WithCancelCause(t.Context())
	reading := make(chan struct{})
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"validate", "-f", "-"}, readerFunc(func(p []byte) (int, error) { close(reading); return silent.Read(p) }), io.Discard, io.Discard, nil)
	}()
	<-reading
	cancel(interruption{os.Interrupt})
	if code := <-ended; code != Interrupted {
		t.Errorf("want 130, got %d", code)
	}
	_ = end.Close() // and with the process the read ends
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Main itself, with a real signal to this process.
func TestMain_SignalEndsServe(t *testing.T) { //nolint:paralleltest // the signal is for the whole process
	folder := t.TempDir()
	write(t, folder, "resources/a.yaml", "# none\n")
	for signal, code := range map[syscall.Signal]int{syscall.SIGINT: Interrupted, syscall.SIGTERM: OK, syscall.SIGHUP: OK} {
		log := &watchedLog{want: "msg=serving", seen: make(chan struct{})}
		ended := make(chan int, 1)
		go func() {
			ended <- Main([]string{
				"serve", "--resources", folder + "/resources", "--store", folder + "/data",
				"--xds-address", "127.0.0.1:0", "--modules-address", "127.0.0.1:0", "--admin-address", "127.0.0.1:0",
			}, strings.NewReader(""), log, log, []string{"HOME=" + folder})
		}()
		select {
		case <-log.seen:
		case got := <-ended:
			t.Fatalf("ended with %d: %s", got, log)
		}
		if err := syscall.Kill(os.Getpid(), signal); err != nil {
			t.Fatal(err)
		}
		if got := <-ended; got != code {
			t.Errorf("%v: want exit code %d, got %d: %s", signal, code, got, log)
		}
	}
}
