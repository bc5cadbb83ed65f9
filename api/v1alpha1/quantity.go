package v1alpha1

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes. As text it is a whole number with an optional unit: Ki, Mi,
// Gi, Ti (powers of 1024) or k, M, G, T (powers of 1000).
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10},
	{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3},
}

// ParseSize reads a Size. Errors do not repeat the text.
func ParseSize(s string) (Size, error) {
	digits, unit := s, int64(1)
	for _, u := range sizeUnits {
		if d, ok := strings.CutSuffix(s, u.suffix); ok {
			digits, unit = d, u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit || strings.HasPrefix(digits, "+") {
		return 0, errors.New("must be a size such as 8Mi, 4Gi or a whole number of bytes")
	}
	return Size(n * unit), nil
}

// String returns the size in the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if n := int64(s); n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Set reads a Size from a flag.
func (s *Size) Set(text string) (err error) {
	*s, err = ParseSize(text)
	return err
}

// Type names the kind of flag.
func (*Size) Type() string { return "size" }

// UnmarshalJSON reads a string or a whole number of bytes.
func (s *Size) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		text = string(data)
	}
	return s.Set(text)
}

// MarshalJSON returns String as a JSON string.
func (s Size) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// Duration is a time.Duration that reads and writes as Go does: 1h30m, 20s.
//
// +kubebuilder:validation:Type=string
type Duration struct {
	time.Duration `json:"-"`
}

// Set reads a Duration from a flag.
func (d *Duration) Set(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("must be a duration such as 30s, 5m or 1h30m")
	}
	d.Duration = v
	return nil
}

// Type names the kind of flag.
func (*Duration) Type() string { return "duration" }

// UnmarshalJSON reads a string; the empty string is 0.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		if string(data) == "0" {
			d.Duration = 0
			return nil
		}
		return errors.New("must be a duration such as 30s, 5m or 1h30m")
	}
	if text == "" {
		d.Duration = 0
		return nil
	}
	return d.Set(text)
}

// MarshalJSON returns the duration as a JSON string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

var (
	_ fmt.Stringer = Size(0)
	_ fmt.Stringer = Duration{}
)
