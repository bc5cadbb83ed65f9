package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/wasm"
)

// pushReport is the JSON of "stile push".
type pushReport struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Image      string `json:"image"`
	Digest     string `json:"digest"`
	Layout     string `json:"layout"`
	Size       int64  `json:"size"`
}

func pushVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push FILE IMAGE",
		Short: "Put a Wasm module into a registry",
		Example: `  stile push filter.wasm registry.example/team/filter:v1
  stile push filter.wasm registry.example/team/filter:v1 --layout oci -o json`,
		Args: arguments(2, 2, "FILE IMAGE"),
	}
	var layout string
	cmd.Flags().Var(newChoice(&layout, string(oci.LayoutArtifact), string(oci.LayoutArtifact), string(oci.LayoutOCI), string(oci.LayoutDocker)),
		"layout", "form of the image: artifact, oci or docker")
	out := outputFlag(cmd)
	in := registryFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := a.push(cmd.Context(), in, args[0], args[1], oci.Layout(layout))
		if err != nil {
			return err
		}
		return out.print(a.stdout, answer{Value: r, Names: []string{r.Image}, Table: func(w io.Writer, _ bool) {
			_, _ = fmt.Fprintln(w, r.Digest)
		}})
	}
	return cmd
}

func (a *app) push(ctx context.Context, in *registryInput, file, image string, layout oci.Layout) (*pushReport, error) {
	ref, err := oci.ParseReference(image)
	if err != nil {
		return nil, fail(Usage, fmt.Errorf("push: %w", err), "")
	}
	module, err := readModule("push", file)
	if err != nil {
		return nil, err
	}
	if _, findings := wasm.Inspect(module); wasm.Invalid(findings) {
		a.note("Warning: Envoy would not load %s; \"stile check %s\" says why", file, file)
	}
	ctx, c, done, err := in.open(ctx, a, ref.Host())
	if err != nil {
		return nil, err
	}
	defer done()
	credentials, err := in.credentials(ctx, a, c.key, ref)
	if err != nil {
		return nil, err
	}
	trust, err := c.Trust(ref.Host(), oci.Operator)
	if err != nil {
		return nil, registryFailure(err)
	}
	var digest string
	for _, candidate := range credentials.Candidates() {
		if digest, err = c.Push(ctx, module, ref, layout, candidate, trust); !errors.Is(err, oci.Unauthorized) {
			break
		}
	}
	if err != nil {
		return nil, registryFailure(err)
	}
	return &pushReport{APIVersion: apiVersion, Kind: "Push", Image: ref.String(), Digest: digest, Layout: string(layout), Size: int64(len(module))}, nil
}

// readModule reads a module's file, up to the size that a module may have.
func readModule(verb, name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fail(Usage, fmt.Errorf("%s: %w", verb, err), "name a file that exists")
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, wasm.MaxModule+1))
	switch {
	case err != nil:
		return nil, fail(Failed, fmt.Errorf("%s: %w", verb, err), "")
	case len(data) > wasm.MaxModule:
		return nil, fail(Failed, fmt.Errorf("%s: %s is larger than %d MiB", verb, name, wasm.MaxModule>>20), "")
	}
	return data, nil
}
