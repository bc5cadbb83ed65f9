package oci

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func FuzzParseDockerConfigJSON(f *testing.F) {
	f.Add([]byte(`{"auths":{"r.example":{"auth":"dTpw"}}}`))
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"},"*.example:5000/a":{"identitytoken":"x"}}}`))
	f.Add([]byte(`{"r.example":{"auth":"bm8gY29sb24"}}`))
	f.Add([]byte(`{"auths":{"[::1]:5000":null,"%zz":{},"":{"auth":1}}}`))
	f.Add([]byte(`{"auths":{"[":{"auth":"dTpw"},"https://u:p@r.example/v2/":{}}}`))
	key := testKey(f)
	image, err := ParseReference("r.example/a/p:v1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func() (Keyring, error){
			func() (Keyring, error) { return ParseDockerConfigJSON(key, "s", data) },
			func() (Keyring, error) { return ParseDockerCfg(key, "s", data) },
		} {
			k, err := parse()
			if err != nil {
				if KindOf(err) != Invalid || strings.Contains(err.Error(), "dTpw") {
					t.Errorf("got %v", err)
				}
				continue
			}
			first, err1 := k.For(image)
			again, err2 := JoinKeyrings(Keyring{}, k, k).For(image)
			if (err1 == nil) != (err2 == nil) || first.Fingerprint() != again.Fingerprint() {
				t.Errorf("the same entries twice differ: %v, %v", err1, err2)
			}
			if err1 == nil {
				for _, c := range first.Candidates() {
					if !sendable(string(c.username.Reveal()) + string(c.password.Reveal()) + string(c.bearer.Reveal())) {
						t.Error("a candidate cannot be sent")
					}
				}
			}
		}
	})
}

func FuzzReadChallenge(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push"`,
		`Basic realm="x"`, `Basic realm="a, Bearer realm=\"b\"", Bearer realm="https://c"`, `bearer realm=https://auth.example/token,service=s`,
		`Negotiate, Basic`, `Bearer realm="unclosed`, `Bearer realm=`, `=,=,"`, `Bearer realm="\`, "Bearer\trealm = \"x\" ,", `Digest qop="auth", Bearer  realm="y"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c := readChallenge(http.Header{"Www-Authenticate": {line}})
		if (c.scheme == schemeBearer) != (c.realm != "") {
			t.Errorf("%q: %+v", line, c)
		}
		if len(c.realm)+len(c.service) > len(line) {
			t.Errorf("%q: more came out than went in: %+v", line, c)
		}
		(&session{client: &Client{}, base: mustURL("https://r.example/v2/")}).realmOrNil(c)
	})
}

func FuzzReadToken(f *testing.F) {
	for _, s := range []string{
		`{"token":"x"}`, `{"access_token":"x","expires_in":300}`, `{"token":"x","expires_in":"60"}`, `{"token":"x","expires_in":-1}`, `{"token":"x","expires_in":1e300}`,
		`{"token":"a\nb"}`, `{"token":null}`, `[]`, `{"token":"x","expires_in":{}}`, `{"token":"x","expires_in":0.5}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		token, life, ok := readToken(answer)
		if !ok {
			if token != "" {
				t.Error("a token that is not ok")
			}
			return
		}
		if token == "" || len(token) > maxToken || !sendable(token) || life <= 0 || life > 24*time.Hour {
			t.Errorf("%q, %v", token, life)
		}
	})
}
