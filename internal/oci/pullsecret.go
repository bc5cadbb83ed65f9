package oci

import (
	"fmt"

	"github.com/stileproject/stile/internal/secret"
)

// The types of Secrets that hold credentials for registries, and the key of each.
const (
	SecretTypeDockerConfigJSON = "kubernetes.io/dockerconfigjson"
	SecretTypeDockerCfg        = "kubernetes.io/dockercfg"
	keyDockerConfigJSON        = ".dockerconfigjson"
	keyDockerCfg               = ".dockercfg"
)

// IsPullSecret reports whether the kubelet takes a Secret that a pod names for one with
// credentials: it has one of the types, and something under the key of its type. The
// kubelet passes over others.
func IsPullSecret(secretType string, data map[string]secret.Secret) bool {
	switch secretType {
	case SecretTypeDockerConfigJSON:
		return !data[keyDockerConfigJSON].Empty()
	case SecretTypeDockerCfg:
		return !data[keyDockerCfg].Empty()
	}
	return false
}

// ParsePullSecret reads a Kubernetes Secret of either type. The origin, as "pull secret
// team-a/regcred", is for messages. A Secret of another type, or without the key of its
// type, is an error of Kind Invalid that names the type or the key; for the content see
// ParseDockerConfigJSON.
func ParsePullSecret(key secret.Key, origin, secretType string, data map[string]secret.Secret) (Keyring, error) {
	parse, name := ParseDockerConfigJSON, keyDockerConfigJSON
	switch secretType {
	case SecretTypeDockerConfigJSON:
	case SecretTypeDockerCfg:
		parse, name = ParseDockerCfg, keyDockerCfg
	default:
		return Keyring{}, &Error{Op: "read credentials", Ref: origin, Kind: Invalid, Err: fmt.Errorf("the type is %q: create it with type %s", secretType, SecretTypeDockerConfigJSON)}
	}
	content, ok := data[name]
	if !ok {
		return Keyring{}, &Error{Op: "read credentials", Ref: origin, Kind: Invalid, Err: fmt.Errorf("has no key %s", name)}
	}
	return parse(key, origin, content.Reveal())
}
