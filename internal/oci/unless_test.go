package oci

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A server that says "not modified" is asked nothing more; one that says so unasked, or
// gives a tag that is none, is not believed.
func TestDownloadUnless(t *testing.T) {
	t.Parallel()
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("If-None-Match"))
		switch {
		case r.URL.Path == "/always" || r.Header.Get("If-None-Match") == `"v1"`:
			w.WriteHeader(http.StatusNotModified)
		case r.URL.Path == "/odd":
			w.Header().Set("ETag", "not quoted")
			_, _ = io.WriteString(w, "odd")
		default:
			w.Header().Set("ETag", `"v1"`)
			_, _ = io.WriteString(w, "one")
		}
	}))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	c, err := NewClient(Settings{Key: testKey(t), Registries: []Registry{{Host: host, PlainHTTP: true}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	trust, err := c.Trust(host, Operator)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ path, tag, body, newTag, fails string }{
		{"/m", "", "one", `"v1"`, ""},
		{"/m", `"v1"`, "", `"v1"`, ""},
		{"/m", `"v0"`, "one", `"v1"`, ""},
		{"/odd", "", "odd", "", ""},
		{"/always", "", "", "", "304"},
	} {
		body, tag, err := c.DownloadUnless(t.Context(), s.URL+step.path, trust, step.tag)
		if step.fails != "" {
			if err == nil || !strings.Contains(err.Error(), step.fails) {
				t.Errorf("%s: %v", step.path, err)
			}
			continue
		}
		if err != nil || tag != step.newTag || (body == nil) != (step.body == "") {
			t.Fatalf("%s %s: %v, tag %s, %v", step.path, step.tag, body, tag, err)
		}
		if body == nil {
			continue
		}
		if b, err := io.ReadAll(body); err != nil || string(b) != step.body || body.Close() != nil {
			t.Errorf("%s: %q, %v", step.path, b, err)
		}
	}
	if len(asked) != 5 {
		t.Errorf("asked %q", asked)
	}
}
