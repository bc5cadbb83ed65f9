package proxywasm

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHeaders(t *testing.T) {
	t.Parallel()
	h := Headers{{"a", "1"}, {"b", "2"}, {"a", "3"}}
	before := h.Clone()
	h.Set("A", "x")
	if diff := cmp.Diff(Headers{{"a", "x"}, {"b", "2"}}, h); diff != "" {
		t.Error(diff)
	}
	h.Add("B", "4")
	if got, ok := h.Get("b"); got != "2,4" || !ok {
		t.Errorf("Get: %q %v", got, ok)
	}
	h.Del("b")
	if _, ok := h.Get("b"); ok || len(h) != 1 {
		t.Errorf("after Del: %v", h)
	}
	if diff := cmp.Diff(Headers{{"a", "1"}, {"b", "2"}, {"a", "3"}}, before); diff != "" {
		t.Error("a copy changed: ", diff)
	}
}

func FuzzParseHeaders(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(Headers{}.marshal())
	f.Add(Headers{{"a", "1"}, {":path", ""}}.marshal())
	f.Add([]byte{255, 255, 255, 255, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := parseHeaders(b)
		if !ok {
			return
		}
		again, ok := parseHeaders(h.marshal())
		if !ok || (len(h) > 0 && !cmp.Equal(h, again)) {
			t.Errorf("%v became %v", h, again)
		}
	})
}
