package access

import (
	"reflect"
	"testing"
)

// TestSlotIsOneCacheLine: a warm check reads that of the table; the memory of an entry
// is what is promised of it.
func TestSlotIsOneCacheLine(t *testing.T) {
	t.Parallel()
	if n := reflect.TypeFor[slot]().Size(); n != 64 {
		t.Errorf("a slot has %d bytes", n)
	}
	if n := reflect.TypeFor[entry]().Size(); n > 96 {
		t.Errorf("an entry has %d bytes", n)
	}
	if n := reflect.TypeFor[answer]().Size(); n > 64 {
		t.Errorf("an answer has %d bytes", n)
	}
}
