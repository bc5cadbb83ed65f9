package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"github.com/stileproject/stile/internal/secret"
)

// life runs f with a Gate that begins and ends with it, as a process does.
func life(t *testing.T, w Registry, c Config, path string, root secret.Root, f func(*Gate)) {
	t.Helper()
	archive, err := OpenArchive(path, root, c.Log)
	if err != nil {
		t.Fatal(err)
	}
	c.Archive = archive
	g := New(w, c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	synctest.Wait()
	f(g)
	cancel()
	if err := errors.Join(<-done, archive.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestP9_RestartIsWarm: the same credentials are answered with no request, and a proof
// is as old as it was.
func TestP9_RestartIsWarm(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "proofs.db")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("alice", "", yes(digest(1)))
		tag, pin := plugin(t, "team-a", tagged, as("alice")), plugin(t, "team-a", pinned, as("alice"))
		var before Verdict
		life(t, w, Config{}, path, testRoot, func(g *Gate) {
			g.Check(tag)
			g.Check(plugin(t, "team-b", tagged, as("bob")))
			synctest.Wait()
			_, before = g.Hold(pin)
			wantState(t, before, Allowed, NoReason)
		})
		w.questions()
		time.Sleep(10 * time.Minute)
		life(t, w, Config{}, path, testRoot, func(g *Gate) {
			v := g.Check(tag)
			wantState(t, v, Allowed, NoReason)
			if v.Digest != digest(1) {
				t.Errorf("the tag names %s", v.Digest)
			}
			p, v := g.Hold(pin)
			wantState(t, v, Allowed, NoReason)
			if !p.Stands() || !v.CheckedAt.Equal(before.CheckedAt) || v.Credential != before.Credential {
				t.Errorf("before %+v, now %+v", before, v)
			}
			synctest.Wait()
			if q := w.questions(); len(q) != 0 {
				t.Errorf("a restart cost %v", q)
			}
			// Others have learned nothing from the file.
			wantState(t, g.Check(plugin(t, "team-b", tagged, as("carol"))), Pending, NoReason)
			// The re-check is due when it was.
			w.says("alice", "", no(status(403)))
			time.Sleep(57 * time.Minute)
			wantState(t, g.Check(pin), Denied, Unauthorized)
		})
		w.questions()
		life(t, w, Config{}, path, testRoot, func(g *Gate) {
			wantState(t, g.Check(pin), Pending, NoReason) // what was revoked is not kept
		})
	})
}

// TestP9_StaleYesOverARestart: the registry is down, and those who held the yes hold it.
func TestP9_StaleYesOverARestart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "proofs.db")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		pin := plugin(t, "team-a", pinned, as("alice"))
		life(t, w, Config{}, path, testRoot, func(g *Gate) {
			g.Hold(pin)
			synctest.Wait()
			g.Hold(pin)
			w.says("", "", no(status(503)))
			time.Sleep(2 * time.Hour)
			if v := g.Check(pin); v.State != Allowed || v.StaleSince.IsZero() {
				t.Errorf("told %+v", v)
			}
		})
		life(t, w, Config{}, path, testRoot, func(g *Gate) {
			stranger := pin
			stranger.Holder.Name = "new"
			if p, v := g.Hold(stranger); v.State != Pending || p.Stands() {
				t.Errorf("a stranger is told %v at once", v.State)
			}
			time.Sleep(10 * time.Second)
			if p, v := g.Hold(stranger); v.State != Unknown || p.Stands() {
				t.Errorf("a stranger is told %v", v.State)
			}
			p, v := g.Hold(pin)
			if v.State != Allowed || !p.Stands() || v.StaleSince.IsZero() {
				t.Errorf("the holder is told %+v", v)
			}
			time.Sleep(23 * time.Hour)
			if p.Stands() {
				t.Error("a restart lengthened the grace")
			}
		})
	})
}

