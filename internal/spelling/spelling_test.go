package spelling

import "testing"

func TestDistance(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		a, b        string
		limit, want int
	}{
		{"timeout", "timeout", 3, 0},
		{"timeot", "timeout", 3, 1},
		{"tmieout", "timeout", 3, 2},
		{"kitten", "sitting", 9, 3},
		{"kitten", "sitting", 3, 3},
		{"", "ab", 3, 2},
		{"a", "abcdefgh", 3, 3},
		{"same", "same", 0, 0},
	} {
		if got := Distance(row.a, row.b, row.limit); got != row.want {
			t.Errorf("%q, %q, at most %d: got %d, want %d", row.a, row.b, row.limit, got, row.want)
		}
	}
}
