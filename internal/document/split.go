package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// chunk is the text of one document and the line, counted from 0, at which it begins.
type chunk struct {
	text []byte
	line int
}

// split cuts a file at its "---" lines. Such a line always separates documents: YAML
// allows it within no scalar. What stands before the first one is a document only if it
// holds more than comments and directives. A file without one is one document.
func split(data []byte) []chunk {
	var chunks []chunk
	start, startLine, line, marked := 0, 0, 0, false
	flush := func(end int) {
		text := data[start:end]
		if marked || !isBlank(text, true) {
			chunks = append(chunks, chunk{text, startLine})
		}
	}
	for at := 0; at < len(data); line++ {
		next := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			next = at + i + 1
		}
		if row := data[at:next]; bytes.HasPrefix(row, []byte("---")) && (len(row) == 3 || strings.ContainsRune(" \t\r\n", rune(row[3]))) {
			flush(at)
			// What follows the mark on its line belongs to the new document.
			start, startLine, marked = at+3, line, true
		}
		at = next
	}
	flush(len(data))
	return chunks
}

// isBlank reports whether text holds nothing but space and comments and, if asked,
// directives.
func isBlank(text []byte, directives bool) bool {
	for row := range bytes.Lines(text) {
		row = bytes.TrimSpace(row)
		switch {
		case len(row) == 0, row[0] == '#', string(row) == "...":
		case directives && row[0] == '%':
		default:
			return false
		}
	}
	return true
}

// syntaxError is why a document could not be parsed; line counts from 1, 0 if unknown.
type syntaxError struct {
	line    int
	message string
}

func (e *syntaxError) Error() string { return e.message }

// parse reads the text of one document; nil, nil if it is empty.
func parse(c chunk) (*yaml.Node, error) {
	if isBlank(c.text, false) {
		return nil, nil
	}
	if trimmed := bytes.TrimSpace(c.text); trimmed[0] == '{' || trimmed[0] == '[' {
		// JSON proper is read as JSON: YAML knows neither its tabs nor its surrogate pairs.
		if json.Valid(trimmed) {
			lines := bytes.Count(c.text[:bytes.IndexByte(c.text, trimmed[0])], []byte("\n"))
			return parseJSON(trimmed, c.line, lines)
		}
	}
	d := yaml.NewDecoder(bytes.NewReader(c.text))
	var doc yaml.Node
	if err := d.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, yamlSyntax(err, c)
	}
	var more yaml.Node
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, yamlSyntax(err, c)
		}
		return nil, &syntaxError{c.line + more.Line, `a second document begins here: write "---" before it`}
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, &syntaxError{c.line + 1, "is not a document"}
	}
	return doc.Content[0], nil
}

// unknownAnchor is the one message of the parser that repeats text of the document, which
// may be a password that begins with "*".
var unknownAnchor = regexp.MustCompile(`unknown anchor '.*' referenced`)

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// yamlSyntax takes the line out of the parser's error and makes it the file's. The parser
// may count further than the document goes.
func yamlSyntax(err error, c chunk) *syntaxError {
	m := yamlLine.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	if m == nil {
		return &syntaxError{message: "is not YAML"}
	}
	e := &syntaxError{message: "is not YAML: " + unknownAnchor.ReplaceAllString(m[2], `a value that begins with "*" names an anchor that is not there: put it in quotes`)}
	if n, err := strconv.Atoi(m[1]); err == nil {
		e.line = c.line + min(n, 1+bytes.Count(bytes.TrimRight(c.text, "\n"), []byte("\n")))
	}
	return e
}

// parseJSON reads one JSON value, valid already, into the nodes that its YAML would give.
// It begins lead lines into a document, and base lines into the file.
func parseJSON(text []byte, base, lead int) (*yaml.Node, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	line, seen := lead+1, 0
	here := func() int {
		at := int(d.InputOffset())
		line += bytes.Count(text[seen:at], []byte("\n"))
		seen = at
		return line
	}
	var value func(depth int) (*yaml.Node, error)
	value = func(depth int) (*yaml.Node, error) {
		if depth > maxDepth {
			return nil, errTooDeep(base + here())
		}
		tok, err := d.Token()
		if err != nil {
			return nil, &syntaxError{base + here(), "is not JSON"}
		}
		n := &yaml.Node{Kind: yaml.ScalarNode, Line: here()}
		switch t := tok.(type) {
		case json.Delim:
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
			if t == '[' {
				n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
			}
			for d.More() {
				child, err := value(depth + 1)
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, child)
			}
			_, err = d.Token()
			return n, err
		case string:
			n.Tag, n.Value, n.Style = "!!str", t, yaml.DoubleQuotedStyle
		case json.Number:
			n.Tag, n.Value = "!!int", t.String()
			if strings.ContainsAny(n.Value, ".eE") {
				n.Tag = "!!float"
			}
		case bool:
			n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
		case nil:
			n.Tag, n.Value = "!!null", "null"
		default:
			return nil, fmt.Errorf("unexpected token %T", tok)
		}
		return n, nil
	}
	return value(0)
}
