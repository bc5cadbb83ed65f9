package wasm

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/gzip" // twice as fast as the standard library's
	"github.com/klauspost/compress/zstd"
)

// Form says what a stream may be, and so how the module in it is found.
type Form uint8

const (
	// FormAny is a module, raw or in gzip, zstd or tar, one in the other up to
	// Limits.Depth. Of a tar it is the first regular file. HTTP(S) sources are this.
	FormAny Form = iota
	// FormLayer is an image layer: a tar, plain or in gzip or zstd, that holds the
	// module as plugin.wasm in whatever folder, the first one if there are several.
	FormLayer
)

// ModuleFile is the base name of the module in an image layer.
const ModuleFile = "plugin.wasm"

// Limits bound what Unpack reads and writes. A zero field means its default.
type Limits struct {
	Module  int64 // bytes of the unpacked module; default 256 MiB
	Archive int64 // bytes read out of each decompression; default 4 × Module, at least 64 MiB
	Entries int   // entries of a tar; default 10,000
	Depth   int   // archives and compressions around the module; default 4
}

// MaxModule is the default limit of an unpacked module, in bytes.
const MaxModule = 256 << 20

// zstdWindow bounds the memory that a zstd stream can ask for; the format wants
// decoders to grant 8 MiB, which levels up to 19 keep to.
const zstdWindow = 8 << 20

func (l Limits) withDefaults() Limits {
	if l.Module <= 0 {
		l.Module = MaxModule
	}
	if l.Archive <= 0 {
		l.Archive = max(4*l.Module, 64<<20)
	}
	if l.Entries <= 0 {
		l.Entries = 10_000
	}
	if l.Depth <= 0 {
		l.Depth = 4
	}
	return l
}

// Most is the size in bytes beyond which no packed form of a module is taken.
func (l Limits) Most() int64 { return l.withDefaults().Archive }

// A LimitError says that a limit of Limits was reached. Nothing was cut off in
// silence: the module was not delivered.
type LimitError struct {
	What  string // "module", "archive", "entries" or "depth"
	Limit int64
	Raise string // what to do about it
}

// Error names the limit and how to raise it.
func (e *LimitError) Error() string {
	unit := ""
	if e.What == "module" || e.What == "archive" {
		unit = " bytes"
	}
	return fmt.Sprintf("unpack module: more than the limit of %d%s (%s); %s", e.Limit, unit, e.What, e.Raise)
}

var (
	// ErrNoModule says that a stream was read to its end, or an archive to its, and
	// held no module.
	ErrNoModule = errors.New("unpack module: there is none")
	// ErrArchive says that a stream is a damaged archive or compression.
	ErrArchive = errors.New("unpack module: damaged archive")
)

const raiseModule = "raise fetch.maxModuleSize if the module is really that large"

// Unpack finds the module in r, copies it to w and returns its size and packaging:
// "raw", or "tar" if it was in a tar; compression alone does not count. It holds a few buffers whatever
// the sizes are, believes no size that a header gives, and stops once it has the module
// and the checksum of its compression: what follows in r is the caller's to read and verify. On an error w may
// have got a part of the module. Errors of r and w are returned as they are (wrapped);
// its own are ErrNoModule, ErrArchive and *LimitError.
func Unpack(w io.Writer, r io.Reader, form Form, limits Limits) (size int64, packaging string, err error) {
	u := unpacker{form: form, limits: limits.withDefaults(), w: w, source: &sourceReader{r: r}}
	size, err = u.unpack(u.source, 0)
	packaging = "raw"
	if u.tar {
		packaging = "tar"
	}
	if err != nil && u.source.err != nil {
		// A decompressor blames the format for what was the network's fault.
		return size, packaging, fmt.Errorf("unpack module: read: %w", u.source.err)
	}
	return size, packaging, err
}

type unpacker struct {
	form   Form
	limits Limits
	w      io.Writer
	source *sourceReader
	tar    bool
}

// sourceReader remembers the failure of the outermost reader.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

const (
	magicGzip = "\x1f\x8b"
	magicZstd = "\x28\xb5\x2f\xfd"
	// The magic of a tar is not at its beginning: "ustar" at 257. Old tars have none;
	// their header has a checksum.
	tarBlock = 512
)

func (u *unpacker) unpack(r io.Reader, depth int) (int64, error) {
	if depth > u.limits.Depth {
		return 0, &LimitError{What: "depth", Limit: int64(u.limits.Depth), Raise: "pack the module in fewer archives"}
	}
	b := bufio.NewReaderSize(r, 32<<10)
	head, err := b.Peek(tarBlock) // shorter at the end of the stream
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, u.damaged(err)
	}
	switch {
	case bytes.HasPrefix(head, []byte(magicGzip)):
		return u.gunzip(b, depth)
	case bytes.HasPrefix(head, []byte(magicZstd)):
		return u.unzstd(b, depth)
	case bytes.HasPrefix(head, []byte(Magic)) && (u.form == FormAny || u.tar):
		return u.copyModule(b)
	case isTar(head) && !u.tar:
		return u.untar(b, depth)
	case isTar(head):
		return 0, fmt.Errorf("%w: an archive in an archive", ErrArchive)
	case u.form == FormLayer && !u.tar:
		return 0, fmt.Errorf("%w: the layer is no tar, in gzip, zstd or plain", ErrNoModule)
	default:
		return 0, fmt.Errorf("%w: it begins with %q, not with %q nor as gzip, zstd or tar do", ErrNoModule, head[:min(len(head), 8)], Magic)
	}
}

