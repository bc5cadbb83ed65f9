package content

import "io"

const (
	aheadChunk  = 128 << 10
	aheadChunks = 3
)

// ahead reads a delivery, which verifies it, beside the unpacking of what was read: both
// take about as long. It is for one goroutine and has another, which ends with the
// delivery or with stop.
type ahead struct {
	full  chan chunk
	free  chan []byte
	quit  chan struct{}
	chunk chunk // of which bytes are still to be handed on
	whole []byte
	err   error // the end, once it was handed on
}

type chunk struct {
	bytes []byte
	err   error
}

func readAhead(r io.Reader) *ahead {
	a := &ahead{full: make(chan chunk, aheadChunks), free: make(chan []byte, aheadChunks), quit: make(chan struct{})}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.full)
	for made := 0; ; {
		var b []byte
		if made < aheadChunks {
			made++
			b = make([]byte, aheadChunk)
		} else {
			select {
			case b = <-a.free:
			case <-a.quit:
				return
			}
		}
		n, err := readFull(r, b)
		select {
		case a.full <- chunk{b[:n], err}:
		case <-a.quit:
			return
		}
		if err != nil {
			return
		}
	}
}

// readFull is io.ReadFull without a word of its own for an early end.
func readFull(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// Read hands on what was read, and its end.
func (a *ahead) Read(b []byte) (int, error) {
	for len(a.chunk.bytes) == 0 {
		if a.err == nil && a.chunk.err != nil {
			a.err = a.chunk.err
		}
		if a.err != nil {
			return 0, a.err
		}
		if a.whole != nil {
			a.free <- a.whole
			a.whole = nil
		}
		a.chunk = <-a.full
		a.whole = a.chunk.bytes[:cap(a.chunk.bytes)]
	}
	n := copy(b, a.chunk.bytes)
	a.chunk.bytes = a.chunk.bytes[n:]
	return n, nil
}

// stop ends the reading, where abandon has a Read that waits return, and waits for its
// end.
func (a *ahead) stop(abandon func()) {
	close(a.quit)
	if a.err == nil { // to give up a request that is over would cost its connection
		abandon()
	}
	for range a.full { // what was read and not asked for
	}
}
