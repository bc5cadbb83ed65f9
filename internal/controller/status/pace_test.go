package status

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/stileproject/stile/internal/engine"
)

// memory is a transport that answers as much of the API as a writer asks for. It is for tests
// of time: a real API server lives by a clock of its own, and holds the rest.
type memory struct {
	mu       sync.Mutex
	version  int
	objects  map[string]map[string]any
	watchers map[*io.PipeWriter]bool
	writes   int // of statuses
	events   []map[string]any
	series   int                         // patches of events
	rival    func(status map[string]any) // somebody else, who writes after each of our writes
}

func newMemory(plugins ...string) *memory {
	m := &memory{objects: map[string]map[string]any{}, watchers: map[*io.PipeWriter]bool{}}
	for _, name := range plugins {
		m.version++
		m.objects[name] = map[string]any{"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin", "metadata": map[string]any{
			"namespace": "team-a", "name": name, "uid": "uid-" + name, "generation": 1, "resourceVersion": strconv.Itoa(m.version)}}
	}
	return m
}

func (m *memory) config() *rest.Config { return &rest.Config{Host: "http://memory", Transport: m} }

func (m *memory) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	body, err := decode(r)
	if err != nil {
		return nil, err
	}
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case strings.Contains(r.URL.Path, "/events.k8s.io/"):
		if r.Method == http.MethodPatch {
			m.series++
		} else {
			m.events = append(m.events, body)
		}
		return reply(r, 200, body), nil
	case r.Method == http.MethodPatch:
		m.writes++
		o := m.objects[path[len(path)-2]]
		metadata, _ := o["metadata"].(map[string]any)
		if given, _ := body["metadata"].(map[string]any); given["resourceVersion"] != metadata["resourceVersion"] {
			return reply(r, 409, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409}), nil
		}
		status, _ := o["status"].(map[string]any)
		if status == nil {
			status = map[string]any{}
		}
		given, _ := body["status"].(map[string]any)
		for k, v := range given {
			status[k] = v
			if v == nil {
				delete(status, k)
			}
		}
		m.version++
		o["status"], metadata["resourceVersion"] = status, strconv.Itoa(m.version)
		answer := reply(r, 200, o)
		if m.rival != nil {
			m.rival(status)
			m.version++
			metadata["resourceVersion"] = strconv.Itoa(m.version)
		}
		for w := range m.watchers {
			go send(w, "MODIFIED", clone(o))
		}
		return answer, nil
	case r.URL.Query().Get("watch") != "":
		return m.watch(r), nil
	}
	list := map[string]any{"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPluginList", "metadata": map[string]any{"resourceVersion": strconv.Itoa(m.version)}}
	var items []any
	for _, o := range m.objects {
		items = append(items, o)
	}
	list["items"] = items
	return reply(r, 200, list), nil
}

// decode reads JSON, and the protocol buffers of events.
func decode(r *http.Request) (map[string]any, error) {
	if r.Body == nil {
		return nil, nil
	}
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if o, _, err := scheme.Codecs.UniversalDeserializer().Decode(text, nil, nil); err == nil {
		if text, err = json.Marshal(o); err != nil {
			return nil, err
		}
	}
	var body map[string]any
	err = json.Unmarshal(text, &body)
	return body, err
}

// watch streams until the client leaves or its time is over.
func (m *memory) watch(r *http.Request) *http.Response {
	reader, writer := io.Pipe()
	m.watchers[writer] = true
	leave := func() {
		m.mu.Lock()
		delete(m.watchers, writer)
		m.mu.Unlock()
		_ = writer.Close()
	}
	context.AfterFunc(r.Context(), leave)
	if n, err := strconv.Atoi(r.URL.Query().Get("timeoutSeconds")); err == nil {
		over := time.AfterFunc(time.Duration(n)*time.Second, leave)
		context.AfterFunc(r.Context(), func() { over.Stop() })
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		var now []map[string]any
		for _, o := range m.objects {
			now = append(now, clone(o))
		}
		mark := map[string]any{"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin", "metadata": map[string]any{
			"resourceVersion": strconv.Itoa(m.version), "annotations": map[string]any{"k8s.io/initial-events-end": "true"}}}
		go func() {
			for _, o := range now {
				send(writer, "ADDED", o)
			}
			send(writer, "BOOKMARK", mark)
		}()
	}
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: reader, Request: r}
}

