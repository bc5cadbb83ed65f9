package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stileproject/stile/modules"
)

// load asks one address all the time, over connections that live on, and judges every answer.
type load struct {
	judge func(status int, body string) string // "" is right, else what is wrong
	stop  chan struct{}
	wg    sync.WaitGroup

	mu       sync.Mutex // guards what follows
	down     bool       // Envoy itself is being restarted: nobody answers, and that is no fault
	answered int
	faults   int
	first    string // the first fault
}

// ask starts asking, from several clients at once.
func (w *world) ask(address string, judge func(status int, body string) string) *load {
	l := &load{judge: judge, stop: make(chan struct{})}
	for range 4 {
		l.wg.Go(func() {
			c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for {
				select {
				case <-l.stop:
					return
				default:
					l.ask(c, address)
				}
			}
		})
	}
	w.Cleanup(l.end)
	return l
}

func (l *load) ask(c *http.Client, address string) {
	l.mu.Lock()
	excused := l.down
	l.mu.Unlock()
	response, err := c.Get("http://" + address + "/")
	fault, body := "", ""
	if err != nil {
		fault = err.Error()
	} else {
		var text []byte
		text, err = io.ReadAll(response.Body)
		_ = response.Body.Close()
		body = string(text)
		if err != nil {
			fault = err.Error()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && (excused || l.down) {
		return // there was no answer; one that comes is judged always
	}
	if fault == "" {
		fault = l.judge(response.StatusCode, body)
	}
	l.answered++
	if fault != "" {
		if l.faults++; l.first == "" {
			l.first = fault
		}
	}
}

// envoyIsDown says whether requests without an answer are excused.
func (l *load) envoyIsDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

// end stops asking; it may be called again.
func (l *load) end() {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *load) count() (answered, faults int, first string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered, l.faults, l.first
}

// more waits until n more requests are answered.
func (w *world) more(l *load, n int) {
	w.Helper()
	before, _, _ := l.count()
	w.eventually("more requests are answered", func() error {
		if now, _, _ := l.count(); now < before+n {
			return fmt.Errorf("%d of %d", now-before, n)
		}
		return nil
	})
}

// TestP8_NoRequestFailsOrIsBypassed sends requests without a pause while everything happens that may happen to a
// proxy that runs: every answer has passed a plugin, one of the versions that there were.
func TestP8_NoRequestFailsOrIsBypassed(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]string{"inline": "", "remote": "inlineMaxModule: 0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.push("badge:v1", modules.Badge())
			w.push("moving:latest", tagged(t, "version1"))
			port := portOf(freePort(t)) // the same after a restart of Envoy
			w.envoyFile("listeners:\n- name: http\n  address: { socket_address: { address: 127.0.0.1, port_value: " + port + " } }\n  filter_chains:\n  - filters:" + hcm("", jwtAndRBAC))
			w.plugin("neighbour", "url: '"+w.image("badge:v1")+"', phase: AUTHN, pluginConfig: { name: neighbour }")
			w.plugin("moving", "url: '"+w.image("moving:latest")+"', imagePullPolicy: Always")
			if more != "" {
				more = "xds: { address: '" + w.at.XDS + "', " + more + " }\n"
			}
			w.start(more)
			e := w.envoy()
			e.WaitReady()
			address := "127.0.0.1:" + port
			w.soon(address, "trail=neighbour toll= tag=version1")

			l := w.ask(address, func(status int, body string) string {
				for version := range 10 {
					if status == http.StatusOK && body == fmt.Sprintf("GET / trail=neighbour toll= tag=version%d env= config=", version) {
						return ""
					}
				}
				return fmt.Sprintf("%d %q", status, body)
			})
			version := 1
			moves := func() {
				t.Helper()
				version++
				w.push("moving:latest", tagged(t, fmt.Sprintf("version%d", version)))
				w.soon(address, fmt.Sprintf("tag=version%d", version))
				w.more(l, 20)
			}
			step := func(what string, do func()) {
				t.Helper()
				before, _, _ := l.count()
				do()
				answered, faults, first := l.count()
				t.Logf("%s: %d requests", what, answered-before)
				if faults > 0 {
					t.Errorf("%s: %d faults, the first: %s", what, faults, first)
				}
			}
			step("the tag moves", func() { moves(); moves(); moves() })
			step("a module that is refused takes its name", func() {
				w.push("moving:latest", []byte("no module"))
				w.status("moving", "last good", func(p pluginStatus) bool { return p.ServingLastGood })
				w.more(l, 50)
				moves()
			})
			step("neighbours come, change and go", func() {
				for i := range 4 {
					w.plugin("other", fmt.Sprintf("url: '%s', pluginConfig: { name: other%d }, selector: { matchLabels: { app: nobody } }", w.image("badge:v1"), i))
					w.more(l, 20)
				}
			})
			step("the registry is away and comes back", func() {
				w.registry.Down()
				w.more(l, 400)
				w.registry.Up()
				moves()
			})
			step("stile crashes and starts again, the registry away", func() {
				w.registry.Down()
				w.kill()
				w.more(l, 100)
				w.run()
				w.more(l, 200)
				w.registry.Up()
				moves()
			})
			step("stile ends and starts again", func() { w.stop(); w.more(l, 50); w.run(); w.more(l, 50); moves() })
			step("Envoy starts again, the registry away", func() {
				w.registry.Down()
				l.envoyIsDown(true)
				e.Kill()
				e = w.envoy()
				e.WaitReady()
				w.soon(address, fmt.Sprintf("tag=version%d", version))
				l.envoyIsDown(false)
				w.more(l, 100)
				w.registry.Up()
				moves()
			})
			l.end()
			answered, faults, first := l.count()
			if faults > 0 {
				t.Errorf("%d of %d requests were answered wrongly, the first: %s", faults, answered, first)
			}
			t.Logf("%d requests, %d versions", answered, version)
		})
	}
}
