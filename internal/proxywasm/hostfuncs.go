package proxywasm

import (
	"encoding/binary"
	"log/slog"
	"strings"
	"time"
)

// Header maps and buffers by their number in the ABI.
const (
	mapRequestHeaders  = 0
	mapResponseHeaders = 2

	bufferRequestBody  = 0
	bufferResponseBody = 1
	bufferVMConfig     = 6
	bufferPluginConfig = 7
)

var logLevels = [...]slog.Level{slog.LevelDebug - 4, slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError, slog.LevelError + 4}

func hostLog(c hostCall) status {
	level := c.u32(0)
	if int(level) >= len(logLevels) {
		return statusBadArgument
	}
	text, ok := c.mem.Read(c.u32(1), c.u32(2))
	if !ok {
		return statusInvalidMemoryAccess
	}
	message := strings.ToValidUTF8(string(text[:min(len(text), maxLogMessage)]), "�")
	if logLevels[level] >= slog.LevelError {
		c.p.lastError = message
	}
	c.p.log.Log(c.ctx, logLevels[level], message)
	return statusOK
}

// hostLogLevel says trace when the log takes that, else info.
func hostLogLevel(c hostCall) status {
	for i, level := range logLevels {
		if c.p.log.Enabled(c.ctx, level) {
			return c.result(0, uint32(i))
		}
	}
	return c.result(0, uint32(len(logLevels)-1))
}

// result writes v where argument i points to.
func (c hostCall) result(i int, v uint32) status {
	if !c.mem.WriteUint32Le(c.u32(i), v) {
		return statusInvalidMemoryAccess
	}
	return statusOK
}

func hostTime(c hostCall) status {
	if !c.mem.WriteUint64Le(c.u32(0), uint64(time.Now().UnixNano())) {
		return statusInvalidMemoryAccess
	}
	return statusOK
}

// buffer returns a buffer that exists now. Configurations exist only while the plugin
// is asked about them; the bodies of a stream are empty outside their callback, as in
// Envoy.
func (c hostCall) buffer(kind uint32) ([]byte, bool) {
	s := c.stream()
	switch {
	case kind == bufferVMConfig && c.p.vmBuffer != nil:
		return c.p.vmBuffer, true
	case kind == bufferPluginConfig && c.p.cfgBuffer != nil:
		return c.p.cfgBuffer, true
	case kind == bufferRequestBody && s != nil && s.inBody == 1:
		return s.requestBody, true
	case kind == bufferResponseBody && s != nil && s.inBody == 2:
		return s.answer, true
	case (kind == bufferRequestBody || kind == bufferResponseBody) && s != nil:
		return nil, true
	}
	return nil, false
}

func hostGetBuffer(c hostCall) status {
	b, ok := c.buffer(c.u32(0))
	if !ok {
		return statusNotFound
	}
	start, size := uint64(c.u32(1)), uint64(c.u32(2))
	if start > uint64(len(b)) {
		return statusBadArgument
	}
	return c.give(3, b[start:min(start+size, uint64(len(b)))])
}

func hostBufferStatus(c hostCall) status {
	b, ok := c.buffer(c.u32(0))
	if !ok {
		return statusNotFound
	}
	if st := c.result(1, uint32(len(b))); st != statusOK { //nolint:gosec // bounded by the caller
		return st
	}
	return c.result(2, 0)
}

// hostSetBuffer replaces the first bytes of a body, or appends to it: what Envoy
// allows.
func hostSetBuffer(c hostCall) status {
	s := c.stream()
	if s == nil || s.inBody == 0 || c.u32(0) != uint32(s.inBody-1) { //nolint:gosec // 1 or 2
		return statusNotFound
	}
	data, ok := c.bytes(3)
	if !ok {
		return statusInvalidMemoryAccess
	}
	body := &s.requestBody
	if s.inBody == 2 {
		body = &s.answer
	}
	start, length := uint64(c.u32(1)), uint64(c.u32(2))
	switch {
	case start == 0:
		*body = append(data, (*body)[min(length, uint64(len(*body))):]...)
	case start >= uint64(len(*body)) && length == 0:
		*body = append(append([]byte(nil), *body...), data...)
	default:
		return statusBadArgument
	}
	return statusOK
}

// headers returns the header map that argument 0 names; nil if it is not there.
func (c hostCall) headers() *Headers {
	s := c.stream()
	if s == nil {
		return nil
	}
	switch c.u32(0) {
	case mapRequestHeaders:
		return s.request
	case mapResponseHeaders:
		return s.response
	}
	return nil
}

func hostGetHeader(c hostCall) status {
	name, ok := c.bytes(1)
	if !ok {
		return statusInvalidMemoryAccess
	}
	h := c.headers()
	if h == nil {
		return statusBadArgument
	}
	value, found := h.first(string(name)) // of several, Envoy gives the first
	if !found && c.p.abi != "0.1.0" {     // the oldest ABI knew no absence
		return statusNotFound
	}
	return c.give(3, []byte(value))
}

// nameAndValue reads arguments 1 to 4.
func (c hostCall) nameAndValue() (h *Headers, name, value string, st status) {
	n, ok := c.bytes(1)
	v, ok2 := c.bytes(3)
	if !ok || !ok2 {
		return nil, "", "", statusInvalidMemoryAccess
	}
	if h = c.headers(); h == nil || !validHeader(n, v) {
		return nil, "", "", statusBadArgument
	}
	return h, string(n), string(v), statusOK
}

