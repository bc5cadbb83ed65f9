package access

import (
	"reflect"
	"testing"
)

// TestEntryIsTwoCacheLines: a warm check reads the first; the memory of an entry is what
// is promised of it.
func TestEntryIsTwoCacheLines(t *testing.T) {
	t.Parallel()
	e := reflect.TypeFor[entry]()
	if n := e.Size(); n > 128 {
		t.Errorf("an entry has %d bytes", n)
	}
	if n := reflect.TypeFor[answer]().Size(); n > 64 {
		t.Errorf("an answer has %d bytes", n)
	}
	second, ok := e.FieldByName("answer")
	if !ok || second.Offset > 64 {
		t.Errorf("what a warm check reads has %d bytes", second.Offset)
	}
}