// TestKeptRowsAreChecked: altered, moved, from the future, too old, or of another key.
func TestKeptRowsAreChecked(t *testing.T) {
	t.Parallel()
	otherRoot, err := secret.NewRoot(bytes.Repeat([]byte{7}, secret.Size), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, path string)
		root  secret.Root
		sleep time.Duration
		want  State
	}{
		{name: "untouched", want: Allowed, root: testRoot},
		{name: "one bit of a row", want: Pending, root: testRoot, spoil: func(t *testing.T, path string) {
			eachValue(t, path, func(_, value []byte) []byte { value[40] ^= 1; return value })
		}},
		{name: "one bit of a MAC", want: Pending, root: testRoot, spoil: func(t *testing.T, path string) {
			eachValue(t, path, func(_, value []byte) []byte { value[len(value)-1] ^= 1; return value })
		}},
		{name: "under another key", want: Pending, root: testRoot, spoil: func(t *testing.T, path string) {
			eachValue(t, path, func(key, value []byte) []byte { key[0] ^= 1; return value })
		}},
		{name: "cut short", want: Pending, root: testRoot, spoil: func(t *testing.T, path string) {
			eachValue(t, path, func(_, value []byte) []byte { return value[:20] })
		}},
		{name: "another root key", want: Pending, root: otherRoot},
		{name: "from the future", want: Pending, root: testRoot, sleep: -time.Hour},
		{name: "too old", want: Pending, root: testRoot, sleep: 25 * time.Hour},
		{name: "the whole file is rubbish", want: Pending, root: testRoot, spoil: func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("rubbish "), 10_000), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the file is cut short", want: Pending, root: testRoot, spoil: func(t *testing.T, path string) {
			if err := os.Truncate(path, 9_000); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the file is empty", want: Pending, root: testRoot, spoil: func(t *testing.T, path string) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "proofs.db")
			synctest.Test(t, func(t *testing.T) {
				if row.sleep < 0 {
					time.Sleep(-row.sleep) // then written an hour late, and read at the hour
				}
				w := newWorld()
				w.says("", "", yes(digest(1)))
				pin := plugin(t, "team-a", pinned, as("alice"))
				life(t, w, Config{}, path, testRoot, func(g *Gate) {
					g.Hold(pin)
					synctest.Wait()
					wantState(t, g.Check(pin), Allowed, NoReason)
				})
				if row.spoil != nil {
					row.spoil(t, path)
				}
				time.Sleep(max(row.sleep, 0))
			})
			// A bubble begins at the same instant as every other: an hour before the row of
			// the future was written.
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(max(row.sleep, 0))
				w := newWorld()
				w.says("", "", yes(digest(1)))
				pin := plugin(t, "team-a", pinned, as("alice"))
				life(t, w, Config{}, path, row.root, func(g *Gate) {
					wantState(t, g.Check(pin), row.want, NoReason)
				})
			})
			if strings.Contains(row.name, "rubbish") {
				if aside, _ := filepath.Glob(path + ".corrupt-*"); len(aside) != 1 {
					t.Errorf("set aside: %v", aside)
				}
			}
		})
	}
}

// eachValue rewrites every row of the archive at path.
func eachValue(t *testing.T, path string, change func(key, value []byte) []byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketProofs)
		keys, values := [][]byte{}, [][]byte{}
		err := b.ForEach(func(key, value []byte) error {
			keys, values = append(keys, bytes.Clone(key)), append(values, bytes.Clone(value))
			return nil
		})
		for i, key := range keys {
			err = errors.Join(err, b.Delete(key))
			value := change(key, values[i])
			err = errors.Join(err, b.Put(key, value))
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestP3_ArchiveTellsNothing: no credential, name or hash of one is in the file or the log.
func TestP3_ArchiveTellsNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "proofs.db")
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says("", "", yes(digest(1)))
		pin := plugin(t, "team-a", pinned, as("alice"))
		c := Config{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		life(t, w, c, path, testRoot, func(g *Gate) {
			g.Hold(pin)
			g.Check(plugin(t, "team-a", tagged, as("alice")))
			synctest.Wait()
			g.Hold(pin)
		})
	})
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content = append(content, log.Bytes()...)
	sum := sha256.Sum256([]byte("CANARY-alice"))
	for _, told := range []string{"CANARY", "alice", "registry.example", "team-a", string(sum[:]), hex.EncodeToString(sum[:])} {
		if bytes.Contains(content, []byte(told)) {
			t.Errorf("the archive or the log contains %q", told)
		}
	}
}

