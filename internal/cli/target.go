package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/store"
)

// target is what a person names on the command line: a file, a URL or an image.
type target struct {
	file  string
	url   string
	image oci.Reference
}

// parseTarget reads FILE|IMAGE|URL. A file must exist; where files are not taken, files
// is false.
func parseTarget(verb, arg string, files bool) (target, error) {
	if strings.HasPrefix(arg, "http://") || strings.HasPrefix(arg, "https://") {
		return target{url: arg}, nil
	}
	if files && !strings.HasPrefix(arg, "oci://") {
		if info, err := os.Stat(arg); err == nil && !info.IsDir() {
			return target{file: arg}, nil
		}
		if strings.HasPrefix(arg, ".") || strings.HasPrefix(arg, "/") {
			return target{}, usagef("%s: %s: there is no such file", verb, arg)
		}
	}
	image, err := oci.ParseReference(strings.TrimPrefix(arg, "oci://"))
	if err != nil && files {
		return target{}, usagef("%s: %q is neither a file nor a URL, and: %w", verb, arg, err)
	}
	if err != nil {
		return target{}, usagef("%s: %w", verb, err)
	}
	return target{image: image}, nil
}

// displayTarget is the target as it may be shown.
func displayTarget(t target) string {
	switch {
	case t.file != "":
		return t.file
	case t.url != "":
		return v1alpha1.DisplayURL(t.url)
	}
	return t.image.String()
}

// host is the registry or server that the target names, "" for a file.
func (t target) host() (string, error) {
	if t.url != "" {
		host, err := oci.HostOf(t.url)
		if err != nil {
			return "", fail(Usage, err, "")
		}
		return host, nil
	}
	return t.image.Host(), nil
}

// bench is the rooms that a verb needs to fetch something, with a store of its own that
// goes with it.
type bench struct {
	*client
	gate     *access.Gate
	contents *content.Contents
	requests atomic.Int64
	close    func()
}

// openBench joins the rooms for a verb. The context that it returns ends with --timeout
// and counts requests; close must be called.
func (in *registryInput) openBench(ctx context.Context, a *app, t target) (context.Context, *bench, error) {
	host, err := t.host()
	if err != nil {
		return nil, nil, err
	}
	var hosts []string
	if host != "" {
		hosts = []string{host}
	}
	ctx, c, done, err := in.open(ctx, a, hosts...)
	if err != nil {
		return nil, nil, err
	}
	folder, err := os.MkdirTemp("", "stile-*")
	if err != nil {
		done()
		return nil, nil, fail(Failed, fmt.Errorf("make a temporary folder: %w", err), "set TMPDIR to a folder that this user may write")
	}
	log := a.logger(slog.LevelWarn)
	kept, err := store.Open(folder, store.Options{MaxSize: 4 << 30, MaxPerNamespace: 4 << 30, Log: log})
	if err != nil {
		done()
		return nil, nil, errors.Join(err, os.RemoveAll(folder))
	}
	b := &bench{client: c}
	cfg := c.config.Config
	b.gate = access.New(c.Client, gateConfig(cfg, log, nil, nil))
	b.contents = content.New(kept, c.Client, content.Config{
		InlineMax: -1, MaxModule: int64(cfg.Fetch.MaxModuleSize), Timeout: cfg.Fetch.Timeout.Duration, Log: log,
	})
	ctx = oci.WithCounter(ctx, &b.requests)
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // who waits is told that ctx ended, not that the gate did
	var rooms sync.WaitGroup
	rooms.Go(func() { _ = b.gate.Run(running) })
	b.close = func() {
		stop()
		rooms.Wait()
		_ = kept.Close()
		_ = os.RemoveAll(folder)
		done()
	}
	return ctx, b, nil
}

// prove asks whether the credentials may read the image. A refusal is an error with its
// exit code.
func (b *bench) prove(ctx context.Context, in *registryInput, a *app, image oci.Reference) (access.Proof, error) {
	credentials, err := in.credentials(ctx, a, b.key, image)
	if err != nil {
		return access.Proof{}, err
	}
	trust, err := b.Trust(image.Host(), oci.Operator)
	if err != nil {
		return access.Proof{}, registryFailure(err)
	}
	proof, verdict, err := b.gate.Prove(ctx, access.Request{Image: image, Credentials: credentials, Trust: trust})
	switch {
	case err != nil:
		return access.Proof{}, registryFailure(err)
	case verdict.State != access.Allowed:
		return access.Proof{}, verdictFailure(image, verdict)
	}
	return proof, nil
}

// verdictFailure is a verdict that is no yes, as an error.
func verdictFailure(image oci.Reference, v access.Verdict) error {
	err := errors.New(v.Message)
	if !strings.HasPrefix(v.Message, image.String()) {
		err = fmt.Errorf("%s: %s (%s): %s", image, v.State, v.Reason, v.Message)
	}
	switch {
	case v.State != access.Denied:
		return fail(Unavailable, err, "try again; -v says more")
	case v.Reason == access.ImageNotFound:
		return fail(NotFound, err, "check the spelling of the image")
	}
	return fail(Unauthorized, err, "name credentials that may read it with --authfile or --secret")
}

// fetched is a module that has been fetched and verified.
type fetched struct {
	content.Module
	proof access.Proof // of an image
	open  func() (io.ReadSeekCloser, error)
}

// fetch fetches the module of an image or a URL. sha256 is what the module at a URL must
// have, or "". A module that Envoy would not load comes with its findings and a Problem.
func (b *bench) fetch(ctx context.Context, in *registryInput, a *app, t target, sha256 string) (fetched, error) {
	if t.url != "" {
		host, err := t.host()
		if err != nil {
			return fetched{}, err
		}
		trust, err := b.Trust(host, oci.Operator)
		if err != nil {
			return fetched{}, registryFailure(err)
		}
		r := content.URLRequest{URL: t.url, SHA256: sha256, Trust: trust, Namespace: oci.Operator}
		m, err := b.contents.FetchURL(ctx, r)
		return fetched{Module: m, open: func() (io.ReadSeekCloser, error) { return b.contents.OpenURL(r) }}, err
	}
	proof, err := b.prove(ctx, in, a, t.image)
	if err != nil {
		return fetched{}, err
	}
	m, err := b.contents.Fetch(ctx, proof)
	return fetched{Module: m, proof: proof, open: func() (io.ReadSeekCloser, error) { return b.contents.Open(proof) }}, err
}

// contentFailure gives an error of package content its exit code and remedy.
func contentFailure(err error) error {
	p, ok := errors.AsType[*content.Problem](err)
	if !ok {
		return registryFailure(err)
	}
	switch p.Reason {
	case content.ReasonUnauthorized:
		return fail(Unauthorized, err, "name credentials that may with --authfile or --secret")
	case content.ReasonImageNotFound:
		return fail(NotFound, err, "check the spelling")
	case content.ReasonRegistryUnreachable:
		return fail(Unavailable, err, "try again; -v says more")
	case content.ReasonDigestMismatch:
		return fail(VerificationFailed, err, "do not use what the source delivers until you know why")
	case content.ReasonModuleInvalid:
		return fail(Findings, err, `"stile check" shows all findings`)
	}
	return fail(Failed, err, "")
}
