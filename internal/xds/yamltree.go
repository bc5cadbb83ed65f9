package xds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"go.yaml.in/yaml/v3"
)

const (
	// maxEnvoyFile bounds one Envoy YAML file. The largest that people write by hand are
	// some hundred kilobytes; generated ones reach a few megabytes.
	maxEnvoyFile = 16 << 20
	// maxTreeNodes bounds what aliases may blow a file up to.
	maxTreeNodes = 4 << 20
	// maxTreeDepth is deeper than any configuration Envoy accepts.
	maxTreeDepth = 200
)

// parseTree reads one YAML (or JSON) document into maps, slices and scalars as
// encoding/json knows them; numbers are json.Number or float64. Duplicate keys, several
// documents and values that JSON cannot say are errors with the line.
func parseTree(data []byte) (any, error) {
	if len(data) > maxEnvoyFile {
		return nil, fmt.Errorf("the file has %d bytes, more than the %d that are read", len(data), maxEnvoyFile)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var node yaml.Node
	if err := decoder.Decode(&node); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file must hold one document")
	}
	c := treeConverter{}
	return c.value(&node, 0)
}

type treeConverter struct{ nodes int }

func (c *treeConverter) value(n *yaml.Node, depth int) (any, error) {
	c.nodes++
	if c.nodes > maxTreeNodes || depth > maxTreeDepth {
		return nil, fmt.Errorf("line %d: too deep or too large", n.Line)
	}
	switch n.Kind {
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return nil, nil
		}
		return c.value(n.Content[0], depth)
	case yaml.AliasNode:
		return c.value(n.Alias, depth+1)
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, e := range n.Content {
			v, err := c.value(e, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind == yaml.AliasNode {
				k = k.Alias
			}
			if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
				return nil, fmt.Errorf("line %d: a key must be a plain word; merge keys are not Envoy's", k.Line)
			}
			if _, twice := m[k.Value]; twice {
				return nil, fmt.Errorf("line %d: the key %q is written twice", k.Line, k.Value)
			}
			v, err := c.value(n.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			m[k.Value] = v
		}
		return m, nil
	case yaml.ScalarNode:
		return scalar(n)
	}
	return nil, fmt.Errorf("line %d: not a value", n.Line)
}

// scalar gives the JSON value of a YAML scalar. What JSON has no word for (a date) stays the
// text that was written.
func scalar(n *yaml.Node) (any, error) {
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return nil, err
		}
		return b, nil
	case "!!int":
		var i int64
		if err := n.Decode(&i); err == nil {
			return json.Number(strconv.FormatInt(i, 10)), nil
		}
		var u uint64
		if err := n.Decode(&u); err == nil {
			return json.Number(strconv.FormatUint(u, 10)), nil
		}
		return nil, fmt.Errorf("line %d: %q is too large a number", n.Line, n.Value)
	case "!!float":
		var f float64
		if err := n.Decode(&f); err != nil {
			return nil, err
		}
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return n.Value, nil
		}
		return f, nil
	default:
		return n.Value, nil
	}
}
