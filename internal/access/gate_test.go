package access

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stileproject/stile/internal/oci"
)

// TestStoryOfTheSeed is the first promise: A fills, B misses and learns nothing, A' hits
// with no request.
func TestStoryOfTheSeed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", yes(digest(1)))
		g := running(t, w, Config{})
		a := plugin(t, "team-a", tagged, as("alice"))
		wantState(t, g.Check(a), Pending, NoReason)
		synctest.Wait()
		v := g.Check(a)
		wantState(t, v, Allowed, NoReason)
		if v.Digest != digest(1) || v.Credential != as("alice").Candidates()[0].Fingerprint() || v.Tried != 1 {
			t.Errorf("A is told %+v", v)
		}
		if n := len(w.questions()); n != 1 {
			t.Errorf("%d questions for A, want 1", n)
		}

		b := plugin(t, "team-b", tagged, as("bob"))
		if v := g.Check(b); v.State != Pending || v.Digest != "" {
			t.Errorf("B is told %+v before it was asked for", v)
		}
		synctest.Wait()
		if v := g.Check(b); v.State != Denied || v.Reason != Unauthorized || v.Digest != "" {
			t.Errorf("B is told %+v", v)
		}
		w.questions()

		again := plugin(t, "team-a", tagged, as("alice"))
		again.Holder.Name = "another"
		wantState(t, g.Check(again), Allowed, NoReason)
		again.Image = again.Image.At(digest(1))
		p, v := g.Hold(again)
		wantState(t, v, Allowed, NoReason)
		if !p.Stands() || p.Image() != again.Image || p.Namespace() != "team-a" || p.Source() != image {
			t.Errorf("the proof is of %v for %v", p.Image(), p.Namespace())
		}
		synctest.Wait()
		if q := w.questions(); len(q) != 0 {
			t.Errorf("A' cost %v", q)
		}
	})
}

func TestZeroProofStandsForNothing(t *testing.T) {
	t.Parallel()
	var p Proof
	if p.Stands() || !p.Image().IsZero() || p.Source() != "" || p.Namespace() != "" || p.Digest() != "" || !p.Credential().Anonymous() {
		t.Error("the zero proof proves something")
	}
}

// TestP2_OneKeyIffAllIsEqual: reference, effective credentials and trust make the key,
// and neither the spelling, nor the Secret, nor the holder.
func TestP2_OneKeyIffAllIsEqual(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		g := running(t, w, Config{})
		for _, spelling := range []string{"nginx", "docker.io/nginx:latest", "index.docker.io/library/nginx", "registry-1.docker.io/library/nginx:latest"} {
			g.Check(plugin(t, "team-a", spelling, as("alice")))
		}
		g.Check(plugin(t, "team-b", "nginx", as("alice")))
		synctest.Wait()
		if q := w.questions(); len(q) != 1 {
			t.Errorf("five spellings of one key cost %d questions", len(q))
		}
		for _, other := range []Request{
			plugin(t, "team-a", "nginx", as("bob")),
			plugin(t, "team-a", "nginx", as()),
			plugin(t, "team-a", "nginx", as("alice", "bob")),
			plugin(t, "team-a", "nginx", as("bob", "alice")),
			plugin(t, "team-a", "nginx:v1", as("alice")),
			plugin(t, "team-a", "mirror.example/library/nginx", as("alice")),
		} {
			wantState(t, g.Check(other), Pending, NoReason)
		}
		synctest.Wait()
	})
}

