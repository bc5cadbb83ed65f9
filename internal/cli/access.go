package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
)

// accessReport is the JSON of "stile access".
type accessReport struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Image      string     `json:"image"`
	State      string     `json:"state"`
	Reason     string     `json:"reason"`
	Message    string     `json:"message"`
	Digest     string     `json:"digest"`
	Credential string     `json:"credential"`
	Tried      int        `json:"tried"`
	Requests   int64      `json:"requests"`
	CheckedAt  *time.Time `json:"checkedAt"`
}

func accessVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "access IMAGE",
		Short: "May these credentials read this image, and which digest is it?",
		Long: `Asks the registry whether the credentials may read the image, as the service does, and
says which digest it is, which credential earned the answer (as a fingerprint), and how many
HTTP requests it took.

Exits with 0 if allowed, 4 if denied, 5 if the registry says that there is no such image,
6 if there was no answer that could be relied on.`,
		Example: `  stile access registry.example/team/filter:v1
  stile access registry.example/team/filter:v1 --secret pull-secret.yaml -o json`,
		Args: arguments(1, 1, "IMAGE"),
	}
	out := outputFlag(cmd)
	in := registryFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		report, code, err := a.access(cmd.Context(), in, args[0])
		if err != nil {
			return err
		}
		if err := out.print(a.stdout, accessAnswer(report)); err != nil {
			return err
		}
		return silent(code)
	}
	return cmd
}

// access asks once and returns the report and its exit code.
func (a *app) access(ctx context.Context, in *registryInput, image string) (*accessReport, int, error) {
	ref, err := oci.ParseReference(image)
	if err != nil {
		return nil, 0, fail(Usage, err, "")
	}
	ctx, c, done, err := in.open(ctx, a, ref.Host())
	if err != nil {
		return nil, 0, err
	}
	defer done()
	credentials, err := in.credentials(ctx, a, c.key, ref)
	if err != nil {
		return nil, 0, err
	}
	var requests atomic.Int64
	_, verdict, err := c.ask(oci.WithCounter(ctx, &requests), a.logger(slog.LevelWarn), ref, credentials)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, 0, registryFailure(err)
	}
	if interruptedBy(ctx) != nil {
		return nil, 0, context.Cause(ctx)
	}
	report := &accessReport{
		APIVersion: apiVersion, Kind: "AccessReport", Image: ref.String(),
		State: verdict.State.String(), Reason: string(verdict.Reason), Message: verdict.Message, Digest: verdict.Digest,
		Tried: verdict.Tried, Requests: requests.Load(),
	}
	if verdict.State == access.Allowed {
		report.Credential = verdict.Credential.String()
	}
	if !verdict.CheckedAt.IsZero() {
		report.CheckedAt = new(verdict.CheckedAt.UTC())
	}
	switch {
	case verdict.State == access.Allowed:
		return report, OK, nil
	case verdict.State == access.Denied && verdict.Reason == access.ImageNotFound:
		return report, NotFound, nil
	case verdict.State == access.Denied:
		return report, Unauthorized, nil
	}
	if report.State == access.Pending.String() { // --timeout came first
		report.State, report.Reason = access.Unknown.String(), string(access.RegistryUnreachable)
		report.Message = fmt.Sprint(context.Cause(ctx))
	}
	return report, Unavailable, nil
}

// ask runs a gate for as long as it takes to learn one verdict.
func (c *client) ask(ctx context.Context, log *slog.Logger, ref oci.Reference, credentials oci.Credentials) (access.Proof, access.Verdict, error) {
	trust, err := c.Trust(ref.Host(), oci.Operator)
	if err != nil {
		return access.Proof{}, access.Verdict{}, err
	}
	gate := access.New(c.Client, gateConfig(c.config.Config, log, nil, nil))
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // who waits is told that ctx ended, not that the gate did
	ended := make(chan error, 1)
	go func() { ended <- gate.Run(running) }()
	proof, verdict, err := gate.Prove(ctx, access.Request{Image: ref, Credentials: credentials, Trust: trust})
	stop()
	return proof, verdict, errors.Join(err, ignoreCancel(<-ended))
}

// ignoreCancel drops the error of a room that was asked to end.
func ignoreCancel(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

func accessAnswer(r *accessReport) answer {
	return answer{Value: r, Names: []string{r.Image}, Table: func(w io.Writer, wide bool) {
		t := newTable(w)
		defer t.end()
		t.row("image", r.Image)
		state := r.State
		if r.Reason != "" {
			state += " (" + r.Reason + ")"
		}
		t.row("state", state)
		if r.Message != "" {
			t.row("message", r.Message)
		}
		t.row("digest", r.Digest)
		t.row("credential", r.Credential)
		if wide {
			t.row("tried", strconv.Itoa(r.Tried))
			t.row("requests", strconv.FormatInt(r.Requests, 10))
			if r.CheckedAt != nil {
				t.row("checked", r.CheckedAt.Format(time.RFC3339))
			}
		}
	}}
}
