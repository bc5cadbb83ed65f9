package store

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stileproject/stile/internal/secret"
)

// The folders of a store.
const (
	dirModules = "modules" // modules/<sha256>
	dirRecords = "records" // records/<sha256 of source and name>.json
	dirTemp    = "tmp"
	fileFormat = "format"
	fileLock   = "lock"
	// formatStamp is the content of the format file. A store of another format is not
	// touched.
	formatStamp = "stile store 1\n"
	// maxRecord bounds a record's file: manifests name at most some thousand platforms.
	maxRecord = 4 << 20
	// maxFacts bounds the records that have no module, the oldest going first.
	maxFacts = 100_000
)

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// load stamps or checks the format, adopts what is whole and removes what is not.
func (s *Store) load() error {
	if err := s.checkFormat(); err != nil {
		return err
	}
	sizes, err := s.loadModules()
	if err != nil {
		return err
	}
	if err := s.loadRecords(sizes); err != nil {
		return err
	}
	s.mu.Lock()
	var orphans []*module
	for _, m := range s.modules {
		if len(m.records) == 0 {
			s.drop(m)
			orphans = append(orphans, m)
		}
	}
	victims, err := s.makeRoom("", 0, 0) // the limit may be lower than last time
	if err != nil {
		s.log.Warn("store is fuller than its limit", "size", s.size, "maxSize", s.options.MaxSize)
	}
	s.mu.Unlock()
	s.metrics.evictions.WithLabelValues("orphan").Add(float64(len(orphans)))
	s.remove(append(victims, orphans...))
	return nil
}

func (s *Store) checkFormat() error {
	stamp, err := readAll(s.files, fileFormat, 64)
	switch {
	case err == nil && string(stamp) == formatStamp:
		if s.options.ReadOnly {
			return nil
		}
	case err == nil && string(stamp) != "" && !strings.HasPrefix(formatStamp, string(stamp)):
		return fmt.Errorf("the folder has format %q, this stile writes %q: give it another folder", stamp, formatStamp)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case s.options.ReadOnly:
		return errors.New("the folder is no store; let stile serve make it")
	default:
		entries, err := s.files.ReadDir(".")
		if err != nil {
			return err
		}
		for _, e := range entries {
			// A first start that was cut off leaves these; anything else is not ours to sweep.
			if e.name != fileFormat && e.name != fileLock && e.name != dirTemp {
				return fmt.Errorf("the folder is not empty and no store (it has %q): give an empty one", e.name)
			}
		}
		if err := s.stamp(); err != nil {
			return err
		}
	}
	for _, dir := range []string{dirModules, dirRecords, dirTemp} {
		if err := s.files.Mkdir(dir); err != nil {
			return err
		}
	}
	if err := s.files.SyncDir("."); err != nil {
		return err
	}
	temps, err := s.files.ReadDir(dirTemp)
	if err != nil {
		return err
	}
	for _, e := range temps {
		if err := s.files.Remove(path.Join(dirTemp, e.name)); err != nil {
			return err
		}
	}
	return nil
}

// stamp writes the format file as every file is written: whole or not at all.
func (s *Store) stamp() error {
	if err := s.files.Mkdir(dirTemp); err != nil {
		return err
	}
	temp := path.Join(dirTemp, fileFormat)
	if err := s.files.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.writeFile(temp, fileFormat, []byte(formatStamp))
}

// writeFile writes b to temp, syncs it and gives it its name for good.
func (s *Store) writeFile(temp, name string, b []byte) error {
	f, err := s.files.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = s.files.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(s.files.Remove(temp)))
	}
	return s.files.SyncDir(path.Dir(name))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *Store) loadModules() (map[string]bool, error) {
	entries, err := s.files.ReadDir(dirModules)
	if err != nil {
		return nil, err
	}
	found := make(map[string]bool, len(entries))
	for _, e := range entries {
		if !e.regular || !hexDigest.MatchString(e.name) {
			s.discard(path.Join(dirModules, e.name), "not a module")
			continue
		}
		s.adopt(&module{
			sha256: e.name, size: e.size, used: time.Unix(e.unix, 0), stamped: time.Unix(e.unix, 0),
			namespaces: map[string]bool{}, records: map[recordKey]bool{},
		})
		found[e.name] = true
	}
	return found, nil
}

