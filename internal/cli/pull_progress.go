package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/stileproject/stile/internal/content"
)

const (
	progressEvery = 100 * time.Millisecond
	progressWidth = 30
	clearLine     = "\r\x1b[K"
)

// showProgress draws how far p is on stderr, if that is a terminal and nobody asked for
// quiet, until the function that it returns is called.
func (a *app) showProgress(p *content.Progress) (done func()) {
	f, ok := a.stderr.(*os.File)
	if !ok || a.quiet || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	tick := time.NewTicker(progressEvery)
	stop := drawProgress(f, p, tick.C)
	return func() {
		tick.Stop()
		stop()
	}
}

// drawProgress draws at each tick; the function that it returns takes the line away.
func drawProgress(w io.Writer, p *content.Progress, tick <-chan time.Time) (stop func()) {
	quit := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		drawn := false
		for {
			select {
			case <-quit:
				if drawn {
					_, _ = io.WriteString(w, clearLine)
				}
				return
			case <-tick:
				if read := p.Read.Load(); read > 0 {
					_, _ = io.WriteString(w, clearLine+progressBar(read, p.Total.Load()))
					drawn = true
				}
			}
		}
	})
	return func() {
		close(quit)
		drawing.Wait()
	}
}

// progressBar is one line: a bar where the total is known, and what came.
func progressBar(read, total int64) string {
	const mib = 1 << 20
	if total <= 0 {
		return fmt.Sprintf("%.1f MiB", float64(read)/mib)
	}
	share := min(1, float64(read)/float64(total))
	full := int(share * progressWidth)
	return fmt.Sprintf("[%s%s] %3.0f%% of %.1f MiB", strings.Repeat("#", full), strings.Repeat(".", progressWidth-full), share*100, float64(total)/mib)
}
