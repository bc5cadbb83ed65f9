package file

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// folder is a watched folder under test.
type folder struct {
	*testing.T
	resources, envoy string
	source           *Source
	log              *safeLog
	last             *source.World
}

type safeLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	root := t.TempDir()
	f := &folder{T: t, resources: filepath.Join(root, "resources"), envoy: filepath.Join(root, "envoy"), log: &safeLog{}}
	for _, d := range []string{f.resources, f.envoy} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// watch begins to watch, with the given interval of the slow rescan.
func (f *folder) watch(rescan time.Duration) {
	f.Helper()
	f.source = New(f.resources, f.envoy, slog.New(slog.NewTextHandler(f.log, nil)))
	f.source.settle, f.source.rescan = 5*time.Millisecond, rescan
	ctx, cancel := context.WithCancel(f.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := f.source.Run(ctx); err != nil {
			f.Error(err)
		}
	}()
	f.Cleanup(func() { cancel(); <-ended })
}

// sees waits until a World satisfies want.
func (f *folder) sees(what string, want func(*source.World) bool) *source.World {
	f.Helper()
	deadline := time.After(10 * time.Second)
	for f.last == nil || !want(f.last) {
		select {
		case f.last = <-f.source.Worlds():
		case <-deadline:
			f.Fatalf("%s: not seen; last world %+v\n%s", what, f.last, f.log)
		}
	}
	return f.last
}

func (f *folder) write(name, content string) {
	f.Helper()
	if err := os.WriteFile(filepath.Join(f.resources, name), []byte(content), 0o600); err != nil {
		f.Fatal(err)
	}
}

// replace writes a file as careful editors do: beside it, then renamed.
func (f *folder) replace(name, content string) {
	f.Helper()
	f.write("."+name+".tmp", content)
	if err := os.Rename(filepath.Join(f.resources, "."+name+".tmp"), filepath.Join(f.resources, name)); err != nil {
		f.Fatal(err)
	}
}

func (f *folder) remove(name string) {
	f.Helper()
	if err := os.Remove(filepath.Join(f.resources, name)); err != nil {
		f.Fatal(err)
	}
}

func wasmPlugin(name, url string) string {
	return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: " + name + ", namespace: team-a}\nspec: {url: '" + url + "'}\n---\n"
}

const pullSecret = "apiVersion: v1\nkind: Secret\nmetadata: {name: regcred, namespace: team-a}\ntype: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '{\"auths\":{}}'}\n"

// names returns "name generation url" of every plugin.
func names(w *source.World) string {
	var all []string
	for _, p := range w.Plugins {
		all = append(all, p.Name+" "+string(rune('0'+p.Generation))+" "+strings.TrimPrefix(p.Spec.URL, "oci://r.example/"))
	}
	return strings.Join(all, ", ")
}

func has(want string) func(*source.World) bool {
	return func(w *source.World) bool { return names(w) == want }
}

func reasons(w *source.World) string {
	var all []string
	for _, f := range w.Findings {
		all = append(all, filepath.Base(f.File)+" "+f.Reason)
	}
	return strings.Join(all, ", ")
}

