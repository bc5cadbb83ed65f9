package canary

import (
	"crypto/md5"  // #nosec G501 -- planted, not used
	"crypto/sha1" // #nosec G505 -- planted, not used
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a test that remembers its failures instead of failing.
type recorder struct {
	testing.TB
	failures []string
	cleanups []func()
	dir      string
}

func (r *recorder) Helper()          {}
func (r *recorder) TempDir() string  { return r.dir }
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) end() {
	for _, f := range r.cleanups {
		f()
	}
}

// plant runs a watched test that leaks what form makes of a credential.
func plant(t *testing.T, leak func(w *Watcher, credential string)) []string {
	t.Helper()
	r := &recorder{TB: t, dir: t.TempDir()}
	w := Watch(r)
	c := w.Credential()
	w.Credential() // another one, to be told apart
	leak(w, c)
	r.end()
	for _, f := range r.failures {
		if strings.Contains(f, c) || strings.Contains(f, c[:distinctive]) {
			t.Errorf("the report itself leaks: %s", f)
		}
	}
	return r.failures
}

func forms() map[string]func(string) string {
	return map[string]func(string) string{
		"plain":         func(c string) string { return c },
		"cut short":     func(c string) string { return c[:distinctive+2] },
		"hex":           func(c string) string { return hex.EncodeToString([]byte(c)) },
		"upper hex":     func(c string) string { return fmt.Sprintf("%X", c) },
		"base64 at 0":   func(c string) string { return base64.StdEncoding.EncodeToString([]byte(c)) },
		"base64 at 1":   func(c string) string { return base64.StdEncoding.EncodeToString([]byte("u" + c + "x")) },
		"base64 at 2":   func(c string) string { return base64.StdEncoding.EncodeToString([]byte("u:" + c + "yz")) },
		"base64 at 3":   func(c string) string { return base64.StdEncoding.EncodeToString([]byte("me:" + c + "\n")) },
		"base64 URL":    func(c string) string { return base64.URLEncoding.EncodeToString([]byte("u:" + c)) },
		"base64 cut":    func(c string) string { return base64.StdEncoding.EncodeToString([]byte("user:" + c))[:32] },
		"URL query":     url.QueryEscape,
		"URL path":      url.PathEscape,
		"JSON":          func(c string) string { b, _ := json.Marshal(c); return string(b) },
		"Go quoted":     func(c string) string { return fmt.Sprintf("%q", c) },
		"byte slice":    func(c string) string { return fmt.Sprint([]byte(c)) },
		"byte slice #v": func(c string) string { return fmt.Sprintf("%#v", []byte(c)) },
		"sha256 hex":    func(c string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(c))) },
		"sha256 base64": func(c string) string { s := sha256.Sum256([]byte(c)); return base64.StdEncoding.EncodeToString(s[:]) },
		"sha1 hex":      func(c string) string { return fmt.Sprintf("%x", sha1.Sum([]byte(c))) },
		"sha1 base64":   func(c string) string { s := sha1.Sum([]byte(c)); return base64.URLEncoding.EncodeToString(s[:]) },
		"md5 hex":       func(c string) string { return fmt.Sprintf("%X", md5.Sum([]byte(c))) },
		"md5 base64":    func(c string) string { s := md5.Sum([]byte(c)); return base64.StdEncoding.EncodeToString(s[:]) },
	}
}

func TestEveryFormIsFound(t *testing.T) {
	t.Parallel()
	for name, form := range forms() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for place, put := range map[string]func(w *Watcher, leaked string){
				"log":    func(w *Watcher, leaked string) { w.Log().Debug("odd", "value", leaked) },
				"answer": func(w *Watcher, leaked string) { w.Add("an answer", []byte("<"+leaked+">")) },
				"error":  func(w *Watcher, leaked string) { w.Errors(errors.New("because " + leaked)) },
				"file": func(w *Watcher, leaked string) {
					dir := t.TempDir()
					w.Dir(dir)
					if err := os.WriteFile(filepath.Join(dir, "f"), []byte("\x00"+leaked), 0o600); err != nil {
						t.Fatal(err)
					}
				},
			} {
				failures := plant(t, func(w *Watcher, c string) { put(w, form(c)) })
				if len(failures) == 0 {
					t.Errorf("in the %s: not found", place)
				}
				for _, f := range failures {
					if !strings.Contains(f, "credential 1 ") {
						t.Errorf("in the %s: %s", place, f)
					}
				}
			}
		})
	}
}

func TestPairsFileNamesAndTrackedValuesAreFound(t *testing.T) {
	t.Parallel()
	for name, leak := range map[string]func(w *Watcher, c string){
		"sha256 of user:password": func(w *Watcher, c string) {
			w.Add("x", fmt.Appendf(nil, "%x", sha256.Sum256([]byte(c+":"+w.Credential()))))
		},
		"file name": func(w *Watcher, c string) {
			dir := t.TempDir()
			w.Dir(dir)
			if err := os.WriteFile(filepath.Join(dir, url.PathEscape(c)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"tracked": func(w *Watcher, _ string) {
			w.Track("a token that a server minted")
			w.Add("x", fmt.Appendf(nil, "%x", "a token that a server minted"))
		},
		"a folder that is gone": func(w *Watcher, _ string) { w.Dir(filepath.Join(t.TempDir(), "gone")) },
		"a short value":         func(w *Watcher, _ string) { w.Track("abc") },
	} {
		if failures := plant(t, leak); len(failures) == 0 {
			t.Errorf("%s: not found", name)
		}
	}
}

func TestWhatIsCleanPasses(t *testing.T) {
	t.Parallel()
	failures := plant(t, func(w *Watcher, c string) {
		dir := t.TempDir()
		w.Dir(dir)
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("nothing here"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.Log().Info("started", "credential", "fp:0123456789ab")
		w.Add("metrics", []byte(`stile_registry_requests_total{registry="other",code="200"} 1`))
		w.Errors(errors.New("check r.example/a: unauthorized (401)"))
	})
	if len(failures) > 0 {
		t.Errorf("found what is not there: %q", failures)
	}
}

func TestFoldersAreSearchedBeforeTheyAreRemoved(t *testing.T) {
	t.Parallel()
	var dir string
	t.Run("inner", func(t *testing.T) {
		w := Watch(t)
		dir = t.TempDir()
		w.Dir(dir) // the search fails if the folder is gone by then
	})
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder is still there")
	}
}
