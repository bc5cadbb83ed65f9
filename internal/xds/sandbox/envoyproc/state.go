package envoyproc

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/stileproject/stile/internal/xds/sandbox"
)

// The parts of /config_dump that State reads.
type (
	configDump struct {
		Configs []json.RawMessage `json:"configs"`
	}
	section struct {
		Type             string            `json:"@type"`
		DynamicListeners []dynamicListener `json:"dynamic_listeners"`
		Extensions       []dynamicFilter   `json:"ecds_filters"`
	}
	dynamicListener struct {
		Name    string         `json:"name"`
		Active  *listenerState `json:"active_state"`
		Warming *listenerState `json:"warming_state"`
		Error   *updateFailure `json:"error_state"`
	}
	listenerState struct {
		Version  string   `json:"version_info"`
		Listener listener `json:"listener"`
	}
	listener struct {
		FilterChains []struct {
			Filters []struct {
				Config struct {
					HTTPFilters []httpFilter `json:"http_filters"`
				} `json:"typed_config"`
			} `json:"filters"`
		} `json:"filter_chains"`
	}
	httpFilter struct {
		Name      string `json:"name"`
		Discovery *struct {
			Default *struct {
				Type string `json:"@type"`
			} `json:"default_config"`
		} `json:"config_discovery"`
	}
	dynamicFilter struct {
		Version string `json:"version_info"`
		Filter  struct {
			Name   string     `json:"name"`
			Config wasmFilter `json:"typed_config"`
		} `json:"ecds_filter"`
		Updated time.Time      `json:"last_updated"`
		Error   *updateFailure `json:"error_state"`
	}
	wasmFilter struct {
		Type   string `json:"@type"`
		Config struct {
			VM struct {
				Code struct {
					Local struct {
						Inline []byte `json:"inline_bytes"`
					} `json:"local"`
					Remote struct {
						SHA256 string `json:"sha256"`
					} `json:"remote"`
				} `json:"code"`
			} `json:"vm_config"`
		} `json:"config"`
	}
	updateFailure struct {
		Details string `json:"details"`
		Version string `json:"version_info"`
	}
)

// State reads /config_dump. What Envoy does not say stays zero: Rejected, Skipped and
// Unproven are never set, and Version, Live and SHA256 of an extension are those of the
// last update that Envoy tried, which its dump shows even if it was rejected and an
// older one acts. An extension without any answer says what its listener's
// default_config is.
func (e *Envoy) State(ctx context.Context) (sandbox.State, error) {
	raw, err := e.get(ctx, "/config_dump")
	if err != nil {
		return sandbox.State{}, err
	}
	addresses, err := e.addresses(ctx)
	if err != nil {
		return sandbox.State{}, err
	}
	connected, err := e.Stats(ctx, "control_plane.connected_state")
	if err != nil {
		return sandbox.State{}, err
	}
	state, err := readState(raw, addresses)
	if err != nil {
		return sandbox.State{}, err
	}
	state.Node = e.node
	state.Connected = connected["control_plane.connected_state"] == 1
	return state, nil
}

func readState(raw []byte, addresses map[string]string) (sandbox.State, error) {
	var dump configDump
	if err := json.Unmarshal(raw, &dump); err != nil {
		return sandbox.State{}, fmt.Errorf("envoy config dump: %w", err)
	}
	var s sandbox.State
	extensions := map[string]sandbox.Extension{}
	for _, config := range dump.Configs {
		var part section
		if err := json.Unmarshal(config, &part); err != nil {
			continue // a section of another shape, which is not read
		}
		for _, l := range part.DynamicListeners {
			if l.Active == nil && l.Warming == nil && l.Error == nil {
				continue // removed; its last connections drain
			}
			s.Listeners = append(s.Listeners, readListener(l, addresses, extensions))
		}
	}
	for _, config := range dump.Configs {
		var part section
		if err := json.Unmarshal(config, &part); err != nil {
			continue
		}
		for _, f := range part.Extensions {
			name := f.Filter.Name
			extensions[name] = readExtension(f, extensions[name])
		}
	}
	for _, x := range extensions {
		s.Extensions = append(s.Extensions, x)
	}
	slices.SortFunc(s.Listeners, func(a, b sandbox.Listener) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Extensions, func(a, b sandbox.Extension) int { return cmp.Compare(a.Name, b.Name) })
	return s, nil
}

func readListener(l dynamicListener, addresses map[string]string, extensions map[string]sandbox.Extension) sandbox.Listener {
	out := sandbox.Listener{Name: l.Name, Address: addresses[l.Name], Warming: l.Warming != nil}
	state := l.Active
	if state == nil {
		state = l.Warming
	}
	if l.Error != nil {
		out.Message = l.Error.Details
	}
	if state == nil {
		return out
	}
	out.Version = state.Version
	for _, filter := range state.Listener.httpFilters() {
		out.Filters = append(out.Filters, filter.Name)
		if filter.Discovery == nil {
			continue
		}
		x := sandbox.Extension{Name: filter.Name}
		if filter.Discovery.Default != nil && l.Active != nil {
			x.Default, x.Live = true, filter.Discovery.Default.Type
		}
		extensions[filter.Name] = x
	}
	return out
}

// httpFilters returns the filters of the first chain that speaks HTTP.
func (l listener) httpFilters() []httpFilter {
	for _, chain := range l.FilterChains {
		for _, filter := range chain.Filters {
			if len(filter.Config.HTTPFilters) > 0 {
				return filter.Config.HTTPFilters
			}
		}
	}
	return nil
}

// readExtension reads what a subscription holds; x is what its listener says of it.
func readExtension(f dynamicFilter, x sandbox.Extension) sandbox.Extension {
	x.Name = f.Filter.Name
	x.Updated = f.Updated
	if f.Error != nil {
		x.Rejected, x.RejectedVersion = f.Error.Details, f.Error.Version
	}
	if f.Filter.Config.Type == "" {
		return x
	}
	x.Version, x.Live, x.Default = f.Version, f.Filter.Config.Type, false
	code := f.Filter.Config.Config.VM.Code
	x.SHA256 = code.Remote.SHA256
	if len(code.Local.Inline) > 0 {
		sum := sha256.Sum256(code.Local.Inline)
		x.SHA256 = hex.EncodeToString(sum[:])
	}
	return x
}

// ConfigDump returns /config_dump without the bytes of modules.
func (e *Envoy) ConfigDump(ctx context.Context) ([]byte, error) {
	raw, err := e.get(ctx, "/config_dump")
	if err != nil {
		return nil, err
	}
	var dump any
	if err := json.Unmarshal(raw, &dump); err != nil {
		return nil, fmt.Errorf("envoy config dump: %w", err)
	}
	return json.MarshalIndent(sandbox.WithoutModules(dump), "", " ")
}