func TestP4_TableOfAnswers(t *testing.T) {
	t.Parallel()
	unsent := &oci.Error{Op: "check", Ref: "test", Kind: oci.Unavailable, Err: errors.New("dial: refused")}
	blocked := &oci.Error{Op: "check", Ref: "test", Kind: oci.Blocked, Err: errors.New("not in fetch.allow")}
	for _, row := range []struct {
		name   string
		err    error
		state  State
		reason Reason
		asked  int
	}{
		{"401", status(401), Denied, Unauthorized, 1},
		{"403", status(403), Denied, Unauthorized, 1},
		{"403 of an ingress", ingress(403), Denied, Unauthorized, 1},
		{"404", status(404), Denied, ImageNotFound, 1},
		{"404 of an ingress", ingress(404), Unknown, RegistryUnreachable, 6},
		{"410", status(410), Denied, ImageNotFound, 1},
		{"412", status(412), Denied, Unauthorized, 1},
		{"451", status(451), Denied, Unauthorized, 1},
		{"400", status(400), Denied, Invalid, 2},
		{"405", status(405), Denied, Invalid, 2},
		{"406", ingress(406), Denied, Invalid, 2},
		{"415", status(415), Denied, Invalid, 2},
		{"407", status(407), Unknown, RegistryUnreachable, 3},
		{"408", status(408), Unknown, RegistryUnreachable, 3},
		{"425", status(425), Unknown, RegistryUnreachable, 3},
		{"429", status(429), Unknown, RegistryUnreachable, 3},
		{"500", status(500), Unknown, RegistryUnreachable, 3},
		{"503", ingress(503), Unknown, RegistryUnreachable, 3},
		{"not sent", unsent, Unknown, RegistryUnreachable, 3},
		{"not even our error", errors.New("odd"), Unknown, RegistryUnreachable, 3},
		{"not allowed to ask", blocked, Denied, SourceNotAllowed, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.says("", "", no(row.err))
				g := running(t, w, Config{})
				r := plugin(t, "team-a", pinned, as("alice"))
				p, v := g.Hold(r)
				wantState(t, v, Pending, NoReason)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				p2, v := g.Hold(r)
				wantState(t, v, row.state, row.reason)
				if p.Stands() || p2.Stands() {
					t.Error("a proof stands without a yes")
				}
				if v.Message == "" || v.NextCheck.IsZero() {
					t.Errorf("the verdict says %q, next %v", v.Message, v.NextCheck)
				}
				if q := w.questions(); len(q) != row.asked {
					t.Errorf("%d questions, want %d: %v", len(q), row.asked, q)
				}
				// A right that is given is found without anybody poking.
				w.says("", "", yes(digest(1)))
				time.Sleep(20 * time.Second)
				synctest.Wait()
				p, v = g.Hold(r)
				wantState(t, v, Allowed, NoReason)
				if !p.Stands() {
					t.Error("the proof of a yes does not stand")
				}
			})
		})
	}
}

// TestP4_AYesIsNotTurnedByWhatIsNoAnswer: whatever is not the registry's no keeps those
// who hold the yes and takes in nobody new.
func TestP4_AYesIsNotTurnedByWhatIsNoAnswer(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(asked) (string, error){
		"500":              no(status(500)),
		"ingress's 404":    no(ingress(404)),
		"ingress's 403":    no(ingress(403)),
		"ingress's 400":    no(ingress(400)),
		"never answers":    hang,
		"blocked":          no(&oci.Error{Op: "check", Kind: oci.Blocked}),
		"another digest":   yes(digest(2)),
		"no digest at all": yes(""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.says("", "", yes(digest(1)))
				g := running(t, w, Config{})
				r := plugin(t, "team-a", pinned, as("alice"))
				g.Hold(r)
				synctest.Wait()
				p, v := g.Hold(r)
				wantState(t, v, Allowed, NoReason)
				since := v.CheckedAt
				w.says("", "", fault)
				time.Sleep(70 * time.Minute) // one re-check and ten minutes
				synctest.Wait()
				v = g.Check(r)
				wantState(t, v, Allowed, NoReason)
				if !p.Stands() || v.StaleSince.IsZero() || !v.CheckedAt.Equal(since) {
					t.Errorf("stands %v, stale since %v", p.Stands(), v.StaleSince)
				}
				lastGood := r
				lastGood.Holder.LastGood = true
				if p, v := g.Hold(lastGood); v.State != Allowed || !p.Stands() {
					t.Errorf("the same plugin's last good version is told %v", v.State)
				}
				stranger := r
				stranger.Holder = Holder{Namespace: "team-a", Name: "new"}
				if p, v := g.Hold(stranger); v.State != Unknown || p.Stands() {
					t.Errorf("a stale yes took in somebody new: %v", v)
				}
				if v := g.Check(Request{Image: r.Image, Credentials: r.Credentials}); v.State != Unknown {
					t.Errorf("a stale yes is told to nobody in particular: %v", v)
				}
				w.says("", "", yes(digest(1)))
				time.Sleep(6 * time.Minute)
				synctest.Wait()
				if v := g.Check(stranger); v.State != Allowed || !v.StaleSince.IsZero() {
					t.Errorf("the registry is back and %v", v)
				}
			})
		})
	}
}

