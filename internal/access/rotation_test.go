package access

import (
	"bytes"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// rotated returns the test's root key after n rotations.
func rotated(t *testing.T, n byte) secret.Root {
	t.Helper()
	key := func(n byte) []byte {
		if n == 0 {
			return []byte("0123456789abcdef0123456789abcdef")
		}
		return bytes.Repeat([]byte{n}, secret.Size)
	}
	r, err := secret.NewRoot(key(n), key(n-1))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// pullSecret returns the credentials of one pull secret with entries of equal rank for
// many users: their order depends on the root key.
func pullSecret(t *testing.T, root secret.Root, users ...string) oci.Credentials {
	t.Helper()
	var rings []oci.Keyring
	for _, u := range users {
		ring, err := oci.ParseDockerConfigJSON(root.Key(secret.ForFingerprints), u, []byte(`{"auths":{"registry.example:5000":{"username":"`+u+`","password":"CANARY-`+u+`"}}}`))
		if err != nil {
			t.Fatal(err)
		}
		rings = append(rings, ring)
	}
	c, err := oci.JoinKeyrings(rings...).For(ref(t, pinned))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestP3_ARotationOfTheRootKeyKeepsWhatIsKnown: proofs, and who held them, are found
// under the former key, at no request, and are kept under the new one from then on.
func TestP3_ARotationOfTheRootKeyKeepsWhatIsKnown(t *testing.T) {
	t.Parallel()
	users := []string{"alice", "ben", "carol", "dora", "emil"}
	path := filepath.Join(t.TempDir(), "proofs.db")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("dora, entry registry.example:5000", "", yes(digest(1)))
		life(t, w, Config{}, path, testRoot, func(g *Gate) {
			c := pullSecret(t, testRoot, users...)
			g.Check(plugin(t, "team-a", tagged, c))
			synctest.Wait()
			_, v := g.Hold(plugin(t, "team-a", pinned, c))
			wantState(t, v, Allowed, NoReason)
			w.says("dora, entry registry.example:5000", "", no(status(503)))
			time.Sleep(2 * time.Hour) // the yes is stale: for those alone who hold it
		})
		w.questions()
		for n := byte(1); n <= 2; n++ {
			root := rotated(t, n)
			life(t, w, Config{}, path, root, func(g *Gate) {
				c := pullSecret(t, root, users...)
				pin := plugin(t, "team-a", pinned, c)
				p, v := g.Hold(pin)
				wantState(t, v, Allowed, NoReason)
				if !p.Stands() || p.Credential().Origin() != "dora, entry registry.example:5000" {
					t.Errorf("rotation %d: the proof is of %q", n, p.Credential().Origin())
				}
				pin.Holder.Name = "stranger"
				if p, _ := g.Hold(pin); p.Stands() {
					t.Errorf("rotation %d: somebody who did not hold it is given a stale yes", n)
				}
				if v := g.Check(plugin(t, "team-a", tagged, c)); v.Digest != digest(1) {
					t.Errorf("rotation %d: the tag names %q", n, v.Digest)
				}
				other := g.Check(plugin(t, "team-a", pinned, pullSecret(t, root, users[:4]...)))
				wantState(t, other, Pending, NoReason)
			})
		}
		// Revoked under one key, it does not come back from a row of the other.
		last := rotated(t, 3)
		life(t, w, Config{}, path, last, func(g *Gate) {
			w.says("dora, entry registry.example:5000", "", no(status(403)))
			g.Hold(plugin(t, "team-a", pinned, pullSecret(t, last, users...)))
			time.Sleep(time.Hour)
			wantState(t, g.Check(plugin(t, "team-a", pinned, pullSecret(t, last, users...))), Denied, Unauthorized)
		})
		w.says("dora, entry registry.example:5000", "", hang)
		life(t, w, Config{}, path, last, func(g *Gate) {
			wantState(t, g.Check(plugin(t, "team-a", pinned, pullSecret(t, last, users...))), Pending, NoReason)
		})
	})
}

// TestP3_TwoRotationsAtOnceAreCold: what neither key made is dropped.
func TestP3_TwoRotationsAtOnceAreCold(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "proofs.db")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		life(t, w, Config{}, path, testRoot, func(g *Gate) {
			g.Hold(plugin(t, "team-a", pinned, pullSecret(t, testRoot, "alice")))
			synctest.Wait()
		})
		root := rotated(t, 2)
		life(t, w, Config{}, path, root, func(g *Gate) {
			wantState(t, g.Check(plugin(t, "team-a", pinned, pullSecret(t, root, "alice"))), Pending, NoReason)
		})
	})
}
