package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// span is a scalar with a form of its own, as the real configuration has.
type span struct{ time.Duration }

func (s *span) UnmarshalText(b []byte) (err error) {
	s.Duration, err = time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("want a duration such as 1h30m, have %q", b)
	}
	return nil
}
func (s span) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

type sample struct {
	Name string `json:"name"`
	XDS  struct {
		Address string `json:"address"`
		TLS     struct {
			ClientCAFile string `json:"clientCAFile"`
		} `json:"tls"`
		WarmHold span `json:"warmHold"`
		Insecure bool `json:"insecure"`
	} `json:"xds"`
	Allow      []string          `json:"allow"`
	Registries []registry        `json:"registries"`
	Labels     map[string]string `json:"labels"`
	Count      int32             `json:"count"`
}

type registry struct {
	Host      string `json:"host"`
	PlainHTTP bool   `json:"plainHTTP"`
	Grace     *span  `json:"grace,omitempty"`
}

func standard() *sample {
	s := &sample{Name: "standard", Count: 3}
	s.XDS.Address = "127.0.0.1:18000"
	return s
}

func env(pairs ...string) func(Key) (string, string, bool) {
	return func(k Key) (string, string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == k.Env() {
				return pairs[i], pairs[i+1], true
			}
		}
		return "", "", false
	}
}