// TestP4_RefusalOfAYesIsConfirmed: once more, 5 to 30 s later, by GET with a fresh token.
func TestP4_RefusalOfAYesIsConfirmed(t *testing.T) {
	t.Parallel()
	for _, code := range []int{401, 403, 404, 410, 412, 451, 400, 405} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.says("", "", yes(digest(1)))
				g := running(t, w, Config{})
				r := plugin(t, "team-a", pinned, as("alice"))
				g.Hold(r)
				synctest.Wait()
				p, _ := g.Hold(r)
				w.questions()
				w.says("", "", no(status(code)))
				start := time.Now()
				for p.Stands() {
					time.Sleep(time.Second)
					if time.Since(start) > 67*time.Minute {
						t.Fatal("revoked and still standing after the interval, its jitter and the confirmation")
					}
				}
				q := w.questions()
				if code == 400 || code == 405 {
					// It may have been the method: a GET follows at once, and does not count.
					if len(q) != 3 || q[1].options != (oci.CheckOptions{Get: true}) {
						t.Fatalf("asked %+v", q)
					}
					q = []asked{q[1], q[2]}
					q[0].options.Get = false
				}
				if len(q) != 2 || q[0].options != (oci.CheckOptions{}) || q[1].options != (oci.CheckOptions{Get: true, FreshToken: true}) {
					t.Fatalf("asked %+v", q)
				}
				if wait := q[1].at.Sub(q[0].at); wait < 5*time.Second || wait > 30*time.Second {
					t.Errorf("confirmed after %v", wait)
				}
				if v := g.Check(r); v.State != Denied {
					t.Errorf("told %v", v)
				}
			})
		})
	}
}

func TestP4_OneRefusalEndsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		g := running(t, w, Config{})
		r := plugin(t, "team-a", pinned, as("alice"))
		g.Hold(r)
		synctest.Wait()
		p, _ := g.Hold(r)
		w.says("", "", func(q asked) (string, error) {
			if q.options.Get {
				return digest(1), nil
			}
			return "", status(401)
		})
		for range 5 {
			time.Sleep(time.Hour)
			if !p.Stands() {
				t.Fatal("a refusal that was not confirmed ended a yes")
			}
		}
	})
}

// TestP4_AYesBelongsToTheCandidateThatEarnedIt: [good, always 500], good is revoked.
func TestP4_AYesBelongsToTheCandidateThatEarnedIt(t *testing.T) {
	t.Parallel()
	for _, order := range [][]string{{"good", "broken"}, {"broken", "good"}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.says("good", "", yes(digest(1)))
				w.says("broken", "", no(status(500)))
				g := running(t, w, Config{})
				r := plugin(t, "team-a", pinned, as(order...))
				g.Hold(r)
				time.Sleep(10 * time.Second)
				p, v := g.Hold(r)
				wantState(t, v, Allowed, NoReason)
				if v.Credential != as("good").Candidates()[0].Fingerprint() || p.Credential().Origin() != "good" {
					t.Errorf("earned by %v", v.Credential)
				}
				w.says("good", "", no(status(403)))
				time.Sleep(67 * time.Minute)
				if v := g.Check(r); v.State != Denied || p.Stands() {
					t.Errorf("told %v %v, the proof stands: %v", v.State, v.Reason, p.Stands())
				}
			})
		})
	}
}

// TestAnotherCandidateTakesOver: the yes ends with its candidate, and another earns one.
func TestAnotherCandidateTakesOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("one", "", yes(digest(1)))
		w.says("two", "", yes(digest(1)))
		g := running(t, w, Config{})
		r := plugin(t, "team-a", pinned, as("one", "two"))
		g.Hold(r)
		synctest.Wait()
		p, _ := g.Hold(r)
		w.says("one", "", no(status(403)))
		time.Sleep(67 * time.Minute)
		if p.Stands() {
			t.Error("the yes of a refused candidate stands")
		}
		p, v := g.Hold(r)
		if v.State != Allowed || !p.Stands() || p.Credential().Origin() != "two" {
			t.Errorf("the other candidate's yes: %+v", v)
		}
	})
}

