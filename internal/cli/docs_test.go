package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:generate go test . -run TestDocs_CommandLine -update

// docs/cli.md is made from the verbs themselves.
func TestDocs_CommandLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "..", "docs", "cli.md")
	got := commandLinePage()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/cli.md is not what the verbs say (make generate writes it):\n%s", diff)
	}
}

func commandLinePage() string {
	var b strings.Builder
	b.WriteString(`# The command line

<!-- Made from internal/cli by "go test ./internal/cli -run TestDocs_CommandLine -update". -->

Answers go to stdout, everything else to stderr. ` + "`-o table|wide|json|yaml|name`" + ` chooses the form of an answer; JSON is an API.
A value of the configuration comes from a flag, else a ` + "`STILE_*`" + ` variable, else the file (` + "`--config`, `STILE_CONFIG`, `$XDG_CONFIG_HOME/stile/config.yaml`" + `),
else its default; ` + "`stile config view`" + ` shows which. Verbs that talk to registries find credentials in ` + "`--authfile` or `--secret`, else `REGISTRY_AUTH_FILE`,\n`DOCKER_CONFIG`, `~/.docker/config.json` and `containers/auth.json`" + `, credential helpers included.

## Exit codes

| code | |
|---|---|
`)
	for _, row := range []struct {
		code int
		what string
	}{
		{OK, "ok"}, {Failed, "failed"}, {Usage, "usage: a wrong flag, argument, path or configuration"}, {Findings, "findings: what was examined has errors"},
		{Unauthorized, "unauthorized: the registry refuses these credentials"}, {NotFound, "not found: the registry says that there is no such thing"},
		{Unavailable, "unavailable: no answer that could be relied on; a retry may help"}, {VerificationFailed, "verification failed: a digest or a sum does not match"},
		{Interrupted, "interrupted by Ctrl-C"},
	} {
		fmt.Fprintf(&b, "| %d | %s |\n", row.code, row.what)
	}
	root := newRoot(&app{})
	b.WriteString("\n## Flags of every verb\n\n")
	flagTable(&b, root.PersistentFlags())
	var page func(*cobra.Command)
	page = func(c *cobra.Command) {
		if c.Runnable() && !c.HasSubCommands() && c.Name() != "help" {
			fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```\n%s\n```\n", c.CommandPath(), c.Short, c.UseLine())
			if c.Long != "" {
				fmt.Fprintf(&b, "\n%s\n", c.Long)
			}
			if c.Example != "" {
				fmt.Fprintf(&b, "\n```\n%s\n```\n", c.Example)
			}
			if c.LocalFlags().HasAvailableFlags() {
				b.WriteString("\n")
				flagTable(&b, c.LocalNonPersistentFlags())
			}
		}
		for _, child := range c.Commands() {
			page(child)
		}
	}
	page(root)
	return b.String()
}

func flagTable(b *strings.Builder, flags *pflag.FlagSet) {
	b.WriteString("| flag | |\n|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		usage := f.Usage
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && !strings.Contains(usage, "(default") {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, "| %s | %s |\n", name, strings.ReplaceAll(usage, "|", "\\|"))
	})
}
