package reference_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stileproject/stile/internal/reference"
)

var digest = "sha256:" + strings.Repeat("0a", 32)

func TestSpellingsOfOneImageAreOneReference(t *testing.T) {
	t.Parallel()
	for want, spellings := range map[string][]string{
		"index.docker.io/library/nginx:latest": {
			"nginx", "nginx:latest", "library/nginx", "docker.io/nginx", "docker.io/library/nginx:latest",
			"index.docker.io/library/nginx", "registry-1.docker.io/nginx", "DOCKER.IO/nginx", "docker.io:443/nginx",
		},
		"registry.example:5000/a/p:v1":        {"registry.example:5000/a/p:v1", "REGISTRY.example:5000/a/p:v1"},
		"registry.example/a/p:latest":         {"registry.example/a/p", "registry.example:443/a/p:latest"},
		"registry.example/a/p@" + digest:      {"registry.example/a/p@" + digest, "registry.example/a/p:v1@" + digest},
		"localhost/p:latest":                  {"localhost/p"},
		"localhost:5000/p:latest":             {"localhost:5000/p"},
		"10.0.0.1:5000/a:latest":              {"10.0.0.1:5000/a"},
		"[::1]:5000/a:latest":                 {"[::1]:5000/a", "[0:0:0:0:0:0:0:1]:5000/a"},
		"[::1]/a:latest":                      {"[::1]/a", "[::1]:443/a"},
		"my_reg:5000/a:latest":                {"my_reg:5000/a"},
		"reg:5000/a:latest":                   {"reg:5000/a"},
		"index.docker.io/team/a:latest":       {"team/a"},
		"a.b/c__d/e-f/g---h.i:V_1.2-x":        {"a.b/c__d/e-f/g---h.i:V_1.2-x"},
		"r.example/a@" + digest:               {"r.example/a@" + digest},
		"index.docker.io/library/a@" + digest: {"a@" + digest, "a:v1@" + digest},
	} {
		for _, s := range spellings {
			r, err := reference.Parse(s)
			if err != nil {
				t.Errorf("%s: %v", s, err)
				continue
			}
			if r.String() != want {
				t.Errorf("%s: got %s, want %s", s, r, want)
			}
			if again, err := reference.Parse(r.String()); err != nil || again != r {
				t.Errorf("%s: its canonical spelling reads back as %v, %v", s, again, err)
			}
		}
	}
}

func TestMalformedReferencesSayWhat(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"":                              "is empty",
		"registry.example/":             "repository is missing",
		"registry.example/a@sha256:abc": "digest must be",
		"registry.example/a@md5:abc":    "digest must be",
		"registry.example/a@" + strings.ToUpper(digest): "digest must be",
		"registry.example/A":                            "must be lower-case",
		"registry.example/a b":                          "must be lower-case",
		"registry.example/a//b":                         "must be lower-case",
		"registry.example/a:":                           "tag must be",
		"registry.example/a:-x":                         "tag must be",
		"registry.example:0/a":                          "port of",
		"registry.example:99999/a":                      "port of",
		"registry.example:05/a":                         "port of",
		"user:pass@registry.example/a":                  "digest must be",
		"[::1/a":                                        "malformed",
		"[zz]:5000/a":                                   "malformed",
		".example/a":                                    "malformed",
		"r.example/" + strings.Repeat("a", 256):         "longer than 255",
		"http://r.example/a":                            "must be",
	} {
		if r, err := reference.Parse(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want an error with %q", s, r, err, want)
		}
	}
}

func TestP3_ErrorsHideUserinfo(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"user:CANARY@registry.example/a", "user:CANARY@registry.example/a@" + digest, "CANARY@"} {
		if _, err := reference.Parse(s); err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%q: got %v", s, err)
		}
	}
}

func TestReferenceParts(t *testing.T) {
	t.Parallel()
	r, err := reference.Parse("registry.example:5000/team/p:v1")
	if err != nil {
		t.Fatal(err)
	}
	at := r.At(digest)
	if at.Digest() != digest || at.Tag() != "" || at.Source() != r.Source() || at == r {
		t.Errorf("At: got %v", at)
	}
	if r.Host() != "registry.example:5000" || r.Repository() != "team/p" || r.Tag() != "v1" || r.IsZero() {
		t.Errorf("parts: got %q %q %q", r.Host(), r.Repository(), r.Tag())
	}
	if !(reference.Reference{}).IsZero() || (reference.Reference{}).String() != "" {
		t.Error("the zero reference names something")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"nginx", "a.b:5000/c/d:e", "[::1]:5000/a@" + digest, "http://x", "a@b@c", ":", "/", "..//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := reference.Parse(s)
		if err != nil {
			return
		}
		again, err := reference.Parse(r.String())
		if err != nil || again != r {
			t.Fatalf("%q is %s, which reads back as %v, %v", s, r, again, err)
		}
		if r.Host() == "" || r.Repository() == "" || (r.Tag() == "") == (r.Digest() == "") {
			t.Fatalf("%q: incomplete: %s", s, r)
		}
	})
}

func ExampleParse() {
	r, _ := reference.Parse("nginx")
	fmt.Println(r.Host(), r.Repository(), r.Tag())
	// Output: index.docker.io library/nginx latest
}

func TestIDIsTheReferenceInOneWord(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"nginx", "registry.example/a/p:v1", "registry.example/a/p@" + digest} {
		r, err := reference.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.ID().Reference(); got != r {
			t.Errorf("%v became %v", r, got)
		}
	}
	if (reference.Reference{}).ID() != (reference.ID{}) || !(reference.ID{}).Reference().IsZero() {
		t.Error("the zero Reference has an identity")
	}
}
