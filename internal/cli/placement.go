package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/controller/release"
)

func placementVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "placement VERB",
		Short: "Where pods may go, by the platforms of their images",
		Args:  cobra.ArbitraryArgs,
		RunE:  needsVerb,
	}
	cmd.AddCommand(placementExplainVerb(a), placementReleaseVerb(a))
	return cmd
}

// releaseReport is the JSON of "stile placement release".
type releaseReport struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Released   int    `json:"released"`
}

func placementReleaseVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release --all",
		Short: "Let every held pod go, before stile is taken away",
		Long: `Removes what puts the gate on new pods, then takes the gate stile.dev/architecture, and
nothing else, from every pod of the cluster that carries it, until there is none. Run it
before stile is uninstalled by hand; the chart runs it by itself. Running it again does no
harm.

Exits with 1 if pods may be left, and with 6 if the time was over before all were let go.`,
		Example: `  stile placement release --all
  stile placement release --all --context staging -o json`,
		Args: arguments(0, 0, ""),
	}
	out := outputFlag(cmd)
	var all bool
	var api v1alpha1.KubernetesConfig
	var timeout time.Duration
	var webhook, policy string
	flags := cmd.Flags()
	flags.StringVar(&webhook, "webhook", release.WebhookName, "MutatingWebhookConfiguration to remove first, if there is one")
	flags.StringVar(&policy, "policy", release.PolicyName, "MutatingAdmissionPolicyBinding to remove first, if there is one")
	flags.BoolVar(&all, "all", false, "the pods of all namespaces; required, for there is no other choice yet")
	flags.StringVar(&api.Kubeconfig, "kubeconfig", "", "kubeconfig file (else the cluster that stile runs in, $KUBECONFIG, ~/.kube/config)")
	flags.StringVar(&api.Context, "context", "", "context of the kubeconfig (else its current one)")
	flags.DurationVar(&timeout, "timeout", 5*time.Minute, "how long the whole command may take")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case !all:
			return usagef("placement release: --all is missing: every held pod of the cluster is let go")
		case timeout <= 0:
			return usagef("--timeout: must be more than 0, have %s", timeout)
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("not done within %s (--timeout)", timeout))
		defer cancel()
		released, err := a.releaseAll(ctx, &api, webhook, policy)
		report := releaseReport{APIVersion: apiVersion, Kind: "PlacementRelease", Released: released}
		return errors.Join(err, out.print(a.stdout, answer{Value: report, Names: []string{strconv.Itoa(released)}, Table: func(w io.Writer, _ bool) {
			_, _ = fmt.Fprintf(w, "%s released\n", count(released, "pod"))
		}}))
	}
	return cmd
}

// releaseAll lets every pod go, even if what gates new ones cannot be removed.
func (a *app) releaseAll(ctx context.Context, api *v1alpha1.KubernetesConfig, webhook, policy string) (int, error) {
	to, _, err := kubernetesAPI(api)
	if err != nil {
		return 0, err
	}
	client, err := kubernetes.NewForConfig(to)
	if err != nil {
		return 0, fail(Usage, fmt.Errorf("placement release: %w", err), "name a kubeconfig with --kubeconfig")
	}
	if err := release.Disarm(ctx, client, webhook, policy); err != nil {
		a.note("Warning: new pods may still be given the gate: %s", printable(err.Error()))
	}
	released, err := release.All(ctx, client, a.logger(slog.LevelInfo))
	switch {
	case err == nil:
		return released, nil
	case interruptedBy(ctx) != nil:
		return released, context.Cause(ctx)
	case ctx.Err() != nil:
		return released, fail(Unavailable, fmt.Errorf("placement release: %w", err), "run it again: what was let go stays so")
	}
	return released, fail(Failed, fmt.Errorf("placement release: %w", err), "run it again with an account that may list and patch pods")
}
