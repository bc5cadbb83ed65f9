package preflight

import (
	"fmt"
	"syscall"
	"time"
)

// confine takes from this process what trying a module does not need: memory beyond the
// budget, processor time, files to open or to write, core dumps.
func confine(budget int64, timeout time.Duration) error {
	limits := []struct {
		name     string
		resource int
		most     uint64
	}{
		{"CPU time", syscall.RLIMIT_CPU, uint64(timeout/time.Second)*2 + 2}, //nolint:gosec // positive
		{"file size", syscall.RLIMIT_FSIZE, 0},
		{"core size", syscall.RLIMIT_CORE, 0},
		{"open files", syscall.RLIMIT_NOFILE, 16}, // the runtime's own few
	}
	if !raceEnabled { // whose shadow of the memory is terabytes
		limits = append(limits, struct {
			name     string
			resource int
			most     uint64
		}{"data", syscall.RLIMIT_DATA, uint64(budget)}) //nolint:gosec // positive
	}
	for _, l := range limits {
		if err := syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: l.most, Max: l.most}); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	return nil
}
