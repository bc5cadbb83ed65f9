//go:build !linux

package envoyproc

import "syscall"

// processAttributes has nothing to ask of kernels other than Linux.
func processAttributes() *syscall.SysProcAttr { return nil }
