package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/content"
	"github.com/stileproject/stile/internal/controller/gate"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/placement"
	"github.com/stileproject/stile/internal/plugin"
)

// placementExplanation is the JSON of "stile placement explain".
type placementExplanation struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Pods       []explainedPod `json:"pods"`
	Requests   int64          `json:"requests"`
}

type explainedPod struct {
	podDocument
	Images    []explainedImage     `json:"images"`
	Outcome   placement.Outcome    `json:"outcome"`
	Reason    string               `json:"reason"`
	Message   string               `json:"message"`
	Platforms []placement.Platform `json:"platforms"`
	// NodeAffinity is what the pod's would become; null: it stays as it is.
	NodeAffinity *corev1.NodeAffinity `json:"nodeAffinity"`
	Labels       map[string]string    `json:"labels"`
	Notes        []string             `json:"notes"`
}

type explainedImage struct {
	Image      string             `json:"image"`
	State      string             `json:"state"` // as in an AccessReport, or NotAsked
	Reason     string             `json:"reason"`
	Message    string             `json:"message"`
	Digest     string             `json:"digest"`
	Credential string             `json:"credential"`
	Platforms  []content.Platform `json:"platforms"`
	Bundle     bool               `json:"bundle,omitempty"`
}

// notAsked is the state of an image of which nothing needs to be known.
const notAsked = "NotAsked"

func placementExplainVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain -f PATH...",
		Short: "What would be set on these pods, and why?",
		Long: `Reads the images of pods at their registries, as the service would, and says where the pods
may go: for each image whether the credentials may read it, which of them earned that (as a
fingerprint) and its platforms; then the node affinity that would be set, and why. Pods are
opened out of whatever has a pod template: Deployments, StatefulSets, Jobs, CronJobs, others.

Credentials are the pull secrets that a pod names, if they are among the documents, then
those of --secret and --authfile; a pod that names none of them, where neither flag is
given, is read with those of docker and podman on this machine. Of the configuration,
registries, fetch and placement count; the cluster-wide pull secret is one for --secret. A
registry that is private or loopback is named under registries or by --plain-http.

Exits with 4 if an image may not be read, 5 if one does not exist, 6 if a registry has not
answered, and 3 if no node can run a pod or a document cannot be read: the first of these
that is so.`,
		Example: `  stile placement explain -f pod.yaml
  kubectl get deployment web -o yaml | stile placement explain -f - --secret regcred.yaml -o json`,
		Args: cobra.ArbitraryArgs,
	}
	out := outputFlag(cmd)
	paths := pathFlags(cmd)
	in := registryFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		e, code, err := a.explainPlacement(cmd.Context(), in, append(slices.Clone(*paths), args...))
		if err != nil {
			return err
		}
		if err := out.print(a.stdout, placementAnswer(e)); err != nil {
			return err
		}
		return silent(code)
	}
	return cmd
}

// explainPlacement returns the explanation and its exit code.
func (a *app) explainPlacement(ctx context.Context, in *registryInput, paths []string) (*placementExplanation, int, error) {
	docs, err := a.readPods(ctx, "placement explain", paths)
	switch {
	case err != nil:
		return nil, 0, err
	case len(docs.pods) == 0 && !docs.faulty:
		return nil, 0, usagef("placement explain: there is no pod, nor anything with a pod template, in %s", strings.Join(paths, ", "))
	}
	ctx, b, err := in.openBench(ctx, a, target{})
	if err != nil {
		return nil, 0, err
	}
	defer b.close()
	x := &explainer{app: a, in: in, bench: b, docs: docs, told: map[string]bool{}}
	x.own = b.config.RootNamespace
	if k := b.config.Resources.Kubernetes; k != nil && k.Namespace != "" {
		x.own = k.Namespace
	}
	cfg := b.config.Placement
	settings := placement.Settings{Preferred: cfg.Preferred, Fallback: cfg.FallbackArchitecture}
	e := &placementExplanation{APIVersion: apiVersion, Kind: "PlacementExplanation", Pods: []explainedPod{}}
	for _, d := range docs.pods {
		p, err := x.pod(ctx, d, settings)
		if err != nil {
			return nil, 0, err
		}
		e.Pods = append(e.Pods, p)
	}
	e.Requests = b.requests.Load()
	return e, e.code(docs.faulty), nil
}

