package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/source/file"
	"github.com/stileproject/stile/internal/wasm"
)

// pullReport is the JSON of "stile pull".
type pullReport struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Reference  string `json:"reference"`
	Digest     string `json:"digest"`
	SHA256     string `json:"sha256"`
	Size       int64  `json:"size"`
	Path       string `json:"path"`
	Requests   int64  `json:"requests"`
}

func pullVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pull IMAGE|URL --output FILE",
		Short: "Fetch a Wasm module, verified to the last byte",
		Long: `Fetches the module, whatever its packaging, and writes it to a file, which is whole or not
there. --sha256 is what must come, as in a WasmPlugin: the manifest's digest of an image,
the unpacked module's sum at a URL. --verification-key is whose signature it must bear.
Exits with 7 if something else comes.`,
		Example: `  stile pull registry.example/team/filter:v1 --output filter.wasm
  stile pull https://example.com/filter.wasm --output filter.wasm --sha256 9f86d0…`,
		Args: arguments(1, 1, "IMAGE|URL"),
	}
	var output string
	var want expected
	cmd.Flags().StringVar(&output, "output", "", "file to write the module to, \"-\" for stdout")
	cmd.Flags().StringVar(&want.sum, "sha256", "", "64 hexadecimal digits that must come")
	cmd.Flags().StringVar(&want.keyFile, "verification-key", "", "PEM file of the public key by which the image must be signed (cosign)")
	out := formatFlag(cmd)
	in := registryFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := a.pull(cmd.Context(), in, args[0], output, want)
		if err != nil || output == "-" {
			return err
		}
		return out.print(a.stdout, answer{Value: r, Names: []string{r.Path}, Table: func(w io.Writer, wide bool) {
			t := newTable(w)
			defer t.end()
			t.row("path", r.Path)
			t.row("digest", r.Digest)
			t.row("sha256", r.SHA256)
			t.row("size", fmt.Sprintf("%d bytes", r.Size))
			if wide {
				t.row("requests", fmt.Sprint(r.Requests))
			}
		}})
	}
	return cmd
}

// expected is what must come.
type expected struct {
	sum     string // 64 hexadecimal digits; "" = whatever comes
	keyFile string // the public key of its signature; "" = none is asked for
	key     string // its content
}

// check reads what the user expects and holds it against the target.
func (e *expected) check(t target) (err error) {
	if e.sum, err = parseSum(e.sum); err != nil {
		return err
	}
	if d := t.image.Digest(); e.sum != "" && d != "" && d != "sha256:"+e.sum {
		return usagef("pull: --sha256 and the digest of the image contradict each other")
	}
	if e.keyFile == "" {
		return nil
	}
	if t.url != "" {
		return usagef("pull: --verification-key: what a URL delivers is not signed; use --sha256")
	}
	key, err := file.Read(e.keyFile)
	if err != nil {
		return fail(Usage, fmt.Errorf("pull: --verification-key: %w", err), "name a file with a public key in PEM form")
	}
	e.key = string(key)
	return nil
}

func (a *app) pull(ctx context.Context, in *registryInput, arg, output string, want expected) (*pullReport, error) {
	if output == "" {
		return nil, usagef("pull: --output FILE is missing")
	}
	t, err := parseTarget("pull", arg, false)
	if err != nil {
		return nil, err
	}
	if err := want.check(t); err != nil {
		return nil, err
	}
	sum := want.sum
	ctx, b, err := in.openBench(ctx, a, t)
	if err != nil {
		return nil, err
	}
	defer b.close()
	var progress content.Progress
	done := a.showProgress(&progress)
	m, err := b.fetch(content.WithProgress(ctx, &progress), in, a, t, sum)
	done()
	if err != nil && m.SHA256 == "" {
		return nil, contentFailure(err)
	}
	if want.key != "" {
		if err := b.contents.VerifySignature(ctx, m.proof, want.key); err != nil {
			return nil, signatureFailure(err)
		}
	}
	if sum != "" && t.url == "" && m.Digest != "sha256:"+sum {
		return nil, fail(VerificationFailed, fmt.Errorf("pull %s: the digest is %s, not sha256:%s", t.image, m.Digest, sum), "do not use the image until you know why")
	}
	if wasm.Invalid(m.Findings) {
		return nil, contentFailure(err)
	}
	body, err := m.open()
	if err != nil {
		return nil, contentFailure(err)
	}
	defer func() { _ = body.Close() }()
	r := &pullReport{
		APIVersion: apiVersion, Kind: "Pull", Reference: displayTarget(t), Digest: m.Digest, SHA256: m.SHA256, Size: m.Size,
		Path: output, Requests: b.requests.Load(),
	}
	if output == "-" {
		_, err = io.Copy(a.stdout, body)
	} else {
		err = writeWhole(output, body)
	}
	if err != nil {
		return nil, fail(Failed, fmt.Errorf("pull: write %s: %w", output, withoutPath(err)), "name a file in a folder that this user may write")
	}
	return r, nil
}

// signatureFailure is contentFailure of a verification.
func signatureFailure(err error) error {
	if p, ok := errors.AsType[*content.Problem](err); ok && p.Reason == content.ReasonSignatureInvalid {
		return fail(VerificationFailed, err, "do not use the image until you know why; is it the right key?")
	}
	return contentFailure(err)
}

// parseSum takes 64 hexadecimal digits, also behind "sha256:", and gives them in lower case.
func parseSum(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	digits := strings.ToLower(strings.TrimPrefix(s, "sha256:"))
	if len(digits) != 64 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", usagef("--sha256: want 64 hexadecimal digits, have %q", s)
	}
	return digits, nil
}

// writeWhole writes a file that is whole or, after any error, as it was before.
func writeWhole(name string, r io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncFolder(filepath.Dir(name))
}
