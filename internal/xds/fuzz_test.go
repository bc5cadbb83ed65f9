package xds

import (
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzParseEnvoy(f *testing.F) {
	edge, err := os.ReadFile("testdata/envoy/edge.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(edge)
	for _, s := range []string{
		"", "[]", "clusters: [{name: a}]", "listeners: [{name: l, default_filter_chain: {filters: []}}]",
		"a: &a [*a]", "a: &a {b: 1}\nb: *a", "clusters: [{name: a, metadata: {filter_metadata: {x: {y: [1, null, {}]}}}}]",
		`listeners: [{name: l, filter_chains: [{filters: [{name: t, typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/google.protobuf.Any, value: {"@type": type.googleapis.com/google.protobuf.Any}}}]}]}]`,
		`clusters: [{name: a, typed_extension_protocol_options: {x: {"@type": type.googleapis.com/google.protobuf.Duration, value: 1s}}}]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, problems := ParseEnvoy("f.yaml", data)
		failed := false
		for _, p := range problems {
			failed = failed || p.Severity == SeverityError
			if p.Message == "" || p.Reason == "" {
				t.Errorf("problem without words: %+v", p)
			}
		}
		if failed != (file == nil) {
			t.Errorf("file %v and problems %v", file, problems)
		}
		if file == nil {
			return
		}
		snapshot, _ := Translate(Input{File: file})
		if _, err := snapshot.Report(ReportOptions{}); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseNode(f *testing.F) {
	f.Add([]byte("id: a\ncluster: b\nmetadata: {NAMESPACE: ns, LABELS: {a: b}, GATEWAY: g}\n"))
	f.Add([]byte(`{"node": {"id": "a", "extensions": [{"name": "envoy.filters.http.wasm"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := ParseNode(data); err == nil && len(n.ID) > len(data) {
			t.Error("an id from nowhere")
		}
	})
}

func FuzzParseDescribed(f *testing.F) {
	w := newWatch(extensions, false)
	w.names["a"], w.held["a"] = struct{}{}, holding{version: "1", try: 7}
	f.Add(w.describeAfter(&answer{}))
	f.Add("w1-")
	f.Add("17")
	f.Fuzz(func(t *testing.T, version string) {
		d := parseDescribed(version)
		if len(d) > maxDescribed {
			t.Error("too much")
		}
		d.real(&Resource{Name: "a"})
		d.tryOf(&Resource{Name: "a", Version: "1"})
	})
}

func FuzzCleanMessage(f *testing.F) {
	f.Add("Failed to fetch http://h:1/stile/modules/0123?x=y and /modules/4567 too\n\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := cleanMessage(s)
		if !utf8.ValidString(got) || len(got) > maxMessage+len("…") || strings.ContainsAny(got, "\n\x00") {
			t.Errorf("%q", got)
		}
		if at := strings.Index(strings.ToLower(got), "/modules/"); at >= 0 {
			rest := got[at+len("/modules/"):]
			if rest != "" && !strings.ContainsAny(rest[:1], " \"'<>…") && !strings.HasPrefix(rest, "<redacted>") {
				t.Errorf("a module's URL is left: %q", got)
			}
		}
	})
}
