package placement

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Of all sets of pairs: the blocks of new terms cover exactly them, and the one block of
// a term that is there says nothing that is not among them, and could say no more.
func TestBlocks_CoverExactlyAndTheWidestCannotGrow(t *testing.T) {
	t.Parallel()
	systems, names := []string{"freebsd", "linux", "windows"}, []string{"amd64", "arm", "arm64", "s390x"}
	for mask := 1; mask < 1<<(len(systems)*len(names)); mask++ {
		var all []Platform
		for i, s := range systems {
			for k, a := range names {
				if mask&(1<<(i*len(names)+k)) != 0 {
					all = append(all, Platform{OS: s, Architecture: a})
				}
			}
		}
		var covered []Platform
		for _, b := range blocks(all) {
			covered = append(covered, b.pairs()...)
		}
		if len(covered) != len(all) || !slices.Equal(sorted(covered), all) {
			t.Fatalf("%v: blocks cover %v", all, covered)
		}
		b := widest(all)
		for _, p := range b.pairs() {
			if !slices.Contains(all, p) {
				t.Fatalf("%v: the block has %v", all, p)
			}
		}
		within := func(b block) bool {
			return !slices.ContainsFunc(b.pairs(), func(p Platform) bool { return !slices.Contains(all, p) })
		}
		for _, s := range systems {
			if !slices.Contains(b.systems, s) && within(block{append(slices.Clone(b.systems), s), b.architectures}) {
				t.Fatalf("%v: the block %v could have %s", all, b, s)
			}
		}
		for _, a := range names {
			if !slices.Contains(b.architectures, a) && within(block{b.systems, append(slices.Clone(b.architectures), a)}) {
				t.Fatalf("%v: the block %v could have %s", all, b, a)
			}
		}
		if slices.Contains(systemsIn(all), "linux") && !slices.Contains(b.systems, "linux") {
			t.Fatalf("%v: Linux is left out of %v", all, b)
		}
		shuffled := slices.Clone(all)
		rand.New(rand.NewPCG(uint64(mask), 0)).Shuffle(len(shuffled), func(i, k int) { shuffled[i], shuffled[k] = shuffled[k], shuffled[i] })
		if !slices.Equal(sorted(shuffled), all) {
			t.Fatalf("%v: sorted %v", all, shuffled)
		}
	}
}
