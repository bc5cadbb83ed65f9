package wasm

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// The ids of the sections that are looked into; all others are read past.
const (
	sectionCustom   = 0
	sectionType     = 1
	sectionImport   = 2
	sectionFunction = 3
	sectionMemory   = 5
	sectionExport   = 7
	sectionStart    = 8
)

// order is the place of each section that may appear at most once. Sections with
// ids above 13 are unknown to every runtime.
var order = map[byte]int{1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 13: 6, 6: 7, 7: 8, 8: 9, 9: 10, 12: 11, 10: 12, 11: 13}

// Kinds of imports and exports.
const (
	kindFunction = 0
	kindTable    = 1
	kindMemory   = 2
	kindGlobal   = 3
	kindTag      = 4
)

// maxFunctions bounds the names that are kept of imports and of exported functions;
// no host has anywhere near as many functions. What is beyond is counted.
const maxFunctions = 4096

// maxTypes bounds the types that are kept; runtimes allow a million, of which Proxy-Wasm
// modules use some dozens. Functions of types beyond have anySignature.
const maxTypes = 1 << 16

// maxDefined is how many functions a module may define: V8's limit.
const maxDefined = 1_000_000

// details is what judge needs of a module besides what Module tells.
type details struct {
	types     []string // signatures
	imports   []function
	defined   []uint32          // index of the type of each function that the module defines
	functions map[string]uint32 // exported functions by name: index
	memory    bool              // a memory is exported, or imported from the host
	hidden    []string          // "module.name" of imports that no host gives: globals, tags
}

// function is an import: its name and the index of its type.
type function struct {
	full      string
	typeIndex uint32
}

// signature of the type with the index.
func (d *details) signature(typeIndex uint32) string {
	if int64(typeIndex) < int64(len(d.types)) {
		return d.types[typeIndex]
	}
	return anySignature
}

// exported returns the signature of an exported function of the module itself.
func (d *details) exported(m *Module, name string) string {
	index := int64(d.functions[name]) - int64(m.Imports)
	if index < 0 || index >= int64(len(d.defined)) {
		return anySignature
	}
	return d.signature(d.defined[index])
}

// readModule reads a module to its end. The finding says why it is no module that
// can be read; the scanner's own error says that its reader failed.
func readModule(s *scanner) (Module, *details, *Finding) {
	m := Module{}
	e := &details{functions: map[string]uint32{}}
	if f := readHeader(s); f != nil {
		return m, e, f
	}
	last := 0
	for {
		id, err := s.readByte()
		if errors.Is(err, errShort) {
			return m, e, nil // between two sections the module may end
		}
		if err != nil {
			return m, e, malformed(s, "the module", err)
		}
		size, err := s.uint32()
		if err != nil {
			return m, e, malformed(s, "the header of a section", err)
		}
		name := fmt.Sprintf("section %d", id)
		if id != sectionCustom {
			place, known := order[id]
			if !known {
				return m, e, malformed(s, name, errors.New("is not known"))
			}
			if place <= last {
				return m, e, malformed(s, name, errors.New("is out of order or there twice"))
			}
			last = place
		}
		s.left = int64(size)
		if err := readSection(s, id, &m, e); err != nil {
			return m, e, malformed(s, name, err)
		}
		if id == sectionCustom {
			m.CustomSize += int64(size)
		}
		s.left = -1
	}
}

func readSection(s *scanner, id byte, m *Module, e *details) error {
	var err error
	switch id {
	case sectionType:
		err = readTypes(s, e)
	case sectionFunction:
		err = readFunctions(s, e)
	case sectionImport:
		err = readImports(s, m, e)
	case sectionMemory:
		err = readMemories(s, m)
	case sectionExport:
		err = readExports(s, m, e)
	case sectionStart:
		m.Start = true
		_, err = s.uint32()
	case sectionCustom:
		if _, err = s.name(); err == nil {
			err = s.skip(s.left)
		}
	default:
		return s.skip(s.left)
	}
	if err == nil && s.left > 0 {
		return fmt.Errorf("is %d bytes longer than its content", s.left)
	}
	return err
}

func readHeader(s *scanner) *Finding {
	var header [8]byte
	n, err := io.ReadFull(s.r, header[:])
	s.advance(int64(n))
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		s.err = err
		return nil
	}
	if n < 4 || string(header[:4]) != Magic {
		return &Finding{
			Severity: SeverityError, Reason: "NotWasm",
			Message: fmt.Sprintf("this is no WebAssembly: it begins with %q, not with %q", header[:min(n, 4)], Magic),
			Fix:     "give the compiled module (.wasm), not its text form, an archive in an archive or an error page",
		}
	}
	switch {
	case n == 8 && string(header[4:]) == "\x01\x00\x00\x00":
		return nil
	case n == 8 && header[6] == 1 && header[7] == 0:
		return &Finding{
			Severity: SeverityError, Reason: "Component",
			Message: "this is a WebAssembly component; Envoy loads core modules",
			Fix:     "build for wasm32-wasip1 (not wasip2), without wrapping the module as a component",
		}
	default:
		return &Finding{
			Severity: SeverityError, Reason: "UnknownVersion",
			Message: fmt.Sprintf("this is WebAssembly of the unknown version % x", header[4:n]),
			Fix:     "build a core module of version 1",
		}
	}
}

func malformed(s *scanner, what string, err error) *Finding {
	return &Finding{
		Severity: SeverityError, Reason: "Malformed",
		Message: fmt.Sprintf("%s %v (at byte %d)", what, err, s.offset),
		Fix:     "build or fetch the module again: it is cut off or damaged",
	}
}