func TestP4_GraceEnds(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name        string
		othersServe bool
		grace       time.Duration
		stands      time.Duration
		ends        time.Duration
	}{
		{"nobody is answered", false, 0, 23*time.Hour + 59*time.Minute, 24*time.Hour + time.Minute},
		{"the registry's own", false, 5 * time.Hour, 4*time.Hour + 59*time.Minute, 5*time.Hour + time.Minute},
		{"others are answered", true, 0, time.Hour + 5*time.Minute, time.Hour + 30*time.Minute},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.says("", "", yes(digest(1)))
				g := running(t, w, Config{Registries: map[string]RegistryConfig{"registry.example:5000": {Grace: row.grace}}})
				r := plugin(t, "team-a", pinned, as("alice"))
				g.Hold(r)
				synctest.Wait()
				p, _ := g.Hold(r)
				start := time.Now()
				w.says("alice", "", no(status(500)))
				stop := time.Now().Add(row.ends)
				for i := 0; time.Now().Before(stop); i++ {
					if row.othersServe {
						g.Check(plugin(t, "team-b", fmt.Sprintf("%s:%d", image, i), as("bob")))
					}
					if !p.Stands() && time.Since(start) < row.stands {
						t.Fatalf("ended after %v", time.Since(start))
					}
					time.Sleep(time.Minute)
				}
				if p.Stands() {
					t.Error("stands beyond its grace")
				}
				wantState(t, g.Check(r), Unknown, RegistryUnreachable)
			})
		})
	}
}

func TestTagsAndWhatTheyName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", yes(digest(1)))
		g := running(t, w, Config{})
		tag := plugin(t, "team-a", tagged, as("alice"))
		g.Check(tag)
		synctest.Wait()
		pin := plugin(t, "team-a", pinned, as("alice"))
		p, v := g.Hold(pin)
		wantState(t, v, Allowed, NoReason)
		w.questions()

		// What runs is asked by digest, the tag is not asked at all.
		time.Sleep(67 * time.Minute)
		for _, q := range w.questions() {
			if q.image != pinned {
				t.Errorf("asked for %s", q.image)
			}
		}

		// The tag moves: who is content with the old resolution has it, who is not waits.
		w.says("alice", tagged, yes(digest(2)))
		wantState(t, g.Check(tag), Allowed, NoReason)
		newer := tag
		newer.NotBefore = time.Now()
		if v := g.Check(newer); v.State != Pending || v.Digest != digest(1) {
			t.Errorf("told %+v", v)
		}
		synctest.Wait()
		if v := g.Check(newer); v.State != Allowed || v.Digest != digest(2) {
			t.Errorf("told %+v", v)
		}

		// The tag is deleted: nobody changes.
		w.says("alice", tagged, no(status(404)))
		time.Sleep(time.Second)
		newer.NotBefore = time.Now()
		g.Check(newer)
		synctest.Wait()
		if v := g.Check(newer); v.State != Allowed || v.Reason != TagGone || v.Digest != digest(2) {
			t.Errorf("told %+v", v)
		}
		if !p.Stands() {
			t.Error("a deleted tag ended the right to a digest")
		}

		// Nobody answers for the tag: what it names now is not known.
		w.says("alice", tagged, no(status(500)))
		time.Sleep(time.Second)
		newer.NotBefore = time.Now()
		wantState(t, g.Check(newer), Pending, TagGone)
		time.Sleep(time.Minute)
		if v := g.Check(newer); v.State != Unknown || v.Digest != digest(2) {
			t.Errorf("told %+v", v)
		}

		// The manifest is deleted: denied.
		w.says("alice", "", no(status(404)))
		time.Sleep(67 * time.Minute)
		if v := g.Check(pin); v.State != Denied || v.Reason != ImageNotFound || p.Stands() {
			t.Errorf("told %+v", v)
		}
	})
}

// TestForgetIsOneHolders: one tenant deletes its copy of a shared credential.
func TestForgetIsOneHolders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("shared", "", yes(digest(1)))
		g := running(t, w, Config{})
		a := plugin(t, "team-a", pinned, as("shared"))
		b := plugin(t, "team-b", pinned, as("shared"))
		g.Hold(a)
		g.Hold(b)
		synctest.Wait()
		pa, _ := g.Hold(a)
		pb, _ := g.Hold(b)
		w.questions()
		g.Forget(as("shared").Fingerprint(), a.Holder)
		if pa.Stands() || !pb.Stands() {
			t.Errorf("after A forgot, A stands %v and B %v", pa.Stands(), pb.Stands())
		}
		synctest.Wait()
		if len(w.questions()) != 0 || len(w.forgot) != 0 {
			t.Error("B's credential was asked or forgotten for")
		}
		g.Forget(as("shared").Candidates()[0].Fingerprint(), b.Holder)
		if pb.Stands() || len(w.forgot) != 1 || len(g.List()) != 0 {
			t.Errorf("B stands %v, tokens dropped %d, entries %d", pb.Stands(), len(w.forgot), len(g.List()))
		}
	})
}

