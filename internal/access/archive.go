package access

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/secret"
)

// Archive keeps proofs over a restart, in one file. A row is filed under the HMAC of
// its key and carries a MAC of its own; neither it nor the file's name tells a
// reference, a credential or a holder. It is written behind the Gate's back: nothing
// waits for the disk, and what a crash loses is asked again.
type Archive struct {
	path string
	log  *slog.Logger
	file secret.Key // under which a proof or holder is filed
	mac  secret.Key

	mu      sync.Mutex
	rows    map[secret.Fingerprint]row                // read at the start and not yet taken up
	holders map[secret.Fingerprint]secret.Fingerprint // read at the start: who held which
	changes map[rowID]*row                            // to be written; nil = deleted
	claims  map[Holder]*rowID                         // to be written; nil = deleted
	ready   chan struct{}

	db *bbolt.DB // used by OpenArchive, then by the one writer, then by Close
}

// rowID is the key of a proof, before the HMAC.
type rowID struct {
	image     oci.Reference
	cred, via secret.Fingerprint
	former    bool // all of it, and the HMAC, under the root key before the last rotation
}

// row is a yes, or what a tag was resolved to.
type row struct {
	former    bool // it was written under the root key before the last rotation
	flags     byte
	candidate secret.Fingerprint
	digest    [32]byte
	checked   int64 // nanoseconds of Unix time, as the others
	stale     int64 // 0 = fresh
	written   int64
}

const (
	rowVersion  = 1
	rowSize     = 2 + secret.Size + 32 + 3*8
	flagTagGone = 1
)

var (
	bucketProofs  = []byte("proofs")
	bucketHolders = []byte("holders")
)

// OpenArchive opens the file at path, or makes it. Rows that are altered, from the
// future or not readable are dropped; a file that is corrupt as a whole is set aside
// beside itself, with a warning, and a new one is begun. It fails if the folder cannot
// be written, or if another process has the file open. The same root must have made
// the fingerprints of the credentials that are asked for. What was written under the
// root key before the last rotation is taken up, and written anew when it is used.
func OpenArchive(path string, root secret.Root, log *slog.Logger) (*Archive, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &Archive{
		path: path, log: log, file: root.Key(secret.ForProofs), mac: root.Key(secret.ForRows),
		changes: map[rowID]*row{}, claims: map[Holder]*rowID{}, ready: make(chan struct{}, 1),
	}
	err := a.open()
	if err == nil || errors.Is(err, errBusy) || !errors.Is(err, errCorrupt) {
		return a, err
	}
	aside := path + ".corrupt-" + time.Now().UTC().Format("20060102T150405")
	log.Warn("the archive of proofs is corrupt: it is set aside, and every proof is asked again", "file", path, "aside", aside, "error", err.Error())
	if err := os.Rename(path, aside); err != nil {
		return nil, fmt.Errorf("open the archive of proofs: set the corrupt file aside: %w", err)
	}
	return a, a.open()
}

var (
	errBusy    = errors.New("another process has it open: let each stile have a store directory of its own")
	errCorrupt = errors.New("the file is corrupt")
)

// open opens the file and reads it whole.
func (a *Archive) open() (err error) {
	fail := func(err error) error { return fmt.Errorf("open the archive of proofs %s: %w", a.path, err) }
	// The file is mapped into memory: one that was cut short faults instead of failing.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fail(fmt.Errorf("%w: %v", errCorrupt, r))
		}
	}()
	a.rows, a.holders = map[secret.Fingerprint]row{}, map[secret.Fingerprint]secret.Fingerprint{}
	a.db, err = bbolt.Open(a.path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fail(errBusy)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return fail(fmt.Errorf("%w: %w", errCorrupt, err))
	case err != nil:
		return fail(err)
	}
	err = a.db.Update(func(tx *bbolt.Tx) error {
		if err := a.whole(tx); err != nil {
			return fmt.Errorf("%w: %w", errCorrupt, err)
		}
		return a.read(tx)
	})
	if err != nil {
		_ = a.db.Close()
		return fail(err)
	}
	return nil
}

// whole reports what is wrong with the file's structure.
func (a *Archive) whole(tx *bbolt.Tx) error {
	info, err := os.Stat(a.path)
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		// To look further would fault, in a goroutine that nobody can catch.
		return fmt.Errorf("%d bytes of %d are there", info.Size(), tx.Size())
	}
	var first error
	for err := range tx.Check() {
		if first == nil { // the others have to be received all the same
			first = err
		}
	}
	return first
}

