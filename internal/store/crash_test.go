package store_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stileproject/stile/internal/store"
	"github.com/stileproject/stile/internal/store/storetest"
)

// life is what a store goes through in the crash test: writes, records that replace
// others, eviction. It notes what was promised to be durable, and stops at the first
// error that is the crash.
func life(t *testing.T, d *store.Forgetful, promised map[string][]byte) error {
	t.Helper()
	s, err := store.Open("", d.Options(store.Options{MaxSize: 400, MaxPerNamespace: 400}))
	if err != nil {
		return err
	}
	for i := range 6 {
		content := bytes.Repeat([]byte{byte('a' + i)}, 100)
		digest := storetest.Digest(content)
		// The fifth evicts the first and so on; what is evicted was promised no more.
		if i >= 3 {
			delete(promised, storetest.Digest(bytes.Repeat([]byte{byte('a' + i - 3)}, 100)))
		}
		leases := []string{digest}
		for kept := range promised {
			leases = append(leases, kept)
		}
		s.Retain(leases)
		w, err := s.Create(fmt.Sprint("ns", i%2))
		if err != nil {
			return err
		}
		for part := range 2 {
			if _, err := w.Write(content[part*50 : part*50+50]); err != nil {
				w.Abort()
				return err
			}
		}
		_, err = w.Commit(store.Record{Source: "src", Name: "sha256:" + digest}, store.Record{Source: "src", Name: "latest"})
		if err != nil {
			return err
		}
		promised[digest] = content
		if err := s.Put(store.Record{Source: "src", Name: "facts", Data: fmt.Appendf(nil, `{"n":%d}`, i)}); err != nil {
			return err
		}
	}
	return nil
}

// The machine stops between any two operations on the disk, which forgets what was not
// synced. Whatever the dice leave: the store opens, what was promised is there, and
// nothing that is handed out is wrong.
func TestP9_StoppedBetweenAnyTwoOperationsNothingIsLostOrWrong(t *testing.T) {
	t.Parallel()
	whole := store.NewForgetful()
	if err := life(t, whole, map[string][]byte{}); err != nil {
		t.Fatal(err)
	}
	total := whole.Operations()
	if total < 60 {
		t.Fatalf("only %d operations: is this a life?", total)
	}
	for stop := range total {
		d := store.NewForgetful()
		d.StopAt(stop)
		promised := map[string][]byte{}
		err := life(t, d, promised)
		if err == nil || !errors.Is(err, store.ErrCrash) {
			t.Fatalf("stopped at %d of %d: %v", stop, total, err)
		}
		for seed := range uint64(8) {
			after := d.Crash(rand.New(rand.NewPCG(seed, uint64(stop))))
			if err := survived(after, promised); err != nil {
				t.Errorf("stopped before operation %d, dice %d: %v", stop, seed, err)
			}
		}
	}
}

func survived(d *store.Forgetful, promised map[string][]byte) error {
	s, err := store.Open("", d.Options(store.Options{MaxSize: 400}))
	if err != nil {
		return fmt.Errorf("does not open: %w", err)
	}
	for digest, content := range promised {
		r, ok := s.Get("src", "sha256:"+digest)
		if !ok || r.Module != digest {
			return fmt.Errorf("the record of %.8s is lost", digest)
		}
		b, err := storetest.Read(s, digest)
		if err != nil || !bytes.Equal(b, content) {
			return fmt.Errorf("%.8s: %q, %w", digest, b, err)
		}
	}
	for i := range 6 {
		content := bytes.Repeat([]byte{byte('a' + i)}, 100)
		b, err := storetest.Read(s, storetest.Digest(content))
		if err == nil && !bytes.Equal(b, content) {
			return fmt.Errorf("wrong bytes %q", b)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("a sync is missing: %w", err)
		}
	}
	if r, ok := s.Get("src", "latest"); ok && !s.Has(r.Module) {
		return errors.New("a record without its module")
	}
	_, err = storetest.Write(s, "ns", "new", []byte("life goes on"))
	return err
}

// writerVariable makes this test binary a process that writes until it is killed.
const writerVariable = "STILE_STORE_TEST_WRITER"

func TestP9_KilledWhileItWrites(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(writerVariable); dir != "" {
		writeForEver(dir)
	}
	dir := t.TempDir()
	promised := map[string]bool{}
	for round := range 6 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestP9_KilledWhileItWrites$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s", writerVariable, dir), fmt.Sprintf("ROUND=%d", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		enough := 5 + rand.IntN(30)
		for n := 0; n < enough && lines.Scan(); n++ {
			promised[lines.Text()] = true
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it still said before it died was promised too
			if len(lines.Text()) == 64 {
				promised[lines.Text()] = true
			}
		}
		_ = cmd.Wait()
		s := open(t, dir, store.Options{})
		for d := range promised {
			if b, err := read(s, d); err != nil || digest(b) != d {
				t.Errorf("round %d: %.8s: %v", round, d, err)
			}
		}
		mustDo(t, s.Close())
	}
	if len(promised) < 30 {
		t.Errorf("only %d modules written", len(promised))
	}
}

func writeForEver(dir string) {
	s, err := store.Open(dir, store.Options{})
	for deadline := time.Now().Add(5 * time.Second); errors.Is(err, store.ErrInUse) && time.Now().Before(deadline); {
		s, err = store.Open(dir, store.Options{})
	}
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		content := strings.Repeat(fmt.Sprintf("round %s module %d ", os.Getenv("ROUND"), i), 500)
		d, err := storetest.Write(s, "ns", "src", []byte(content))
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(os.Stdout, d+"\n")
	}
}
