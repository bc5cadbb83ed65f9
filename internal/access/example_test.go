package access_test

import (
	"context"
	"fmt"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// generous is a registry that lets everybody in.
type generous struct{}

func (generous) Check(context.Context, oci.Reference, oci.Credential, oci.Trust, oci.CheckOptions) (oci.Descriptor, error) {
	return oci.Descriptor{Digest: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, nil
}

func (generous) Forget(secret.Fingerprint) {}

// A first sight is Pending and never waits; Changes tells when the answer is there.
func ExampleGate_Check() {
	gate := access.New(generous{}, access.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- gate.Run(ctx) }()

	image, _ := oci.ParseReference("registry.example/team/plugin:v1")
	request := access.Request{Image: image, Holder: access.Holder{Namespace: "team", Name: "plugin"}}
	fmt.Println(gate.Check(request).State)
	for gate.Check(request).State == access.Pending {
		<-gate.Changes()
	}
	verdict := gate.Check(request)
	fmt.Println(verdict.State, verdict.Digest[:14])

	// What runs is held by its digest.
	request.Image = image.At(verdict.Digest)
	proof, _ := gate.Hold(request)
	fmt.Println(proof.Stands(), proof.Source())
	gate.Release(request.Holder)
	fmt.Println(proof.Stands())
	cancel()
	<-ended
	// Output:
	// Pending
	// Allowed sha256:aaaaaaa
	// true registry.example/team/plugin
	// false
}