// validHeader keeps a guest from smuggling a second header in a name or value.
func validHeader(name, value []byte) bool {
	return len(name) > 0 && !strings.ContainsAny(string(name), "\r\n\x00 ") && !strings.ContainsAny(string(value), "\r\n\x00")
}

func hostAddHeader(c hostCall) status {
	h, name, value, st := c.nameAndValue()
	if st == statusOK {
		h.Add(name, value)
	}
	return st
}

func hostReplaceHeader(c hostCall) status {
	h, name, value, st := c.nameAndValue()
	if st == statusOK {
		h.Set(name, value)
	}
	return st
}

func hostRemoveHeader(c hostCall) status {
	name, ok := c.bytes(1)
	if !ok {
		return statusInvalidMemoryAccess
	}
	h := c.headers()
	if h == nil {
		return statusBadArgument
	}
	h.Del(string(name))
	return statusOK
}

func hostGetHeaders(c hostCall) status {
	h := c.headers()
	if h == nil {
		return statusBadArgument
	}
	return c.give(1, h.marshal())
}

func hostSetHeaders(c hostCall) status {
	b, ok := c.bytes(1)
	if !ok {
		return statusInvalidMemoryAccess
	}
	h := c.headers()
	pairs, ok := parseHeaders(b)
	if h == nil || !ok {
		return statusBadArgument
	}
	for _, e := range pairs {
		if !validHeader([]byte(e.Name), []byte(e.Value)) {
			return statusBadArgument
		}
	}
	*h = pairs
	return statusOK
}

func hostHeadersSize(c hostCall) status {
	h := c.headers()
	if h == nil {
		return statusBadArgument
	}
	size := 0
	for _, e := range *h {
		size += len(e.Name) + len(e.Value)
	}
	return c.result(1, uint32(size))
}

// hostGetProperty answers paths, whose parts are separated by NULs.
func hostGetProperty(c hostCall) status {
	path, ok := c.bytes(0)
	if !ok {
		return statusInvalidMemoryAccess
	}
	value, found := c.property(strings.Split(strings.TrimSuffix(string(path), "\x00"), "\x00"))
	if !found {
		return statusNotFound
	}
	return c.give(2, value)
}

func (c hostCall) property(path []string) ([]byte, bool) {
	name := strings.Join(path, ".")
	switch name {
	case "plugin_name":
		return []byte(c.p.options.Name), true
	case "plugin_root_id":
		return []byte(c.p.options.RootID), true
	case "plugin_vm_id":
		return []byte(c.p.options.VMID), true
	}
	if s := c.stream(); s != nil {
		if v, ok := s.properties[name]; ok {
			return []byte(v), true
		}
		if v, ok := s.headerProperty(path); ok {
			return v, true
		}
	}
	v, ok := c.p.options.Properties[name]
	return []byte(v), ok
}

// headerProperty answers request.* and response.* from the headers.
func (s *Stream) headerProperty(path []string) ([]byte, bool) {
	if len(path) < 2 {
		return nil, false
	}
	h, pseudo := s.request, map[string]string{"path": ":path", "url_path": ":path", "method": ":method", "host": ":authority", "scheme": ":scheme", "useragent": "user-agent", "id": "x-request-id"}
	if path[0] == "response" {
		h, pseudo = s.response, map[string]string{"code": ":status"}
	} else if path[0] != "request" {
		return nil, false
	}
	if h == nil {
		return nil, false
	}
	if path[1] == "headers" && len(path) > 2 {
		v, ok := h.Get(strings.Join(path[2:], "."))
		return []byte(v), ok
	}
	v, ok := h.Get(pseudo[path[1]])
	switch path[1] {
	case "code": // a number travels as 64 bits, little endian
		var n uint64
		for _, d := range v {
			n = n*10 + uint64(d-'0') //nolint:gosec // digits
		}
		return binary.LittleEndian.AppendUint64(nil, n), ok
	case "url_path":
		v, _, _ = strings.Cut(v, "?")
	}
	return []byte(v), ok
}

func hostSetProperty(c hostCall) status {
	path, ok := c.bytes(0)
	value, ok2 := c.bytes(2)
	if !ok || !ok2 {
		return statusInvalidMemoryAccess
	}
	s := c.stream()
	if s == nil {
		return statusNotFound
	}
	s.properties[strings.ReplaceAll(strings.TrimSuffix(string(path), "\x00"), "\x00", ".")] = string(value)
	return statusOK
}

func hostLocalResponse(c hostCall) status {
	details, ok := c.bytes(1)
	body, ok2 := c.bytes(3)
	raw, ok3 := c.bytes(5)
	if !ok || !ok2 || !ok3 {
		return statusInvalidMemoryAccess
	}
	headers, ok := parseHeaders(raw)
	s := c.stream()
	code := c.u32(0)
	if !ok || s == nil || code < 200 || code > 599 {
		return statusBadArgument
	}
	for _, e := range headers {
		if !validHeader([]byte(e.Name), []byte(e.Value)) {
			return statusBadArgument
		}
	}
	s.local = &LocalResponse{
		Status: int(code), Details: string(details), Body: body, Headers: headers,
		GRPCStatus: int32(c.u32(7)), //nolint:gosec // the ABI's -1 arrives as 2^32-1
	}
	return statusOK
}

func hostEffectiveContext(c hostCall) status {
	id := c.u32(0)
	if _, ok := c.p.streams[id]; !ok && id != rootID {
		return statusBadArgument
	}
	c.p.current = id
	return statusOK
}
