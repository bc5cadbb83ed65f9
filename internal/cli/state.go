package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/plugin"
	"github.com/stileproject/stile/internal/secret"
)

// What the store's folder holds beside the modules.
const (
	stateFile  = "state"     // what the engine remembers over a restart
	proofsFile = "proofs.db" // the proofs, without any credential
)

// state is the engine's memory in a sealed file. Run writes what Remember was given
// last; what is not written when the process is killed is found out again.
type state struct {
	path string
	box  secret.Box
	log  *slog.Logger
	wake chan struct{} // capacity 1: latest has changed

	mu     sync.Mutex // guards latest
	latest map[plugin.Key]engine.Remembered
}

func newState(folder string, box secret.Box, log *slog.Logger) *state {
	return &state{path: filepath.Join(folder, stateFile), box: box, log: log, wake: make(chan struct{}, 1)}
}

// stateRow is one plugin in the file.
type stateRow struct {
	plugin.Key
	engine.Remembered
}

// Recall reads the file. One that cannot be opened is set aside, with a warning: the
// engine then knows nothing of before, and finds out.
func (s *state) Recall() map[plugin.Key]engine.Remembered {
	all := map[plugin.Key]engine.Remembered{}
	sealed, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return all
	}
	var rows []stateRow
	if err == nil {
		var plain []byte
		if plain, err = s.box.Open(sealed); err == nil {
			err = json.Unmarshal(plain, &rows)
		}
	}
	if err != nil {
		aside := s.path + ".unreadable"
		s.log.Warn("what was remembered cannot be read: it is set aside, and found out again", "file", s.path, "aside", aside, "fault", err,
			"renamed", os.Rename(s.path, aside) == nil)
		return all
	}
	for _, r := range rows {
		all[r.Key] = r.Remembered
	}
	return all
}

// Remember implements engine.Memory.
func (s *state) Remember(all map[plugin.Key]engine.Remembered) {
	s.mu.Lock()
	s.latest = all
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends, and once more then.
func (s *state) Run(ctx context.Context) error {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			select {
			case <-s.wake:
				s.write()
			default:
			}
			return nil
		}
		s.write()
	}
}

func (s *state) write() {
	s.mu.Lock()
	all := s.latest
	s.mu.Unlock()
	rows := make([]stateRow, 0, len(all))
	for k, r := range all {
		rows = append(rows, stateRow{k, r})
	}
	plain, err := json.Marshal(rows)
	if err == nil {
		err = replaceFile(s.path, s.box.Seal(plain))
	}
	if err != nil {
		s.log.Error("what must be known after a restart could not be written", "file", s.path, "fault", err)
	}
}

// replaceFile writes a file that is whole at every instant, and lasts.
func replaceFile(path string, content []byte) error {
	temporary, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	_, err = temporary.Write(content)
	err = errors.Join(err, temporary.Sync(), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", path, err), os.Remove(temporary.Name()))
	}
	return syncFolder(filepath.Dir(path))
}
