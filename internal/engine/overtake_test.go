package engine_test

import (
	"strings"
	"testing"
	"time"
)

// A pull takes as long as it takes: what arrives late, of a version that is no longer wanted, changes nothing.
func TestP8_ASlowPullOfAnOldVersionNeverOvertakesANewerOne(t *testing.T) {
	t.Parallel()
	running(t, nil, func(h *house) {
		h.registry.set(func(r *registry) { r.tags["a/p:v2"], r.tags["a/p:v3"] = digestOf(2), digestOf(3) })
		version := func(v string) string { return strings.Replace(image, ":v1", ":"+v, 1) }
		h.plugin("team-a", "auth", version("v2"))
		h.apply()
		h.pass(time.Second)
		h.wantDelivered("team-a", "auth", "module 1") // v2 is being pulled
		h.plugin("team-a", "auth", version("v3"))
		h.apply()
		h.pass(time.Second)
		h.wantDelivered("team-a", "auth", "module 1") // both are
		h.contents.arrive(3, false)
		h.pass(time.Second)
		h.wantDelivered("team-a", "auth", "module 3")
		h.contents.arrive(2, false)
		h.pass(time.Hour)
		h.wantDelivered("team-a", "auth", "module 3")

		t.Log("nor where the older one arrives first: what is wanted comes when it is there")
		h.registry.set(func(r *registry) { r.tags["a/p:v4"], r.tags["a/p:v5"] = digestOf(4), digestOf(5) })
		h.plugin("team-a", "auth", version("v4"))
		h.apply()
		h.pass(time.Second)
		h.plugin("team-a", "auth", version("v5"))
		h.apply()
		h.pass(time.Second)
		h.contents.arrive(4, false)
		h.pass(time.Second)
		h.wantDelivered("team-a", "auth", "module 3")
		h.contents.arrive(5, false)
		h.pass(time.Second)
		h.wantDelivered("team-a", "auth", "module 5")
	})
}
