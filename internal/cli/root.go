package cli

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const rootLong = `stile lets over the fence whoever may cross it, and nothing else: it proves who may
read an image, keeps the proofs and the content, and gives Wasm plugins to proxies
for those who may have them.

Answers go to stdout, everything else to stderr.

Exit codes:
  0 ok            1 failed        2 usage         3 findings
  4 unauthorized  5 not found     6 unavailable, a retry may help
  7 verification failed           130 interrupted`

// newRoot returns the command tree. Each verb is made by a function in its own file.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:               "stile VERB",
		Short:             "Wasm plugins and image facts for those who may read the image",
		Long:              rootLong,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE:              needsVerb,
		Args:              cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(flagError)
	flags := root.PersistentFlags()
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "say more on stderr")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing on stderr but errors")
	flags.Var(newChoice(&a.logFormat, "text", "text", "json"), "log-format", "format of log lines: text or json")
	for _, verb := range verbs {
		root.AddCommand(verb(a))
	}
	root.SetHelpCommand(helpVerb())
	return root
}

// verbs are the constructors of all verbs, in the order in which help lists them.
var verbs = []func(*app) *cobra.Command{
	demoVerb,
	serveVerb,
	validateVerb,
	explainVerb,
	translateVerb,
	accessVerb,
	inspectVerb,
	pullVerb,
	pushVerb,
	checkVerb,
	statusVerb,
	placementVerb,
	configVerb,
	versionVerb,
	completionVerb,
}

// needsVerb is what a command that only groups others does when it is called itself.
func needsVerb(cmd *cobra.Command, args []string) error {
	known := "known: " + strings.Join(verbNames(cmd), ", ")
	if len(args) == 0 {
		return usagef("%s: a verb is missing; %s", cmd.CommandPath(), known)
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		known = fmt.Sprintf("did you mean %q? %s", near[0], known)
	}
	return usagef("%s: unknown verb %q; %s", cmd.CommandPath(), args[0], known)
}

func verbNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden && c.Name() != "help" {
			names = append(names, c.Name())
		}
	}
	sort.Strings(names)
	return names
}

// flagError turns what the flag parser says into a usage error that lists the flags
// the verb knows.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name := unknown.GetSpecifiedName()
		dashes := "--"
		if unknown.GetSpecifiedShortnames() != "" {
			dashes = "-"
		}
		return usagef("%s: unknown flag %s%s; known: %s", cmd.CommandPath(), dashes, name, strings.Join(flagNames(cmd), ", "))
	}
	return usagef("%s: %w", cmd.CommandPath(), err)
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, "--"+f.Name)
		}
	})
	return names
}

// helpVerb is "stile help [VERB]", with an error for a verb that does not exist.
func helpVerb() *cobra.Command {
	return &cobra.Command{
		Use:    "help [VERB]",
		Short:  "Help about any verb",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("help: unknown verb %q; known: %s", strings.Join(args, " "), strings.Join(verbNames(cmd.Root()), ", "))
			}
			target.InitDefaultHelpFlag()
			return target.Help()
		},
	}
}

// arguments checks the number of positional arguments; what names them for the error.
func arguments(low, high int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			return usagef("%s: %s is missing", cmd.CommandPath(), what)
		case high >= 0 && len(args) > high && high == 0:
			return usagef("%s: takes no arguments, have %q", cmd.CommandPath(), args)
		case high >= 0 && len(args) > high:
			return usagef("%s: too many arguments: want %s, have %q", cmd.CommandPath(), what, args)
		}
		return nil
	}
}

// choice is a flag whose values are a closed list.
type choice struct {
	value *string
	known []string
}

func newChoice(value *string, standard string, known ...string) *choice {
	*value = standard
	return &choice{value: value, known: known}
}

func (c *choice) String() string {
	if c.value == nil {
		return ""
	}
	return *c.value
}

func (c *choice) Type() string { return strings.Join(c.known, "|") }

func (c *choice) Set(s string) error {
	for _, k := range c.known {
		if s == k {
			*c.value = s
			return nil
		}
	}
	return fmt.Errorf("unknown value %q; known: %s", s, strings.Join(c.known, ", "))
}
