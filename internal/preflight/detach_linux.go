package preflight

import (
	"os/exec"
	"syscall"
)

// detach gives the child a session of its own: no terminal, and no part in a Ctrl-C
// that is meant for this process, which ends it itself.
func detach(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
