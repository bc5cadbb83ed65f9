package oci

import (
	"net/http"
	"net/url"
	"testing"
)

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// realmOrNil is what fuzzing needs of realm: that it does not panic.
func (s *session) realmOrNil(c challenge) *url.URL {
	u, err := s.realm(c)
	if err != nil {
		return nil
	}
	return u
}

func TestReadChallenge(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		lines []string
		want  challenge
	}{
		{[]string{`Bearer realm="https://auth.example/token",service="s e",scope="a,b"`}, challenge{schemeBearer, "https://auth.example/token", "s e"}},
		{[]string{`bearer service=s , realm=https://auth.example/token?a=b`}, challenge{schemeBearer, "https://auth.example/token?a=b", "s"}},
		{[]string{`BASIC realm="x"`}, challenge{scheme: schemeBasic}},
		{[]string{`Basic`}, challenge{scheme: schemeBasic}},
		{[]string{`Basic realm="x"`, `Bearer realm="https://a"`}, challenge{schemeBearer, "https://a", ""}},
		{[]string{`Basic realm="x", Bearer realm="https://a"`}, challenge{schemeBearer, "https://a", ""}},
		{[]string{`Basic realm="Bearer realm=\"https://evil\""`}, challenge{scheme: schemeBasic}},
		{[]string{`Bearer service="s"`}, challenge{scheme: schemeOther}},
		{[]string{`Bearer realm="https://a",realm="https://b"`}, challenge{schemeBearer, "https://a", ""}},
		{[]string{`Bearer realm="unclosed`}, challenge{scheme: schemeOther}},
		{[]string{`Negotiate`, `NTLM`}, challenge{scheme: schemeOther}},
		{nil, challenge{scheme: schemeOther}},
	} {
		if got := readChallenge(http.Header{"Www-Authenticate": row.lines}); got != row.want {
			t.Errorf("%q: got %+v, want %+v", row.lines, got, row.want)
		}
	}
}