// read takes up what is good and deletes what is not.
func (a *Archive) read(tx *bbolt.Tx) error {
	dropped := 0
	err := eachRow(tx, bucketProofs, func(key, value []byte) bool {
		r, ok := a.decode(key, value)
		if !ok || time.Unix(0, max(r.checked, r.written)).After(time.Now().Add(time.Minute)) {
			dropped++
			return false
		}
		a.rows[secret.Fingerprint(key)] = r
		return true
	})
	if err != nil {
		return err
	}
	err = eachRow(tx, bucketHolders, func(key, value []byte) bool {
		if len(value) != 2*secret.Size {
			dropped++
			return false
		}
		if _, ok := a.signed(bucketHolders, key, value[:secret.Size], value[secret.Size:]); !ok {
			dropped++
			return false
		}
		proof := secret.Fingerprint(value[:secret.Size])
		if _, ok := a.rows[proof]; !ok {
			return false // of a yes that has ended
		}
		a.holders[secret.Fingerprint(key)] = proof
		return true
	})
	if dropped > 0 {
		a.log.Warn("rows of the archive of proofs were altered, are from the future or were written under another root key: they are dropped", "file", a.path, "rows", dropped)
	}
	return err
}

// eachRow calls keep with every row of a bucket and deletes those it does not keep.
func eachRow(tx *bbolt.Tx, bucket []byte, keep func(key, value []byte) bool) error {
	b, err := tx.CreateBucketIfNotExists(bucket)
	if err != nil {
		return err
	}
	var bad [][]byte
	err = b.ForEach(func(key, value []byte) error {
		if len(key) != secret.Size || !keep(key, value) {
			bad = append(bad, append([]byte(nil), key...))
		}
		return nil
	})
	for _, key := range bad {
		err = errors.Join(err, b.Delete(key))
	}
	return err
}

// Close closes the file. The Gate must have stopped.
func (a *Archive) Close() error { return a.db.Close() }

// sign returns the MAC of a row.
func (a *Archive) sign(bucket, key, body []byte) secret.Fingerprint {
	return a.mac.Sum(bucket, key, body)
}

// signed reports whether mac is that of the row, under the present root key or under
// the one before.
func (a *Archive) signed(bucket, key, body, mac []byte) (former, ok bool) {
	if a.sign(bucket, key, body) == secret.Fingerprint(mac) {
		return false, true
	}
	old, rotated := a.mac.Previous()
	former = rotated && old.Sum(bucket, key, body) == secret.Fingerprint(mac)
	return former, former
}

// fileUnder returns the key of a proof in the file; zero if it can have no such key.
func (a *Archive) fileUnder(id rowID) secret.Fingerprint {
	file := a.file
	if id.former {
		old, rotated := file.Previous()
		if !rotated {
			return secret.Fingerprint{}
		}
		file = old
	}
	return file.Sum([]byte("proof"), []byte(id.image.String()), id.cred[:], id.via[:])
}

func (a *Archive) fileHolder(h Holder) secret.Fingerprint { return fileHolder(a.file, h) }

func fileHolder(file secret.Key, h Holder) secret.Fingerprint {
	return file.Sum([]byte("holder"), []byte(h.Namespace), []byte(h.Name), fmt.Append(nil, h.LastGood))
}

// encode returns the row as it is stored, with its MAC.
func (a *Archive) encode(key []byte, r row) []byte {
	b := make([]byte, 0, rowSize+secret.Size)
	b = append(b, rowVersion, r.flags)
	b = append(b, r.candidate[:]...)
	b = append(b, r.digest[:]...)
	for _, t := range []int64{r.checked, r.stale, r.written} {
		b = binary.BigEndian.AppendUint64(b, uint64(t)) //nolint:gosec // the same bits
	}
	mac := a.sign(bucketProofs, key, b)
	return append(b, mac[:]...)
}

func (a *Archive) decode(key, value []byte) (row, bool) {
	if len(value) != rowSize+secret.Size || value[0] != rowVersion {
		return row{}, false
	}
	body := value[:rowSize]
	former, ok := a.signed(bucketProofs, key, body, value[rowSize:])
	if !ok {
		return row{}, false
	}
	r := row{former: former, flags: body[1]}
	body = body[2:]
	body = body[copy(r.candidate[:], body):]
	body = body[copy(r.digest[:], body):]
	for _, t := range []*int64{&r.checked, &r.stale, &r.written} {
		*t = int64(binary.BigEndian.Uint64(body)) //nolint:gosec // the same bits
		body = body[8:]
	}
	return r, true
}

