package v1alpha1

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
)

// Object is a JSON object of any content: a plugin's own configuration. The zero
// value is the empty object. It must not be changed once it is shared.
//
// +kubebuilder:validation:Type=object
// +kubebuilder:pruning:PreserveUnknownFields
type Object struct {
	// Raw is the object as JSON; empty is the empty object.
	Raw []byte `json:"-"`
}

// UnmarshalJSON keeps a copy of data, which must be a JSON object or null.
func (o *Object) UnmarshalJSON(data []byte) error {
	data = bytes.TrimSpace(data)
	if string(data) == "null" {
		o.Raw = nil
		return nil
	}
	if len(data) == 0 || data[0] != '{' || !json.Valid(data) {
		return errors.New("must be an object")
	}
	o.Raw = slices.Clone(data)
	return nil
}

// MarshalJSON returns the object as it was read.
func (o Object) MarshalJSON() ([]byte, error) {
	if len(o.Raw) == 0 {
		return []byte("{}"), nil
	}
	return o.Raw, nil
}

// Canonical returns the object as JSON in its one spelling: keys sorted, no spaces,
// numbers as short as they go. Equal objects give equal bytes. A nil or empty object
// gives nil.
func (o *Object) Canonical() ([]byte, error) {
	if o == nil || len(o.Raw) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(o.Raw))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("object: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("object: more than one value")
	}
	if len(v) == 0 {
		return nil, nil
	}
	if err := canonicalNumbers(v); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("object: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// canonicalNumbers rewrites the numbers within v in place.
func canonicalNumbers(v any) error {
	var err error
	rewrite := func(e any) any {
		if n, ok := e.(json.Number); ok {
			c, cerr := canonicalNumber(n)
			err = errors.Join(err, cerr)
			return c
		}
		err = errors.Join(err, canonicalNumbers(e))
		return e
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = rewrite(e)
		}
	case []any:
		for i, e := range v {
			v[i] = rewrite(e)
		}
	}
	return err
}

// canonicalNumber spells whole numbers of 64 bits with all their digits, and every
// other number as the nearest float64.
func canonicalNumber(n json.Number) (json.Number, error) {
	if i, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
		return json.Number(strconv.FormatInt(i, 10)), nil
	}
	if u, err := strconv.ParseUint(n.String(), 10, 64); err == nil {
		return json.Number(strconv.FormatUint(u, 10)), nil
	}
	f, err := n.Float64()
	if err != nil {
		return "", fmt.Errorf("object: the number %s is too large", n)
	}
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return json.Number(strconv.FormatInt(int64(f), 10)), nil
	}
	return json.Number(strconv.FormatFloat(f, 'g', -1, 64)), nil
}
