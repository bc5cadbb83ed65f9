package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// extension is one ECDS subscription: all listeners that name it share it.
type extension struct {
	name     string
	typeURLs []string // what its listeners take
	fallback string   // type URL of a listener's default_config, the first that has one
	slot     slot     // what acts; empty: the listener's default_config
	timer    *time.Timer

	answered bool // a first answer is there, or will not be waited for any more
	fetching bool // the first answer's module is on its way
	tried    *anypb.Any

	version, rejected, rejectedVersion string
	refused                            bool // tried was rejected
	unproven                           bool
	updated                            time.Time
}

// extensionOf returns the subscription of that name, beginning it if need be. timeout
// is how long the first answer is waited for; 0 = for ever.
func (s *Sandbox) extensionOf(name string, typeURLs []string, timeout time.Duration) *extension {
	x := s.extensions[name]
	if x == nil {
		x = &extension{name: name}
		s.extensions[name] = x
		if timeout > 0 {
			x.timer = s.after(timeout, func() {
				if x.tried == nil {
					x.answered = true
					s.settleAll()
					s.subscribeAll()
				}
			})
		}
	}
	for _, t := range typeURLs {
		if !slices.Contains(x.typeURLs, t) {
			x.typeURLs = append(x.typeURLs, t)
		}
	}
	return x
}

// applyExtension is Envoy's FilterConfigSubscription: the bytes that were tried last
// are accepted again without being looked at, whatever became of them.
func (s *Sandbox) applyExtension(x *extension, version string, config *anypb.Any) error {
	x.stopTimer()
	if x.tried != nil && proto.Equal(x.tried, config) {
		x.version, x.unproven = version, x.refused
		if !x.refused {
			x.rejected, x.rejectedVersion = "", ""
		}
		return nil
	}
	fail := func(err error) error {
		x.rejected, x.rejectedVersion, x.updated = err.Error(), version, time.Now()
		x.answered = true
		return err
	}
	if !slices.Contains(x.typeURLs, config.GetTypeUrl()) {
		return fail(fmt.Errorf("Error: filter config has type URL %s but expect %v", config.GetTypeUrl(), x.typeURLs))
	}
	x.tried, x.refused = config, true
	f, err := s.newFilter(config, s.warms(x))
	if pending := (*pendingModule)(nil); errors.As(err, &pending) {
		x.fetching, x.refused = true, false
		s.fetch(pending.source, func(module []byte, err error) { s.fetched(x, config, version, pending, module, err) })
	} else if err != nil {
		return fail(err)
	} else {
		x.refused, x.answered, x.fetching = false, true, false
		x.slot.set(f)
	}
	x.version, x.rejected, x.rejectedVersion, x.unproven, x.updated = version, "", "", false, time.Now()
	return nil
}

// warms reports whether a remote module's fetch would hold a listener back: only while
// the extension has never had an answer. Later Envoy registers the fetch with an init
// manager that is past its start.
func (s *Sandbox) warms(x *extension) bool { return !x.answered }

// fetched ends the warming of a remote module, whatever came of the fetch: a plugin
// without code acts as its fail policy says.
func (s *Sandbox) fetched(x *extension, config *anypb.Any, version string, pending *pendingModule, module []byte, err error) {
	if s.extensions[x.name] != x || !proto.Equal(x.tried, config) {
		return // it was replaced meanwhile
	}
	var f *filter
	if err == nil {
		f, err = s.loadWasm(pending.config, module)
	}
	if err != nil {
		s.log.Warn("plugin without code", "extension", x.name, "version", version, "err", err)
		f = failedWasm(pending.config, err)
	}
	x.fetching, x.answered, x.updated = false, true, time.Now()
	x.slot.set(f)
	s.settleAll()
	s.subscribeAll()
}

func (x *extension) stopTimer() {
	if x.timer != nil {
		x.timer.Stop()
		x.timer = nil
	}
}

func (x *extension) close() {
	x.stopTimer()
	x.slot.set(nil)
}

// report says what the extension holds. What acts by default is the listeners' word.
func (x *extension) report() Extension {
	out := Extension{
		Name: x.name, Version: x.version, Rejected: x.rejected, RejectedVersion: x.rejectedVersion,
		Unproven: x.unproven, Updated: x.updated,
	}
	if f := x.slot.acquire(); f != nil {
		out.Live, out.SHA256, out.Skipped = f.typeURL, f.sha256, f.skipped
		f.release()
	} else if x.answered && x.fallback != "" {
		out.Live, out.Default = x.fallback, true
	}
	return out
}