func TestSource_FirstWorldIsComplete(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	f.write("b.yaml", wasmPlugin("b", "oci://r.example/b:v1"))
	f.write("a.yml", wasmPlugin("a", "oci://r.example/a:v1")+pullSecret)
	if err := os.Mkdir(filepath.Join(f.resources, "more"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.write("more/c.json", `{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"c","namespace":"team-a"},"spec":{"url":"oci://r.example/c:v1"}}`)
	f.write("notes.txt", "not: read")
	f.write(".b.yaml.swp", "not: read")
	f.write(".#b.yaml", "not: read")
	if err := os.WriteFile(filepath.Join(f.envoy, "edge.yaml"), []byte("listeners: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.watch(time.Hour)
	w := f.sees("everything", func(*source.World) bool { return true })
	if diff := cmp.Diff("a 1 a:v1, b 1 b:v1, c 1 c:v1", names(w)); diff != "" {
		t.Error(diff)
	}
	if w.Secrets[plugin.Key{Namespace: "team-a", Name: "regcred"}] == nil {
		t.Error("the Secret is missing")
	}
	if diff := cmp.Diff(map[string][]byte{"edge": []byte("listeners: []\n")}, w.EnvoyFiles); diff != "" {
		t.Error(diff)
	}
	if len(w.Findings) != 0 {
		t.Errorf("findings: %+v", w.Findings)
	}
}

func TestSource_SeesWhatChanges(t *testing.T) {
	t.Parallel()
	for name, rescan := range map[string]time.Duration{"by events": time.Hour, "by reading again": 20 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFolder(t)
			f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v1"))
			f.watch(rescan)
			f.sees("the first", has("a 1 a:v1"))
			f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v2"))
			f.sees("an edit", has("a 2 a:v2"))
			f.replace("a.yaml", wasmPlugin("a", "oci://r.example/a:v3"))
			f.sees("an atomic replacement", has("a 3 a:v3"))
			f.write("b.yaml", wasmPlugin("b", "oci://r.example/b:v1"))
			f.sees("a new file", has("a 3 a:v3, b 1 b:v1"))
			if err := os.Mkdir(filepath.Join(f.resources, "more"), 0o755); err != nil {
				t.Fatal(err)
			}
			f.write("more/c.yaml", wasmPlugin("c", "oci://r.example/c:v1"))
			f.sees("a new folder", has("a 3 a:v3, b 1 b:v1, c 1 c:v1"))
			f.write("more/c.yaml", wasmPlugin("c", "oci://r.example/c:v2"))
			f.sees("an edit in a new folder", has("a 3 a:v3, b 1 b:v1, c 2 c:v2"))
			f.remove("b.yaml")
			f.sees("a removed file", has("a 3 a:v3, c 2 c:v2"))
		})
	}
}

func TestSource_GenerationCountsTheSpecAlone(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v1"))
	f.watch(time.Hour)
	before := f.sees("the first", has("a 1 a:v1")).Plugins[0]
	f.write("b.yaml", wasmPlugin("b", "oci://r.example/b:v1"))
	if after := f.sees("a neighbour", has("a 1 a:v1, b 1 b:v1")).Plugins[0]; after != before {
		t.Error("an unchanged plugin of an unchanged file is another object")
	}
	f.write("a.yaml", "# a comment\n"+wasmPlugin("a", "oci://r.example/a:v1")+pullSecret)
	w := f.sees("a comment and a Secret", func(w *source.World) bool { return len(w.Secrets) == 1 })
	if w.Plugins[0] != before {
		t.Error("an unchanged plugin of a changed file is another object")
	}
	f.write("a.yaml", strings.Replace(wasmPlugin("a", "oci://r.example/a:v1"), "namespace: team-a", "namespace: team-a, labels: {a: b}", 1))
	w = f.sees("a label", func(w *source.World) bool { return w.Plugins[0].Labels["a"] == "b" })
	if w.Plugins[0].Generation != 1 {
		t.Errorf("a label made generation %d", w.Plugins[0].Generation)
	}
}

func TestP8_BrokenEmptyAndMissingKeepTheLastGood(t *testing.T) {
	t.Parallel()
	good := wasmPlugin("a", "oci://r.example/a:v1")
	for name, row := range map[string]struct {
		harm    func(*folder)
		reasons string
	}{
		"syntax error":         {func(f *folder) { f.write("a.yaml", good+"a: [") }, "a.yaml Syntax"},
		"not text":             {func(f *folder) { f.write("a.yaml", "\xff\xfe") }, "a.yaml Syntax"},
		"emptied":              {func(f *folder) { f.write("a.yaml", "") }, "a.yaml Empty"},
		"blank":                {func(f *folder) { f.write("a.yaml", " \n\n") }, "a.yaml Empty"},
		"too large":            {func(f *folder) { truncate(f, "a.yaml", MaxFile+1) }, "a.yaml Unreadable"},
		"folder emptied":       {func(f *folder) { f.remove("a.yaml") }, "resources Empty"},
		"folder lost":          {func(f *folder) { move(f, f.resources, f.resources+".away") }, "resources Missing"},
		"folder is now a file": {func(f *folder) { move(f, f.resources, f.resources+".away"); touch(f, f.resources) }, "resources Unreadable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFolder(t)
			f.write("a.yaml", good)
			f.watch(50 * time.Millisecond)
			f.sees("the first", has("a 1 a:v1"))
			row.harm(f)
			// A folder that goes while it is read leaves a finding of the file beside its own.
			w := f.sees("the harm", func(w *source.World) bool { return strings.HasPrefix(reasons(w), row.reasons) })
			if names(w) != "a 1 a:v1" {
				t.Errorf("the last good content went: %s", names(w))
			}
			if !strings.Contains(w.Findings[0].Message, "the last good content stays in force") {
				t.Errorf("message: %s", w.Findings[0].Message)
			}
			if !strings.Contains(f.log.String(), w.Findings[0].Reason) {
				t.Errorf("the log does not say so: %s", f.log)
			}
		})
	}
}

func truncate(f *folder, name string, size int64) {
	if err := os.Truncate(filepath.Join(f.resources, name), size); err != nil {
		f.Fatal(err)
	}
}

func move(f *folder, from, to string) {
	if err := os.Rename(from, to); err != nil {
		f.Fatal(err)
	}
}

func touch(f *folder, path string) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		f.Fatal(err)
	}
}

