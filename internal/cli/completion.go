package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func completionVerb(a *app) *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion " + strings.Join(shells, "|"),
		Short: "Print the completion script of a shell",
		Example: `  source <(stile completion bash)
  stile completion zsh > "${fpath[1]}/_stile"`,
		Args:      arguments(1, 1, "the shell ("+strings.Join(shells, ", ")+")"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.stdout)
			}
			slices.Sort(shells)
			return usagef("completion: unknown shell %q; known: %s", args[0], strings.Join(shells, ", "))
		},
	}
}
