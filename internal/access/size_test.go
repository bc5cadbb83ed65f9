package access

import (
	"testing"
	"unsafe"
)

// TestEntryIsTwoCacheLines: a warm check reads the first; the memory of an entry is what
// is promised of it.
func TestEntryIsTwoCacheLines(t *testing.T) {
	t.Parallel()
	var e entry
	if n := unsafe.Sizeof(e); n > 128 {
		t.Errorf("an entry has %d bytes", n)
	}
	if n := unsafe.Sizeof(answer{}); n > 64 {
		t.Errorf("an answer has %d bytes", n)
	}
	if n := unsafe.Offsetof(e.answer); n > 64 {
		t.Errorf("what a warm check reads has %d bytes", n)
	}
}
