package oci_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/oci/localregistry"
	"github.com/stileproject/stile/internal/secret"
)

func exampleKey() secret.Key {
	root, err := secret.NewRoot([]byte(strings.Repeat("k", secret.Size)), nil)
	if err != nil {
		panic(err)
	}
	return root.Key(secret.ForFingerprints)
}

// Two entries fit the image: both are candidates, the more specific one first. The
// entry of another registry plays no part.
func ExampleKeyring_For() {
	ring, err := oci.ParseDockerConfigJSON(exampleKey(), "pull secret team-a/regcred", []byte(`{"auths": {
		"registry.example":        {"username": "reader", "password": "secret"},
		"registry.example/team-a": {"username": "team-a", "password": "secret"},
		"other.example":           {"username": "reader", "password": "secret"}}}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	image, err := oci.ParseReference("registry.example/team-a/plugin:v1")
	if err != nil {
		fmt.Println(err)
		return
	}
	credentials, err := ring.For(image)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, candidate := range credentials.Candidates() {
		fmt.Println(candidate.Origin())
	}
	// Output:
	// pull secret team-a/regcred, entry registry.example/team-a
	// pull secret team-a/regcred, entry registry.example
}

// A check costs a ping, a token and a HEAD the first time, and a HEAD from then on. A
// credential without the right is told so.
func ExampleClient_Check() {
	registry, err := localregistry.Start(localregistry.Options{Users: map[string]string{"alice": "1", "bob": "2"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer registry.Close()
	registry.Allow("alice", "team-a/plugin", localregistry.Pull, localregistry.Push)

	client, err := oci.NewClient(oci.Settings{Key: exampleKey(), Registries: []oci.Registry{{Host: registry.Host(), PlainHTTP: true}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	trust, err := client.Trust(registry.Host(), "team-a")
	if err != nil {
		fmt.Println(err)
		return
	}
	image, err := oci.ParseReference(registry.Host() + "/team-a/plugin:v1")
	if err != nil {
		fmt.Println(err)
		return
	}
	alice := oci.NewCredential(exampleKey(), "example", "alice", "1")
	bob := oci.NewCredential(exampleKey(), "example", "bob", "2")
	pushed, err := client.Push(context.Background(), []byte("a module"), image, oci.LayoutArtifact, alice, trust)
	if err != nil {
		fmt.Println(err)
		return
	}
	client.Forget(alice.Fingerprint()) // as if nothing had been asked yet

	for range 2 {
		var requests atomic.Int64
		found, err := client.Check(oci.WithCounter(context.Background(), &requests), image, alice, trust, oci.CheckOptions{})
		fmt.Println(found.Digest == pushed, err, requests.Load())
	}
	_, err = client.Check(context.Background(), image, bob, trust, oci.CheckOptions{})
	fmt.Println(errors.Is(err, oci.Unauthorized))
	// Output:
	// true <nil> 3
	// true <nil> 1
	// true
}
