package proxywasm

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Header is one name and value. Names are lower case; those that begin with a colon
// are HTTP's pseudo headers (":method", ":path", ":authority", ":scheme", ":status").
type Header struct{ Name, Value string }

// Headers are a message's headers in order. The zero value is empty and ready. Not
// for concurrent use.
type Headers []Header

// Get returns the values of name joined with commas, and whether there is one.
func (h Headers) Get(name string) (string, bool) {
	name = strings.ToLower(name)
	value, found := "", false
	for _, e := range h {
		switch {
		case e.Name != name:
		case !found:
			value, found = e.Value, true
		default:
			value += "," + e.Value
		}
	}
	return value, found
}

// first returns the first value of name, and whether there is one.
func (h Headers) first(name string) (string, bool) {
	name = strings.ToLower(name)
	for _, e := range h {
		if e.Name == name {
			return e.Value, true
		}
	}
	return "", false
}

// Add appends a value of name.
func (h *Headers) Add(name, value string) {
	*h = append(*h, Header{Name: strings.ToLower(name), Value: value})
}

// Set makes value the only one of name, in the place of the first there was.
func (h *Headers) Set(name, value string) {
	name = strings.ToLower(name)
	at := slices.IndexFunc(*h, func(e Header) bool { return e.Name == name })
	if at < 0 {
		h.Add(name, value)
		return
	}
	kept := slices.Clone((*h)[:at+1])
	kept[at].Value = value
	for _, e := range (*h)[at+1:] {
		if e.Name != name {
			kept = append(kept, e)
		}
	}
	*h = kept
}

// Del removes every value of name.
func (h *Headers) Del(name string) {
	name = strings.ToLower(name)
	*h = slices.DeleteFunc(slices.Clone(*h), func(e Header) bool { return e.Name == name })
}

// Clone returns a copy.
func (h Headers) Clone() Headers { return slices.Clone(h) }

// marshal writes the headers as the ABI does: their number, the sizes of each name
// and value, then names and values, each ended by a NUL. All numbers are 32 bits,
// little endian.
func (h Headers) marshal() []byte {
	size := 4
	for _, e := range h {
		size += 8 + len(e.Name) + 1 + len(e.Value) + 1
	}
	b := make([]byte, 0, size)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(h))) //nolint:gosec // far below 2^32
	for _, e := range h {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Name)))  //nolint:gosec // as above
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Value))) //nolint:gosec // as above
	}
	for _, e := range h {
		b = append(append(b, e.Name...), 0)
		b = append(append(b, e.Value...), 0)
	}
	return b
}

// parseHeaders reads what marshal writes, from a guest. Nothing is sized from a
// number that the bytes themselves do not bear out.
func parseHeaders(b []byte) (Headers, bool) {
	if len(b) < 4 { // an empty map may be written as nothing at all
		return nil, len(b) == 0
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	if n > (uint64(len(b))-4)/10 { // two sizes and two NULs each, at least
		return nil, false
	}
	sizes, text := b[4:4+8*n], b[4+8*n:]
	h := make(Headers, 0, n)
	next := func(i uint64) (string, bool) {
		size := uint64(binary.LittleEndian.Uint32(sizes[4*i:]))
		if size+1 > uint64(len(text)) {
			return "", false
		}
		s := string(text[:size])
		text = text[size+1:]
		return s, true
	}
	for i := range n {
		name, ok := next(2 * i)
		value, ok2 := next(2*i + 1)
		if !ok || !ok2 {
			return nil, false
		}
		h.Add(name, value)
	}
	return h, true
}
