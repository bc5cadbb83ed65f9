package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// ConfigDump returns the state, and the resources it comes from.
func (s *Sandbox) ConfigDump(ctx context.Context) ([]byte, error) {
	var dump struct {
		State     State `json:"state"`
		Clusters  []any `json:"clusters"`
		Listeners []any `json:"listeners"`
		Routes    []any `json:"routes"`
		Filters   []any `json:"extensionConfigs"`
	}
	err := s.ask(ctx, func() {
		dump.State = s.state()
		clusters := *s.clusters.Load()
		for _, name := range slices.Sorted(maps.Keys(clusters)) {
			dump.Clusters = append(dump.Clusters, dumped(clusters[name]))
		}
		for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
			if c := s.listeners[name].newest(); c != nil {
				dump.Listeners = append(dump.Listeners, dumped(c.message))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(s.routes)) {
			dump.Routes = append(dump.Routes, dumped(s.routes[name]))
		}
		for _, name := range slices.Sorted(maps.Keys(s.extensions)) {
			if x := s.extensions[name]; x.tried != nil {
				dump.Filters = append(dump.Filters, map[string]any{"name": name, "version": x.version, "config": dumped(x.tried)})
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(dump, "", " ")
}

// dumped is a message as plain JSON values, without module bytes.
func dumped(m proto.Message) any {
	text, err := protojson.Marshal(m)
	var v any
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		return "(not readable: a type in it is not known here)"
	}
	return WithoutModules(v)
}

// WithoutModules replaces the module bytes in decoded JSON (maps, slices) by their
// size and sha256, in place, and returns v.
func WithoutModules(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = WithoutModules(v[i])
		}
	case map[string]any:
		for key, field := range v {
			text, isText := field.(string)
			if !isText || (key != "inline_bytes" && key != "inlineBytes") {
				v[key] = WithoutModules(field)
				continue
			}
			b, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				v[key] = "(not readable)"
				continue
			}
			v[key] = fmt.Sprintf("(%d bytes, sha256 %x)", len(b), sha256.Sum256(b))
		}
	}
	return v
}
