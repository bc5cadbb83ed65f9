package cli

import (
	"errors"
	"fmt"
)

// The exit codes of every verb. They are an API: scripts rely on them.
const (
	OK                 = 0   // done
	Failed             = 1   // something went wrong that no other code describes
	Usage              = 2   // a wrong flag, argument, path or configuration
	Findings           = 3   // what was examined has errors
	Unauthorized       = 4   // the registry refuses these credentials
	NotFound           = 5   // the registry says that there is no such thing
	Unavailable        = 6   // no answer that could be relied on: a retry may help
	VerificationFailed = 7   // a digest, a sum or a signature does not match
	Interrupted        = 130 // ended by Ctrl-C or SIGTERM
)

// brokenPipe is what a shell reports of a program that SIGPIPE ended.
const brokenPipe = 128 + 13

// failure is an error with the exit code it ends the program with and, where one is
// known, the remedy. A failure without an error ends the program silently: the answer
// on stdout has said it all.
type failure struct {
	code   int
	err    error
	remedy string
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit code %d", f.code)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// fail returns err with its exit code and remedy; nil stays nil.
func fail(code int, err error, remedy string) error {
	if err == nil {
		return nil
	}
	return &failure{code: code, err: err, remedy: remedy}
}

// usagef returns a usage error.
func usagef(format string, args ...any) error {
	return &failure{code: Usage, err: fmt.Errorf(format, args...)}
}

// silent returns the failure of a verb whose answer on stdout has said it all.
func silent(code int) error {
	if code == OK {
		return nil
	}
	return &failure{code: code}
}

// codeOf returns the exit code that err ends the program with.
func codeOf(err error) int {
	if err == nil {
		return OK
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return Failed
}
