package preflight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stileproject/stile/modules"
)

// start runs t until the test ends.
func start(t *testing.T, trials *Trials) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := trials.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func settle(t *testing.T, trials *Trials, s Subject) Verdict {
	t.Helper()
	for {
		v, err := trials.Verdict(s)
		if err == nil {
			return v
		}
		if !errors.Is(err, ErrPending) {
			t.Fatal(err)
		}
		select {
		case <-trials.Changes():
		case <-t.Context().Done():
			t.Fatal("no verdict")
		}
	}
}

func TestTrials_OneTrialForOneModuleAndConfiguration(t *testing.T) {
	t.Parallel()
	trials := New(Config{})
	start(t, trials)
	good, bad := subject(modules.Badge(), `{"name":"x"}`), subject(modules.Badge(), `{}`)
	good.SHA256, bad.SHA256 = "1", "1"
	if v := settle(t, trials, good); v.Outcome != Passed {
		t.Errorf("%+v", v)
	}
	if v := settle(t, trials, bad); v.Outcome != Rejected || len(v.Lines) != 1 || strings.Contains(v.Message, "badge") {
		t.Errorf("%+v", v)
	}
	good.Open = func() (io.ReadCloser, error) { return nil, errors.New("it is tried again") }
	if v, err := trials.Verdict(good); err != nil || v.Outcome != Passed {
		t.Errorf("%+v, %v", v, err)
	}
}

// fake is a trial that takes a second.
type fake struct {
	mu   sync.Mutex
	seen []string
	fail map[string]int
}

func (f *fake) try(ctx context.Context, s Subject, _ Limits) (Verdict, error) {
	f.mu.Lock()
	f.seen = append(f.seen, s.Namespace+"/"+s.SHA256)
	f.fail[s.SHA256]--
	failed := f.fail[s.SHA256] >= 0
	f.mu.Unlock()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return Verdict{}, ctx.Err()
	}
	if failed {
		return Verdict{}, errors.New("no process")
	}
	return Verdict{Outcome: Passed}, nil
}

func TestP7_Trials_NobodyWaitsForANoisyTenant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{fail: map[string]int{}}
		trials := New(Config{Parallel: 2})
		trials.try = f.try
		for i := range 100 {
			if _, err := trials.Verdict(Subject{Namespace: "noisy", SHA256: fmt.Sprint(i)}); !errors.Is(err, ErrPending) {
				t.Error(err)
			}
		}
		_, _ = trials.Verdict(Subject{Namespace: "quiet", SHA256: "q"})
		start(t, trials)
		synctest.Wait()
		if len(f.seen) != 2 || !slices.Contains(f.seen, "quiet/q") {
			t.Errorf("tried %v", f.seen)
		}
		settle(t, trials, Subject{Namespace: "noisy", SHA256: "99"})
		if len(f.seen) != 101 {
			t.Errorf("%d trials", len(f.seen))
		}
	})
}

func TestTrials_WhatCouldNotBeTriedIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{fail: map[string]int{"a": 3}}
		trials := New(Config{Keep: 2})
		trials.try = f.try
		start(t, trials)
		s := Subject{Namespace: "n", SHA256: "a"}
		began := time.Now()
		if v := settle(t, trials, s); v.Outcome != Passed || len(f.seen) != 4 {
			t.Errorf("%+v after %v", v, f.seen)
		}
		if took := time.Since(began); took < 9*time.Second || took > 15*time.Second {
			t.Errorf("took %v", took)
		}
		settle(t, trials, Subject{SHA256: "b"})
		settle(t, trials, Subject{SHA256: "c"}) // Keep is 2: a goes
		if _, err := trials.Verdict(s); !errors.Is(err, ErrPending) {
			t.Errorf("a is still known: %v", err)
		}
	})
}

func TestTrials_EndWithRun(t *testing.T) {
	t.Parallel()
	trials := New(Config{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- trials.Run(ctx) }()
	s := subject(strange(t, "loops_at_start"), "{}")
	opened := make(chan struct{})
	open := s.Open
	s.Open = func() (io.ReadCloser, error) { close(opened); return open() }
	if _, err := trials.Verdict(s); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	<-opened
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := trials.Verdict(s); !errors.Is(err, ErrPending) {
		t.Errorf("%v", err)
	}
}
