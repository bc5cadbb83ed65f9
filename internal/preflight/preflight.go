// Package preflight tries a module out before a proxy loads it: it is started and given
// its configuration in a host of our own. Its one rule: a stranger's module runs in a
// process of its own, which has an empty environment, no file of this one's, little
// memory and little time, and whatever comes back from there is a stranger's word.
package preflight

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/wasm"
)

// The defaults of Limits.
const (
	DefaultTimeout = 10 * time.Second
	DefaultMemory  = 256 << 20
)

const (
	maxLines   = 5    // of a module's own log lines that a Verdict repeats
	maxLine    = 300  // bytes of one of them
	maxMessage = 1000 // bytes of a message
)

// Limits are what a module may use while it is tried. A zero field means its default.
type Limits struct {
	Timeout time.Duration // to be made ready, started and configured; 10 s
	Memory  int64         // bytes of the module's own memory; 256 MiB
}

func (l Limits) withDefaults() Limits {
	if l.Timeout <= 0 {
		l.Timeout = DefaultTimeout
	}
	if l.Memory <= 0 {
		l.Memory = DefaultMemory
	}
	return l
}

// Subject is a module and what it is given.
type Subject struct {
	// Namespace is to whom the work is charged; Try does not need it.
	Namespace string
	SHA256    string            // of the module, 64 hexadecimal digits: by it verdicts are kept; Try does not need it
	Size      int64             // of the module, in bytes
	Config    []byte            // spec.pluginConfig as a proxy gets it
	Env       map[string]string // spec.vmConfig.env, the values that are known here
	// Open opens the module; it may touch the disk, and is called where waiting is fine.
	Open func() (io.ReadCloser, error)
}

// Outcome is how a trial ended.
type Outcome uint8

const (
	// Unclear: the module could not be tried to the end here, which says nothing about a
	// proxy: it calls what this host does not have, or the host cannot make it ready.
	Unclear Outcome = iota
	// Passed: it started and took its configuration.
	Passed
	// Rejected: it refused its configuration, or failed by itself.
	Rejected
)

// String returns the outcome in a word.
func (o Outcome) String() string {
	switch o {
	case Passed:
		return "passed"
	case Rejected:
		return "rejected"
	default:
		return "unclear"
	}
}

// Verdict is what a trial showed. The zero Verdict is Unclear.
type Verdict struct {
	Outcome Outcome
	// Message says why it did not pass, in one line and without the module's own words:
	// it is fit for a status that many may read.
	Message string
	Fix     string
	// Lines are the last of the module's own log lines, at most five, printable. They may
	// repeat parts of its configuration: for the CLI and the admin API alone.
	Lines []string
}

// Findings returns the verdict as findings of a check: none if it passed. They hold the
// module's own words.
func (v Verdict) Findings() []wasm.Finding {
	f := wasm.Finding{Severity: wasm.SeverityError, Reason: v1alpha1.ReasonModuleRejectedConfig, Message: v.Message, Fix: v.Fix}
	switch v.Outcome {
	case Passed:
		return nil
	case Unclear:
		f.Severity, f.Reason = wasm.SeverityWarning, "NotTried"
	}
	if len(v.Lines) > 0 {
		f.Message += "; the module said: " + strings.Join(v.Lines, " / ")
	}
	return []wasm.Finding{f}
}

// ErrPending says that the module is being tried: Changes tells when to ask again.
var ErrPending = errors.New("preflight: the module is being tried")

// clean makes a stranger's text fit for a terminal and a line.
func clean(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	s = strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return strings.TrimSpace(s)
}
