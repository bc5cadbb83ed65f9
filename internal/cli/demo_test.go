package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/canary"
)

// runDemo runs the demo once, as the verb would, and returns its report, its exit code
// and the folder that it worked in.
func runDemo(t *testing.T, change func(*demo)) (report DemoReport, code int, folder string) {
	t.Helper()
	watch := canary.Watch(t)
	var stdout, stderr bytes.Buffer
	a := &app{stdout: &stdout, stderr: &stderr, env: os.Environ()}
	d := newDemo(a)
	d.once, d.proxyKind = true, "sandbox"
	d.password = func(string) string { return watch.Credential() }
	d.tokenMarker = watch.Credential()
	d.afterStory = func(w *demoWorld) {
		folder = w.folder
		collect(t, watch, w)
	}
	if change != nil {
		change(d)
	}
	err := d.main(t.Context(), &output{format: "json"})
	code = a.end(context.Background(), nil, err)
	watch.Add("stdout", stdout.Bytes())
	watch.Add("stderr", stderr.Bytes())
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("the report is not JSON: %v\n%s\n%s", err, &stdout, &stderr)
	}
	return report, code, folder
}

// collect hands everything that the demo's parts wrote, served or hold to the canary
// watcher; the operator's own files hold the credentials and are left out.
func collect(t *testing.T, watch *canary.Watcher, w *demoWorld) {
	for _, path := range []string{"/api/v1/plugins", "/api/v1/proofs", "/api/v1/proxies", "/metrics", "/readyz?verbose"} {
		res, err := http.Get("http://" + w.stile.Admin + path)
		if err != nil {
			t.Error(err)
			continue
		}
		body, err := io.ReadAll(res.Body)
		if err := res.Body.Close(); err != nil {
			t.Error(err)
		}
		if err != nil {
			t.Error(err)
		}
		watch.Add(path, body)
	}
	for name, p := range w.proxies {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		dump, err := p.ConfigDump(ctx)
		cancel()
		if err != nil {
			t.Errorf("%s: config dump: %v", name, err)
		}
		watch.Add("config dump of "+name, dump)
	}
	err := filepath.WalkDir(w.folder, func(path string, entry fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(w.folder, path)
		if err != nil || entry.IsDir() || strings.HasPrefix(rel, "resources") {
			return err
		}
		content, err := os.ReadFile(path)
		watch.Add("file "+rel, content)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDemoTellsTheStory(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind   string
		remote bool
	}{{"sandbox", false}, {"sandbox", true}, {"envoy", false}, {"envoy", true}} {
		kind := tt.kind
		t.Run(fmt.Sprintf("%s, modules by URL %v", kind, tt.remote), func(t *testing.T) {
			t.Parallel()
			if kind == "envoy" && os.Getenv("STILE_ENVOY") == "" {
				if os.Getenv("STILE_NO_ENVOY") == "" {
					t.Fatal("STILE_ENVOY is not set: run make test, or set it to what test/envoy/fetch.sh prints")
				}
				t.Skip("STILE_NO_ENVOY: the demo is not tested with a real Envoy")
			}
			report, code, folder := runDemo(t, func(d *demo) { d.proxyKind, d.remote = kind, tt.remote })
			for _, s := range report.Steps {
				if !s.Passed {
					t.Errorf("%s: %s", s.Name, s.Detail)
				}
			}
			if code != OK || !report.Passed || len(report.Steps) != 9 || report.Proxy != kind || report.Kind != "DemoReport" {
				t.Errorf("exit code %d, report %+v", code, report)
			}
			if _, err := os.Stat(folder); !os.IsNotExist(err) {
				t.Errorf("the folder is left behind: %v", err)
			}
		})
	}
}

// A demo that cannot fail proves nothing: where everybody may read everything, team-b
// gets the module, and the demo must say so.
func TestDemoFailsAgainstARegistryThatLetsEverybodyIn(t *testing.T) {
	t.Parallel()
	report, code, _ := runDemo(t, func(d *demo) { d.openRegistry, d.patience = true, 3*time.Second })
	if code != Failed || report.Passed {
		t.Errorf("exit code %d, passed %v", code, report.Passed)
	}
	for _, s := range report.Steps {
		denied := strings.HasPrefix(s.Name, "team-b gets 503")
		if denied && s.Passed {
			t.Errorf("the step passed: %s", s.Detail)
		}
		if strings.HasPrefix(s.Name, "team-a's request goes through") && !s.Passed {
			t.Errorf("team-a is not what fails: %s", s.Detail)
		}
	}
}

func TestDemoEndsWithItsContextAndLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := &untilSaid{words: "Ctrl-C ends it", then: cancel}
	a := &app{stdout: told, stderr: io.Discard, env: os.Environ()}
	d := newDemo(a)
	d.proxyKind = "sandbox"
	var folder string
	d.afterStory = func(w *demoWorld) { folder = w.folder }
	if err := d.main(ctx, &output{format: "table"}); err != nil {
		t.Errorf("the end of a demo that stayed up: %v", err)
	}
	if _, err := os.Stat(folder); folder == "" || !os.IsNotExist(err) {
		t.Errorf("the folder %q is left behind: %v", folder, err)
	}
}

// untilSaid is a writer that acts when some words were written.
type untilSaid struct {
	words string
	then  func()
}

func (u *untilSaid) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(u.words)) {
		u.then()
	}
	return len(p), nil
}

func TestDemoWithoutTheEnvoyThatWasAskedFor(t *testing.T) {
	t.Parallel()
	a := &app{stdout: io.Discard, stderr: io.Discard, env: environment{"STILE_ENVOY=/nowhere/envoy"}}
	d := newDemo(a)
	d.proxyKind = "envoy"
	if err := d.main(t.Context(), &output{format: "json"}); codeOf(err) != Usage || !strings.Contains(err.Error(), "/nowhere/envoy") {
		t.Errorf("got %v, exit code %d", err, codeOf(err))
	}
}

// Whoever reads the demo through "head" takes the pipe away: that ends it, cleanly.
func TestDemoWhoseReaderGoesAwayLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	a := &app{stderr: io.Discard, env: os.Environ()}
	a.stdout = &pipe{Writer: brokenWriter{}, broken: func() { cancel(interruption{syscall.SIGPIPE}) }}
	d := newDemo(a)
	d.once, d.proxyKind = true, "sandbox"
	var folder string
	d.afterStory = func(w *demoWorld) { folder = w.folder }
	err := d.main(ctx, &output{format: "table"})
	if code := a.end(ctx, nil, err); code != brokenPipe {
		t.Errorf("exit code %d: %v", code, err)
	}
	if _, err := os.Stat(folder); folder == "" || !os.IsNotExist(err) {
		t.Errorf("the folder %q is left behind: %v", folder, err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
}
