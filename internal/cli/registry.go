package cli

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// registryInput is the flags of verbs that talk to registries.
type registryInput struct {
	config    *configInput
	plainHTTP []string
	caFile    string
	timeout   time.Duration
	authfiles []string
	secrets   []string
}

func registryFlags(cmd *cobra.Command) *registryInput {
	in := &registryInput{config: configFileFlag(cmd)}
	flags := cmd.Flags()
	flags.StringArrayVar(&in.plainHTTP, "plain-http", nil, "host that speaks no TLS; may be repeated")
	flags.StringVar(&in.caFile, "ca-file", "", "PEM file of the authorities of the registry's certificate")
	flags.DurationVar(&in.timeout, "timeout", time.Minute, "how long the whole command may take")
	flags.StringArrayVar(&in.authfiles, "authfile", nil,
		"credentials as docker and podman write them (else $REGISTRY_AUTH_FILE, $DOCKER_CONFIG, ~/.docker, containers/auth.json); may be repeated")
	flags.StringArrayVar(&in.secrets, "secret", nil, "YAML file of Kubernetes pull secrets to use instead; may be repeated")
	return in
}

// client is what a verb talks to registries with.
type client struct {
	*oci.Client
	config *loadedConfig
	key    secret.Key // of fingerprints
}

// open returns a client that may reach the hosts the user typed, wherever they are, and
// otherwise only what the configuration permits. The context ends with --timeout.
func (in *registryInput) open(ctx context.Context, a *app, hosts ...string) (context.Context, *client, func(), error) {
	if in.timeout <= 0 {
		return nil, nil, nil, usagef("--timeout: must be more than 0, have %s", in.timeout)
	}
	loaded, err := a.loadConfig(in.config)
	if err != nil {
		return nil, nil, nil, err
	}
	cfg := loaded.Config
	for _, host := range slices.Concat(in.plainHTTP, hosts) {
		r := registryOf(cfg, host)
		if slices.Contains(in.plainHTTP, host) {
			r.PlainHTTP = true
		}
		if in.caFile != "" && slices.Contains(hosts, host) {
			r.CAFile = in.caFile
		}
	}
	key, err := a.fingerprintKey(cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	settings, err := ociSettings(cfg, key, a.logger(slog.LevelWarn), nil)
	if err != nil {
		return nil, nil, nil, fail(Usage, err, "")
	}
	c, err := oci.NewClient(settings)
	if err != nil {
		return nil, nil, nil, fail(Usage, fmt.Errorf("configuration: %w", err), "")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, in.timeout, fmt.Errorf("no answer within %s (--timeout)", in.timeout))
	return ctx, &client{Client: c, config: loaded, key: key}, func() { cancel(); c.Close() }, nil
}

// registryOf returns the entry for host in cfg, made if there is none: a host that is
// written there may be loopback or private.
func registryOf(cfg *v1alpha1.Config, host string) *v1alpha1.RegistryConfig {
	same := canonicalHost(host)
	i := slices.IndexFunc(cfg.Registries, func(r v1alpha1.RegistryConfig) bool { return canonicalHost(r.Host) == same })
	if i < 0 {
		i = len(cfg.Registries)
		cfg.Registries = append(cfg.Registries, v1alpha1.RegistryConfig{Host: host})
	}
	return &cfg.Registries[i]
}

// canonicalHost is a host as references have it: the spellings of one registry are one.
func canonicalHost(host string) string {
	if ref, err := oci.ParseReference(host + "/any/image"); err == nil && strings.ContainsAny(host, ".:[") {
		return ref.Host()
	}
	return strings.ToLower(host)
}

// ociSettings are the settings of the registry client that cfg describes. All faults of
// the files that it names are returned at once.
func ociSettings(cfg *v1alpha1.Config, key secret.Key, log *slog.Logger, registerer prometheus.Registerer) (oci.Settings, error) {
	s := oci.Settings{
		Allow: cfg.Fetch.Allow, AllowLoopback: cfg.Fetch.AllowLoopback, AllowPrivate: cfg.Fetch.AllowPrivate,
		RequestTimeout: cfg.Access.Timeout.Duration, TokenMaxAge: cfg.Access.TokenMaxAge.Duration,
		MaxInFlight: cfg.Fetch.MaxInFlight, Key: key, Log: log, Registerer: registerer,
	}
	var faults []error
	for i, r := range cfg.Registries {
		one := oci.Registry{
			Host: r.Host, PlainHTTP: r.PlainHTTP, Namespaces: r.Namespaces, TokenHosts: r.TokenHosts,
			MaxInFlight: r.MaxInFlight, Grace: r.Grace.Duration,
		}
		if r.CAFile != "" {
			pem, err := os.ReadFile(r.CAFile)
			if err != nil {
				faults = append(faults, fmt.Errorf("registries[%d] %s: caFile: %w", i, r.Host, err))
			}
			one.CA = pem
		}
		if r.CertFile != "" {
			pair, err := tls.LoadX509KeyPair(r.CertFile, r.KeyFile)
			if err != nil {
				faults = append(faults, fmt.Errorf("registries[%d] %s: certFile and keyFile: %w", i, r.Host, err))
			}
			one.Certificate = &pair
		}
		s.Registries = append(s.Registries, one)
	}
	return s, errors.Join(faults...)
}

// fingerprintKey is the key that fingerprints are shown under: that of the service on
// this machine, if its root key can be read, so that they can be compared; else one of
// this run alone.
func (a *app) fingerprintKey(cfg *v1alpha1.Config) (secret.Key, error) {
	if root, ok := readRoot(cfg); ok {
		return root.Key(secret.ForFingerprints), nil
	}
	random := make([]byte, secret.Size)
	if _, err := rand.Read(random); err != nil {
		return secret.Key{}, fmt.Errorf("make a key: %w", err)
	}
	root, err := secret.NewRoot(random, nil)
	if err != nil {
		return secret.Key{}, err
	}
	return root.Key(secret.ForFingerprints), nil
}

// credentials returns those that apply to an image: from the files the user named, else
// from where docker and podman keep them.
func (in *registryInput) credentials(ctx context.Context, a *app, key secret.Key, image oci.Reference) (oci.Credentials, error) {
	var rings []oci.Keyring
	names := in.authfiles
	if len(names) == 0 && len(in.secrets) == 0 {
		names = []string{""} // the usual files
	}
	for _, name := range names {
		k, err := oci.DefaultKeyring(key, name, a.env.get)
		if err != nil {
			return oci.Credentials{}, fail(Usage, err, "name a file as docker or podman write it with --authfile")
		}
		rings = append(rings, k)
	}
	for _, name := range in.secrets {
		more, err := a.readSecrets(ctx, key, name)
		if err != nil {
			return oci.Credentials{}, err
		}
		rings = append(rings, more...)
	}
	k := oci.JoinKeyrings(rings...)
	for _, w := range k.Warnings() {
		a.note("Warning: %s", w)
	}
	c, err := k.For(image)
	if err != nil {
		return oci.Credentials{}, fail(Usage, err, "correct the entry for "+image.Host())
	}
	return c, nil
}

// readSecrets reads the pull secrets of a YAML file.
func (a *app) readSecrets(ctx context.Context, key secret.Key, name string) ([]oci.Keyring, error) {
	d, err := a.readDocuments(ctx, "secret", []string{name})
	if err != nil {
		return nil, err
	}
	var rings []oci.Keyring
	for k, s := range d.secrets {
		ring, err := oci.ParsePullSecret(key, "pull secret "+k.String(), s.Type, s.Data)
		if err != nil {
			return nil, fail(Usage, err, "")
		}
		rings = append(rings, ring)
	}
	if len(rings) == 0 {
		for _, f := range d.report.Findings {
			a.note("%s", line(f, false))
		}
		return nil, usagef("--secret %s: holds no Secret that can be read", name)
	}
	return rings, nil
}

// registryFailure gives an error of a registry its exit code and remedy, unless it has one.
func registryFailure(err error) error {
	if _, done := errors.AsType[*failure](err); err == nil || done {
		return err
	}
	switch {
	case errors.Is(err, oci.Unauthorized):
		return fail(Unauthorized, err, "name credentials that may with --authfile or --secret")
	case errors.Is(err, oci.NotFound):
		return fail(NotFound, err, "")
	case errors.Is(err, oci.Mismatch):
		return fail(VerificationFailed, err, "do not use what the source delivers until you know why")
	case errors.Is(err, oci.Unavailable), errors.Is(err, context.DeadlineExceeded):
		return fail(Unavailable, err, "try again; -v says more")
	case errors.Is(err, oci.Blocked):
		return fail(Failed, err, "name the host under registries: or fetch.allow in the configuration")
	}
	return fail(Failed, err, "")
}
