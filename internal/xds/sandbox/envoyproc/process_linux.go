package envoyproc

import "syscall"

// processAttributes make the kernel end Envoy when we are killed and cannot, and keep
// a terminal's Ctrl-C from reaching it before us.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