// TestAnswerUnderWayIsDiscarded: the Secret goes while its question is under way.
func TestAnswerUnderWayIsDiscarded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", slowly(time.Second, yes(digest(1))))
		g := running(t, w, Config{})
		r := plugin(t, "team-a", pinned, as("alice"))
		g.Hold(r)
		synctest.Wait()
		g.Forget(r.Credentials.Fingerprint(), r.Holder)
		w.says("alice", "", no(status(401)))
		wantState(t, g.Check(r), Pending, NoReason)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantState(t, g.Check(r), Denied, Unauthorized)
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.agenda) != 1 || g.busy != 0 {
			t.Errorf("the discarded answer left something behind: %d on the agenda, %d under way", len(g.agenda), g.busy)
		}
	})
}

// TestDemo is what the demo shows, with its shortened settings.
func TestDemo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", yes(digest(1)))
		g := running(t, w, Config{Recheck: 2 * time.Second, ConfirmAfter: 200 * time.Millisecond, DeniedFirst: 500 * time.Millisecond})
		tag := plugin(t, "team-a", tagged, as("alice"))
		g.Check(tag)
		synctest.Wait()
		pin := plugin(t, "team-a", pinned, as("alice"))
		p, v := g.Hold(pin)
		wantState(t, v, Allowed, NoReason)
		w.says("alice", "", no(status(403)))
		time.Sleep(2200*time.Millisecond + 1200*time.Millisecond)
		synctest.Wait()
		if p.Stands() {
			t.Error("revoked and still standing")
		}
		wantState(t, g.Check(pin), Denied, Unauthorized)
		wantState(t, g.Check(tag), Denied, Unauthorized)
		w.says("alice", "", yes(digest(1)))
		time.Sleep(1200 * time.Millisecond)
		synctest.Wait()
		wantState(t, g.Check(tag), Allowed, NoReason)
		p, _ = g.Hold(pin)
		if !p.Stands() {
			t.Error("the right came back and nobody noticed")
		}
	})
}

// TestNewerQuestionNeedNotWait: a tag was refused, and somebody changes the plugin.
func TestNewerQuestionNeedNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		g := running(t, w, Config{})
		r := plugin(t, "team-a", tagged, as("alice"))
		g.Check(r)
		for range 10 { // until it is asked every five minutes
			time.Sleep(3 * time.Minute)
			g.Check(r)
		}
		w.says("alice", "", yes(digest(1)))
		r.NotBefore = time.Now()
		for range 10 {
			g.Check(r)
		}
		w.questions()
		synctest.Wait()
		wantState(t, g.Check(r), Allowed, NoReason)
		if n := len(w.questions()); n > 1 {
			t.Errorf("asked %d times", n)
		}
		if v := g.Check(Request{}); v.State != Unknown || v.Reason != Invalid {
			t.Errorf("nothing was named, and the verdict is %+v", v)
		}
	})
}

func TestProveWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", slowly(time.Second, yes(digest(1))))
		w.says("bob", "", slowly(time.Second, no(status(404))))
		w.says("carol", "", hang)
		g := running(t, w, Config{})
		p, v, err := g.Prove(t.Context(), Request{Image: ref(t, tagged), Credentials: as("alice")})
		if err != nil || v.State != Allowed || !p.Stands() || p.Digest() != digest(1) {
			t.Errorf("got %v, %+v, %v", p.Stands(), v, err)
		}
		p, v, err = g.Prove(t.Context(), Request{Image: ref(t, tagged), Credentials: as("bob")})
		if err != nil || v.State != Denied || v.Reason != ImageNotFound || p.Stands() {
			t.Errorf("got %v, %+v, %v", p.Stands(), v, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, _, err = g.Prove(ctx, Request{Image: ref(t, tagged), Credentials: as("carol")}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
