package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/content"
)

func TestProgress(t *testing.T) {
	t.Parallel()
	for want, row := range map[string]struct{ read, total int64 }{
		"[..............................]   0% of 100.0 MiB": {1, 100 << 20},
		"[###############...............]  50% of 100.0 MiB": {50 << 20, 100 << 20},
		"[##############################] 100% of 1.0 MiB":   {2 << 20, 1 << 20},
		"1.5 MiB": {3 << 19, 0},
	} {
		if got := progressBar(row.read, row.total); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	var out bytes.Buffer
	var p content.Progress
	tick := make(chan time.Time)
	stop := drawProgress(&out, &p, tick)
	tick <- time.Time{}
	stop()
	if out.Len() != 0 {
		t.Errorf("drawn though nothing came: %q", out.String())
	}
	p.Read.Store(1 << 20)
	stop = drawProgress(&out, &p, tick)
	tick <- time.Time{}
	stop()
	if got := out.String(); got != clearLine+"1.0 MiB"+clearLine {
		t.Errorf("%q", got)
	}
	if r := stile(t, nil, "pull", "127.0.0.1:1/a/b:v1", "--output", t.TempDir()+"/f"); strings.Contains(r.stderr, "\x1b") {
		t.Errorf("drawn though it is no terminal: %q", r.stderr)
	}
}