// code is the exit code: what is to be mended first.
func (e *placementExplanation) code(faulty bool) int {
	codes := map[int]bool{Findings: faulty}
	for _, p := range e.Pods {
		codes[Findings] = codes[Findings] || p.Outcome == placement.NoCommonPlatform
		for _, i := range p.Images {
			switch {
			case i.State == access.Denied.String() && i.Reason == string(access.ImageNotFound):
				codes[NotFound] = true
			case i.State == access.Denied.String():
				codes[Unauthorized] = true
			case i.State == access.Unknown.String():
				codes[Unavailable] = true
			case i.Reason != "":
				codes[Findings] = true
			}
		}
	}
	for _, code := range []int{Unauthorized, NotFound, Unavailable, Findings} {
		if codes[code] {
			return code
		}
	}
	return OK
}

// explainer reads the images of pods.
type explainer struct {
	*app
	in    *registryInput
	bench *bench
	docs  *podDocuments
	own   string          // stile's namespace
	told  map[string]bool // notes that were given
}

func (x *explainer) pod(ctx context.Context, d podDocument, settings placement.Settings) (explainedPod, error) {
	e := explainedPod{podDocument: d, Images: []explainedImage{}}
	decision, out := x.leftAlone(d.pod)
	var images []placement.Image
	denied := ""
	for _, pull := range placement.Pulls(d.pod) {
		if out {
			e.Images = append(e.Images, explainedImage{Image: shownImage(pull.Image), State: notAsked, Platforms: []content.Platform{}})
			continue
		}
		shown, image, err := x.image(ctx, d.pod, pull)
		if err != nil {
			return e, err
		}
		e.Images, images = append(e.Images, shown), append(images, image)
		// What stile may not ask says nothing of the pod's credentials.
		if shown.State == access.Denied.String() && shown.Reason != string(access.SourceNotAllowed) && denied == "" {
			denied = pull.Image
		}
	}
	switch {
	case out:
	case denied != "":
		decision = placement.Denied(denied)
	default:
		decision = placement.Decide(d.pod, images, settings)
	}
	e.Outcome, e.Reason, e.Message = decision.Outcome, decision.Reason, decision.Message
	e.Platforms = append([]placement.Platform{}, decision.Platforms...)
	e.Notes = append([]string{}, decision.Notes...)
	e.Labels = map[string]string{}
	for k, v := range decision.Labels {
		e.Labels[k] = v
	}
	if decision.Required != nil || decision.Preferred != nil {
		e.NodeAffinity = decision.Apply(d.pod).Spec.Affinity.NodeAffinity
	}
	return e, nil
}

// leftAlone returns the decision about a pod that placement has no say about; nothing is
// asked for such a one.
func (x *explainer) leftAlone(pod *corev1.Pod) (placement.Decision, bool) {
	if gate.Reserved(pod.Namespace, x.own) {
		return placement.Decision{Outcome: placement.LeftAlone, Reason: "ReservedNamespace", Message: "placement keeps out of kube-* and of stile's own namespace"}, true
	}
	_, out := placement.Excluded(pod)
	if !out {
		return placement.Decision{}, false
	}
	return placement.Decide(pod, nil, placement.Settings{}), true
}

// shownImage is an image's name as it may be shown: what cannot be read may hold a
// password, and is no name.
func shownImage(name string) string {
	if _, err := oci.ParseReference(name); err != nil {
		return "an image"
	}
	return name
}

