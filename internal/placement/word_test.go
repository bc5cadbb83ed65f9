package placement

import (
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

// What comes from a registry reaches a pod only if the API server takes it for the value
// of a label.
func FuzzWord(f *testing.F) {
	for _, s := range []string{"", "amd64", "a.b-c_d", "-a", "a-", "a b", "ä", "\x00", "x86_64", "a/b", "ppc64le\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := s != "" && len(s) <= maxWord && len(validation.IsValidLabelValue(s)) == 0
		if word(s) != want {
			t.Errorf("word(%q) = %v", s, !want)
		}
	})
}
