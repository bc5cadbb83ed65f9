package oci

// helperConfig is what a configuration file says of credential helpers.
type helperConfig struct{}

func (k Keyring) ask(Reference) (Credentials, error) { return Credentials{}, nil }
