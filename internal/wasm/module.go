package wasm

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// The ids of the sections that are looked into; all others are read past.
const (
	sectionCustom = 0
	sectionImport = 2
	sectionMemory = 5
	sectionExport = 7
	sectionStart  = 8
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

// exports is what judge needs of the export section.
type exports struct {
	functions map[string]bool // by name
	memory    bool            // a memory named "memory", as hosts look for it
	hidden    []string        // "module.name" of imports that are no functions
}

// readModule reads a module to its end. The finding says why it is no module that
// can be read; the scanner's own error says that its reader failed.
func readModule(s *scanner) (Module, exports, *Finding) {
	m := Module{}
	e := exports{functions: map[string]bool{}}
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
		if err := readSection(s, id, &m, &e); err != nil {
			return m, e, malformed(s, name, err)
		}
		if id == sectionCustom {
			m.CustomSize += int64(size)
		}
		s.left = -1
	}
}

func readSection(s *scanner, id byte, m *Module, e *exports) error {
	var err error
	switch id {
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

func readImports(s *scanner, m *Module, e *exports) error {
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
			if !seen[full] && len(seen) < maxFunctions {
				seen[full] = true
				m.Functions = append(m.Functions, full)
			}
			_, err = s.uint32()
			return err
		case kindTable:
			if _, err := s.readByte(); err != nil { // the type of the elements
				return err
			}
			_, _, err = readLimits(s)
		case kindMemory:
			m.MemoryMin, m.MemoryMax, err = readLimits(s)
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

func readExports(s *scanner, m *Module, e *exports) error {
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
		if kind == kindMemory && name == "memory" {
			e.memory = true
		}
		if kind == kindFunction && !e.functions[name] && len(e.functions) < maxFunctions {
			e.functions[name] = true
			if version, ok := strings.CutPrefix(name, abiMarker); ok && len(version) <= 16 {
				m.ABI = append(m.ABI, strings.ReplaceAll(version, "_", "."))
			}
		}
		_, err = s.uint32()
		return err
	})
}
