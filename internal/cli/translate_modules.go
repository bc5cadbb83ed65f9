package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/secret"
	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/wasm"
	"github.com/stileproject/stile/internal/xds"
)

// atOnce is how many modules "stile translate" resolves at a time.
const atOnce = 16

// deliveries resolves the modules of the plugins that the proxy has. What cannot be had
// is shown with its stand-in, and a note says why.
func (t *translate) deliveries(ctx context.Context, s *scene, keys []plugin.Key) (*v1alpha1.Config, map[plugin.Key]xds.Delivery, error) {
	ctx, r, err := t.resolver(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer r.close()
	r.scene = s
	specs := map[plugin.Key]*v1alpha1.WasmPlugin{}
	for _, p := range s.docs.plugins {
		specs[plugin.KeyOf(p)] = p
	}
	var mu sync.Mutex // guards what is collected
	all, notes := map[plugin.Key]xds.Delivery{}, map[plugin.Key]error{}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, key := range keys {
		group.Go(func() error {
			d, err := r.deliver(ctx, specs[key])
			mu.Lock()
			defer mu.Unlock()
			all[key], notes[key] = d, err
			return nil
		})
	}
	_ = group.Wait() // no function fails
	if interruptedBy(ctx) != nil {
		return nil, nil, context.Cause(ctx)
	}
	for _, key := range keys {
		if err := notes[key]; err != nil {
			t.note("%s", printable(fmt.Sprintf("plugin %s: the stand-in of its fail strategy is shown: %v", key, err)))
		}
	}
	return r.cfg, all, nil
}

// resolver finds modules as the service does.
type resolver struct {
	cfg      *v1alpha1.Config
	key      secret.Key
	scene    *scene
	offline  bool
	trust    func(host, namespace string) (oci.Trust, error)
	gate     *access.Gate
	contents *content.Contents
	close    func()
}

// resolver opens the rooms: the bench of all verbs, or offline the service's store.
func (t *translate) resolver(ctx context.Context) (context.Context, *resolver, error) {
	if t.offline {
		return t.offlineResolver(ctx)
	}
	ctx, b, err := t.registries.openBench(ctx, t.app, target{})
	if err != nil {
		return nil, nil, err
	}
	return ctx, &resolver{cfg: b.config.Config, key: b.key, trust: b.Trust, gate: b.gate, contents: b.contents, close: b.close}, nil
}

// offlineResolver knows what the service's store holds, and asks nobody.
func (t *translate) offlineResolver(ctx context.Context) (context.Context, *resolver, error) {
	ctx, c, done, err := t.registries.open(ctx, t.app)
	if err != nil {
		return nil, nil, err
	}
	cfg := c.config.Config
	folder, temporary := cfg.Store.Directory, ""
	log := t.logger(slog.LevelError)
	kept, err := store.Open(folder, store.Options{ReadOnly: true, Keys: storeKeys(cfg), Log: log})
	if err != nil {
		t.note("no store in %s: %v; nothing is known offline", folder, err)
		if temporary, err = os.MkdirTemp("", "stile-*"); err == nil {
			kept, err = store.Open(temporary, store.Options{Log: log})
		}
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	nobody := offline{}
	r := &resolver{cfg: cfg, key: c.key, trust: c.Trust, offline: true}
	gateSettings := gateConfig(cfg, log, nil, nil)
	gateSettings.Attempts = 1
	r.gate = access.New(nobody, gateSettings)
	r.contents = content.New(kept, nobody, content.Config{InlineMax: -1, MaxModule: int64(cfg.Fetch.MaxModuleSize), Keys: storeKeys(cfg), Log: log})
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // who waits is told that ctx ended, not that the gate did
	var rooms sync.WaitGroup
	rooms.Go(func() { _ = r.gate.Run(running) })
	r.close = func() {
		stop()
		rooms.Wait()
		_ = kept.Close()
		if temporary != "" {
			_ = os.RemoveAll(temporary)
		}
		done()
	}
	return ctx, r, nil
}

// storeKeys are the keys of the service's store, if its root key can be read.
func storeKeys(cfg *v1alpha1.Config) []secret.Key {
	root, ok := readRoot(cfg)
	if !ok {
		return nil
	}
	return rowKeys(root)
}

// errOffline is the answer to every question that a registry would have to answer.
var errOffline = errors.New("not asked: --offline")

// offline stands for all registries. Whoever may read the store may see what it holds
// of a pinned image, so the right to that is not asked for; that its source has delivered
// it, package content holds all the same.
type offline struct{}

func (offline) Check(_ context.Context, r oci.Reference, _ oci.Credential, _ oci.Trust, _ oci.CheckOptions) (oci.Descriptor, error) {
	if d := r.Digest(); d != "" {
		return oci.Descriptor{Digest: d}, nil
	}
	return oci.Descriptor{}, &oci.Error{Op: "check", Ref: r.String(), Kind: oci.Unavailable, Err: errOffline}
}

func (offline) Forget(secret.Fingerprint) {}

func (offline) Manifest(_ context.Context, r oci.Reference, _ oci.Credential, _ oci.Trust) (oci.Manifest, error) {
	return oci.Manifest{}, &oci.Error{Op: "manifest", Ref: r.String(), Kind: oci.Unavailable, Err: errOffline}
}

func (offline) Blob(_ context.Context, r oci.Reference, _ oci.Descriptor, _ oci.Credential, _ oci.Trust) (io.ReadCloser, error) {
	return nil, &oci.Error{Op: "blob", Ref: r.String(), Kind: oci.Unavailable, Err: errOffline}
}

func (offline) Download(context.Context, string, oci.Trust) (io.ReadCloser, error) {
	return nil, &oci.Error{Op: "download", Kind: oci.Unavailable, Err: errOffline}
}

// deliver returns what the proxy is given for a plugin; an error says why it is the
// stand-in.
func (r *resolver) deliver(ctx context.Context, p *v1alpha1.WasmPlugin) (xds.Delivery, error) {
	standIn := xds.Delivery{Mode: xds.StandIn}
	if len(r.scene.docs.invalid[plugin.KeyOf(p)]) > 0 {
		return standIn, errors.New("the document is invalid")
	}
	if faults := p.ValidateHostEnv(r.cfg.Wasm.HostEnvAllow); len(faults) > 0 {
		return standIn, fmt.Errorf("%s: %s", faults[0].Field, faults[0].Message)
	}
	u, err := v1alpha1.ParseModuleURL(p.Spec.URL)
	if err != nil {
		return standIn, err
	}
	if p.Spec.VerificationKey != "" && u.Scheme != v1alpha1.SchemeOCI {
		return standIn, errors.New("spec.verificationKey is set, and only images carry signatures")
	}
	if u.Scheme == v1alpha1.SchemeFile {
		return xds.Delivery{Mode: xds.File, Path: u.Path}, nil
	}
	trust, err := r.trust(u.Host(), p.Namespace)
	if err != nil {
		return standIn, err
	}
	if u.Scheme != v1alpha1.SchemeOCI {
		q := content.URLRequest{URL: u.Raw, SHA256: p.Spec.SHA256, Trust: trust, Namespace: p.Namespace}
		m, err := r.contents.FetchURL(ctx, q)
		if err != nil {
			return standIn, err
		}
		return r.module(p, m, func() (io.ReadSeekCloser, error) { return r.contents.OpenURL(q) })
	}
	credentials, err := r.credentials(p, u.Image)
	if err != nil {
		return standIn, err
	}
	image := u.Image
	if p.Spec.SHA256 != "" && image.Digest() == "" && r.offline {
		image = image.At("sha256:" + p.Spec.SHA256) // offline no tag is asked: the sum is the pin
	}
	proof, verdict, err := r.gate.Prove(ctx, access.Request{
		Image: image, Credentials: credentials, Trust: trust, Holder: access.Holder{Namespace: p.Namespace, Name: p.Name},
	})
	switch {
	case err != nil:
		return standIn, err
	case verdict.State != access.Allowed:
		return standIn, fmt.Errorf("%s (%s): %s", verdict.State, verdict.Reason, verdict.Message)
	case p.Spec.SHA256 != "" && verdict.Digest != "sha256:"+p.Spec.SHA256:
		return standIn, fmt.Errorf("%s is %s, but spec.sha256 says sha256:%s", u.Image, verdict.Digest, p.Spec.SHA256)
	}
	m, err := r.contents.Fetch(ctx, proof)
	if err != nil {
		return standIn, err
	}
	if p.Spec.VerificationKey != "" {
		if err := r.contents.VerifySignature(ctx, proof, p.Spec.VerificationKey); err != nil {
			return standIn, err
		}
	}
	return r.module(p, m, func() (io.ReadSeekCloser, error) { return r.contents.Open(proof) })
}

// credentials are those of the plugin's pull secret: none if it names none.
func (r *resolver) credentials(p *v1alpha1.WasmPlugin, image oci.Reference) (oci.Credentials, error) {
	name := p.Spec.ImagePullSecret
	if name == "" {
		return oci.Credentials{}, nil
	}
	key := plugin.Key{Namespace: p.Namespace, Name: name}
	s := r.scene.docs.secrets[key]
	if s == nil {
		return oci.Credentials{}, fmt.Errorf("the pull secret %s is not among the documents", key)
	}
	ring, err := oci.ParsePullSecret(r.key, "pull secret "+key.String(), s.Type, s.Data)
	if err != nil {
		return oci.Credentials{}, err
	}
	return ring.For(image)
}

// module is the delivery of a module: in the resource itself if it is small enough.
func (r *resolver) module(p *v1alpha1.WasmPlugin, m content.Module, open func() (io.ReadSeekCloser, error)) (xds.Delivery, error) {
	if faults := wasm.CheckType(m.Info, string(p.Spec.EffectiveType())); len(faults) > 0 {
		return xds.Delivery{Mode: xds.StandIn}, errors.New(faults[0].Message)
	}
	d := xds.Delivery{SHA256: m.SHA256, Size: m.Size}
	if m.Size > int64(r.cfg.XDS.InlineMaxModule) {
		d.Mode, d.URL = xds.Remote, r.cfg.Modules.URL+modulePlaceholder
		return d, nil
	}
	body, err := open()
	if err != nil {
		return xds.Delivery{Mode: xds.StandIn}, err
	}
	defer func() { _ = body.Close() }()
	d.Mode = xds.Inline
	if d.Bytes, err = io.ReadAll(body); err != nil {
		return xds.Delivery{Mode: xds.StandIn}, err
	}
	return d, nil
}

// modulePlaceholder is a module's path where the service's own is not known: its secret
// part is made by the running service alone.
const modulePlaceholder = "/modules/made-by-the-running-service"
