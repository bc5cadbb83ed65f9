package preflight

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stileproject/stile/internal/proxywasm"
)

// childName is the name under which this program is started to try a module. It has no
// arguments then.
const childName = "stile-preflight"

// ready says that this program calls Child: one that does not would run itself instead.
var ready atomic.Bool

// Child is what main (and TestMain) call first. In the process that tries a module it
// does that and ends the process; in every other it does nothing.
func Child() {
	if len(os.Args) == 1 && os.Args[0] == childName {
		os.Exit(child(os.Stdin, os.Stdout)) //nolint:forbidigo // this process is for that alone
	}
	ready.Store(true)
}

// order is what the child is told, as one line of JSON; the module follows.
type order struct {
	Config  []byte            `json:"config"`
	Env     map[string]string `json:"env"`
	Size    int64             `json:"size"`
	Timeout time.Duration     `json:"timeout"`
	Memory  int64             `json:"memory"`
}

// report is what it answers.
type report struct {
	Outcome Outcome  `json:"outcome"`
	Message string   `json:"message"`
	Fix     string   `json:"fix"`
	Lines   []string `json:"lines"`
}

// budget is the memory of the whole child: the module's own, twice while it grows, what
// its code becomes in the host, and the host itself.
func (o order) budget() int64 { return 2*o.Memory + 64*o.Size + 512<<20 }

func child(in io.Reader, out io.Writer) int {
	input := bufio.NewReader(in)
	line, err := input.ReadSlice('\n')
	var long []byte
	for errors.Is(err, bufio.ErrBufferFull) { // a large configuration
		long = append(long, line...)
		line, err = input.ReadSlice('\n')
	}
	var o order
	if err == nil {
		err = json.Unmarshal(append(long, line...), &o)
	}
	if err != nil {
		return 2
	}
	if err := confine(o.budget(), o.Timeout); err != nil {
		return 2
	}
	debug.SetMemoryLimit(o.budget() / 4 * 3)
	module := make([]byte, o.Size)
	if _, err := io.ReadFull(input, module); err != nil {
		return 2
	}
	go func() { // whoever started this holds the other end; without them nobody wants the answer
		_, _ = io.Copy(io.Discard, input)
		os.Exit(3) //nolint:forbidigo // in the process that is for one module
	}()
	answer, err := json.Marshal(try(module, o))
	if err == nil {
		_, err = out.Write(answer)
	}
	if err != nil {
		return 2
	}
	return 0
}

// try runs the module.
func try(module []byte, o order) report {
	lines := &lastLines{}
	var mu sync.Mutex
	missing := map[string]bool{}
	p, err := proxywasm.New(context.Background(), proxywasm.Options{
		Bytes: module, Name: "preflight", Config: o.Config, Env: o.Env, Timeout: o.Timeout, Log: slog.New(lines),
		MemoryPages: uint32(min(o.Memory>>16, 65536)), //nolint:gosec // bounded
		Missing: func(name string) {
			mu.Lock()
			defer mu.Unlock()
			missing[name] = true
		},
	})
	if err == nil {
		_ = p.Close()
		return report{Outcome: Passed}
	}
	r := report{Outcome: Rejected, Lines: lines.text}
	switch {
	case errors.Is(err, proxywasm.ErrRefused):
		r.Message = "the module refuses its configuration"
		if strings.Contains(err.Error(), "its start") {
			r.Message = "the module refuses to start"
		}
		r.Fix = "correct the configuration, or ask the module's author what it wants"
	case errors.Is(err, proxywasm.ErrFailed):
		_, why, _ := strings.Cut(err.Error(), proxywasm.ErrFailed.Error()+": ")
		r.Message = "the module fails when it is started and configured: " + clean(why, maxLine)
		r.Fix = "it stopped by itself or took too much memory or time; its author must correct that"
	default:
		_, why, _ := strings.Cut(err.Error(), proxywasm.ErrModule.Error()+": ")
		r.Outcome, r.Message = Unclear, "the module cannot be tried here: "+clean(why, maxLine)
		r.Fix = "try it in a proxy; this says nothing about Envoy"
	}
	if r.Outcome == Rejected && len(missing) > 0 {
		names := slices.Sorted(maps.Keys(missing))
		r.Outcome = Unclear
		r.Message += fmt.Sprintf("; but it called %s, which Envoy has and the host that tries modules has not", clean(strings.Join(names, ", "), maxLine))
		r.Fix = "try it in a proxy; this says nothing about Envoy"
	}
	return r
}

// lastLines is a log of which the last lines are kept: what a module says of itself.
type lastLines struct {
	mu   sync.Mutex
	text []string
}

func (l *lastLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lastLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lastLines) WithGroup(string) slog.Handler            { return l }

func (l *lastLines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, clean(r.Message, maxLine))
	l.text = l.text[max(0, len(l.text)-maxLines):]
	return nil
}
