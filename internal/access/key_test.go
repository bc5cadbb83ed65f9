package access

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// trusts returns trust settings, no two of which are equal.
func trusts(t *testing.T) []oci.Trust {
	t.Helper()
	var all []oci.Trust
	for _, registries := range [][]oci.Registry{
		nil,
		{{Host: "one.example"}},
		{{Host: "one.example", PlainHTTP: true}},
	} {
		c, err := oci.NewClient(oci.Settings{Key: testKey, Registries: registries})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		trust, err := c.Trust("one.example", oci.Operator)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, trust)
	}
	return all
}

// TestKeyIsTheThreeAndNothingElse: two requests are one entry if and only if reference,
// effective credentials and trust are equal, whatever order they came in and however
// the table grew and shrank.
func TestKeyIsTheThreeAndNothingElse(t *testing.T) {
	t.Parallel()
	settings := trusts(t)
	synctest.Test(t, func(t *testing.T) {
		type key struct {
			image string
			users string
			trust int
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		var keys []key
		var requests []Request
		for _, image := range []string{"one.example/p:a", "one.example/p:b", "one.example/q:a", "two.example/p:a", "one.example/p@" + digest(1), "one.example/p@" + digest(2)} {
			for _, users := range [][]string{{}, {"ann"}, {"ben"}, {"ann", "ben"}, {"ben", "ann"}, {"annben"}} {
				for at, trust := range settings {
					for range 3 {
						keys = append(keys, key{image, fmt.Sprint(users), at})
						requests = append(requests, Request{
							Image: ref(t, image), Credentials: as(users...), Trust: trust,
							Holder: Holder{Namespace: fmt.Sprint("team-", rnd.IntN(5)), Name: fmt.Sprint(rnd.IntN(5))},
						})
					}
				}
			}
		}
		g := New(newWorld(), Config{})
		entries := map[key]*entry{}
		for _, i := range rnd.Perm(len(keys)) {
			r := requests[i]
			g.Check(r)
			e := g.table.find(r.Image, r.Credentials, r.Trust)
			if e == nil {
				t.Fatalf("%+v was not found", keys[i])
			}
			if known := entries[keys[i]]; known != nil && known != e {
				t.Errorf("%+v has two entries", keys[i])
			}
			entries[keys[i]] = e
		}
		seen := map[*entry]key{}
		for k, e := range entries {
			if other, ok := seen[e]; ok {
				t.Errorf("%+v and %+v share an entry", k, other)
			}
			seen[e] = k
		}
		if len(g.List()) != len(entries) {
			t.Errorf("%d entries for %d keys", len(g.List()), len(entries))
		}
		g.mu.Lock()
		for e := range seen {
			g.drop(e)
		}
		g.mu.Unlock()
		for _, r := range requests {
			if g.table.find(r.Image, r.Credentials, r.Trust) != nil {
				t.Error("found what was dropped")
			}
		}
	})
}

// TestTableGrowsAndShrinks against a map, with many more removals than it has slots.
func TestTableGrowsAndShrinks(t *testing.T) {
	t.Parallel()
	var tab table
	tab.init()
	rnd := rand.New(rand.NewPCG(3, 4))
	who := &principal{}
	model := map[oci.Reference]*entry{}
	var images []oci.Reference
	for i := range 3000 {
		images = append(images, ref(t, fmt.Sprintf("one.example/p%d", i)))
	}
	for round := range 60_000 {
		image := images[rnd.IntN(1+(round/20)%len(images))]
		e := model[image]
		if got := tab.find(image, oci.Credentials{}, oci.Trust{}); got != e {
			t.Fatalf("round %d: found %p, want %p", round, got, e)
		}
		switch {
		case e == nil && rnd.IntN(2) == 0:
			e = &entry{name: image.ID(), who: who}
			tab.insert(e)
			model[image] = e
		case e != nil && rnd.IntN(2) == 0:
			tab.remove(e)
			delete(model, image)
		}
	}
	n := 0
	tab.each(func(e *entry) {
		if n++; model[e.image()] != e {
			t.Errorf("%v is not in the model", e.image())
		}
	})
	if n != len(model) || tab.count != n {
		t.Errorf("%d entries, counted %d, want %d", n, tab.count, len(model))
	}
	for _, e := range model {
		tab.remove(e)
	}
	if size := len(*tab.slots.Load()); size != minSlots {
		t.Errorf("an empty table has %d slots", size)
	}
}

// TestNoYesFromOldSlots: while the table grows and shrinks around it, nobody who looks
// after a yes was taken back finds it in the slots that were left behind.
func TestNoYesFromOldSlots(t *testing.T) {
	t.Parallel()
	var tab table
	tab.init()
	who := &principal{}
	image := ref(t, "one.example/p@"+digest(1))
	e := &entry{name: image.ID(), who: who}
	e.set(&answer{})
	tab.insert(e)
	var others []*entry
	for i := range 500 {
		others = append(others, &entry{name: ref(t, fmt.Sprintf("one.example/other%d", i)).ID(), who: who})
	}
	var least atomic.Int64 // all before it were taken back
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				want := least.Load()
				s := tab.look(image, oci.Credentials{}, oci.Trust{})
				if s == nil {
					t.Error("not found")
					return
				}
				if checked, _, _, _, ok := s.hot.plain.load(); ok && checked < want {
					t.Errorf("found yes %d after %d was taken back", checked, want-1)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for round := range int64(20_000) {
		e.set(&answer{state: Allowed, checked: round})
		if o := others[round%500]; round/500%2 == 0 {
			tab.insert(o)
		} else {
			tab.remove(o)
		}
		e.set(&answer{state: Denied})
		least.Store(round + 1)
	}
	close(stop)
	readers.Wait()
}

// FuzzRow: no bytes but those that encode made are taken for a row.
func FuzzRow(f *testing.F) {
	a := &Archive{mac: testRoot.Key(secret.ForRows)}
	key := make([]byte, secret.Size)
	good := a.encode(key, row{checked: 1, written: 2, digest: [32]byte{3}})
	f.Add(key, good)
	f.Add(key, good[:len(good)-1])
	f.Add(key, []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		r, ok := a.decode(key, value)
		if ok && string(a.encode(key, r)) != string(value) {
			t.Errorf("%x was taken for a row", value)
		}
	})
}

// TestSecretsInAnyOrder: two pull secrets in either order, one of them twice, and an
// entry for another registry in them, are one key, and cost one question.
func TestSecretsInAnyOrder(t *testing.T) {
	t.Parallel()
	keyring := func(name, user string, hosts ...string) oci.Keyring {
		entries := map[string]any{}
		for _, h := range hosts {
			entries[h] = map[string]string{"username": user, "password": "CANARY-" + user}
		}
		content, err := json.Marshal(map[string]any{"auths": entries})
		if err != nil {
			t.Fatal(err)
		}
		k, err := oci.ParseDockerConfigJSON(testKey, "pull secret team-a/"+name, content)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ann := keyring("ann", "ann", "registry.example:5000")
	ben := keyring("ben", "ben", "registry.example:5000")
	more := keyring("more", "ann", "registry.example:5000", "unrelated.example")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		g := running(t, w, Config{})
		for _, secrets := range [][]oci.Keyring{{ann, ben}, {ben, ann}, {ann, ben, ann}, {ben, more}, {more, ann, ben}} {
			c, err := oci.JoinKeyrings(secrets...).For(ref(t, pinned))
			if err != nil {
				t.Fatal(err)
			}
			g.Check(plugin(t, "team-a", pinned, c))
			synctest.Wait()
		}
		if n := len(w.questions()); n != 1 {
			t.Errorf("five ways to write two credentials cost %d questions", n)
		}
		only, err := ann.For(ref(t, pinned))
		if err != nil {
			t.Fatal(err)
		}
		wantState(t, g.Check(plugin(t, "team-a", pinned, only)), Pending, NoReason)
	})
}