func TestLoad_LaterLayersWin(t *testing.T) {
	t.Parallel()
	got := standard()
	sources, err := Load(got, Input{
		FileName: "c.yaml",
		File: []byte(`name: file
xds:
  address: file:1
  warmHold: 5s
  tls:
allow: [a, b]
registries:
- host: r
  plainHTTP: true
  grace: 1m
labels: {a: b}
count:
`),
		Env:   env("STILE_XDS_ADDRESS", "env:1", "STILE_XDS_WARM_HOLD", "6s", "STILE_ALLOW", "c, d"),
		Flags: map[string]FlagValue{"xds.warmHold": {Name: "xds-warm-hold", Text: "7s"}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := standard()
	want.Name = "file"
	want.XDS.Address = "env:1"
	want.XDS.WarmHold = span{7 * time.Second}
	want.Allow = []string{"c", "d"}
	want.Registries = []registry{{Host: "r", PlainHTTP: true, Grace: &span{time.Minute}}}
	want.Labels = map[string]string{"a": "b"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for key, want := range map[string]string{
		"name": "file c.yaml:1", "xds.address": "env STILE_XDS_ADDRESS", "xds.warmHold": "flag --xds-warm-hold",
		"xds.insecure": "default", "count": "default", "registries": "file c.yaml:8", "xds.tls.clientCAFile": "default",
	} {
		if got := sources[key].String(); got != want {
			t.Errorf("source of %s: want %q, got %q", key, want, got)
		}
	}
}

func TestLoad_EveryFaultAtOnceWithItsLine(t *testing.T) {
	t.Parallel()
	_, err := Load(standard(), Input{
		FileName: "c.yaml",
		File: []byte(`name: 7
nmae: x
xds:
  adress: y
  warmHold: soon
  tls: text
  insecure: maybe
registries:
- hots: r
- host: a
  host: b
allow: one
count: many
labels: []
`),
		Env: env("STILE_XDS_INSECURE", "perhaps"),
	}, func(Sources) error {
		return errors.Join(errors.New("xds.address: must be an address"), errors.New("registries[0].host: is missing"),
			errors.New("count: is not asked, for it could not be read"))
	})
	want := `14 faults
  STILE_XDS_INSECURE: xds.insecure: want true or false, have "perhaps"
  xds.address: must be an address
  c.yaml:1: name: want text, have 7; put it in quotes
  c.yaml:2: nmae: unknown key; did you mean "name"? known keys: name, xds, allow, registries, labels, count
  c.yaml:4: xds.adress: unknown key; did you mean "address"? known keys of xds: address, tls, warmHold, insecure
  c.yaml:5: xds.warmHold: want a duration such as 1h30m, have "soon"
  c.yaml:6: xds.tls: want an object with the keys clientCAFile
  c.yaml:7: xds.insecure: want true or false, have "maybe"
  c.yaml:9: registries[0].hots: unknown key; did you mean "host"? known keys of registries[0]: host, plainHTTP, grace
  c.yaml:9: registries[0].host: is missing
  c.yaml:11: registries[1].host: is written twice, first in line 10
  c.yaml:12: allow: want a list
  c.yaml:13: count: want a whole number, have "many"
  c.yaml:14: labels: want an object`
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Error(diff)
	}
}

func TestLoad_WholeFile(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ file, want string }{
		"empty":        {"", ""},
		"comment":      {"# nothing\n", ""},
		"null":         {"---\n", ""},
		"syntax":       {"name: a\n  xds: b\n", "c.yaml:2: not YAML: mapping values are not allowed in this context"},
		"list":         {"- a\n", "c.yaml:1: want an object with the keys"},
		"two":          {"name: a\n---\nname: b\n", "a second document"},
		"alias":        {"allow: &x [a]\nlabels: *x\n", "c.yaml:1: labels: want an object"},
		"broken later": {"name: a\n---\n\t- x", "c.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(standard(), Input{FileName: "c.yaml", File: []byte(row.file)}, nil)
			switch {
			case row.want == "" && err != nil:
				t.Errorf("want no error, got %v", err)
			case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
				t.Errorf("want an error with %q, got %v", row.want, err)
			}
		})
	}
}

func TestKeys_NamesOfVariablesAndFlags(t *testing.T) {
	t.Parallel()
	var got []string
	for _, k := range Keys(standard()) {
		got = append(got, k.Path+" "+k.Env()+" --"+k.Flag())
	}
	want := []string{
		"name STILE_NAME --name",
		"xds.address STILE_XDS_ADDRESS --xds-address",
		"xds.tls.clientCAFile STILE_XDS_TLS_CLIENT_CA_FILE --xds-tls-client-ca-file",
		"xds.warmHold STILE_XDS_WARM_HOLD --xds-warm-hold",
		"xds.insecure STILE_XDS_INSECURE --xds-insecure",
		"allow STILE_ALLOW --allow",
		"count STILE_COUNT --count",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestValues_EachWithItsSource(t *testing.T) {
	t.Parallel()
	c := standard()
	sources, err := Load(c, Input{Env: env("STILE_COUNT", "9")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	values, err := Values(c, sources)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range values {
		got = append(got, fmt.Sprintf("%s=%s (%s)", v.Key, v.Value, v.Source))
	}
	want := []string{
		`name="standard" (default)`, `xds.address="127.0.0.1:18000" (default)`, `xds.tls.clientCAFile="" (default)`,
		`xds.warmHold="0s" (default)`, `xds.insecure=false (default)`, `allow=null (default)`, `registries=null (default)`,
		`labels=null (default)`, `count=9 (env STILE_COUNT)`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// FuzzLoad holds that no file makes the loader panic.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{"", "name: a", "a: &a [*a]", "xds: {tls: {}}", "registries: [{}]", "? {a: b}\n: c", "<<: {name: a}", "labels: {<<: *x}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = Load(standard(), Input{FileName: "f", File: data}, nil)
	})
}

// optional has an object that may be missing.
type optional struct {
	Folder string `json:"folder"`
	API    *struct {
		Address string   `json:"address"`
		Names   []string `json:"names"`
	} `json:"api,omitempty"`
}

func TestLoad_AnObjectThatMayBeMissing(t *testing.T) {
	t.Parallel()
	values := func(in Input) (string, *optional) {
		c := &optional{}
		sources, err := Load(c, in, nil)
		if err != nil {
			t.Fatal(err)
		}
		all, err := Values(c, sources)
		if err != nil {
			t.Fatal(err)
		}
		var rows []string
		for _, v := range all {
			rows = append(rows, fmt.Sprintf("%s=%s %s", v.Key, v.Value, v.Source))
		}
		return strings.Join(rows, "; "), c
	}
	for name, row := range map[string]struct {
		in   Input
		want string
	}{
		"missing":     {Input{}, `folder="" default; api=null default`},
		"empty":       {Input{FileName: "f", File: []byte("api: {}")}, `folder="" default; api.address="" default; api.names=null default`},
		"in a file":   {Input{FileName: "f", File: []byte("api:\n  address: a")}, `folder="" default; api.address="a" file f:2; api.names=null default`},
		"by variable": {Input{Env: env("STILE_API_NAMES", "x,y")}, `folder="" default; api.address="" default; api.names=["x","y"] env STILE_API_NAMES`},
		"by flag over a file": {
			Input{FileName: "f", File: []byte("api: {address: a, names: [n]}"), Flags: map[string]FlagValue{"api.address": {"addr", "b"}}},
			`folder="" default; api.address="b" flag --addr; api.names=["n"] file f:1`,
		},
	} {
		if got, _ := values(row.in); got != row.want {
			t.Errorf("%s:\n have %s\n want %s", name, got, row.want)
		}
	}
}
