package store

import (
	"crypto/sha256"
	"hash"
)

// Of a hasher: large enough that a hand-over costs nothing beside hashing, few enough
// that a hundred modules on their way are little memory.
const (
	hashChunk  = 128 << 10
	hashChunks = 3
)

// hasher is a sha256 that is made beside what else happens to the bytes, for hashing
// them takes as long as fetching them. What fits into one chunk is hashed in place. It
// is for one goroutine; sum or stop ends the one that it may have started.
type hasher struct {
	hash hash.Hash
	buf  []byte
	full chan []byte   // nil while nothing is hashed beside
	free chan []byte   // chunks that were hashed
	made int           // chunks
	done chan struct{} // closed when all that was handed over is hashed
}

func newHasher() *hasher { return &hasher{hash: sha256.New()} }

func (h *hasher) write(b []byte) {
	for len(b) > 0 {
		if h.buf == nil {
			h.buf = h.chunk()
		}
		n := min(len(b), hashChunk-len(h.buf))
		h.buf = append(h.buf, b[:n]...)
		b = b[n:]
		if len(h.buf) == hashChunk {
			h.handOver()
		}
	}
}

// chunk returns an empty chunk, once there is one.
func (h *hasher) chunk() []byte {
	if h.free == nil {
		h.free = make(chan []byte, hashChunks)
	}
	if h.made == hashChunks {
		return (<-h.free)[:0]
	}
	h.made++
	if h.made == 1 {
		return nil // of a small module, as much as it needs
	}
	return make([]byte, 0, hashChunk)
}

func (h *hasher) handOver() {
	if h.full == nil {
		h.full, h.done = make(chan []byte, hashChunks), make(chan struct{})
		go h.run(h.full, h.done)
	}
	h.full <- h.buf
	h.buf = nil
}

func (h *hasher) run(full <-chan []byte, done chan<- struct{}) {
	defer close(done)
	for b := range full {
		h.hash.Write(b)
		h.free <- b
	}
}

// stop waits until what was handed over is hashed.
func (h *hasher) stop() {
	if h.full != nil {
		close(h.full)
		<-h.done
		h.full = nil
	}
}

// sum returns the sha256 of what was written so far; more may follow.
func (h *hasher) sum() []byte {
	h.stop()
	h.hash.Write(h.buf)
	h.buf = h.buf[:0]
	return h.hash.Sum(nil)
}