// vector reads the length of a vector and calls each for its elements. Each element
// takes at least one byte, so a length beyond the section is refused at once.
func vector(s *scanner, each func() error) error {
	n, err := s.uint32()
	if err != nil {
		return err
	}
	if int64(n) > s.left {
		return errShort
	}
	for ; n > 0; n-- {
		if err := each(); err != nil {
			return err
		}
	}
	return nil
}

// readTypes keeps the signatures of the functions. A type that is no plain function, as
// garbage-collected languages have, ends it: the rest is anySignature.
func readTypes(s *scanner, e *details) error {
	n, err := s.uint32()
	if err != nil {
		return err
	}
	if int64(n) > s.left {
		return errShort
	}
	for ; n > 0; n-- {
		form, err := s.readByte()
		if err != nil {
			return err
		}
		if form != 0x60 || len(e.types) == maxTypes {
			return s.skip(s.left)
		}
		params, plain, err := readValues(s)
		if err != nil || !plain {
			return errors.Join(err, s.skip(s.left))
		}
		results, plain, err := readValues(s)
		if err != nil || !plain {
			return errors.Join(err, s.skip(s.left))
		}
		signature := params + ">" + results
		if strings.Contains(signature, anySignature) {
			signature = anySignature
		}
		e.types = append(e.types, signature)
	}
	return nil
}

// readValues reads a list of value types as letters. It is not plain if one of them
// takes more than a byte, whose number is then not known.
func readValues(s *scanner) (letters string, plain bool, err error) {
	const most = 64 // no host function has as many
	b := make([]byte, 0, 16)
	n, err := s.uint32()
	if err != nil {
		return "", false, err
	}
	if int64(n) > s.left {
		return "", false, errShort
	}
	for ; n > 0; n-- {
		t, err := s.readByte()
		if err != nil {
			return "", false, err
		}
		letter, known := valueLetters[t]
		if !known {
			return "", false, nil
		}
		if len(b) < most {
			b = append(b, letter)
		} else {
			b[0] = anySignature[0]
		}
	}
	return string(b), true, nil
}

// valueLetters are the value types of one byte; vectors and references have no letter
// that a host function uses.
var valueLetters = map[byte]byte{0x7f: 'i', 0x7e: 'I', 0x7d: 'f', 0x7c: 'F', 0x7b: 'v', 0x70: 'r', 0x6f: 'e'}

func readFunctions(s *scanner, e *details) error {
	return vector(s, func() error {
		if len(e.defined) == maxDefined {
			return fmt.Errorf("defines more than %d functions", maxDefined)
		}
		index, err := s.uint32()
		e.defined = append(e.defined, index)
		return err
	})
}

func readImports(s *scanner, m *Module, e *details) error {
	seen := map[string]bool{}
	return vector(s, func() error {
		module, err := s.name()
		if err != nil {
			return err
		}
		name, err := s.name()
		if err != nil {
			return err
		}
		kind, err := s.readByte()
		if err != nil {
			return err
		}
		full := module + "." + name
		switch kind {
		case kindFunction:
			m.Imports++
			typeIndex, err := s.uint32()
			if err == nil && len(e.imports) < maxFunctions {
				e.imports = append(e.imports, function{full, typeIndex})
				if !seen[full] {
					seen[full] = true
					m.Functions = append(m.Functions, full)
				}
			}
			return err
		case kindTable:
			if _, err := s.readByte(); err != nil { // the type of the elements
				return err
			}
			_, _, err = readLimits(s)
			return err // Envoy makes the tables and memories that modules import
		case kindMemory:
			e.memory = true
			m.MemoryMin, m.MemoryMax, err = readLimits(s)
			return err
		case kindGlobal:
			err = s.skip(2) // type, mutability
		case kindTag:
			if _, err = s.readByte(); err == nil {
				_, err = s.uint32()
			}
		default:
			return fmt.Errorf("imports %q of the unknown kind %d", full, kind)
		}
		if len(e.hidden) < maxFunctions {
			e.hidden = append(e.hidden, full)
		}
		return err
	})
}

// readLimits reads the limits of a memory or table: flags, minimum and, if the flags
// say so, maximum. Bit 2 of the flags says that they are of 64 bits.
func readLimits(s *scanner) (minimum, maximum uint64, err error) {
	flags, err := s.readByte()
	if err != nil {
		return 0, 0, err
	}
	if flags > 7 {
		return 0, 0, fmt.Errorf("has limits with the unknown flags %#x", flags)
	}
	bits := 32
	if flags&4 != 0 {
		bits = 64
	}
	if minimum, err = s.uint(bits); err != nil || flags&1 == 0 {
		return minimum, 0, err
	}
	maximum, err = s.uint(bits)
	return minimum, maximum, err
}

func readMemories(s *scanner, m *Module) error {
	first := true
	return vector(s, func() error {
		minimum, maximum, err := readLimits(s)
		if first && err == nil {
			m.MemoryMin, m.MemoryMax, first = minimum, maximum, false
		}
		return err
	})
}

func readExports(s *scanner, m *Module, e *details) error {
	return vector(s, func() error {
		name, err := s.name()
		if err != nil {
			return err
		}
		kind, err := s.readByte()
		if err != nil {
			return err
		}
		if kind > kindTag {
			return fmt.Errorf("exports %q of the unknown kind %d", name, kind)
		}
		m.Exports++
		index, err := s.uint32()
		if err != nil {
			return err
		}
		if kind == kindMemory {
			e.memory = true
		}
		if _, twice := e.functions[name]; kind == kindFunction && !twice && len(e.functions) < maxFunctions {
			e.functions[name] = index
			if version, ok := strings.CutPrefix(name, abiMarker); ok && len(version) <= 16 {
				m.ABI = append(m.ABI, strings.ReplaceAll(version, "_", "."))
			}
		}
		return nil
	})
}
