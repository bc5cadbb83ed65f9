package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/secret"
)

// rootKeyFile is the name of the root key in the store's folder.
const rootKeyFile = "root.key"

// loadRoot returns the root key of keys.file or, where none is named, of the store's
// folder, in which it is made on the first start.
func loadRoot(cfg *v1alpha1.Config) (secret.Root, error) {
	if name := cfg.Keys.File; name != "" {
		text, err := os.ReadFile(name)
		if err != nil {
			return secret.Root{}, fail(Failed, fmt.Errorf("keys.file: %w", err), "name a readable file with --keys-file, or none: then a key is made in the store's folder")
		}
		return parseRoot("keys.file "+name, text)
	}
	folder := cfg.Store.Directory
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return secret.Root{}, storeFailure(folder, err)
	}
	name := filepath.Join(folder, rootKeyFile)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeRoot(folder, name); err == nil {
			text, err = os.ReadFile(name)
		}
	}
	if err != nil {
		return secret.Root{}, storeFailure(folder, err)
	}
	return parseRoot(name, text)
}

// readRoot returns the root key of the service on this machine, if this user may read it.
func readRoot(cfg *v1alpha1.Config) (secret.Root, bool) {
	name := cfg.Keys.File
	if name == "" {
		name = filepath.Join(cfg.Store.Directory, rootKeyFile)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return secret.Root{}, false
	}
	root, err := secret.ParseRoot(text)
	return root, err == nil
}

func parseRoot(what string, text []byte) (secret.Root, error) {
	root, err := secret.ParseRoot(text)
	if err != nil {
		return secret.Root{}, fail(Failed, fmt.Errorf("%s: %w", what, err), "restore the file; without it all proofs and modules must be asked for again, under a new key")
	}
	return root, nil
}

// makeRoot writes a new root key that only this user may read. It is whole or not
// there, and of two that make one at once the first wins.
func makeRoot(folder, name string) error {
	random := make([]byte, secret.Size)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	root, err := secret.NewRoot(random, nil)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(folder, ".root-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(secret.FormatRoot(root))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(folder)
}

// syncFolder makes the names in a folder last.
func syncFolder(folder string) error {
	d, err := os.Open(folder)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil // a file system that cannot
	}
	return errors.Join(err, d.Close())
}

// storeFailure says that the store's folder cannot be used, and what to do.
func storeFailure(folder string, err error) error {
	return fail(Failed, fmt.Errorf("store %s: %w", folder, withoutPath(err)), "make the folder writable for this user, or choose another with --store (store.directory)")
}

// withoutPath drops the path of a file error whose message names it already.
func withoutPath(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
