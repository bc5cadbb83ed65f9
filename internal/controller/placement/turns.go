package placement

import "slices"

// turns is a queue that serves its tenants in turn, and each tenant's in order. The zero
// value is empty.
type turns[T any] struct {
	order   []string // tenants with something waiting; the next first
	waiting map[string][]T
}

func (t *turns[T]) empty() bool { return len(t.order) == 0 }

func (t *turns[T]) push(tenant string, v T) {
	if t.waiting == nil {
		t.waiting = map[string][]T{}
	}
	if len(t.waiting[tenant]) == 0 {
		t.order = append(t.order, tenant)
	}
	t.waiting[tenant] = append(t.waiting[tenant], v)
}

// pop returns the next of the first tenant that may go, nil for may being everybody.
func (t *turns[T]) pop(may func(tenant string) bool) (v T, ok bool) {
	for i, tenant := range t.order {
		if may != nil && !may(tenant) {
			continue
		}
		var zero T
		list := t.waiting[tenant]
		v, list[0] = list[0], zero
		t.order = slices.Delete(t.order, i, i+1)
		if len(list) == 1 {
			delete(t.waiting, tenant)
		} else {
			t.waiting[tenant] = list[1:]
			t.order = append(t.order, tenant)
		}
		return v, true
	}
	return v, false
}
