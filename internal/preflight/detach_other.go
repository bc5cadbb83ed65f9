//go:build !linux

package preflight

import "os/exec"

// detach leaves the child in the session of this process.
func detach(*exec.Cmd) {}