func TestSource_RecoversFromBroken(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v1"))
	f.watch(time.Hour)
	f.sees("the first", has("a 1 a:v1"))
	f.write("a.yaml", "a: [")
	f.sees("the break", func(w *source.World) bool { return len(w.Findings) == 1 && names(w) == "a 1 a:v1" })
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v2"))
	f.sees("the repair", func(w *source.World) bool { return len(w.Findings) == 0 && names(w) == "a 2 a:v2" })
	f.write("a.yaml", "# nothing here any more\n")
	f.sees("the removal by a comment", func(w *source.World) bool { return len(w.Findings) == 0 && len(w.Plugins) == 0 })
}

func TestP7_OneBadDocumentHurtsItself(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v1")+strings.Replace(wasmPlugin("bad", "oci://r.example/b:v1"), "spec: {", "spec: {sha256: short, ", 1)+"kind: Nonsense\napiVersion: v9\nmetadata: {name: x}\n")
	f.write("broken.yaml", "a: [")
	f.watch(time.Hour)
	w := f.sees("all of it", has("a 1 a:v1, bad 1 b:v1"))
	if len(w.Invalid) != 1 || len(w.Invalid[plugin.Key{Namespace: "team-a", Name: "bad"}]) != 1 {
		t.Errorf("invalid: %+v", w.Invalid)
	}
	if len(w.Findings) != 3 {
		t.Errorf("findings: %+v", w.Findings)
	}
}

func TestSource_TheFirstOfTwoCounts(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	f.write("b.yaml", wasmPlugin("a", "oci://r.example/second:v1"))
	f.watch(time.Hour)
	f.sees("one", has("a 1 second:v1"))
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/first:v1"))
	w := f.sees("two", has("a 2 first:v1"))
	if reasons(w) != "b.yaml Duplicate" {
		t.Errorf("findings: %+v", w.Findings)
	}
}

