package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// leeway is what a child gets beyond its time to read the module, to make it ready and
// to answer, before it is killed.
const leeway = 5 * time.Second

// maxReport bounds what is read from a child.
const maxReport = 64 << 10

// Try tries the module in a process of its own and waits for the verdict. The error is
// that of ctx, of Subject.Open, or of a machine that starts no process.
func Try(ctx context.Context, s Subject, l Limits) (Verdict, error) {
	if !ready.Load() {
		return Verdict{}, errors.New("preflight: the program that is to try modules does not call preflight.Child first")
	}
	l = l.withDefaults()
	self, err := executable()
	if err != nil {
		return Verdict{}, fmt.Errorf("preflight: find this program: %w", err)
	}
	module, err := s.Open()
	if err != nil {
		return Verdict{}, fmt.Errorf("preflight: open the module: %w", err)
	}
	defer func() { _ = module.Close() }()
	head, err := json.Marshal(order{Config: s.Config, Env: s.Env, Size: s.Size, Timeout: l.Timeout, Memory: l.Memory})
	if err != nil {
		return Verdict{}, fmt.Errorf("preflight: encode the order: %w", err)
	}

	limited, cancel := context.WithTimeout(ctx, l.Timeout+leeway)
	defer cancel()
	c := exec.CommandContext(limited, self)
	c.Args, c.Env, c.Dir = []string{childName}, []string{}, "/"
	c.WaitDelay = time.Second
	detach(c)
	stdin, err := c.StdinPipe()
	if err != nil {
		return Verdict{}, fmt.Errorf("preflight: %w", err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		return Verdict{}, fmt.Errorf("preflight: %w", err)
	}
	if err := c.Start(); err != nil {
		return Verdict{}, fmt.Errorf("preflight: start a process: %w", err)
	}
	sent := make(chan error, 1)
	go func() { // the child need not read it all: it may end before
		_, err := stdin.Write(append(head, '\n'))
		if err == nil {
			_, err = io.CopyN(stdin, module, s.Size)
		}
		if err != nil {
			_ = stdin.Close() // or the child would wait for the rest
		}
		sent <- err
	}()
	answer, readErr := io.ReadAll(io.LimitReader(stdout, maxReport))
	// It has said what it has to say, or cannot: nothing that is left of it is needed.
	_ = stdin.Close()
	if len(answer) == maxReport {
		cancel()
	}
	waitErr := c.Wait()
	sendErr := <-sent
	if ctx.Err() != nil {
		return Verdict{}, context.Cause(ctx)
	}
	return verdict(answer, readErr, waitErr, sendErr, limited.Err() != nil), nil
}

// verdict reads a child's answer, which is a stranger's word.
func verdict(answer []byte, readErr, waitErr, sendErr error, late bool) Verdict {
	var r report
	err := errors.Join(readErr, waitErr)
	if err == nil {
		err = json.Unmarshal(answer, &r)
	}
	if err != nil || r.Outcome > Rejected {
		v := Verdict{Fix: "try it in a proxy; this says nothing about Envoy"}
		switch {
		case late:
			v.Message = "the module cannot be tried here: to make it ready takes too long"
		case sendErr != nil && waitErr == nil:
			v.Message = "the module cannot be tried here: it cannot be read"
		default:
			v.Message = "the module cannot be tried here: the process that did was ended, for it took too much memory or time"
		}
		return v
	}
	if r.Outcome == Passed {
		return Verdict{Outcome: Passed}
	}
	v := Verdict{Outcome: r.Outcome, Message: clean(r.Message, maxMessage), Fix: clean(r.Fix, maxMessage)}
	for _, line := range r.Lines[max(0, len(r.Lines)-maxLines):] {
		v.Lines = append(v.Lines, clean(line, maxLine))
	}
	return v
}

// executable is this program, also after its file was replaced by a newer one.
func executable() (string, error) {
	if runtime.GOOS == "linux" {
		const self = "/proc/self/exe"
		if _, err := os.Stat(self); err == nil {
			return self, nil
		}
	}
	return os.Executable()
}
