package access

import (
	"slices"
	"testing"
	"testing/synctest"
)

// TestUsersOfATag: a plugin whose tag is denied or not answered yet is shown with it, as
// long as it wants it.
func TestUsersOfATag(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", no(status(403)))
		g := running(t, w, Config{})
		users := func() map[string][]string {
			all := map[string][]string{}
			for _, e := range g.List() {
				all[e.Image] = e.Users
			}
			return all
		}
		want := func(when string, image string, names ...string) {
			t.Helper()
			if got := users()[image]; !slices.Equal(got, names) {
				t.Errorf("%s: %s is used by %q, want %q", when, image, got, names)
			}
		}
		a, b := plugin(t, "team-a", tagged, as("alice")), plugin(t, "team-b", tagged, as("alice"))
		g.Check(a)
		want("pending", tagged, "team-a/p")
		synctest.Wait()
		g.Check(b)
		g.Check(Request{Image: a.Image, Credentials: a.Credentials}) // nobody in particular
		want("denied", tagged, "team-a/p", "team-b/p")
		g.Release(b.Holder)
		want("one released", tagged, "team-a/p")
		g.Forget(a.Credentials.Fingerprint(), a.Holder)
		want("its Secret gone", tagged)

		w.says("", "", yes(digest(1)))
		a.Credentials = as("ben")
		g.Check(a)
		synctest.Wait()
		pin := a
		pin.Image = ref(t, pinned)
		g.Hold(pin)
		want("resolved", tagged, "team-a/p")
		want("resolved", pinned, "team-a/p")
		pin.Image = ref(t, image+"@"+digest(2))
		w.says("", "", yes(digest(2)))
		g.Hold(pin)
		synctest.Wait()
		g.Hold(pin)
		want("it moved on", tagged)
	})
}