// Kubernetes mounts a ConfigMap as links through a link that it swaps.
func TestSource_SymlinkSwap(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	mount := func(version, url string) {
		dir := filepath.Join(f.resources, "..v"+version)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		f.write("..v"+version+"/a.yaml", wasmPlugin("a", url))
		if err := os.Symlink("..v"+version, filepath.Join(f.resources, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		move(f, filepath.Join(f.resources, "..data_tmp"), filepath.Join(f.resources, "..data"))
	}
	mount("1", "oci://r.example/a:v1")
	if err := os.Symlink("..data/a.yaml", filepath.Join(f.resources, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f.watch(time.Hour)
	f.sees("the mount", has("a 1 a:v1"))
	mount("2", "oci://r.example/a:v2")
	f.sees("the swap", has("a 2 a:v2"))
}

func TestSource_TwoLinksToOneFolder(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	away := t.TempDir()
	for _, name := range []string{"one", "two"} {
		if err := os.Symlink(away, filepath.Join(f.resources, name)); err != nil {
			t.Fatal(err)
		}
	}
	f.write("one/a.yaml", wasmPlugin("a", "oci://r.example/a:v1"))
	f.watch(time.Hour)
	f.sees("the first", func(w *source.World) bool { return names(w) == "a 1 a:v1" && reasons(w) == "a.yaml Duplicate" })
	f.write("two/a.yaml", wasmPlugin("a", "oci://r.example/a:v2"))
	f.sees("an edit", has("a 2 a:v2"))
}

func TestSource_LinksInACircle(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v1"))
	if err := os.Symlink(".", filepath.Join(f.resources, "self")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere.yaml", filepath.Join(f.resources, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("c.yaml", filepath.Join(f.resources, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	f.watch(time.Hour)
	f.sees("one plugin", func(w *source.World) bool { return names(w) == "a 1 a:v1" && reasons(w) == "c.yaml Unreadable" })
}

func TestSource_EnvoyFilesStay(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	edge := filepath.Join(f.envoy, "edge.yaml")
	put := func(content string) {
		if err := os.WriteFile(edge, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("listeners: []\n")
	f.write("a.yaml", "# none\n")
	f.watch(50 * time.Millisecond)
	is := func(content, reason string) func(*source.World) bool {
		return func(w *source.World) bool { return string(w.EnvoyFiles["edge"]) == content && reasons(w) == reason }
	}
	f.sees("the first", is("listeners: []\n", ""))
	put("listeners: [\n")
	f.sees("broken", is("listeners: []\n", "edge.yaml Syntax"))
	put("clusters: []\n")
	f.sees("repaired", is("clusters: []\n", ""))
	put("")
	f.sees("emptied", is("clusters: []\n", "edge.yaml Empty"))
	if err := os.Remove(edge); err != nil {
		t.Fatal(err)
	}
	f.sees("missing", is("clusters: []\n", "edge.yaml Missing"))
	if err := os.WriteFile(filepath.Join(f.envoy, "edge.yml"), []byte("routes: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	put("clusters: []\n")
	f.sees("two for one cluster", is("clusters: []\n", "edge.yml Duplicate"))
	move(f, f.envoy, f.envoy+".away")
	f.sees("folder lost", func(w *source.World) bool {
		return string(w.EnvoyFiles["edge"]) == "clusters: []\n" && strings.Contains(reasons(w), "envoy Missing")
	})
}

func TestSource_NobodyIsToldBeforeTheFirstRead(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	move(f, f.resources, f.resources+".away")
	f.watch(10 * time.Millisecond)
	for !strings.Contains(f.log.String(), "cannot be read yet") {
		if len(f.source.Worlds()) > 0 {
			t.Fatal("a world of nothing")
		}
	}
	move(f, f.resources+".away", f.resources)
	f.sees("the folder", func(w *source.World) bool { return len(w.Plugins) == 0 })
}

func TestSource_NoEnvoyFolder(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	f.envoy = ""
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v1"))
	f.watch(time.Hour)
	if w := f.sees("the first", has("a 1 a:v1")); len(w.Findings) != 0 {
		t.Errorf("findings: %+v", w.Findings)
	}
}

func TestSource_QuietFolderGivesNoSecondWorld(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v1"))
	s := New(f.resources, f.envoy, nil)
	s.read()
	first := <-s.Worlds()
	f.write("a.yaml", wasmPlugin("a", "oci://r.example/a:v1")) // the same again
	s.read()
	if len(s.Worlds()) != 0 {
		t.Errorf("a second world: %s after %s", names(<-s.Worlds()), names(first))
	}
}