func send(w io.Writer, kind string, o map[string]any) {
	body, err := json.Marshal(map[string]any{"type": kind, "object": o})
	if err == nil {
		_, _ = w.Write(append(body, '\n'))
	}
}

func clone(o map[string]any) map[string]any {
	body, _ := json.Marshal(o)
	var c map[string]any
	_ = json.Unmarshal(body, &c)
	return c
}

func reply(r *http.Request, code int, body any) *http.Response {
	text, _ := json.Marshal(body)
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(text)), Request: r}
}

func (m *memory) counts() (writes, events, series int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes, len(m.events), m.series
}

// bubble runs a writer over the memory, with what a test does to the engine.
func bubble(t *testing.T, m *memory, do func(s *said)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSaid()
		w, err := New(Config{REST: m.config(), Statuses: s, Namespaces: []string{"team-a"}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := w.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		do(s)
		cancel()
		<-done
	})
}

func TestTwentyFourIdleHoursCostNoWrite(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprint("p", i))
	}
	m := newMemory(names...)
	bubble(t, m, func(s *said) {
		for _, name := range names {
			s.say(programmed("team-a", name, 1))
		}
		time.Sleep(time.Minute)
		writes, events, _ := m.counts()
		if writes != len(names) || events != 2*len(names) {
			t.Errorf("%d writes, %d events at first", writes, events)
		}
		// The engine goes on: it checks, and says the same with other times.
		for range 24 * 60 * 6 {
			time.Sleep(10 * time.Second)
			for _, name := range names {
				p := programmed("team-a", name, 1)
				now := time.Now()
				p.LastCheckedTime, p.NextCheckTime, p.Downloads = &now, &now, now.Unix()
				s.say(p)
			}
		}
		if w, e, series := m.counts(); w != writes || e != events || series != 0 {
			t.Errorf("24 idle hours cost %d writes and %d events", w-writes, e-events+series)
		}
	})
}

func TestProxiesAreCountedEveryTenSecondsAtMost(t *testing.T) {
	t.Parallel()
	m := newMemory("auth")
	bubble(t, m, func(s *said) {
		counted := func(accepted, matched int) engine.PluginStatus {
			p := programmed("team-a", "auth", 1)
			p.Proxies.Matched, p.Proxies.Accepted = matched, accepted
			p.Conditions[2].Message = fmt.Sprintf("%d of %d proxies have loaded it", accepted, matched)
			return p
		}
		s.say(counted(0, 0))
		time.Sleep(time.Second)
		// A proxy a second, for ten minutes.
		for n := range 600 {
			s.say(counted(n+1, n+1))
			time.Sleep(time.Second)
		}
		writes, events, series := m.counts()
		if writes > 1+600/10+1 || writes < 600/10-1 {
			t.Errorf("%d writes in ten minutes", writes)
		}
		if events != 2 || series != 0 {
			t.Errorf("%d events and %d patches for counts", events, series)
		}
		time.Sleep(11 * time.Second)
		m.mu.Lock()
		status, _ := m.objects["auth"]["status"].(map[string]any)
		m.mu.Unlock()
		if proxies, _ := status["proxies"].(map[string]any); proxies["accepted"] != float64(600) {
			t.Errorf("the last count was never written: %v", status["proxies"])
		}
	})
}