func (s *Store) loadRecords(modules map[string]bool) error {
	entries, err := s.files.ReadDir(dirRecords)
	if err != nil {
		return err
	}
	for i, r := range s.readRecords(entries) {
		name := path.Join(dirRecords, entries[i].name)
		switch {
		case r.err != nil:
			s.discard(name, r.err.Error())
		case r.record.file() != entries[i].name:
			s.discard(name, "it is another record's file")
		case r.record.Module != "" && !modules[r.record.Module]:
			s.discard(name, "its module is gone")
		default:
			s.mu.Lock()
			s.index(r.record)
			if m := s.modules[r.record.Module]; m != nil {
				s.charge(m, r.record.Namespace)
			}
			s.mu.Unlock()
		}
	}
	return nil
}

// reading is a record's file that was read, or why not.
type reading struct {
	record *Record
	err    error
}

// readRecords reads the files side by side: there may be ten thousand, and each is a
// wait for the disk.
func (s *Store) readRecords(entries []entry) []reading {
	const readers = 8
	all := make([]reading, len(entries))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(readers, len(entries)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(entries)); i = next.Add(1) - 1 {
				all[i].record, all[i].err = s.readRecord(path.Join(dirRecords, entries[i].name))
			}
		})
	}
	wg.Wait()
	return all
}

// discard removes a file that the sweep does not want. That it cannot be removed
// hurts nobody: it is not adopted, and the next sweep tries again.
func (s *Store) discard(name, why string) {
	s.log.Info("store sweep: file removed", "file", name, "why", why)
	s.metrics.evictions.WithLabelValues("sweep").Inc()
	if s.options.ReadOnly {
		return
	}
	if err := s.files.Remove(name); err != nil {
		s.log.Warn("store sweep: file cannot be removed", "file", name, "error", err)
	}
}

// file is the name of the record's file in its folder.
func (r *Record) file() string { return r.key().file() }

func (k recordKey) file() string {
	h := sha256.New()
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(len(k.source)))
	h.Write(length[:])
	h.Write([]byte(k.source))
	h.Write([]byte(k.name))
	return hex.EncodeToString(h.Sum(nil)) + ".json"
}

// A record's file is one line with the checksum of the rest, then JSON.
func (s *Store) encodeRecord(r *Record) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	sum := recordSum(body, s.options.Keys, 0)
	return append([]byte(hex.EncodeToString(sum)+"\n"), body...), nil
}

// recordSum is the MAC under the i-th key, or a plain checksum where there is none.
func recordSum(body []byte, keys []secret.Key, i int) []byte {
	if len(keys) == 0 {
		sum := sha256.Sum256(body)
		return sum[:]
	}
	sum := keys[i].Sum([]byte("store record"), body)
	return sum[:]
}

func (s *Store) readRecord(name string) (*Record, error) {
	b, err := readAll(s.files, name, maxRecord)
	if err != nil {
		return nil, err
	}
	line, body, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return nil, errors.New("it is cut off")
	}
	sum, err := hex.DecodeString(string(line))
	if err != nil {
		return nil, errors.New("it has no checksum")
	}
	genuine := false
	for i := range max(1, len(s.options.Keys)) {
		genuine = genuine || hmac.Equal(sum, recordSum(body, s.options.Keys, i))
	}
	if !genuine {
		return nil, errors.New("it was altered, or written under another key")
	}
	r := &Record{}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("it is not readable: %w", err)
	}
	return r, nil
}

func readAll(disk files, name string, limit int64) ([]byte, error) {
	f, err := disk.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	err = errors.Join(err, f.Close())
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("it is larger than %d bytes", limit)
	}
	return b, nil
}
