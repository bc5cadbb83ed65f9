package oci

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stileproject/stile/internal/canary"
	"github.com/stileproject/stile/internal/secret"
)

// config returns a dockerconfigjson whose entries have their own name as password.
func config(names ...string) []byte {
	auths := map[string]any{}
	for _, n := range names {
		auths[n] = map[string]string{"username": "user", "password": n}
	}
	b, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		panic(err)
	}
	return b
}

func keyring(t testing.TB, origin string, data []byte) Keyring {
	t.Helper()
	k, err := ParseDockerConfigJSON(testKey(t), origin, data)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// passwords returns what the candidates for image would send, in order.
func passwords(t testing.TB, k Keyring, image string) []string {
	t.Helper()
	c, err := k.For(ref(t, image))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, one := range c.Candidates() {
		got = append(got, string(one.password.Reveal()))
	}
	return got
}

func TestKeyring_LooksUpAsTheKubelet(t *testing.T) {
	t.Parallel()
	anonymous := []string{""}
	for _, row := range []struct {
		name    string
		entries []string
		image   string
		want    []string
	}{
		{"host", []string{"r.example"}, "r.example/a/p", []string{"r.example"}},
		{"other host", []string{"r.example"}, "q.example/a/p", anonymous},
		{"scheme", []string{"https://r.example"}, "r.example/a/p", []string{"https://r.example"}},
		{"http scheme", []string{"http://r.example"}, "r.example/a/p", []string{"http://r.example"}},
		{"root path", []string{"https://r.example/"}, "r.example/a/p", []string{"https://r.example/"}},
		{"v2 path", []string{"https://r.example/v2/"}, "r.example/a/p", []string{"https://r.example/v2/"}},
		{"v1 path and more", []string{"https://r.example/v1/a"}, "r.example/a/p", []string{"https://r.example/v1/a"}},
		{"v2 without slash is a path", []string{"https://r.example/v2"}, "r.example/a/p", anonymous},
		{"port", []string{"r.example:5000"}, "r.example:5000/a/p", []string{"r.example:5000"}},
		{"entry without the port", []string{"r.example"}, "r.example:5000/a/p", anonymous},
		{"image without the port", []string{"r.example:5000"}, "r.example/a/p", anonymous},
		{"the port that https implies", []string{"r.example:443"}, "r.example/a/p", []string{"r.example:443"}},
		{"path", []string{"r.example/a"}, "r.example/a/p", []string{"r.example/a"}},
		{"path is a prefix of characters", []string{"r.example/a"}, "r.example/ab/p", []string{"r.example/a"}},
		{"other path", []string{"r.example/b"}, "r.example/a/p", anonymous},
		{"more specific first", []string{"r.example", "r.example/a", "r.example/a/p"}, "r.example/a/p", []string{"r.example/a/p", "r.example/a", "r.example"}},
		{"glob", []string{"*.example"}, "r.example/a/p", []string{"*.example"}},
		{"glob within a label", []string{"r*.example"}, "r1.example/a/p", []string{"r*.example"}},
		{"glob covers one label", []string{"*.example"}, "r.eu.example/a/p", anonymous},
		{"glob in a later label", []string{"r.*.example"}, "r.eu.example/a/p", []string{"r.*.example"}},
		{"glob and port", []string{"*.example:5000"}, "r.example:5000/a/p", []string{"*.example:5000"}},
		{"glob and other port", []string{"*.example:5001"}, "r.example:5000/a/p", anonymous},
		{"glob and path", []string{"*.example/a"}, "r.example/a/p", []string{"*.example/a"}},
		{"glob comes last, in reverse order", []string{"*.example", "r.example"}, "r.example/a/p", []string{"r.example", "*.example"}},
		{"IPv6", []string{"[::1]:5000"}, "[::1]:5000/a/p", []string{"[::1]:5000"}},
		{"case of the host", []string{"R.Example"}, "r.example/a/p", []string{"R.Example"}},
		{"docker hub as docker login writes it", []string{"https://index.docker.io/v1/"}, "library/p", []string{"https://index.docker.io/v1/"}},
		{"docker hub by short name", []string{"docker.io"}, "p", []string{"docker.io"}},
		{"docker hub: what matches goes before the default", []string{"docker.io", "https://index.docker.io/v1/"}, "p", []string{"docker.io"}},
		{"docker hub by path", []string{"docker.io/team", "docker.io/other"}, "docker.io/team/p", []string{"docker.io/team"}},
		{"docker hub is nobody else's default", []string{"https://index.docker.io/v1/"}, "r.example/a/p", anonymous},
		{"docker hub by glob", []string{"*.io"}, "p", []string{"*.io"}},
		{"nothing", nil, "r.example/a/p", anonymous},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(row.want, passwords(t, keyring(t, "s", config(row.entries...)), row.image)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestKeyring_ReadsEveryFormOfACredential(t *testing.T) {
	t.Parallel()
	auth := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, row := range map[string]struct{ entry, username, password, identity, bearer string }{
		"user and password":   {entry: `{"username":"u","password":"p"}`, username: "u", password: "p"},
		"auth":                {entry: `{"auth":"` + auth("u:p:q") + `"}`, username: "u", password: "p:q"},
		"auth unpadded":       {entry: `{"auth":"` + strings.TrimRight(auth("us:p"), "=") + `"}`, username: "us", password: "p"},
		"auth wins":           {entry: `{"username":"x","password":"y","auth":"` + auth("u:p") + `"}`, username: "u", password: "p"},
		"identity token":      {entry: `{"auth":"` + auth("u:") + `","identitytoken":"i"}`, username: "u", identity: "i"},
		"registry token":      {entry: `{"registrytoken":"b"}`, bearer: "b"},
		"unknown fields stay": {entry: `{"username":"u","password":"p","email":"e","x":1}`, username: "u", password: "p"},
	} {
		for legacy, parse := range map[bool]func() (Keyring, error){
			false: func() (Keyring, error) {
				return ParseDockerConfigJSON(testKey(t), "s", []byte(`{"auths":{"r.example":`+row.entry+`}}`))
			},
			true: func() (Keyring, error) {
				return ParseDockerCfg(testKey(t), "s", []byte(`{"r.example":`+row.entry+`}`))
			},
		} {
			k, err := parse()
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.For(ref(t, "r.example/a/p"))
			if err != nil {
				t.Errorf("%s, legacy %v: %v", name, legacy, err)
				continue
			}
			c := got.Candidates()[0]
			for what, pair := range map[string][2]string{
				"user": {string(c.username.Reveal()), row.username}, "password": {string(c.password.Reveal()), row.password},
				"identity": {string(c.identity.Reveal()), row.identity}, "bearer": {string(c.bearer.Reveal()), row.bearer},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s, legacy %v: %s is %q, want %q", name, legacy, what, pair[0], pair[1])
				}
			}
			if want := "s, entry r.example"; c.Origin() != want {
				t.Errorf("origin %q, want %q", c.Origin(), want)
			}
		}
	}
}

func TestMalformedEntryIsAnErrorForItsRegistryAlone(t *testing.T) {
	t.Parallel()
	w := canary.Watch(t)
	pass := w.Credential()
	for name, entry := range map[string]string{
		"auth without colon": `{"auth":"` + base64.StdEncoding.EncodeToString([]byte(pass)) + `"}`,
		"auth no base64":     `{"auth":"` + pass + `"}`,
		"no object":          `"` + pass + `"`,
		"null":               `null`,
		"empty":              `{}`,
		"number":             `{"username":"` + pass + `","password":1}`,
		"line feed":          `{"username":"u","password":"` + pass + `\n"}`,
		"auth is a list":     `{"auth":["` + pass + `"]}`,
	} {
		k := keyring(t, "pull secret team-a/regcred", []byte(`{"auths":{"r.example":`+entry+`,"q.example":{"username":"u","password":"p"}}}`))
		_, err := k.For(ref(t, "r.example/a/p"))
		if !errors.Is(err, Invalid) || !strings.Contains(fmt.Sprint(err), "pull secret team-a/regcred, entry r.example: ") {
			t.Errorf("%s: got %v", name, err)
		}
		if c, err := k.For(ref(t, "q.example/a/p")); err != nil || c.Anonymous() {
			t.Errorf("%s: the entry beside it: %v", name, err)
		}
		if len(k.Warnings()) != 1 {
			t.Errorf("%s: warnings %q", name, k.Warnings())
		}
		w.Errors(err)
		w.Add("warnings", []byte(strings.Join(k.Warnings(), "\n")))
	}
	for _, whole := range []string{pass, `["` + pass + `"]`, `{"auths":["` + pass + `"]}`, `{"auths":{"r.example":{"auth":"` + pass} {
		_, err := ParseDockerConfigJSON(testKey(t), "pull secret team-a/regcred", []byte(whole))
		if !errors.Is(err, Invalid) {
			t.Errorf("%q: got %v", whole, err)
		}
		w.Errors(err)
	}
	k := keyring(t, "s", []byte(`{"auths":{"https://user:`+strings.ReplaceAll(pass, "/", "")+`@r.example":{"auth":"x"},"%zz`+pass+`":{}}}`))
	w.Add("warnings", []byte(strings.Join(k.Warnings(), "\n")))
}

func TestCredentials_FingerprintIsOfWhatApplies(t *testing.T) {
	t.Parallel()
	fingerprint := func(image string, files ...[]byte) string {
		var rings []Keyring
		for i, f := range files {
			rings = append(rings, keyring(t, fmt.Sprintf("pull secret ns/s%d", i), f))
		}
		var seen string
		for range 8 {
			rand.Shuffle(len(rings), func(i, j int) { rings[i], rings[j] = rings[j], rings[i] })
			c, err := JoinKeyrings(rings...).For(ref(t, image))
			if err != nil {
				t.Fatal(err)
			}
			f := fmt.Sprintf("%x", [32]byte(c.Fingerprint()))
			if seen != "" && seen != f {
				t.Error("the order of secrets matters")
			}
			seen = f
		}
		return seen
	}
	other := []byte(`{"auths":{"r.example":{"username":"user","password":"other"}}}`)
	one := fingerprint("r.example/a/p", config("r.example"))
	for name, same := range map[string]string{
		"another repository":   fingerprint("r.example/b/q:v2", config("r.example")),
		"unrelated entries":    fingerprint("r.example/a/p", config("r.example", "q.example", "r.example:5000")),
		"a duplicate":          fingerprint("r.example/a/p", config("r.example"), config("r.example")),
		"an unrelated secret":  fingerprint("r.example/a/p", config("q.example"), config("r.example")),
		"the default spelling": fingerprint("r.example:443/a/p", config("r.example")),
	} {
		if same != one {
			t.Errorf("%s changes the fingerprint", name)
		}
	}
	two := fingerprint("r.example/a/p", config("r.example"), other)
	if two == one || two == fingerprint("r.example/a/p", other) {
		t.Error("a second candidate does not change the fingerprint")
	}
	if fingerprint("r.example/a/p") != strings.Repeat("0", 64) {
		t.Error("anonymous has a fingerprint")
	}
}

func TestCredentials_OfOneRankAreOrderedByFingerprint(t *testing.T) {
	t.Parallel()
	a := keyring(t, "a", []byte(`{"auths":{"r.example":{"username":"u","password":"1"},"https://r.example":{"username":"u","password":"2"}}}`))
	b := keyring(t, "b", []byte(`{"auths":{"r.example/v2/":{"username":"u","password":"3"},"r.example/a":{"username":"u","password":"4"}}}`))
	got := passwords(t, JoinKeyrings(a, b), "r.example/a/p")
	if len(got) != 4 || got[0] != "4" {
		t.Fatalf("got %q", got)
	}
	if again := passwords(t, JoinKeyrings(b, a), "r.example/a/p"); !slices.Equal(got, again) {
		t.Errorf("got %q and %q", got, again)
	}
}

// Which Secret says what must not matter, not even by the Secrets' names.
func TestCredentials_OfOneRankAreOrderedWhateverTheSecretsAreCalled(t *testing.T) {
	t.Parallel()
	ring := func(secret, password string) Keyring {
		return keyring(t, secret, []byte(`{"auths":{"r.example":{"username":"u","password":"`+password+`"}}}`))
	}
	one := passwords(t, JoinKeyrings(ring("a", "1"), ring("b", "2")), "r.example/a/p")
	two := passwords(t, JoinKeyrings(ring("a", "2"), ring("b", "1")), "r.example/a/p")
	if !slices.Equal(one, two) {
		t.Errorf("got %q and %q", one, two)
	}
}

func TestCredential_HasNoPrintableForm(t *testing.T) {
	t.Parallel()
	w := canary.Watch(t)
	user, pass := w.Credential(), w.Credential()
	c := NewCredential(testKey(t), "pull secret ns/s", user, pass)
	all := NewCredentials(testKey(t), c)
	file, err := json.Marshal(map[string]any{"auths": map[string]any{"r.example": map[string]string{"username": user, "password": pass}}})
	if err != nil {
		t.Fatal(err)
	}
	k := keyring(t, "s", file)
	type wrapped struct{ inner any }
	for _, v := range []any{c, &c, all, &all, k, &k, wrapped{c}, []Credential{c}, map[string]Credentials{"x": all}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			w.Add("printed with "+verb, fmt.Appendf(nil, verb, v))
		}
		w.Log().Info("value", "v", v)
		if b, err := json.Marshal(v); err == nil {
			w.Add("JSON", b)
		}
	}
}

func TestIsPullSecret(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		kind, key, content string
		want               bool
	}{
		"docker config":           {SecretTypeDockerConfigJSON, ".dockerconfigjson", "{}", true},
		"one that cannot be read": {SecretTypeDockerConfigJSON, ".dockerconfigjson", "p", true},
		"legacy":                  {SecretTypeDockerCfg, ".dockercfg", "{}", true},
		"the other key":           {SecretTypeDockerConfigJSON, ".dockercfg", "{}", false},
		"nothing under the key":   {SecretTypeDockerCfg, ".dockercfg", "", false},
		"opaque":                  {"Opaque", ".dockerconfigjson", "{}", false},
	} {
		if got := IsPullSecret(one.kind, map[string]secret.Secret{one.key: secret.New([]byte(one.content))}); got != one.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestParsePullSecret(t *testing.T) {
	t.Parallel()
	entries := `{"r.example":{"username":"u","password":"p"}}`
	data := func(name, content string) map[string]secret.Secret {
		return map[string]secret.Secret{name: secret.New([]byte(content))}
	}
	for name, one := range map[string]struct {
		kind string
		data map[string]secret.Secret
		says string // of the error; empty = none
	}{
		"docker config":  {SecretTypeDockerConfigJSON, data(".dockerconfigjson", `{"auths":`+entries+`}`), ""},
		"legacy":         {SecretTypeDockerCfg, data(".dockercfg", entries), ""},
		"the other key":  {SecretTypeDockerConfigJSON, data(".dockercfg", entries), "has no key .dockerconfigjson"},
		"opaque":         {"Opaque", data(".dockerconfigjson", `{"auths":`+entries+`}`), `the type is "Opaque"`},
		"not JSON":       {SecretTypeDockerConfigJSON, data(".dockerconfigjson", "p"), "not a JSON object"},
		"empty":          {SecretTypeDockerConfigJSON, data(".dockerconfigjson", ""), "not a JSON object"},
		"legacy no JSON": {SecretTypeDockerCfg, data(".dockercfg", "p"), "not a JSON object"},
	} {
		k, err := ParsePullSecret(testKey(t), "pull secret ns/s", one.kind, one.data)
		if one.says != "" {
			if !errors.Is(err, Invalid) || !strings.Contains(err.Error(), "pull secret ns/s: invalid: "+one.says) {
				t.Errorf("%s: got %v", name, err)
			}
			continue
		}
		if got := passwords(t, k, "r.example/a/p"); err != nil || got[0] != "p" {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}
