package content

import (
	"errors"
	"fmt"
	"io"

	"github.com/stileproject/stile/internal/access"
	"github.com/stileproject/stile/internal/store"
)

// Open opens the module that the proof opens, from disk, verified. It is ErrNotProven
// if the proof does not stand, also in the middle of reading: each Read asks it.
// ErrPending says that the bytes are not here: they are being fetched. Unlike Module
// it touches the disk.
func (c *Contents) Open(p access.Proof) (io.ReadSeekCloser, error) {
	if !p.Stands() {
		return nil, ErrNotProven
	}
	c.mu.Lock()
	it := c.itemOf(p)
	k := it.key
	c.mu.Unlock()
	f, err := c.open(k)
	if errors.Is(err, ErrPending) {
		c.mu.Lock()
		c.enqueue(c.itemOf(p), p.Namespace())
		c.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	return &provenFile{File: f, proof: p}, nil
}

// OpenURL is Open for http(s) sources.
func (c *Contents) OpenURL(r URLRequest) (io.ReadSeekCloser, error) {
	c.mu.Lock()
	it, err := c.itemOfURL(r)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	f, err := c.open(it.key)
	if errors.Is(err, ErrPending) {
		c.mu.Lock()
		c.enqueue(it, r.Namespace)
		c.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// open opens what the source of the key has delivered under its name. What is not
// there, or not whole, is ErrPending.
func (c *Contents) open(k itemKey) (*store.File, error) {
	r, ok := c.store.Get(k.source, k.name)
	if !ok || r.Module == "" {
		return nil, ErrPending
	}
	f, err := c.store.Open(r.Module)
	if errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
		return nil, ErrPending
	}
	if err != nil {
		return nil, fmt.Errorf("open module: %w", err)
	}
	return f, nil
}

// provenFile reads for as long as the proof stands.
type provenFile struct {
	*store.File
	proof access.Proof
}

func (f *provenFile) Read(b []byte) (int, error) {
	if !f.proof.Stands() {
		return 0, ErrNotProven
	}
	return f.File.Read(b)
}
