package oci

import (
	"context"
	"errors"
	"fmt"
)

// slots bounds what is under way: a place is taken by sending, given back by
// receiving.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	default:
	}
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &Error{Kind: Unavailable, Err: fmt.Errorf("%w: %w", errBusy, ctx.Err())}
	}
}

func (s slots) give() { <-s }

var errBusy = errors.New("too many requests to this registry are under way")

// hostSlots are the places of one registry. Blobs have their own, so that a few long
// downloads delay no check.
type hostSlots struct {
	questions slots
	bodies    slots
}
