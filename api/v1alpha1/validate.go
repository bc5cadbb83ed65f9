package v1alpha1

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

var (
	sha256Form    = regexp.MustCompile(`^[a-f0-9]{64}$`)
	cIdentifier   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	dnsLabel      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	dnsSubdomain  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	reservedNames = []string{"ISTIO_META_WASM_", "STILE_"}
)

// The limits of the API.
const (
	maxTargetRefs     = 16
	maxLabels         = 4096
	maxLabelValue     = 63
	maxName           = 253
	maxNamespace      = 63
	maxURL            = 4096
	maxLabelName      = 317
	maxPluginName     = 256
	maxEnv            = 256
	maxEnvName        = 256
	maxEnvValue       = 2048
	gatewayGroup      = "gateway.networking.k8s.io"
	serviceEntryGroup = "networking.istio.io"
)

// findings collects what is wrong with one document.
type findings struct{ list []Finding }

func (f *findings) add(severity, field, reason, format string, args ...any) {
	f.list = append(f.list, Finding{Field: field, Severity: severity, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (f *findings) invalid(field, format string, args ...any) {
	f.add(SeverityError, field, ReasonInvalid, format, args...)
}

func (f *findings) required(field, message string) {
	f.add(SeverityError, field, ReasonRequired, "%s", message)
}

func (f *findings) duplicate(field, format string, args ...any) {
	f.add(SeverityError, field, ReasonDuplicate, format, args...)
}

func (f *findings) warn(field, reason, format string, args ...any) {
	f.add(SeverityWarning, field, reason, format, args...)
}

// oneOf adds a finding unless value is empty or one of the names.
func oneOf[T ~string](f *findings, field string, value T, names ...T) {
	if value == "" || slices.Contains(names, value) {
		return
	}
	words := make([]string, len(names))
	for i, n := range names {
		words[i] = string(n)
	}
	f.invalid(field, "must be one of %s", strings.Join(words, ", "))
}

// longest adds a finding if value has more than limit characters.
func longest(f *findings, field, value string, limit int) {
	if n := utf8.RuneCountInString(value); n > limit {
		f.invalid(field, "must have at most %d characters, has %d", limit, n)
	}
}

// Validate returns everything that is wrong with p, in the order of its fields; none
// means that the API accepts it. It is the one validation behind the command line,
// the folder of files and the webhook.
func (p *WasmPlugin) Validate() []Finding {
	var f findings
	validateName(&f, p)
	s := &p.Spec
	validateAttachment(&f, s)
	validateSource(&f, s)
	longest(&f, "spec.pluginName", s.PluginName, maxPluginName)
	if _, err := s.PluginConfig.Canonical(); err != nil {
		f.invalid("spec.pluginConfig", "must be a JSON object with numbers that fit a double")
	}
	oneOf(&f, "spec.phase", s.Phase, PhaseUnspecified, PhaseAuthN, PhaseAuthZ, PhaseStats, PhaseRouter)
	oneOf(&f, "spec.failStrategy", s.FailStrategy, FailClose, FailOpen, FailReload)
	if s.FailStrategy == FailOpen && (s.Phase == PhaseAuthN || s.Phase == PhaseAuthZ) {
		f.warn("spec.failStrategy", ReasonNotRecommended,
			"FAIL_OPEN lets every request pass while the plugin cannot run; in phase %s use FAIL_CLOSE", s.Phase)
	}
	validateEnv(&f, s.VMConfig)
	validateMatch(&f, s.Match)
	oneOf(&f, "spec.type", s.Type, TypeUnspecified, TypeHTTP, TypeNetwork)
	return f.list
}

func validateName(f *findings, p *WasmPlugin) {
	switch {
	case p.Name == "":
		f.required("metadata.name", "must not be empty")
	case len(p.Name) > maxName || !dnsSubdomain.MatchString(p.Name):
		f.invalid("metadata.name", "must be at most %d lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit", maxName)
	}
	if p.Namespace != "" && (len(p.Namespace) > maxNamespace || !dnsLabel.MatchString(p.Namespace)) {
		f.invalid("metadata.namespace", "must be at most %d lower-case letters, digits and '-', beginning and ending with a letter or digit", maxNamespace)
	}
}

func validateAttachment(f *findings, s *WasmPluginSpec) {
	set := 0
	if s.Selector != nil {
		set++
		validateSelector(f, s.Selector)
	}
	if s.TargetRef != nil {
		set++
		validateTargetRef(f, "spec.targetRef", s.TargetRef)
	}
	if s.TargetRefs != nil {
		set++
		if n := len(s.TargetRefs); n > maxTargetRefs {
			f.invalid("spec.targetRefs", "must have at most %d entries, has %d", maxTargetRefs, n)
		}
		if len(s.TargetRefs) == 0 {
			f.warn("spec.targetRefs", ReasonNotRecommended,
				"an empty list selects every proxy: write the targets, or remove the field to say so")
		}
		for i := range s.TargetRefs {
			validateTargetRef(f, fmt.Sprintf("spec.targetRefs[%d]", i), &s.TargetRefs[i])
		}
	}
	if set > 1 {
		f.invalid("spec", "set at most one of selector, targetRef and targetRefs")
	}
}

func validateSelector(f *findings, s *WorkloadSelector) {
	const field = "spec.selector.matchLabels"
	if len(s.MatchLabels) == 0 {
		f.warn("spec.selector", ReasonNotRecommended,
			"a selector without labels selects every proxy: write the labels, or remove the selector to say so")
	}
	if n := len(s.MatchLabels); n > maxLabels {
		f.invalid(field, "must have at most %d labels, has %d", maxLabels, n)
	}
	names := make([]string, 0, len(s.MatchLabels))
	for name := range s.MatchLabels {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		value, at := string(s.MatchLabels[name]), field+"["+name+"]"
		if name == "" {
			f.invalid(field, "a label's name must not be empty")
		}
		longest(f, at, name, maxLabelName)
		if strings.Contains(name, "*") || strings.Contains(value, "*") {
			f.invalid(at, "wildcards do not work in labels: write the whole name and value")
		}
		longest(f, at, value, maxLabelValue)
	}
}

func validateTargetRef(f *findings, field string, r *TargetReference) {
	switch r.Kind {
	case "":
		f.required(field+".kind", "must be one of Gateway, GatewayClass, Service and ServiceEntry")
	case "Gateway", "GatewayClass":
		if r.Group != gatewayGroup {
			f.invalid(field+".group", "must be %s for kind %s", gatewayGroup, r.Kind)
		}
	case "Service":
		if r.Group != "" && r.Group != "core" {
			f.invalid(field+".group", `must be "core" or empty for kind Service`)
		}
	case "ServiceEntry":
		if r.Group != serviceEntryGroup {
			f.invalid(field+".group", "must be %s for kind ServiceEntry", serviceEntryGroup)
		}
	default:
		f.invalid(field+".kind", "must be one of Gateway, GatewayClass, Service and ServiceEntry")
	}
	if r.Name == "" {
		f.required(field+".name", "must not be empty")
	}
	longest(f, field+".name", r.Name, maxName)
	if r.Namespace != "" {
		f.invalid(field+".namespace", "must be empty: a plugin attaches within its own namespace")
	}
}

func validateSource(f *findings, s *WasmPluginSpec) {
	var u ModuleURL
	if s.URL == "" {
		f.required("spec.url", "must name an image, or a module by http(s):// or file://")
	} else {
		var err error
		if u, err = ParseModuleURL(s.URL); err != nil {
			f.invalid("spec.url", "%v", err)
		}
		longest(f, "spec.url", s.URL, maxURL)
	}
	switch {
	case s.SHA256 == "":
	case !sha256Form.MatchString(s.SHA256):
		f.invalid("spec.sha256", "must be 64 lower-case hexadecimal digits")
	case strings.Contains(s.URL, "@sha256:") && !strings.HasSuffix(s.URL, "@sha256:"+s.SHA256):
		f.invalid("spec.sha256", "must equal the digest in url: change one of them, or remove sha256")
	case u.Scheme == SchemeFile:
		f.warn("spec.sha256", ReasonNotVerifiable, "is not checked for file://: only the proxy sees that file")
	}
	oneOf(f, "spec.imagePullPolicy", s.ImagePullPolicy, PullUnspecified, PullIfNotPresent, PullAlways)
	longest(f, "spec.imagePullSecret", s.ImagePullSecret, maxName)
	if s.ImagePullSecret != "" && !u.IsZero() && u.Scheme != SchemeOCI {
		f.warn("spec.imagePullSecret", ReasonNoEffect, "has no effect for %s://: only images are pulled with it", u.Scheme)
	}
	if s.VerificationKey != "" {
		validateKey(f, s.VerificationKey)
		if !u.IsZero() && u.Scheme != SchemeOCI {
			f.warn("spec.verificationKey", ReasonNotVerifiable, "only images carry signatures, and what %s:// delivers is not run unverified: push the module to a registry, or remove the key", u.Scheme)
		}
	}
}

// validateKey reads a PEM public key of a kind that signatures are made with.
func validateKey(f *findings, key string) {
	block, rest := pem.Decode([]byte(key))
	if block == nil || strings.TrimSpace(string(rest)) != "" {
		f.invalid("spec.verificationKey", "must be one public key in PEM form (-----BEGIN PUBLIC KEY-----)")
		return
	}
	if strings.Contains(block.Type, "PRIVATE") {
		f.invalid("spec.verificationKey", "is a private key, which everyone who reads this plugin now has: replace it, and put the public key here")
		return
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		f.invalid("spec.verificationKey", "must be a public key in PKIX form (-----BEGIN PUBLIC KEY-----)")
		return
	}
	switch public.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey:
	default:
		f.invalid("spec.verificationKey", "must be an ECDSA, RSA or Ed25519 key")
	}
}

func validateEnv(f *findings, vm *VMConfig) {
	if vm == nil {
		return
	}
	if n := len(vm.Env); n > maxEnv {
		f.invalid("spec.vmConfig.env", "must have at most %d entries, has %d", maxEnv, n)
	}
	seen := make(map[string]int, len(vm.Env))
	for i, e := range vm.Env {
		at := fmt.Sprintf("spec.vmConfig.env[%d]", i)
		first, twice := seen[e.Name]
		switch {
		case e.Name == "":
			f.required(at+".name", "must not be empty")
		case !cIdentifier.MatchString(e.Name):
			f.invalid(at+".name", "must be letters, digits and '_', not beginning with a digit")
		case twice:
			f.duplicate(at+".name", "is already set by spec.vmConfig.env[%d]: remove one", first)
		case slices.ContainsFunc(reservedNames, func(p string) bool { return strings.HasPrefix(e.Name, p) }):
			f.invalid(at+".name", "names beginning with %s are reserved: choose another", strings.Join(reservedNames, " or "))
		}
		if !twice {
			seen[e.Name] = i
		}
		longest(f, at+".name", e.Name, maxEnvName)
		oneOf(f, at+".valueFrom", e.ValueFrom, EnvInline, EnvHost)
		if e.Value != nil {
			longest(f, at+".value", *e.Value, maxEnvValue)
			if e.ValueFrom == EnvHost {
				f.invalid(at+".value", "must not be set where valueFrom is HOST, not even empty: remove it, or use INLINE")
			}
		}
	}
}

func validateMatch(f *findings, match []TrafficSelector) {
	for i, m := range match {
		at := fmt.Sprintf("spec.match[%d]", i)
		oneOf(f, at+".mode", m.Mode, ModeUndefined, ModeClient, ModeServer, ModeClientAndServer)
		seen := make(map[int32]int, len(m.Ports))
		for j, p := range m.Ports {
			number := fmt.Sprintf("%s.ports[%d].number", at, j)
			if p.Number < 1 || p.Number > 65535 {
				f.invalid(number, "must be from 1 to 65535")
			} else if first, twice := seen[p.Number]; twice {
				f.duplicate(number, "is already listed at %s.ports[%d]: remove one", at, first)
			} else {
				seen[p.Number] = j
			}
		}
	}
}

// ValidateHostEnv returns an error for each variable that p takes from the proxy's own
// environment although its name is not among allowed.
func (p *WasmPlugin) ValidateHostEnv(allowed []string) []Finding {
	if p.Spec.VMConfig == nil {
		return nil
	}
	var f findings
	for i, e := range p.Spec.VMConfig.Env {
		if e.ValueFrom == EnvHost && !slices.Contains(allowed, e.Name) {
			f.add(SeverityError, fmt.Sprintf("spec.vmConfig.env[%d].name", i), ReasonNotAllowed,
				"the proxy's own %s is not in wasm.hostEnvAllow: ask the operator to add it, or use INLINE", e.Name)
		}
	}
	return f.list
}
