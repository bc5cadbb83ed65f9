package proxywasm

import (
	"context"
	"fmt"
	"maps"
)

// Action is what a plugin wants done with a stream after a callback.
type Action uint32

// The two actions of the ABI.
const (
	Continue Action = 0 // go on
	Pause    Action = 1 // wait: for the body's end, or for something else that this host does not have
)

// String returns "continue" or "pause".
func (a Action) String() string {
	if a == Continue {
		return "continue"
	}
	return "pause"
}

// LocalResponse is an answer that a plugin gives in place of the upstream's.
type LocalResponse struct {
	Status     int
	Details    string // for access logs, not for the client
	Headers    Headers
	Body       []byte
	GRPCStatus int32 // -1 = none given
}

// Stream is one HTTP request and its response on their way through a plugin. Its
// callbacks are made in order by one goroutine; different streams of a plugin may be
// used concurrently. Callbacks take no context: a guest that is interrupted is lost
// for all streams, so a client that goes away must not end it; Options.Timeout does.
type Stream struct {
	plugin *Plugin
	id     uint32

	request, response   *Headers
	requestBody, answer []byte // bodies while their callback runs
	inBody              int    // 1 in a request body callback, 2 in a response's, else 0
	properties          map[string]string
	local               *LocalResponse
}

// Stream opens a stream. properties are what the guest may ask for with
// proxy_get_property, paths joined with dots ("source.address"); request.* and
// response.* are answered from the headers. Done must be called at its end.
func (p *Plugin) Stream(properties map[string]string) (*Stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return nil, p.failed
	}
	p.nextID++
	s := &Stream{plugin: p, id: p.nextID, properties: maps.Clone(properties)}
	if s.properties == nil {
		s.properties = map[string]string{}
	}
	p.streams[s.id] = s
	if _, err := s.call("proxy_on_context_create", uint64(s.id), rootID); err != nil {
		delete(p.streams, s.id)
		return nil, err
	}
	return s, nil
}

// OnRequestHeaders hands over a request's headers, which the plugin may change in
// place. A local response ends the request; the plugins behind must not see it.
func (s *Stream) OnRequestHeaders(h *Headers, endOfStream bool) (Action, *LocalResponse, error) {
	s.plugin.mu.Lock()
	defer s.plugin.mu.Unlock()
	s.request = h
	return s.headers("proxy_on_request_headers", h, endOfStream)
}

// OnResponseHeaders hands over a response's headers, as OnRequestHeaders does.
func (s *Stream) OnResponseHeaders(h *Headers, endOfStream bool) (Action, *LocalResponse, error) {
	s.plugin.mu.Lock()
	defer s.plugin.mu.Unlock()
	s.response = h
	return s.headers("proxy_on_response_headers", h, endOfStream)
}

// OnRequestBody hands over a request's whole body and returns what the plugin made
// of it; body itself is not changed.
func (s *Stream) OnRequestBody(body []byte) (Action, []byte, *LocalResponse, error) {
	s.plugin.mu.Lock()
	defer s.plugin.mu.Unlock()
	s.requestBody, s.inBody = body, 1
	action, local, err := s.finish("proxy_on_request_body", uint64(s.id), uint64(len(body)), 1)
	s.inBody = 0
	return action, s.requestBody, local, err
}

// OnResponseBody hands over a response's whole body, as OnRequestBody does.
func (s *Stream) OnResponseBody(body []byte) (Action, []byte, *LocalResponse, error) {
	s.plugin.mu.Lock()
	defer s.plugin.mu.Unlock()
	s.answer, s.inBody = body, 2
	action, local, err := s.finish("proxy_on_response_body", uint64(s.id), uint64(len(body)), 1)
	s.inBody = 0
	return action, s.answer, local, err
}

// ReadsRequestBody reports whether the plugin has a callback for request bodies;
// without one a proxy need not hold the body back.
func (p *Plugin) ReadsRequestBody() bool { return p.exports("proxy_on_request_body") }

// ReadsResponseBody is ReadsRequestBody for responses.
func (p *Plugin) ReadsResponseBody() bool { return p.exports("proxy_on_response_body") }

func (p *Plugin) exports(name string) bool {
	_, ok := p.module.ExportedFunctionDefinitions()[name]
	return ok
}

// Done ends the stream and tells the plugin so. Further callbacks are errors.
func (s *Stream) Done() {
	p := s.plugin
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[s.id] != s {
		return
	}
	// What fails here fails the plugin, and the next stream says so.
	_, _ = s.call("proxy_on_done", uint64(s.id))
	_, _ = s.call("proxy_on_log", uint64(s.id))
	_, _ = s.call("proxy_on_delete", uint64(s.id))
	delete(p.streams, s.id)
}

func (s *Stream) headers(callback string, h *Headers, endOfStream bool) (Action, *LocalResponse, error) {
	end := uint64(0)
	if endOfStream {
		end = 1
	}
	return s.finish(callback, uint64(s.id), uint64(len(*h)), end)
}

// finish makes a callback and collects its outcome. The plugin's mutex is held.
func (s *Stream) finish(callback string, args ...uint64) (Action, *LocalResponse, error) {
	if s.plugin.failed == nil && s.plugin.streams[s.id] != s {
		return Pause, nil, fmt.Errorf("%s: the stream is done", callback)
	}
	result, err := s.call(callback, args...)
	if err != nil {
		return Pause, nil, err
	}
	if s.local != nil {
		local := s.local
		s.local = nil
		return Pause, local, nil
	}
	if result == 0 {
		return Continue, nil, nil
	}
	return Pause, nil, nil
}

func (s *Stream) call(name string, args ...uint64) (uint32, error) {
	p := s.plugin
	ctx, cancel := context.WithTimeout(context.Background(), p.options.Timeout)
	defer cancel()
	p.current = s.id
	defer func() { p.current = rootID }()
	return p.call(ctx, name, args...)
}