// image asks for one image and returns what is shown of it and what counts of it.
func (x *explainer) image(ctx context.Context, pod *corev1.Pod, pull placement.Pull) (explainedImage, placement.Image, error) {
	shown := explainedImage{Image: shownImage(pull.Image), Platforms: []content.Platform{}}
	if pull.Policy == corev1.PullNever {
		shown.State, shown.Message = notAsked, "it is never pulled: what a node has is what runs"
		return shown, placement.Image{Name: shown.Image, NoConstraint: true}, nil
	}
	unknown := placement.Image{Name: shown.Image, Unknown: true}
	ref, err := oci.ParseReference(pull.Image)
	if err != nil {
		shown.State, shown.Reason, shown.Message = notAsked, string(access.Invalid), "its name cannot be read"
		return shown, unknown, nil //nolint:nilerr // what is shown says it
	}
	credentials, fault, err := x.credentials(ctx, pod, ref)
	switch {
	case err != nil:
		return shown, unknown, err
	case fault != nil:
		shown.State, shown.Reason, shown.Message = access.Denied.String(), v1alpha1.ReasonPullSecretInvalid, fault.Error()
		return shown, unknown, nil //nolint:nilerr // what is shown says it
	}
	trust, err := x.bench.Trust(ref.Host(), oci.Operator)
	if err != nil {
		return shown, unknown, registryFailure(err)
	}
	proof, verdict, err := x.bench.gate.Prove(ctx, access.Request{Image: ref, Credentials: credentials, Trust: trust})
	if interruptedBy(ctx) != nil {
		return shown, unknown, context.Cause(ctx)
	}
	shown.State, shown.Reason, shown.Message, shown.Digest = verdict.State.String(), string(verdict.Reason), verdict.Message, verdict.Digest
	switch {
	case err != nil && !errors.Is(err, context.DeadlineExceeded):
		return shown, unknown, registryFailure(err)
	case verdict.State == access.Pending: // --timeout came first
		shown.State, shown.Reason, shown.Message = access.Unknown.String(), string(access.RegistryUnreachable), fmt.Sprint(context.Cause(ctx))
		return shown, unknown, nil
	case verdict.State != access.Allowed:
		return shown, unknown, nil
	}
	shown.Credential = verdict.Credential.String()
	facts, err := x.bench.contents.Facts(ctx, proof)
	if err != nil {
		shown.State, shown.Reason, shown.Message = access.Unknown.String(), string(access.RegistryUnreachable), err.Error()
		if p, ok := errors.AsType[*content.Problem](err); ok {
			shown.Reason, shown.Message = p.Reason, p.Message
			switch p.Reason {
			case content.ReasonUnauthorized, content.ReasonImageNotFound:
				shown.State = access.Denied.String()
			case content.ReasonModuleInvalid, content.ReasonModuleTooLarge, content.ReasonDigestMismatch:
				shown.State = access.Allowed.String() // what it is cannot be told, and asking again would not help
			}
		}
		return shown, unknown, nil
	}
	shown.Platforms = append(shown.Platforms, facts.Platforms...)
	shown.Bundle = facts.Bundle
	known := placement.Image{Name: pull.Image, NoConstraint: facts.Bundle}
	for _, p := range facts.Platforms {
		known.Platforms = append(known.Platforms, placement.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
	}
	return shown, known, nil
}

// credentials returns what is tried for an image of the pod: of the pull secrets that it
// names what the kubelet would try, then what the flags give. fault is why the kubelet
// would try nothing: one of the Secrets cannot be read. It passes over those of other types.
func (x *explainer) credentials(ctx context.Context, pod *corev1.Pod, ref oci.Reference) (all oci.Credentials, fault, err error) {
	var own []oci.Keyring
	for _, named := range pod.Spec.ImagePullSecrets {
		key := plugin.Key{Namespace: pod.Namespace, Name: named.Name}
		s := x.docs.secrets[key]
		switch {
		case s == nil:
			if len(x.in.secrets) == 0 {
				x.once(fmt.Sprintf("Warning: the pull secret %s, which %s names, is not among the documents: give it with -f or --secret", key, pod.Name))
			}
			continue
		case !oci.IsPullSecret(s.Type, s.Data):
			x.once(fmt.Sprintf("Warning: %s, which %s names, is no pull secret and is passed over: its type is %q, and it has to hold the key of that type", key, pod.Name, s.Type))
			own = append(own, oci.Keyring{})
			continue
		}
		ring, err := oci.ParsePullSecret(x.bench.key, "pull secret "+key.String(), s.Type, s.Data)
		if err != nil {
			return oci.Credentials{}, err, nil
		}
		own = append(own, ring)
	}
	var list []oci.Credential
	if len(own) > 0 {
		c, err := oci.JoinKeyrings(own...).For(ref)
		if err != nil {
			return oci.Credentials{}, err, nil
		}
		list = append(list, c.Candidates()...)
	}
	if len(own) == 0 || len(x.in.secrets)+len(x.in.authfiles) > 0 {
		c, err := x.in.credentials(ctx, x.app, x.bench.key, ref)
		if err != nil {
			return oci.Credentials{}, nil, err
		}
		list = append(list, c.Candidates()...)
	}
	return oci.NewCredentials(x.bench.key, list...), nil, nil
}

func (x *explainer) once(note string) {
	if !x.told[note] {
		x.told[note] = true
		x.note("%s", printable(note))
	}
}

func placementAnswer(e *placementExplanation) answer {
	var names []string
	for _, p := range e.Pods {
		names = append(names, p.Namespace+"/"+p.Name+" "+string(p.Outcome))
	}
	return answer{Value: e, Names: names, Table: func(w io.Writer, wide bool) {
		for n, p := range e.Pods {
			if n > 0 {
				_, _ = fmt.Fprintln(w)
			}
			_, _ = fmt.Fprintln(w, printable(fmt.Sprintf("%s %s/%s: %s", p.Kind, p.Namespace, p.Name, p.Outcome)))
			_, _ = fmt.Fprintln(w, printable("  "+p.Message))
			explainImages(w, p.Images, wide)
			for _, note := range p.Notes {
				_, _ = fmt.Fprintln(w, printable("  note: "+note))
			}
			explainAffinity(w, p.NodeAffinity)
		}
	}}
}

func explainImages(w io.Writer, images []explainedImage, wide bool) {
	heading := []string{"  IMAGE", "STATE", "CREDENTIAL", "PLATFORMS"}
	if wide {
		heading = append(heading, "DIGEST", "MESSAGE")
	}
	t := newTable(w, heading...)
	defer t.end()
	for _, i := range images {
		var platforms []string
		for _, p := range i.Platforms {
			name := p.OS + "/" + p.Architecture
			if p.Variant != "" {
				name += "/" + p.Variant
			}
			platforms = append(platforms, name)
		}
		state := i.State
		if i.Reason != "" {
			state += " (" + i.Reason + ")"
		}
		what := strings.Join(platforms, ", ")
		if i.Bundle {
			what = "operator bundle"
		}
		row := []string{"  " + i.Image, state, i.Credential, what}
		if wide {
			row = append(row, i.Digest, i.Message)
		}
		t.row(row...)
	}
}

// explainAffinity writes what would be set, a term to a line.
func explainAffinity(w io.Writer, a *corev1.NodeAffinity) {
	if a == nil {
		_, _ = fmt.Fprintln(w, "  node affinity: stays as it is")
		return
	}
	if r := a.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
		for _, t := range r.NodeSelectorTerms {
			_, _ = fmt.Fprintln(w, printable("  required: "+termText(t)))
		}
	}
	for _, t := range a.PreferredDuringSchedulingIgnoredDuringExecution {
		_, _ = fmt.Fprintln(w, printable(fmt.Sprintf("  preferred, weight %d: %s", t.Weight, termText(t.Preference))))
	}
}

func termText(t corev1.NodeSelectorTerm) string {
	var parts []string
	for _, e := range slices.Concat(t.MatchExpressions, t.MatchFields) {
		text := e.Key + " " + string(e.Operator)
		if len(e.Values) > 0 {
			text += " [" + strings.Join(e.Values, ", ") + "]"
		}
		parts = append(parts, text)
	}
	return cmp.Or(strings.Join(parts, " and "), "nothing (an empty term)")
}
