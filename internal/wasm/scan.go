package wasm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// maxName is how much of a name is kept. Longer names are read past and compared by
// their beginning: no name that Envoy knows comes near.
const maxName = 512

// errShort is the fault of a section, or a module, that ends before its content does.
var errShort = errors.New("ends too early")

// scanner reads the primitives of the binary format from a stream, forwards only,
// and knows its offset. Reading past the current section is errShort.
type scanner struct {
	r      *bufio.Reader
	seek   io.ReadSeeker // what r reads from, if it can leave something out; else nil
	size   int64         // then: of the whole
	offset int64
	left   int64 // bytes left in the current section; -1 outside of one
	err    error // the reader's own failure, other than io.EOF
}

func newScanner(r io.Reader) *scanner {
	s := &scanner{r: bufio.NewReaderSize(r, 32<<10), left: -1}
	if seek, ok := r.(io.ReadSeeker); ok {
		at, err := seek.Seek(0, io.SeekCurrent)
		end, err2 := seek.Seek(0, io.SeekEnd)
		_, err3 := seek.Seek(at, io.SeekStart)
		if s.err = errors.Join(err, err2, err3); s.err == nil {
			s.seek, s.size = seek, end-at
		}
	}
	return s
}

func (s *scanner) readByte() (byte, error) {
	if s.left == 0 {
		return 0, errShort
	}
	b, err := s.r.ReadByte()
	if err != nil {
		return 0, s.failed(err)
	}
	s.advance(1)
	return b, nil
}

func (s *scanner) advance(n int64) {
	s.offset += n
	if s.left > 0 {
		s.left -= n
	}
}

// failed tells the end of the module from a failure of the reader.
func (s *scanner) failed(err error) error {
	if errors.Is(err, io.EOF) {
		return errShort
	}
	s.err = err
	return err
}

// uint reads an unsigned LEB128 number of at most bits bits.
func (s *scanner) uint(bits int) (uint64, error) {
	var value uint64
	for shift := 0; ; shift += 7 {
		b, err := s.readByte()
		if err != nil {
			return 0, err
		}
		if rest := bits - shift; rest < 7 && (rest <= 0 || b>>rest != 0) {
			return 0, fmt.Errorf("has a number of more than %d bits", bits)
		}
		value |= uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			return value, nil
		}
	}
}

func (s *scanner) uint32() (uint32, error) {
	n, err := s.uint(32)
	return uint32(n), err //nolint:gosec // it has no more than 32 bits
}

// name reads a name and keeps its first maxName bytes.
func (s *scanner) name() (string, error) {
	n, err := s.uint32()
	if err != nil {
		return "", err
	}
	length := int64(n)
	if s.left >= 0 && length > s.left {
		return "", errShort
	}
	kept := make([]byte, min(length, maxName))
	if err := s.full(kept); err != nil {
		return "", err
	}
	return string(kept), s.skip(length - int64(len(kept)))
}

func (s *scanner) full(b []byte) error {
	if s.left >= 0 && int64(len(b)) > s.left {
		return errShort
	}
	n, err := io.ReadFull(s.r, b)
	s.advance(int64(n))
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errShort
	}
	if err != nil {
		s.err = err
	}
	return err
}

// skip reads past n bytes, or leaves them out where that is possible: code and data are
// most of a module.
func (s *scanner) skip(n int64) error {
	if s.left >= 0 && n > s.left {
		return errShort
	}
	if n > int64(s.r.Size()) && s.seek != nil && n <= s.size-s.offset {
		if _, err := s.seek.Seek(n-int64(s.r.Buffered()), io.SeekCurrent); err != nil {
			return s.failed(err)
		}
		s.r.Reset(s.seek)
		s.advance(n)
		return nil
	}
	for n > 0 {
		step, err := s.r.Discard(int(min(n, 1<<20)))
		s.advance(int64(step))
		n -= int64(step)
		if err != nil {
			return s.failed(err)
		}
	}
	return nil
}