func (u *unpacker) gunzip(r io.Reader, depth int) (int64, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return 0, u.damaged(err)
	}
	return u.decompress(z, depth)
}

func (u *unpacker) unzstd(r io.Reader, depth int) (int64, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
	if err != nil {
		return 0, u.damaged(err)
	}
	defer z.Close()
	return u.decompress(z, depth)
}

// decompress unpacks what z gives and then reads it to its end, for there is its
// checksum. What is larger than a limit after the module is not read to its end: the
// module is whole, and the digest of the delivery decides.
func (u *unpacker) decompress(z io.Reader, depth int) (int64, error) {
	r := u.bounded(z)
	n, err := u.unpack(r, depth+1)
	if err != nil {
		return n, err
	}
	_, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, make([]byte, 32<<10))
	var limit *LimitError
	switch {
	case err == nil, errors.As(err, &limit):
		return n, nil
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, zstd.ErrMagicMismatch):
		return n, nil // padding after the compressed part, as some tools leave
	default:
		return n, u.damaged(err)
	}
}

// bounded fails once more than Limits.Archive bytes came out of a decompressor.
func (u *unpacker) bounded(r io.Reader) io.Reader {
	return &boundedReader{r: r, left: u.limits.Archive, over: &LimitError{
		What: "archive", Limit: u.limits.Archive, Raise: "leave out of the layer what is not the module",
	}}
}

type boundedReader struct {
	r    io.Reader
	left int64
	over error
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		var one [1]byte
		if n, err := b.r.Read(one[:]); n == 0 {
			return 0, err
		}
		return 0, b.over
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func (u *unpacker) untar(r io.Reader, depth int) (int64, error) {
	u.tar = true
	// A tar's header may announce gigabytes that are then read past: bound them even
	// where nothing was decompressed.
	t := tar.NewReader(u.bounded(r))
	for entries := 0; ; entries++ {
		if entries >= u.limits.Entries {
			return 0, &LimitError{What: "entries", Limit: int64(u.limits.Entries), Raise: "leave out of the archive what is not the module"}
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return 0, u.missing()
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // a name is only ever compared
			return 0, u.damaged(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if u.form == FormLayer && path.Base(h.Name) != ModuleFile {
			continue
		}
		return u.unpack(t, depth+1)
	}
}

func (u *unpacker) missing() error {
	if u.form == FormLayer {
		return fmt.Errorf("%w: no file %s in the layer", ErrNoModule, ModuleFile)
	}
	return fmt.Errorf("%w: no regular file in the archive", ErrNoModule)
}

func (u *unpacker) copyModule(r io.Reader) (int64, error) {
	// One byte more than the limit tells "exactly at it" from "beyond it".
	n, err := io.Copy(u.w, io.LimitReader(r, u.limits.Module))
	if err != nil {
		return n, u.damaged(err)
	}
	if n < u.limits.Module {
		return n, nil
	}
	var one [1]byte
	switch _, err := io.ReadFull(r, one[:]); {
	case err == nil:
		return n, &LimitError{What: "module", Limit: u.limits.Module, Raise: raiseModule}
	case errors.Is(err, io.EOF):
		return n, nil
	default:
		return n, u.damaged(err)
	}
}

// damaged wraps what a reader below complained of, unless that was a limit.
func (u *unpacker) damaged(err error) error {
	var limit *LimitError
	switch {
	case errors.As(err, &limit):
		return limit
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return &LimitError{What: "archive", Limit: zstdWindow, Raise: "compress with a window of at most 8 MiB (zstd -19 or lower, no --long)"}
	case isFormat(err):
		return fmt.Errorf("%w: %w", ErrArchive, err)
	default:
		return fmt.Errorf("unpack module: %w", err)
	}
}

func isFormat(err error) bool {
	return errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, tar.ErrHeader) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, zstd.ErrMagicMismatch) || errors.Is(err, zstd.ErrCRCMismatch)
}

// isTar reports whether a stream begins with the header of a tar: with its magic, or,
// for the oldest form, with a header whose checksum is right.
func isTar(head []byte) bool {
	if len(head) < tarBlock {
		return false
	}
	if string(head[257:262]) == "ustar" {
		return true
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil || errors.Is(err, tar.ErrInsecurePath)
}
