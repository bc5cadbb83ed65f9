package sandbox

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3" // known, not run
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"      // known, not run
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3" // known, not run
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stileproject/stile/internal/proxywasm"
)

const typePrefix = "type.googleapis.com/"

// The filters that are run.
var (
	wasmType   = typePrefix + string((*httpwasmv3.Wasm)(nil).ProtoReflect().Descriptor().FullName())
	faultType  = typePrefix + string((*faultv3.HTTPFault)(nil).ProtoReflect().Descriptor().FullName())
	routerType = typePrefix + string((*routerv3.Router)(nil).ProtoReflect().Descriptor().FullName())
)

// nodeExtensions is what the node says it has: what it runs, and the filters that
// examples use and it lets pass. Network plugins are not among them.
func nodeExtensions() []*corev3.Extension {
	var list []*corev3.Extension
	for _, e := range []struct{ name, category, message string }{
		{"envoy.filters.http.fault", "envoy.filters.http", "envoy.extensions.filters.http.fault.v3.HTTPFault"},
		{"envoy.filters.http.jwt_authn", "envoy.filters.http", "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"},
		{"envoy.filters.http.rbac", "envoy.filters.http", "envoy.extensions.filters.http.rbac.v3.RBAC"},
		{"envoy.filters.http.router", "envoy.filters.http", "envoy.extensions.filters.http.router.v3.Router"},
		{"envoy.filters.http.wasm", "envoy.filters.http", "envoy.extensions.filters.http.wasm.v3.Wasm"},
		{"envoy.filters.network.http_connection_manager", "envoy.filters.network", "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"},
	} {
		list = append(list, &corev3.Extension{Name: e.name, Category: e.category, TypeUrls: []string{e.message}})
	}
	return list
}

// knownType reports whether the proxy has heard of a type: what is linked in.
func knownType(typeURL string) bool {
	_, err := protoregistry.GlobalTypes.FindMessageByURL(typeURL)
	return err == nil
}

// filter is one loaded HTTP filter. It is closed when nobody holds it any more: the
// slot it is in, and the requests that are on their way through it.
type filter struct {
	typeURL string
	sha256  string // of a plugin's module
	skipped bool   // its code is not there and it lets pass
	impl    httpFilter
	holders atomic.Int64
}

// httpFilter makes the part of a filter that one request passes; nil lets it pass.
type httpFilter interface {
	open() streamFilter
	close()
}

// streamFilter is one request's way through a filter. A local response ends the way.
type streamFilter interface {
	request(h *proxywasm.Headers, body *[]byte) *proxywasm.LocalResponse
	response(h *proxywasm.Headers, body *[]byte) *proxywasm.LocalResponse
	readsRequestBody() bool
	readsResponseBody() bool
	done()
}

func (f *filter) release() {
	if f.holders.Add(-1) == 0 && f.impl != nil {
		f.impl.close()
	}
}

// slot is a place for a filter, which may change while requests run. The zero value
// is empty.
type slot struct {
	mu sync.Mutex // guards f
	f  *filter
}

// set puts a new filter (one nobody holds yet) in the place of the old one.
func (s *slot) set(f *filter) {
	if f != nil {
		f.holders.Add(1)
	}
	s.mu.Lock()
	old := s.f
	s.f = f
	s.mu.Unlock()
	if old != nil {
		old.release()
	}
}

// acquire returns what is in the slot, to be released; nil if it is empty.
func (s *slot) acquire() *filter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f != nil {
		s.f.holders.Add(1)
	}
	return s.f
}

// newFilter loads a filter that is run. A *pendingModule error says that its module
// has to be fetched first; warming says that there is time for that.
func (s *Sandbox) newFilter(config *anypb.Any, warming bool) (*filter, error) {
	switch config.GetTypeUrl() {
	case wasmType:
		return s.newWasm(config, warming)
	case faultType:
		return newFault(config)
	}
	return nil, fmt.Errorf("the sandbox proxy does not run filters of type %s", config.GetTypeUrl())
}

// fault is HTTPFault as far as aborts go; the stand-ins are made of it.
type fault struct {
	status  int
	share   *typev3.FractionalPercent
	enabled bool
}

func newFault(config *anypb.Any) (*filter, error) {
	var m faultv3.HTTPFault
	if err := config.UnmarshalTo(&m); err != nil {
		return nil, err
	}
	if err := m.ValidateAll(); err != nil {
		return nil, err
	}
	if len(m.GetHeaders()) > 0 || len(m.GetDownstreamNodes()) > 0 || m.GetUpstreamCluster() != "" || m.GetDelay() != nil || m.GetAbort().GetHeaderAbort() != nil {
		return nil, fmt.Errorf("the sandbox proxy runs HTTPFault with a plain abort or none; this one has conditions or a delay")
	}
	return &filter{typeURL: faultType, impl: fault{
		status:  int(m.GetAbort().GetHttpStatus()),
		share:   m.GetAbort().GetPercentage(),
		enabled: m.GetAbort() != nil,
	}}, nil
}

func (f fault) close() {}

func (f fault) open() streamFilter {
	of := map[typev3.FractionalPercent_DenominatorType]uint32{
		typev3.FractionalPercent_HUNDRED: 100, typev3.FractionalPercent_TEN_THOUSAND: 10_000, typev3.FractionalPercent_MILLION: 1_000_000,
	}[f.share.GetDenominator()]
	if !f.enabled || rand.Uint32N(of) >= f.share.GetNumerator() { //nolint:gosec // a share of requests
		return nil
	}
	return abort{status: f.status}
}

// abort answers every request.
type abort struct{ status int }

func (a abort) request(*proxywasm.Headers, *[]byte) *proxywasm.LocalResponse {
	return &proxywasm.LocalResponse{Status: a.status, Details: "fault_filter_abort", Body: []byte("fault filter abort"), GRPCStatus: -1}
}
func (a abort) response(*proxywasm.Headers, *[]byte) *proxywasm.LocalResponse { return nil }
func (a abort) readsRequestBody() bool                                        { return false }
func (a abort) readsResponseBody() bool                                       { return false }
func (a abort) done()                                                         {}