// take returns the row of id that was read at the start, once. One that was written
// under the former root key is deleted: who takes it keeps it anew.
func (a *Archive) take(id, former rowID) (row, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.rows) == 0 {
		return row{}, false
	}
	key, oldKey := a.fileUnder(id), a.fileUnder(former)
	r, ok := a.rows[key]
	old, rotated := a.rows[oldKey]
	delete(a.rows, key)
	delete(a.rows, oldKey)
	if rotated {
		a.changes[former] = nil
	}
	if !ok {
		r, ok = old, rotated
	}
	return r, ok
}

// heldBefore reports whether the holder held id when the last process ended.
func (a *Archive) heldBefore(h Holder, id, former rowID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if proof, ok := a.holders[a.fileHolder(h)]; ok {
		return proof == a.fileUnder(id)
	}
	file, rotated := a.file.Previous()
	if !rotated {
		return false
	}
	proof, ok := a.holders[fileHolder(file, h)]
	return ok && proof == a.fileUnder(former)
}

// keep has a row written; nil deletes it.
func (a *Archive) keep(id rowID, r *row) {
	a.mu.Lock()
	a.changes[id] = r
	a.mu.Unlock()
	a.wake()
}

// keepHolder has it written that h holds id; nil = nothing.
func (a *Archive) keepHolder(h Holder, id *rowID) {
	a.mu.Lock()
	a.claims[h] = id
	a.mu.Unlock()
	a.wake()
}

func (a *Archive) wake() {
	select {
	case a.ready <- struct{}{}:
	default:
	}
}

// write writes what is queued until done is closed and the queue is empty.
func (a *Archive) write(done <-chan struct{}) {
	if a == nil {
		<-done
		return
	}
	failing := false
	for over := false; !over; {
		select {
		case <-done:
			over = true
		case <-a.ready:
		}
		a.mu.Lock()
		changes, claims := a.changes, a.claims
		a.changes, a.claims = map[rowID]*row{}, map[Holder]*rowID{}
		a.mu.Unlock()
		if len(changes)+len(claims) == 0 {
			continue
		}
		err := a.store(changes, claims)
		if err != nil {
			a.putBack(changes, claims)
			if !failing {
				a.log.Warn("proofs cannot be archived, a restart would ask for them again: check the disk", "file", a.path, "error", err.Error())
			}
		} else if failing {
			a.log.Info("proofs are archived again", "file", a.path)
		}
		failing = err != nil
	}
}

// putBack queues again what could not be written, unless it has changed since. It is
// tried with the next change.
func (a *Archive) putBack(changes map[rowID]*row, claims map[Holder]*rowID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, r := range changes {
		if _, newer := a.changes[id]; !newer {
			a.changes[id] = r
		}
	}
	for h, id := range claims {
		if _, newer := a.claims[h]; !newer {
			a.claims[h] = id
		}
	}
}

// store writes one batch, in one transaction.
func (a *Archive) store(changes map[rowID]*row, claims map[Holder]*rowID) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errCorrupt, r)
		}
	}()
	return a.db.Update(func(tx *bbolt.Tx) error {
		proofs, holders := tx.Bucket(bucketProofs), tx.Bucket(bucketHolders)
		for id, r := range changes {
			key := a.fileUnder(id)
			if r == nil {
				err = errors.Join(err, proofs.Delete(key[:]))
				continue
			}
			err = errors.Join(err, proofs.Put(key[:], a.encode(key[:], *r)))
		}
		for h, id := range claims {
			key := a.fileHolder(h)
			if id == nil {
				err = errors.Join(err, holders.Delete(key[:]))
				continue
			}
			proof := a.fileUnder(*id)
			mac := a.sign(bucketHolders, key[:], proof[:])
			err = errors.Join(err, holders.Put(key[:], append(proof[:], mac[:]...)))
		}
		return err
	})
}

// rawDigest returns the bytes of a digest in text.
func rawDigest(text string) (d [32]byte) {
	_, _ = hex.Decode(d[:], []byte(text[len("sha256:"):]))
	return d
}

func textDigest(d [32]byte) string { return "sha256:" + hex.EncodeToString(d[:]) }
