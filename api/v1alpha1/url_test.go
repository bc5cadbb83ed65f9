package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stileproject/stile/api/v1alpha1"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseModuleURL(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, scheme, shown string }{
		{"oci://private-registry:5000/openid-connect/openid:latest", "oci", "oci://private-registry:5000/openid-connect/openid:latest"},
		{"registry.example/a", "oci", "oci://registry.example/a:latest"},
		{"a", "oci", "oci://index.docker.io/library/a:latest"},
		{"docker.io/library/a:v1", "oci", "oci://index.docker.io/library/a:v1"},
		{"10.0.0.1:5000/a", "oci", "oci://10.0.0.1:5000/a:latest"},
		{"my_reg:5000/a", "oci", "oci://my_reg:5000/a:latest"},
		{"oci://my_reg/a/b", "oci", "oci://index.docker.io/my_reg/a/b:latest"},
		{"[::1]:5000/a", "oci", "oci://[::1]:5000/a:latest"},
		{"[2001:DB8::1]/a:v1", "oci", "oci://[2001:db8::1]/a:v1"},
		{"reg:5000/a", "oci", "oci://reg:5000/a:latest"},
		{"localhost/a", "oci", "oci://localhost/a:latest"},
		{"OCI://Registry.Example/a", "oci", "oci://registry.example/a:latest"},
		{"r.example/a@sha256:" + hex64, "oci", "oci://r.example/a@sha256:" + hex64},
		{"oci://r.example/a:v1@sha256:" + hex64, "oci", "oci://r.example/a@sha256:" + hex64},
		{"https://bucket.example/filters/openid.wasm", "https", "https://bucket.example/filters/openid.wasm"},
		{"HTTPS://Bucket.Example/A.wasm", "https", "https://bucket.example/A.wasm"},
		{"http://my_host:8080/a.wasm", "http", "http://my_host:8080/a.wasm"},
		{"http://[::1]:8080/a.wasm", "http", "http://[::1]:8080/a.wasm"},
		{"https://b.example/a.wasm?token=secret&x=1&bare", "https", "https://b.example/a.wasm?token=…&x=…&…"},
		{"https://b.example/a.wasm#part", "https", "https://b.example/a.wasm"},
		{"file:///opt/filters/openid.wasm", "file", "file:///opt/filters/openid.wasm"},
		{"file://relative.wasm", "file", "file://relative.wasm"},
	} {
		u, err := v1alpha1.ParseModuleURL(tc.in)
		if err != nil || u.Scheme != tc.scheme || u.String() != tc.shown || fmt.Sprintf("%+v", u) != tc.shown {
			t.Errorf("%s: got %s %s (%v), want %s %s", tc.in, u.Scheme, u, err, tc.scheme, tc.shown)
		}
	}
}

func TestParseModuleURL_Refuses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", "oci://", "://bad url", "://x", "ftp://h/a", "s3://b/a", "a b", "oci://r.example/a b", "a\tb", "a\x00", "r.example/\xff",
		"oci://r.example/a@sha256:abc", "r.example/a@sha512:" + hex64, "r.example/a@", "r.example/a@sha256:" + strings.ToUpper(hex64),
		"oci://user:pass@r.example/a", "user@r.example/a", "oci://r.example/a?x=1", "oci://r.example/a#x", "r.example/A", "r.example/a:",
		"r.example:0/a", "r.example:65536/a", "r.example:x/a", "r.example/", "/a", "[::1/a", "http:/x", "file:/x",
		"https://", "https:///a", "https://h", "https://h/", "https://u:p@h/a", "https://u@h/a", "https://h:0/a", "https://h:65536/a", "https://h:/a", "https://h:x/a", "https://h/%zz",
		"file://", "file:///", "file:///opt/",
	} {
		if u, err := v1alpha1.ParseModuleURL(in); err == nil {
			t.Errorf("%q is taken for %s", in, u)
		}
	}
}

func TestDisplayURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"oci://r.example/a:v1":                 "oci://r.example/a:v1",
		"a":                                    "oci://index.docker.io/library/a:latest",
		"https://h/a?token=CANARY":             "https://h/a?token=…",
		"https://user:CANARY@h/a":              "https://…@h/a",
		"oci://user:CANARY@r.example/a":        "oci://…@r.example/a",
		"user:CANARY@r.example/a":              "…@r.example/a",
		"ftp://user:CANARY@h/a?x=CANARY":       "ftp://…@h/a?x=…",
		"https://h:x/a#CANARY":                 "https://h:x/a#…",
		"https://user:CAN@ARY@h:x/a":           "https://…@h:x/a",
		"r.example/a?CANARY":                   "r.example/a?…",
		"":                                     "",
		"r.example/a@sha256:abc":               "r.example/a@sha256:abc",
		"u:CANARY@r.example/a@sha256:" + hex64: "…@r.example/a@sha256:" + hex64,
	} {
		if got := v1alpha1.DisplayURL(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

func TestModuleURL_Host(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"reg:5000/a": "reg:5000", "https://h.example:8443/a": "h.example:8443", "file:///a": ""} {
		u, err := v1alpha1.ParseModuleURL(in)
		if err != nil || u.Host() != want {
			t.Errorf("%s: host %q (%v), want %q", in, u.Host(), err, want)
		}
	}
}

// ExampleParseModuleURL shows that without a scheme everything is an image.
func ExampleParseModuleURL() {
	for _, s := range []string{"10.0.0.1:5000/team/plugin", "https://modules.example/auth.wasm?sig=abc"} {
		u, _ := v1alpha1.ParseModuleURL(s)
		fmt.Println(u.Scheme, u)
	}
	// Output:
	// oci oci://10.0.0.1:5000/team/plugin:latest
	// https https://modules.example/auth.wasm?sig=…
}

func FuzzParseModuleURL(f *testing.F) {
	for _, s := range []string{"", "a", "oci://r.example/a:v1", "[::1]:5000/a", "https://h/a?x=1#y", "file:///a", "https://u:p@h/a", "r/a@sha256:" + hex64, "://", "HTTP://H/%41"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		shown := v1alpha1.DisplayURL(s)
		u, err := v1alpha1.ParseModuleURL(s)
		if err != nil {
			if !u.IsZero() {
				t.Fatalf("%q: an error and %v", s, u)
			}
			return
		}
		if shown != u.String() {
			t.Fatalf("%q is shown as %q and as %q", s, shown, u)
		}
		if _, err := json.Marshal(u); err != nil {
			t.Fatal(err)
		}
		// What is canonical reads back to itself, but for the query that is not shown.
		again, err := v1alpha1.ParseModuleURL(u.Raw)
		if u.Scheme == v1alpha1.SchemeOCI || u.Scheme == v1alpha1.SchemeFile {
			again, err = v1alpha1.ParseModuleURL(u.String())
		}
		if err != nil || again != u {
			t.Fatalf("%q reads as %#v, and that as %#v (%v)", s, u, again, err)
		}
		if u.Scheme == v1alpha1.SchemeHTTPS && strings.Contains(u.Raw, "@") && strings.Contains(strings.SplitN(u.Raw, "/", 4)[2], "@") {
			t.Fatalf("%q: a user name got through", s)
		}
	})
}
