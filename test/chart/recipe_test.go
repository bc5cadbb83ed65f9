package chart

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func readRoot(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(absolute(t, path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Whatever a release builds on or runs is pinned: the base by digest, actions by commit, tools by version.
func TestTheReleaseIsPinned(t *testing.T) {
	t.Parallel()
	var ko struct {
		DefaultBaseImage string
		DefaultPlatforms []string
		Builds           []struct {
			ID, Main            string
			Env, Flags, Ldflags []string
		}
	}
	if err := yaml.UnmarshalStrict([]byte(readRoot(t, ".ko.yaml")), &ko); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^gcr\.io/distroless/static-[a-z0-9]+:nonroot@sha256:[0-9a-f]{64}$`).MatchString(ko.DefaultBaseImage) {
		t.Errorf("the base is %s", ko.DefaultBaseImage)
	}
	if !slices.Equal(ko.DefaultPlatforms, []string{"linux/amd64", "linux/arm64"}) || !slices.Contains(ko.Builds[0].Env, "CGO_ENABLED=0") || ko.Builds[0].Main != "./cmd/stile" {
		t.Errorf("%+v", ko)
	}
	flag := strings.Join(ko.Builds[0].Ldflags, " ")
	if !strings.Contains(flag, "internal/cli.version=") || !strings.Contains(readRoot(t, "internal", "cli", "version.go"), "\nvar version string\n") {
		t.Errorf("%s: there is no such variable", flag)
	}
	recipe := readRoot(t, "tools", "release.sh")
	for _, f := range ko.Builds[0].Ldflags {
		if f = strings.ReplaceAll(f, "{{.Env.VERSION}}", "$version"); !strings.Contains(recipe, f) {
			t.Errorf("the archives are built without %s", f)
		}
	}
	for _, tool := range regexp.MustCompile(`go run (\S+)`).FindAllStringSubmatch(recipe+readRoot(t, ".github", "workflows", "release.yaml"), -1) {
		if !regexp.MustCompile(`@v\d+\.\d+\.\d+$`).MatchString(tool[1]) {
			t.Errorf("%s has no version", tool[1])
		}
	}
	for _, needed := range []string{"make --no-print-directory vuln", "cosign verify \"$base\"", "--sbom spdx", "cosign sign --yes --recursive", "cosign attest"} {
		if !strings.Contains(recipe, needed) {
			t.Errorf("tools/release.sh lacks %q", needed)
		}
	}
	workflows, err := filepath.Glob(absolute(t, ".github", "workflows", "*.yaml"))
	if err != nil || len(workflows) == 0 {
		t.Fatal(err, workflows)
	}
	for _, w := range workflows {
		for _, used := range regexp.MustCompile(`uses: (\S+)`).FindAllStringSubmatch(readRoot(t, ".github", "workflows", filepath.Base(w)), -1) {
			if !regexp.MustCompile(`@[0-9a-f]{40}$`).MatchString(used[1]) {
				t.Errorf("%s: %s is not pinned by commit", filepath.Base(w), used[1])
			}
		}
	}
}

func TestReleaseRefusesWhatIsNoVersion(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"1.2.3"}, {"v1.2"}, {"v1.2.3", "--push"}, {"v1.2.3; rm"}} {
		c := exec.Command(absolute(t, "tools", "release.sh"), args...)
		if out, _ := c.CombinedOutput(); c.ProcessState.ExitCode() != 2 {
			t.Errorf("%v: exit code %d\n%s", args, c.ProcessState.ExitCode(), out)
		}
	}
}

// The krew manifest names each archive with its sum, and the program in it.
func TestKrewManifestNamesTheArchives(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for _, target := range []string{"linux_amd64", "linux_arm64", "darwin_amd64", "darwin_arm64"} {
		if err := os.WriteFile(filepath.Join(folder, "stile_v1.2.3_"+target+".tar.gz"), []byte(target), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(absolute(t, "tools", "krew.sh"), "v1.2.3", folder).Output()
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Kind     string
		Metadata struct{ Name string }
		Spec     struct {
			Version   string
			Platforms []struct {
				Selector         struct{ MatchLabels map[string]string }
				URI, SHA256, Bin string
				Files            []struct{ From, To string }
			}
		}
	}
	if err := yaml.Unmarshal(out, &manifest); err != nil {
		t.Fatal(err)
	}
	if manifest.Kind != "Plugin" || manifest.Metadata.Name != "stile" || manifest.Spec.Version != "v1.2.3" || len(manifest.Spec.Platforms) != 4 {
		t.Fatalf("%s", out)
	}
	for _, p := range manifest.Spec.Platforms {
		target := p.Selector.MatchLabels["os"] + "_" + p.Selector.MatchLabels["arch"]
		if p.SHA256 != fmt.Sprintf("%x", sha256.Sum256([]byte(target))) || !strings.HasSuffix(p.URI, "/v1.2.3/stile_v1.2.3_"+target+".tar.gz") ||
			p.Bin != "stile" || p.Files[0].From != "stile_v1.2.3_"+target+"/stile" {
			t.Errorf("%s: %+v", target, p)
		}
	}
}
