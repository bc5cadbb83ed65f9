// Package registry tests package oci against the distribution server, the registry
// that most registries descend from. It is a module of its own: the server brings
// dozens of modules that stile does without.
package registry