func TestArchiveIsOneProcesss(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "proofs.db")
	first, err := OpenArchive(path, testRoot, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenArchive(path, testRoot, nil); !errors.Is(err, errBusy) {
		t.Errorf("got %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := OpenArchive(filepath.Join(t.TempDir(), "no", "such", "folder"), testRoot, nil); err == nil {
		t.Error("opened in a folder that is not there")
	}
}

// TestP9_TornFiles: whatever mixture of old and new pages a crash leaves, however short
// the file is cut, it opens, and no row is in it that was not written.
func TestP9_TornFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "proofs.db")
	genuine := map[secret.Fingerprint]map[row]bool{}
	write := func(from, to int, stamp int64) []byte {
		a, err := OpenArchive(path, testRoot, nil)
		if err != nil {
			t.Fatal(err)
		}
		changes, claims := map[rowID]*row{}, map[Holder]*rowID{}
		for i := from; i < to; i++ {
			id := rowID{image: ref(t, fmt.Sprintf("one.example/p%d@%s", i, digest(i)))}
			r := row{checked: stamp, written: stamp, digest: rawDigest(digest(i))}
			changes[id] = &r
			claims[Holder{Namespace: "team", Name: fmt.Sprint(i)}] = &id
			if genuine[a.fileUnder(id)] == nil {
				genuine[a.fileUnder(id)] = map[row]bool{}
			}
			genuine[a.fileUnder(id)][r] = true
		}
		if err := errors.Join(a.store(changes, claims), a.Close()); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	now := time.Now().UnixNano()
	before := write(0, 300, now-2)
	after := write(150, 450, now-1)
	rnd := rand.New(rand.NewPCG(5, 6))
	const page = 4096
	for trial := range 45 {
		torn := bytes.Clone(after)
		if trial%3 == 0 {
			torn = torn[:rnd.IntN(len(torn))]
		}
		if trial%3 != 1 {
			for at := 0; at < min(len(torn), len(before)); at += page {
				if rnd.IntN(3) == 0 {
					copy(torn[at:], before[at:min(at+page, len(before))])
				}
			}
		}
		if trial%3 == 1 {
			for range 1 + rnd.IntN(20) {
				torn[rnd.IntN(len(torn))] ^= byte(1 << rnd.IntN(8))
			}
		}
		file := filepath.Join(dir, fmt.Sprint("torn-", trial))
		if err := os.WriteFile(file, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := OpenArchive(file, testRoot, nil)
		if err != nil {
			t.Fatalf("trial %d: %v", trial, err)
		}
		for key, r := range a.rows {
			if !genuine[key][r] {
				t.Errorf("trial %d: a row that nobody wrote: %+v", trial, r)
			}
		}
		id := rowID{image: ref(t, "one.example/later@"+digest(1))}
		if err := errors.Join(a.store(map[rowID]*row{id: {checked: 1}}, nil), a.Close()); err != nil {
			t.Errorf("trial %d: writing on: %v", trial, err)
		}
	}
}

// TestWhatCouldNotBeWrittenIsWrittenLater: the disk is full, and then it is not.
func TestWhatCouldNotBeWrittenIsWrittenLater(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "proofs.db")
	a, err := OpenArchive(path, testRoot, nil)
	if err != nil {
		t.Fatal(err)
	}
	first := rowID{image: ref(t, "one.example/p@"+digest(1))}
	second := rowID{image: ref(t, "one.example/q@"+digest(1))}
	flush := func() {
		done := make(chan struct{})
		close(done)
		a.write(done)
	}
	good := a.db
	full, err := bbolt.Open(filepath.Join(t.TempDir(), "full.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := full.Close(); err != nil {
		t.Fatal(err)
	}
	a.db = full // fails as a full disk does
	a.keep(first, &row{checked: 1, written: 1})
	flush()
	a.db = good
	a.keep(second, &row{checked: 2, written: 2})
	flush()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a, err = OpenArchive(path, testRoot, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []rowID{first, second} {
		if _, ok := a.take(id, rowID{}); !ok {
			t.Errorf("%v is lost", id.image)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}