// Each proxy that connects turns Programmed over and back: that is told at once a few times, then in the pace of counts.
func TestProgrammedThatTurnsWithEveryProxyIsHeldBack(t *testing.T) {
	t.Parallel()
	m := newMemory("auth")
	bubble(t, m, func(s *said) {
		half := func() engine.PluginStatus {
			p := status("team-a", "auth", 1, "Accepted=True/Accepted", "ResolvedRefs=True/Resolved", "Programmed=False/PartiallyProgrammed/1 of 2 proxies have loaded it, 0 refused it")
			whole := programmed("team-a", "auth", 1)
			whole.Conditions = p.Conditions
			whole.Proxies.Accepted = 1
			return whole
		}
		s.say(programmed("team-a", "auth", 1))
		time.Sleep(time.Second)
		for range 300 {
			s.say(half())
			time.Sleep(500 * time.Millisecond)
			s.say(programmed("team-a", "auth", 1))
			time.Sleep(500 * time.Millisecond)
		}
		writes, events, series := m.counts()
		if writes > 1+flipBurst+300/10+1 {
			t.Errorf("%d writes in five minutes", writes)
		}
		if events != 2 || series != 0 {
			t.Errorf("%d events and %d patches: nobody refused anything", events, series)
		}
		// What matters is not held back.
		s.say(unauthorized("team-a", "auth", 1))
		time.Sleep(holdOff + 10*time.Millisecond)
		if after, _, _ := m.counts(); after != writes+1 {
			t.Error("a refusal waits behind counts")
		}
	})
}

func TestAStatusIsNotFoughtOver(t *testing.T) {
	t.Parallel()
	m := newMemory("auth")
	m.rival = func(status map[string]any) {
		conditions, _ := status["conditions"].([]any)
		c, _ := conditions[1].(map[string]any)
		c["status"], c["reason"] = "False", "ImageNotFound"
	}
	bubble(t, m, func(s *said) {
		s.say(programmed("team-a", "auth", 1))
		time.Sleep(time.Second)
		if writes, _, _ := m.counts(); writes != 1+againBurst {
			t.Errorf("%d writes at once", writes)
		}
		time.Sleep(time.Hour)
		if writes, events, series := m.counts(); writes > 1+againBurst+61 || events != 2 || series != 0 {
			t.Errorf("%d writes, %d events, %d patches of them in an hour", writes, events, series)
		}
		// What is new is written at once all the same.
		before, _, _ := m.counts()
		s.say(unauthorized("team-a", "auth", 1))
		time.Sleep(holdOff + 10*time.Millisecond)
		if writes, _, _ := m.counts(); writes != before+1 {
			t.Error("news wait behind the quarrel")
		}
	})
}

func TestAPluginThatFlapsIsASeriesAndDrownsNobody(t *testing.T) {
	t.Parallel()
	m := newMemory("auth", "quiet")
	bubble(t, m, func(s *said) {
		for range 600 {
			s.say(unauthorized("team-a", "auth", 1))
			time.Sleep(time.Second)
			s.say(programmed("team-a", "auth", 1))
			time.Sleep(time.Second)
		}
		_, events, series := m.counts()
		if events != 3 {
			t.Errorf("%d events: want Unauthorized, Resolved, Programmed", events)
		}
		if series < 2*15 || series > 3*21 {
			t.Errorf("%d patches in 20 minutes, want one a minute and event", series)
		}
		// Words that are always new have a budget.
		for n := range 100 {
			p := unauthorized("team-a", "auth", 1)
			p.Conditions[1].Message = fmt.Sprint("attempt ", n)
			s.say(p)
			time.Sleep(200 * time.Millisecond)
			s.say(pending("team-a", "auth", 1))
			time.Sleep(200 * time.Millisecond)
			s.say(programmed("team-a", "auth", 1))
			time.Sleep(200 * time.Millisecond)
		}
		if _, now, _ := m.counts(); now > events+eventBurst+5 {
			t.Errorf("%d new events in a minute", now-events)
		}
		s.say(programmed("team-a", "quiet", 1))
		time.Sleep(time.Second)
		if _, now, _ := m.counts(); now < 5 || m.events[now-1]["regarding"].(map[string]any)["name"] != "quiet" {
			t.Error("the neighbour was not heard")
		}
	})
}
