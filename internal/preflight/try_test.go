package preflight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/wasm/wasmtest"
	"github.com/stileproject/stile/modules"
)

func TestMain(m *testing.M) {
	Child()
	goleak.VerifyTestMain(m)
}

func subject(module []byte, config string) Subject {
	return Subject{Size: int64(len(module)), Config: []byte(config), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(module)), nil
	}}
}

func strange(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "proxywasm", "testdata", name+".wasm"))
	if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join("testdata", name+".wasm"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTry(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		module  []byte
		config  string
		limits  Limits
		outcome Outcome
		words   string // of the message
		said    string // of the lines
	}{
		"takes it":               {modules.Badge(), `{"name":"x"}`, Limits{}, Passed, "", ""},
		"a large configuration":  {modules.Badge(), `{"name":"x","more":"` + strings.Repeat("x", 20<<10) + `"}`, Limits{}, Passed, "", ""},
		"refuses":                {strange(t, "refuses"), `{}`, Limits{}, Rejected, "refuses its configuration", ""},
		"traps":                  {strange(t, "traps"), `{}`, Limits{}, Passed, "", ""}, // when it is asked, not before
		"does not like it":       {modules.Badge(), `{"nom":"x"}`, Limits{}, Rejected, "refuses its configuration", "the configuration must be"},
		"takes all the memory":   {strange(t, "hog"), `{}`, Limits{Memory: 1 << 20}, Rejected, "unreachable", ""},
		"calls what Envoy has":   {strange(t, "ticks"), `{}`, Limits{}, Unclear, "called env.proxy_set_tick_period_milliseconds", ""},
		"is content without":     {strange(t, "stranger"), `{}`, Limits{}, Passed, "", ""},
		"says a lot":             {strange(t, "chatty"), `{}`, Limits{}, Rejected, "refuses", "line 3\nline 4\nline 5\nline 6\n\uFFFD[31mred\uFFFDline"},
		"loops at its start":     {strange(t, "loops_at_start"), `{}`, Limits{Timeout: time.Second}, Rejected, "did not return within 1s", ""},
		"is no module":           {[]byte("\x00asm\x01\x00\x00\x00"), `{}`, Limits{}, Unclear, "cannot be tried here", ""},
		"is empty":               {nil, `{}`, Limits{}, Unclear, "cannot be tried here", ""},
		"is none of ours at all": {wasmtest.Named("plain"), `{}`, Limits{}, Passed, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, err := Try(t.Context(), subject(row.module, row.config), row.limits)
			if err != nil {
				t.Fatal(err)
			}
			if v.Outcome != row.outcome || !strings.Contains(v.Message, row.words) || !strings.Contains(strings.Join(v.Lines, "\n"), row.said) {
				t.Errorf("%v, %+v", v.Outcome, v)
			}
			if len(v.Lines) > maxLines || strings.Contains(row.said+"x", v.Message) && v.Message != "" {
				t.Errorf("%d lines, message %q", len(v.Lines), v.Message)
			}
			if (v.Outcome == Passed) != (len(v.Findings()) == 0) {
				t.Errorf("findings: %+v", v.Findings())
			}
		})
	}
}

func TestTry_EndsWithItsCaller(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errors.New("enough"))
	defer cancel()
	start := time.Now()
	_, err := Try(ctx, subject(strange(t, "loops_at_start"), "{}"), Limits{Timeout: time.Minute})
	if err == nil || err.Error() != "enough" || time.Since(start) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestTry_NothingToOpen(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	s := subject(nil, "{}")
	s.Open = func() (io.ReadCloser, error) { return nil, gone }
	if _, err := Try(t.Context(), s, Limits{}); !errors.Is(err, gone) {
		t.Error(err)
	}
	s = subject([]byte("short"), "{}")
	s.Size = 100
	if v, err := Try(t.Context(), s, Limits{}); err != nil || v.Outcome != Unclear {
		t.Error(v, err)
	}
}

// The process that runs a stranger's module has nothing of this one.
func TestTry_TheProcessHasNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it looks into /proc")
	}
	t.Setenv("SECRET", "of this process")
	f, err := os.Open("testdata/ticks.wat")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	done := make(chan error, 1)
	go func() {
		_, err := Try(t.Context(), subject(strange(t, "loops_at_start"), "{}"), Limits{Timeout: 2 * time.Second})
		done <- err
	}()
	var dir string
	for dir == "" {
		select {
		case err := <-done:
			t.Fatal("it ended unseen", err)
		default:
		}
		dir = childOf(os.Getpid())
	}
	files := map[string]bool{}
	entries, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(dir + "/fd/" + e.Name()); err == nil {
			files[strings.TrimRight(to, "[]0123456789")] = true
		}
	}
	for to := range files {
		if to != "/dev/null" && to != "pipe:" && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/sys/fs/cgroup/") {
			t.Errorf("it has %s open", to)
		}
	}
	if b, err := os.ReadFile(dir + "/environ"); err != nil || len(b) > 0 {
		t.Errorf("environment %q, %v", b, err)
	}
	for range 100 {
		limits, err := os.ReadFile(dir + "/limits")
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(`Max cpu time +6 +6 `).Match(limits) && regexp.MustCompile(`Max file size +0 `).Match(limits) {
			if regexp.MustCompile(`Max data size +unlimited`).Match(limits) && !raceEnabled {
				t.Errorf("limits:\n%s", limits)
			}
			break
		}
		runtime.Gosched()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// childOf returns the folder in /proc of the process that tries a module for this one.
func childOf(parent int) string {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		name, _ := os.ReadFile(dir + "/cmdline")
		status, _ := os.ReadFile(dir + "/status")
		if string(name) == childName+"\x00" && strings.Contains(string(status), fmt.Sprintf("PPid:\t%d\n", parent)) {
			return dir
		}
	}
	return ""
}
