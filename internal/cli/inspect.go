package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/wasm"
)

// inspection is the JSON of "stile inspect".
type inspection struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"`
	Reference  string             `json:"reference"`
	Digest     string             `json:"digest"`
	MediaType  string             `json:"mediaType"`
	Size       int64              `json:"size"`
	Platforms  []content.Platform `json:"platforms"`
	Bundle     bool               `json:"bundle,omitempty"`
	Wasm       *moduleFacts       `json:"wasm"`
}

// moduleFacts is what an Inspection says of a module.
type moduleFacts struct {
	Packaging string `json:"packaging"`
	SHA256    string `json:"sha256"`
	Size      int64  `json:"size"`
	wasm.Module
}

func factsOf(packaging, sum string, size int64, m wasm.Module) *moduleFacts {
	f := &moduleFacts{Packaging: packaging, SHA256: sum, Size: size, Module: m}
	if f.ABI == nil {
		f.ABI = []string{}
	}
	if f.Types == nil {
		f.Types = []string{}
	}
	return f
}

func inspectVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect IMAGE|FILE|URL",
		Short: "Platforms, packaging and module facts",
		Example: `  stile inspect registry.example/team/app:v1 -o json
  stile inspect filter.wasm`,
		Args: arguments(1, 1, "IMAGE|FILE|URL"),
	}
	out := outputFlag(cmd)
	in := registryFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := a.inspect(cmd.Context(), in, args[0])
		if err != nil {
			return err
		}
		return out.print(a.stdout, inspectAnswer(r))
	}
	return cmd
}

func (a *app) inspect(ctx context.Context, in *registryInput, arg string) (*inspection, error) {
	t, err := parseTarget("inspect", arg, true)
	if err != nil {
		return nil, err
	}
	r := &inspection{APIVersion: apiVersion, Kind: "Inspection", Reference: displayTarget(t), Platforms: []content.Platform{}}
	if t.file != "" {
		return r, inspectFile(r, t.file)
	}
	ctx, b, err := in.openBench(ctx, a, t)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if t.url == "" {
		proof, err := b.prove(ctx, in, a, t.image)
		if err != nil {
			return nil, err
		}
		facts, err := b.contents.Facts(ctx, proof)
		if err != nil {
			return nil, contentFailure(err)
		}
		r.Digest, r.MediaType, r.Size, r.Bundle = facts.Digest, facts.MediaType, facts.Size, facts.Bundle
		r.Platforms = append(r.Platforms, facts.Platforms...)
	}
	m, err := b.fetch(ctx, in, a, t, "")
	switch p, isProblem := errors.AsType[*content.Problem](err); {
	case m.SHA256 != "":
		r.Wasm = factsOf(m.Packaging, m.SHA256, m.Size, m.Info)
		if t.url != "" {
			r.MediaType, r.Size = wasmMediaType, m.Size
		}
	case t.url == "" && isProblem && !p.Retry:
		a.note("no module: %s", printable(p.Message))
	case err != nil:
		return nil, contentFailure(err)
	}
	return r, nil
}

const wasmMediaType = "application/wasm"

func inspectFile(r *inspection, name string) error {
	data, err := readModule("inspect", name)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	r.Size = int64(len(data))
	module, findings := wasm.Inspect(data)
	if slices.ContainsFunc(findings, func(f wasm.Finding) bool { return f.Reason == "NotWasm" }) {
		return fail(Findings, fmt.Errorf("inspect: %s is no Wasm module", name), `"stile check" says more`)
	}
	r.MediaType, r.Wasm = wasmMediaType, factsOf("raw", hex.EncodeToString(sum[:]), r.Size, module)
	return nil
}

func inspectAnswer(r *inspection) answer {
	return answer{Value: r, Names: []string{r.Reference}, Table: func(w io.Writer, wide bool) {
		t := newTable(w)
		defer t.end()
		t.row("reference", r.Reference)
		t.row("digest", r.Digest)
		t.row("media type", r.MediaType)
		t.row("size", fmt.Sprintf("%d bytes", r.Size))
		var platforms []string
		for _, p := range r.Platforms {
			name := p.OS + "/" + p.Architecture
			if p.Variant != "" {
				name += "/" + p.Variant
			}
			platforms = append(platforms, name)
		}
		t.row("platforms", strings.Join(platforms, ", "))
		if r.Wasm == nil {
			t.row("module", "none")
			return
		}
		t.row("module", fmt.Sprintf("%s, %d bytes, ABI %s, %s", r.Wasm.Packaging, r.Wasm.Size, orDash(strings.Join(r.Wasm.ABI, ", ")), orDash(strings.Join(r.Wasm.Types, ", "))))
		t.row("module sha256", r.Wasm.SHA256)
		if wide {
			t.row("imports", strings.Join(r.Wasm.Functions, ", "))
		}
	}}
}
