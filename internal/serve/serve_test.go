package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	token = "CANARY-token-0123456789"
	sum   = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)

// shelf opens one module by one token.
type shelf struct {
	bytes  []byte
	stands func() bool
	fault  error
	file   func(io.ReadSeeker) io.ReadSeeker
	closed atomic.Int32
}

type file struct {
	io.ReadSeeker
	closed *atomic.Int32
}

func (f file) Close() error { f.closed.Add(1); return nil }

func (s *shelf) OpenModule(_ context.Context, t string) (io.ReadSeekCloser, Module, error) {
	if s.fault != nil {
		return nil, Module{}, s.fault
	}
	if t != token {
		return nil, Module{}, fmt.Errorf("open: %w", ErrGone)
	}
	var body io.ReadSeeker = bytes.NewReader(s.bytes)
	if s.file != nil {
		body = s.file(body)
	}
	return file{body, &s.closed}, Module{Plugin: "team-a/auth", SHA256: sum, Size: int64(len(s.bytes)), Stands: s.stands}, nil
}

// start serves s over real HTTP.
func start(t *testing.T, s Opener, o Options) string {
	t.Helper()
	server := httptest.NewServer(New(s, o))
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	return server.URL
}

func get(t *testing.T, method, url string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	return answer
}

func TestServe_Answers(t *testing.T) {
	t.Parallel()
	s := &shelf{bytes: []byte("0123456789")}
	url := start(t, s, Options{})
	for name, row := range map[string]struct {
		method, path string
		header       []string
		status       int
		body         string
	}{
		"whole":           {"GET", PathPrefix + token, nil, 200, "0123456789"},
		"head":            {"HEAD", PathPrefix + token, nil, 200, ""},
		"range":           {"GET", PathPrefix + token, []string{"Range", "bytes=2-4"}, 206, "234"},
		"range beyond":    {"GET", PathPrefix + token, []string{"Range", "bytes=20-"}, 416, "invalid range: failed to overlap\n"},
		"unchanged":       {"GET", PathPrefix + token, []string{"If-None-Match", `"` + sum + `"`}, 304, ""},
		"changed":         {"GET", PathPrefix + token, []string{"If-None-Match", `"other"`}, 200, "0123456789"},
		"range of other":  {"GET", PathPrefix + token, []string{"Range", "bytes=2-4", "If-Range", `"other"`}, 200, "0123456789"},
		"unknown token":   {"GET", PathPrefix + "nothing", nil, 404, "Not Found\n"},
		"no token":        {"GET", PathPrefix, nil, 404, "Not Found\n"},
		"path in a token": {"GET", PathPrefix + token + "/x", nil, 404, "Not Found\n"},
		"elsewhere":       {"GET", "/", nil, 404, "Not Found\n"},
		"write":           {"POST", PathPrefix + token, nil, 405, "Method Not Allowed\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answer := get(t, row.method, url+row.path, row.header...)
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			if answer.StatusCode != row.status || string(body) != row.body {
				t.Errorf("want %d %q, got %d %q", row.status, row.body, answer.StatusCode, body)
			}
			wantCache, wantTag := "private, immutable, max-age=31536000", `"`+sum+`"`
			switch {
			case answer.StatusCode == 416:
				return // net/http takes back what was said of a body that is not sent
			case answer.StatusCode > 399:
				wantCache, wantTag = "no-store", ""
			}
			if diff := cmp.Diff([]string{wantCache, wantTag}, []string{answer.Header.Get("Cache-Control"), answer.Header.Get("ETag")}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestServe_RightIsAskedAtEveryRequest(t *testing.T) {
	t.Parallel()
	var stands atomic.Bool
	s := &shelf{bytes: []byte("0123456789"), stands: stands.Load}
	url := start(t, s, Options{})
	for _, header := range [][]string{nil, {"Range", "bytes=0-1"}, {"If-None-Match", `"` + sum + `"`}} {
		for _, method := range []string{"GET", "HEAD"} {
			if answer := get(t, method, url+PathPrefix+token, header...); answer.StatusCode != 404 {
				t.Errorf("%s %v without the right: got %d", method, header, answer.StatusCode)
			}
		}
	}
	stands.Store(true)
	if answer := get(t, "GET", url+PathPrefix+token); answer.StatusCode != 200 {
		t.Errorf("with the right: got %d", answer.StatusCode)
	}
}

// The right ends while the third MiB is sent: what arrives is cut off, by at most a
// MiB too late, and nobody can take it for the whole.
func TestServe_ClosedInTheMiddle(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	s := &shelf{
		bytes:  bytes.Repeat([]byte("x"), 8*step),
		stands: func() bool { return asked.Add(1) <= 3 }, // at the request, then for two MiB
	}
	var downloads atomic.Int32
	registry := prometheus.NewRegistry()
	url := start(t, s, Options{Registerer: registry, Downloaded: func(Module) { downloads.Add(1) }})
	answer := get(t, "GET", url+PathPrefix+token)
	n, err := io.Copy(io.Discard, answer.Body)
	if err == nil {
		t.Error("the body ended as if it were whole")
	}
	if n > 2*step {
		t.Errorf("want at most 2 MiB, got %d bytes", n)
	}
	if downloads.Load() != 0 {
		t.Error("counted as a download")
	}
	want := `# HELP stile_module_requests_total Requests for modules, by HTTP status; "closed" is a body that ended with its right.
# TYPE stile_module_requests_total counter
stile_module_requests_total{code="closed"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "stile_module_requests_total"); err != nil {
		t.Error(err)
	}
	if s.closed.Load() != 1 {
		t.Errorf("file closed %d times", s.closed.Load())
	}
}

type breaking struct {
	io.ReadSeeker
	after int
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.after <= 0 {
		return 0, errors.New("disk on fire")
	}
	n, err := b.ReadSeeker.Read(p[:min(len(p), b.after)])
	b.after -= n
	return n, err
}

// fileShelf opens a file of the disk.
type fileShelf struct {
	path   string
	stands func() bool
}

func (s fileShelf) OpenModule(context.Context, string) (io.ReadSeekCloser, Module, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, Module{}, err
	}
	info, err := f.Stat()
	return f, Module{Plugin: "team-a/auth", SHA256: sum, Size: info.Size(), Stands: s.stands}, err
}

func newFileShelf(t testing.TB, size int) fileShelf {
	t.Helper()
	path := filepath.Join(t.TempDir(), "module")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0123456789abcdef"), size/16), 0o600); err != nil {
		t.Fatal(err)
	}
	return fileShelf{path: path}
}

// A file goes to the connection without a copy, and the right is asked for as often.
func TestServe_AFileIsGuardedAsWell(t *testing.T) {
	t.Parallel()
	const size = 5 * step
	var asked, downloads atomic.Int32
	s := newFileShelf(t, size)
	want, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	s.stands = func() bool { asked.Add(1); return true }
	url := start(t, s, Options{Downloaded: func(Module) { downloads.Add(1) }})
	body, err := io.ReadAll(get(t, "GET", url+PathPrefix+token).Body)
	if err != nil || !bytes.Equal(body, want) {
		t.Errorf("%d bytes, %v", len(body), err)
	}
	if n := asked.Load(); n != 6 { // at the request, and for each MiB
		t.Errorf("the right was asked for %d times", n)
	}
	part, err := io.ReadAll(get(t, "GET", url+PathPrefix+token, "Range", "bytes=1048570-2097160").Body)
	if err != nil || !bytes.Equal(part, want[1048570:2097161]) {
		t.Errorf("a range: %d bytes, %v", len(part), err)
	}

	asked.Store(0)
	s.stands = func() bool { return asked.Add(1) <= 3 }
	url = start(t, s, Options{Downloaded: func(Module) { downloads.Add(1) }})
	if n, err := io.Copy(io.Discard, get(t, "GET", url+PathPrefix+token).Body); err == nil || n > 2*step {
		t.Errorf("the right ended after two MiB: %d bytes, %v", n, err)
	}

	short := s
	asked.Store(0)
	short.stands = func() bool {
		if asked.Add(1) == 3 { // its first MiB is sent
			_ = os.Truncate(s.path, 3*step)
		}
		return true
	}
	url = start(t, short, Options{Downloaded: func(Module) { downloads.Add(1) }})
	if _, err := io.Copy(io.Discard, get(t, "GET", url+PathPrefix+token).Body); err == nil {
		t.Error("a file that became shorter ended as if it were whole")
	}
	if n := downloads.Load(); n != 1 {
		t.Errorf("%d downloads", n)
	}
}

func TestServe_BrokenFileIsCutOff(t *testing.T) {
	t.Parallel()
	s := &shelf{bytes: bytes.Repeat([]byte("x"), 1<<20), file: func(r io.ReadSeeker) io.ReadSeeker { return &breaking{r, 1 << 18} }}
	answer := get(t, "GET", start(t, s, Options{})+PathPrefix+token)
	if _, err := io.Copy(io.Discard, answer.Body); err == nil {
		t.Error("the body ended as if it were whole")
	}
}

func TestServe_DownloadsAreCountedWhole(t *testing.T) {
	t.Parallel()
	var downloads atomic.Int32
	s := &shelf{bytes: bytes.Repeat([]byte("x"), 3*step+5), stands: func() bool { return true }}
	url := start(t, s, Options{Downloaded: func(m Module) {
		if m.Plugin == "team-a/auth" {
			downloads.Add(1)
		}
	}})
	for _, header := range [][]string{nil, {"Range", "bytes=0-1"}, {"If-None-Match", `"` + sum + `"`}} {
		_, _ = io.Copy(io.Discard, get(t, "GET", url+PathPrefix+token, header...).Body)
	}
	get(t, "HEAD", url+PathPrefix+token)
	if downloads.Load() != 1 {
		t.Errorf("want 1 download, got %d", downloads.Load())
	}
}

func TestServe_UnavailableIsNotGone(t *testing.T) {
	t.Parallel()
	answer := get(t, "GET", start(t, &shelf{fault: errors.New("disk on fire")}, Options{})+PathPrefix+token)
	if answer.StatusCode != 503 || answer.Header.Get("Retry-After") == "" {
		t.Errorf("got %d", answer.StatusCode)
	}
}

func TestP3_TokenIsNeverLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	o := Options{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, s := range []*shelf{
		{bytes: []byte("x")},
		{fault: errors.New("disk on fire")},
		{bytes: []byte("x"), stands: func() bool { return false }},
	} {
		for _, path := range []string{PathPrefix + token, PathPrefix + token + "x", PathPrefix + token + "/x"} {
			w := httptest.NewRecorder()
			New(s, o).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
			if strings.Contains(w.Body.String(), token) {
				t.Errorf("%s: the answer holds the token", path)
			}
		}
	}
	if log.Len() == 0 || strings.Contains(log.String(), token) {
		t.Errorf("log: %s", log.String())
	}
}
