// Package canary finds credentials that leaked. A test plants credentials that
// nothing else looks like, hands over all that was logged, served, measured or
// written, and fails if one of them is in it, in any form from which it could be
// read or computed. Its one rule: what cannot be searched fails the test too.
package canary

import (
	"bytes"
	"crypto/md5" // #nosec G501 -- looked for, not used
	"crypto/rand"
	"crypto/sha1" // #nosec G505 -- looked for, not used
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// mark is what every credential made here begins with.
const mark = "CANARY-"

// distinctive is how many bytes of a credential made here tell it from all else: so
// many are searched for where a form can be cut short.
const distinctive = len(mark) + 12

// Watcher knows what was planted and searches what was handed over when its test
// ends. It is safe for concurrent use.
type Watcher struct {
	t testing.TB

	mu      sync.Mutex // guards what follows
	planted []string
	seen    []exhibit
	dirs    []string
	log     bytes.Buffer
}

type exhibit struct {
	name    string
	content []byte
}

// Watch returns a Watcher that searches when t ends, after everything that the test
// cleans up. Call it first of all, before t.TempDir and before servers are started.
func Watch(t testing.TB) *Watcher {
	t.Helper()
	t.TempDir() // so that the folders of this test are removed after the search, not before
	w := &Watcher{t: t}
	t.Cleanup(w.search)
	return w
}

// Credential returns a new credential to plant. It can be a user name, a password or
// a token, and has characters that URLs and JSON escape.
func (w *Watcher) Credential() string {
	c := mark + rand.Text() + "+/&"
	w.mu.Lock()
	defer w.mu.Unlock()
	w.planted = append(w.planted, c)
	return c
}

// Track searches for values made elsewhere as well, such as tokens that a server
// minted. Each must be long enough not to occur by chance.
func (w *Watcher) Track(values ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, v := range values {
		if len(v) < 12 {
			w.t.Errorf("canary: a tracked value of %d bytes would be found by chance: want 12 or more", len(v))
			continue
		}
		w.planted = append(w.planted, v)
	}
}

// Add hands over content to be searched: an answer, a page, a dump of metrics.
func (w *Watcher) Add(name string, content []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, exhibit{name, bytes.Clone(content)})
}

// Errors hands over the text of errors, in all the ways they are printed.
func (w *Watcher) Errors(errs ...error) {
	for _, err := range errs {
		w.Add("error", fmt.Appendf(nil, "%v\n%+v\n%#v", err, err, err))
	}
}

// Dir hands over a folder: the names and content of all files in it as they are when
// the test ends.
func (w *Watcher) Dir(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirs = append(w.dirs, path)
}

// Log returns a logger whose every line, at every level, is searched.
func (w *Watcher) Log() *slog.Logger {
	return slog.New(slog.NewJSONHandler((*logWriter)(w), &slog.HandlerOptions{Level: slog.LevelDebug - 8, AddSource: true}))
}

// Logged returns what was logged so far.
func (w *Watcher) Logged() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

type logWriter Watcher

func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

// search fails the test for everything that leaked. It names the form and the place,
// never the credential.
func (w *Watcher) search() {
	w.mu.Lock()
	defer w.mu.Unlock()
	needles := w.needles()
	look := func(name string, content []byte) {
		for _, n := range needles {
			if i := bytes.Index(content, n.bytes); i >= 0 {
				w.t.Errorf("canary: %s holds credential %d as %s, at byte %d", name, n.number, n.form, i)
			}
		}
	}
	look("the log", w.log.Bytes())
	for _, e := range w.seen {
		look(e.name, e.content)
	}
	for _, dir := range w.dirs {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			look("the name of a file", []byte(path))
			if !entry.Type().IsRegular() {
				return nil
			}
			content, err := os.ReadFile(path) // #nosec G122 -- a test's own folder
			if err != nil {
				return err
			}
			look("file "+path, content)
			return nil
		})
		if err != nil {
			w.t.Errorf("canary: a folder cannot be searched: %v", err)
		}
	}
}

// needle is one form of one credential.
type needle struct {
	number int
	form   string
	bytes  []byte
}

// needles returns every form of every credential, and of every pair user:password of
// two of them where the pair is hashed as a whole.
func (w *Watcher) needles() []needle {
	var all []needle
	for i, c := range w.planted {
		telling := c
		if strings.HasPrefix(c, mark) {
			telling = c[:distinctive]
		}
		for form, b := range readable(telling) {
			all = append(all, needle{i + 1, form, b})
		}
		for form, b := range readable(c) {
			all = append(all, needle{i + 1, form, b})
		}
		for form, b := range hashed(c) {
			all = append(all, needle{i + 1, form, b})
		}
		for _, other := range w.planted {
			if len(w.planted) <= 32 && other != c {
				for form, b := range hashed(c + ":" + other) {
					all = append(all, needle{i + 1, form + " of user:password", b})
				}
			}
		}
	}
	return all
}

// readable returns the forms that can be turned back.
func readable(c string) map[string][]byte {
	quoted, err := json.Marshal(c)
	if err != nil {
		panic(err) // a string cannot fail
	}
	forms := map[string][]byte{
		"plain":                 []byte(c),
		"hex":                   []byte(hex.EncodeToString([]byte(c))),
		"upper-case hex":        []byte(strings.ToUpper(hex.EncodeToString([]byte(c)))),
		"URL query":             []byte(url.QueryEscape(c)),
		"URL path":              []byte(url.PathEscape(c)),
		"URL, every byte":       each(c, "%%%02X"),
		"URL, lower-case hex":   each(c, "%%%02x"),
		"JSON":                  bytes.Trim(quoted, `"`),
		"JSON, every character": each(c, `\u%04x`),
		"quoted hex":            each(c, `\x%02x`),
		"decimal list":          bytes.TrimSuffix(each(c, "%d "), []byte(" ")),
		"0x list":               bytes.TrimSuffix(each(c, "0x%x, "), []byte(", ")),
	}
	for shift := range 3 {
		// The first and last characters depend on the neighbours too: leave them out.
		padded := append(make([]byte, shift), c...)
		for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "URL base64": base64.RawURLEncoding} {
			text := enc.EncodeToString(padded)
			from, to := []int{0, 2, 3}[shift], len(text)
			if len(padded)%3 != 0 {
				to--
			}
			forms[fmt.Sprintf("%s, alignment %d", name, shift)] = []byte(text[from:to])
		}
	}
	return forms
}

func each(c, format string) []byte {
	var b []byte
	for i := range len(c) {
		b = fmt.Appendf(b, format, c[i])
	}
	return b
}

// hashed returns the forms that can be computed by whoever guesses the credential.
func hashed(c string) map[string][]byte {
	s256, s1, s5, s512 := sha256.Sum256([]byte(c)), sha1.Sum([]byte(c)), md5.Sum([]byte(c)), sha512.Sum512([]byte(c)) // #nosec G401 -- looked for, not used
	forms := make(map[string][]byte)
	for name, sum := range map[string][]byte{"sha256": s256[:], "sha1": s1[:], "md5": s5[:], "sha512": s512[:]} {
		forms[name] = sum
		forms[name+", hex"] = []byte(hex.EncodeToString(sum))
		forms[name+", upper-case hex"] = []byte(strings.ToUpper(hex.EncodeToString(sum)))
		forms[name+", base64"] = []byte(base64.RawStdEncoding.EncodeToString(sum))
		forms[name+", URL base64"] = []byte(base64.RawURLEncoding.EncodeToString(sum))
	}
	return forms
}
