package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/stileproject/stile/internal/secret"
)

const canary = "CANARY-7d1f"

// wrapped hides a secret where fmt does not call methods: in unexported fields.
type wrapped struct {
	inner secret.Secret
	list  []secret.Secret
	byKey map[string]secret.Secret
	ptr   *secret.Secret
	any   any
}

func TestP3_SecretHasNoPrintableForm(t *testing.T) {
	t.Parallel()
	s := secret.New([]byte(canary))
	values := map[string]any{
		"value": s, "pointer": &s, "slice": []secret.Secret{s}, "map": map[string]secret.Secret{"a": s},
		"exported field":   struct{ Password secret.Secret }{s},
		"unexported field": wrapped{inner: s, list: []secret.Secret{s}, byKey: map[string]secret.Secret{"a": s}, ptr: &s, any: s},
	}
	verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%e", "%t", "%p", "%T", "%10.3s"}
	for name, v := range values {
		for _, verb := range verbs {
			refuse(t, name+" "+verb, []byte(fmt.Sprintf(verb, v)))
		}
		var logged bytes.Buffer
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "secret", v)
		slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "secret", v)
		refuse(t, name+" slog", logged.Bytes())
		if b, err := json.Marshal(v); err == nil {
			refuse(t, name+" json", b)
		}
		if b, err := yaml.Marshal(v); err == nil {
			refuse(t, name+" yaml", b)
		}
	}
	if got := fmt.Sprint(s); got != "[secret]" {
		t.Errorf("printed: got %q, want [secret]", got)
	}
	if got := string(s.Reveal()); got != canary {
		t.Errorf("revealed: got %q", got)
	}
}

// refuse fails if out holds the canary, plain, as hexadecimal or as a list of numbers.
func refuse(t *testing.T, where string, out []byte) {
	t.Helper()
	numbers := strings.Trim(fmt.Sprint([]byte(canary)), "[]")
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), numbers} {
		if bytes.Contains(out, []byte(form)) {
			t.Errorf("%s: leaks the secret: %s", where, out)
		}
	}
}

func TestP3_KeysHaveNoPrintableForm(t *testing.T) {
	t.Parallel()
	raw := bytes.Repeat([]byte{0xAB}, secret.Size)
	root, err := secret.NewRoot(raw, raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{root, root.Key(secret.ForProofs), root.Box(secret.ForState), &root} {
			if out := fmt.Sprintf(verb, v); strings.Contains(strings.ToLower(out), "abab") || strings.Contains(out, "171 171") {
				t.Errorf("%s of %T leaks the key: %s", verb, v, out)
			}
		}
	}
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	root := mustRoot(t, 1)
	proofs, urls := root.Key(secret.ForProofs), root.Key(secret.ForURLs)
	a := secret.New([]byte(canary))
	if a.Fingerprint(proofs) != secret.New([]byte(canary)).Fingerprint(root.Key(secret.ForProofs)) {
		t.Error("equal secrets under one key differ")
	}
	if a.Fingerprint(proofs) == a.Fingerprint(urls) {
		t.Error("two purposes give one fingerprint")
	}
	if a.Fingerprint(proofs) == a.Fingerprint(mustRoot(t, 2).Key(secret.ForProofs)) {
		t.Error("two roots give one fingerprint")
	}
	if proofs.Sum([]byte("ab"), []byte("c")) == proofs.Sum([]byte("a"), []byte("bc")) {
		t.Error("parts run into each other")
	}
	if proofs.Sum([]byte("a")) == proofs.Sum([]byte("a"), nil) {
		t.Error("an empty part is lost")
	}
	if got := (secret.Fingerprint{}).String(); got != "anonymous" {
		t.Errorf("zero fingerprint: got %q", got)
	}
	if got := a.Fingerprint(proofs).String(); len(got) != len("fp:")+12 || !strings.HasPrefix(got, "fp:") {
		t.Errorf("fingerprint prints as %q", got)
	}
}

func TestKeyIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	key := mustRoot(t, 1).Key(secret.ForRows)
	want := key.Sum([]byte("x"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if key.Sum([]byte("x")) != want {
					t.Error("a concurrent sum differs")
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestParseRoot(t *testing.T) {
	t.Parallel()
	hex64 := strings.Repeat("ab", secret.Size)
	for name, tt := range map[string]struct {
		file string
		want string // part of the error; empty = no error
	}{
		"current alone":         {"current: " + hex64, ""},
		"current and previous":  {"current: " + hex64 + "\nprevious: " + hex64, ""},
		"nothing":               {"", "current: want 32 bytes, have 0"},
		"too short":             {"current: abab", "current: want 32 bytes, have 2"},
		"not hexadecimal":       {"current: CANARY", "current: want 64 hexadecimal digits"},
		"previous not a key":    {"current: " + hex64 + "\nprevious: zz", "previous: want 64 hexadecimal digits"},
		"unknown field":         {"current: " + hex64 + "\nCANARY: x", `not YAML with the fields "current" and "previous" alone`},
		"not YAML":              {"CANARY\n\t: [", "not YAML"},
		"current of other type": {"current: [CANARY]", "not YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, err := secret.ParseRoot([]byte(tt.file))
			if tt.want == "" {
				if err != nil || !root.Valid() {
					t.Fatalf("got %v", err)
				}
				again, err := secret.ParseRoot(secret.FormatRoot(root))
				if err != nil || again.Key(secret.ForRows).Sum(nil) != root.Key(secret.ForRows).Sum(nil) {
					t.Fatalf("a written key file reads back differently: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want an error with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "CANARY") {
				t.Errorf("the error quotes the file: %v", err)
			}
		})
	}
}

func TestPreviousRoot(t *testing.T) {
	t.Parallel()
	before := mustRoot(t, 1)
	if _, ok := before.Previous(secret.ForRows); ok {
		t.Error("a root without a previous key has one")
	}
	after, err := secret.NewRoot(bytes.Repeat([]byte{2}, secret.Size), bytes.Repeat([]byte{1}, secret.Size))
	if err != nil {
		t.Fatal(err)
	}
	old, ok := after.Previous(secret.ForRows)
	if !ok || old.Sum([]byte("x")) != before.Key(secret.ForRows).Sum([]byte("x")) {
		t.Error("after a rotation the previous key is not the old current one")
	}
}

func TestBox(t *testing.T) {
	t.Parallel()
	before := mustRoot(t, 1)
	sealed := before.Box(secret.ForState).Seal([]byte(canary))
	if bytes.Contains(sealed, []byte(canary)) {
		t.Error("sealed bytes show what they hold")
	}
	after, err := secret.NewRoot(bytes.Repeat([]byte{2}, secret.Size), bytes.Repeat([]byte{1}, secret.Size))
	if err != nil {
		t.Fatal(err)
	}
	for name, root := range map[string]secret.Root{"the same root": before, "after a rotation": after} {
		if plain, err := root.Box(secret.ForState).Open(sealed); err != nil || string(plain) != canary {
			t.Errorf("%s: got %q, %v", name, plain, err)
		}
	}
	altered := bytes.Clone(sealed)
	altered[len(altered)-1] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"another root":    func() ([]byte, error) { return mustRoot(t, 3).Box(secret.ForState).Open(sealed) },
		"another purpose": func() ([]byte, error) { return before.Box(secret.ForURLs).Open(sealed) },
		"altered":         func() ([]byte, error) { return before.Box(secret.ForState).Open(altered) },
		"cut":             func() ([]byte, error) { return before.Box(secret.ForState).Open(sealed[:5]) },
		"empty":           func() ([]byte, error) { return before.Box(secret.ForState).Open(nil) },
	} {
		if plain, err := open(); err == nil {
			t.Errorf("%s: opened to %q", name, plain)
		}
	}
}

func mustRoot(t *testing.T, fill byte) secret.Root {
	t.Helper()
	r, err := secret.NewRoot(bytes.Repeat([]byte{fill}, secret.Size), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func BenchmarkFingerprint(b *testing.B) {
	r, _ := secret.NewRoot(make([]byte, secret.Size), nil)
	key, part := r.Key(secret.ForProofs), []byte("registry.example:5000/team-a/plugin")
	b.ReportAllocs()
	for b.Loop() {
		key.Sum(part)
	}
}
