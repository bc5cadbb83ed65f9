// Package cli is the command line of stile: one file per verb, and all the wiring of
// the rooms. Its one rule: answers go to stdout, everything else to stderr, and the
// exit code says which kind of end it was.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Main runs stile with the arguments that follow the program's name and returns the
// exit code. env has the form of os.Environ. The first SIGINT, SIGTERM or SIGHUP asks the
// verb to end, and so does the reader of stdout by going away; a second signal ends the
// process at once.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	// Else a write to a pipe that nobody reads ends the process before it has cleaned up.
	signal.Ignore(syscall.SIGPIPE)
	stdout = &pipe{Writer: stdout, broken: func() { cancel(interruption{syscall.SIGPIPE}) }}
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(interruption{s})
		case <-ctx.Done():
		}
	}()
	return run(ctx, args, stdin, stdout, stderr, env)
}

// interruption is the cause of a context that a signal ended.
type interruption struct{ signal os.Signal }

func (i interruption) Error() string { return "interrupted by " + i.signal.String() }

// pipe is a stdout that tells when nobody reads it any more.
type pipe struct {
	io.Writer
	broken func()
}

func (p *pipe) Write(b []byte) (int, error) {
	n, err := p.Writer.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		p.broken()
	}
	return n, err
}

// interruptedBy returns the signal that ended ctx, or nil.
func interruptedBy(ctx context.Context) os.Signal {
	if i, ok := errors.AsType[interruption](context.Cause(ctx)); ok {
		return i.signal
	}
	return nil
}

// run is Main under a context of the caller's. Tests call it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, env: environment(env)}
	root := newRoot(a)
	root.SetArgs(append([]string{}, args...)) // never nil, for which cobra takes the process's own
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	verb, err := root.ExecuteContextC(ctx)
	return a.end(ctx, verb, err)
}

// app is what every verb is given: the streams, the environment and the flags that
// all verbs share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            environment

	verbose   bool
	quiet     bool
	logFormat string
}

// environment is the process environment in the form of os.Environ: of several values
// of one name, the last counts.
type environment []string

// get returns the value of name, or "".
func (e environment) get(name string) string {
	for i := len(e) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(e[i], name+"="); ok {
			return v
		}
	}
	return ""
}

// logger writes to stderr in the format the user chose, from the given level on; -v
// lowers it to debug and -q raises it to error.
func (a *app) logger(level slog.Level) *slog.Logger {
	switch {
	case a.verbose:
		level = slog.LevelDebug
	case a.quiet:
		level = slog.LevelError
	}
	options := &slog.HandlerOptions{Level: level}
	if a.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.stderr, options))
	}
	return slog.New(slog.NewTextHandler(a.stderr, options))
}

// note writes a line for people to stderr, unless they asked for quiet.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		_, _ = fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// end prints what went wrong, if anything did, and returns the exit code.
func (a *app) end(ctx context.Context, verb *cobra.Command, err error) int {
	if err == nil {
		return OK
	}
	if interruptedBy(ctx) == syscall.SIGPIPE {
		return brokenPipe // as if the signal had ended the process: there is nobody to tell
	}
	f, known := errors.AsType[*failure](err)
	if s := interruptedBy(ctx); s != nil && (!known || f.code != OK) {
		_, _ = fmt.Fprintf(a.stderr, "Interrupted (%s).\n", s)
		return Interrupted
	}
	if !known {
		f = &failure{code: Failed, err: err}
	}
	if f.err != nil {
		_, _ = fmt.Fprintf(a.stderr, "Error: %v\n", err)
	}
	if f.code == Usage && f.err != nil && verb != nil {
		_, _ = fmt.Fprintf(a.stderr, "Usage: %s\n", verb.UseLine())
	}
	switch {
	case f.remedy != "":
		_, _ = fmt.Fprintf(a.stderr, "What to do: %s\n", f.remedy)
	case f.code == Usage && verb != nil && f.err != nil:
		_, _ = fmt.Fprintf(a.stderr, "What to do: see %q\n", verb.CommandPath()+" --help")
	}
	return f.code
}
