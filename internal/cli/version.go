package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker in releases; otherwise the build's own record counts.
var version string

// versionReport is the JSON of "stile version".
type versionReport struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Version    string `json:"version"`
	Commit     string `json:"commit"`
	Modified   bool   `json:"modified"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

func currentVersion() versionReport {
	r := versionReport{
		APIVersion: apiVersion, Kind: "Version", Version: version,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return r
	}
	if r.Version == "" {
		r.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			r.Commit = s.Value
		case "vcs.modified":
			r.Modified = s.Value == "true"
		}
	}
	if r.Version == "" {
		r.Version = "(devel)"
	}
	return r
}

func versionVerb(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Which stile this is",
		Args:  arguments(0, 0, ""),
	}
	out := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		r := currentVersion()
		return out.print(a.stdout, answer{
			Value: r,
			Names: []string{r.Version},
			Table: func(w io.Writer, wide bool) {
				_, _ = fmt.Fprintf(w, "stile %s\n", r.Version)
				if wide {
					_, _ = fmt.Fprintf(w, "commit %s, %s, %s\n", orDash(r.Commit), r.Go, r.Platform)
				}
			},
		})
	}
	return cmd
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
