package xds

import (
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// shareAbove is the size from which a resource's bytes are put on the wire without a copy. A
// module of 8 MiB that goes to a thousand proxies at once is then in memory once, however slowly
// they read.
const shareAbove = 16 << 10

// sharedResponse is a response whose large resources are not copied when it is marshalled by
// sharingCodec. To any other codec it is the message within.
type sharedResponse struct {
	proto.Message
}

// sharingCodec is gRPC's own codec for everything but a sharedResponse.
type sharingCodec struct{ encoding.CodecV2 }

func newSharingCodec() sharingCodec { return sharingCodec{encoding.GetCodecV2(protocodec.Name)} }

// Marshal implements encoding.CodecV2.
func (c sharingCodec) Marshal(v any) (mem.BufferSlice, error) {
	s, ok := v.(sharedResponse)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	w := wireWriter{}
	switch m := s.Message.(type) {
	case *discoveryv3.DiscoveryResponse:
		w.text(1, m.GetVersionInfo())
		for _, a := range m.GetResources() {
			w.any(2, nil, a)
		}
		w.text(4, m.GetTypeUrl())
		w.text(5, m.GetNonce())
	case *discoveryv3.DeltaDiscoveryResponse:
		w.text(1, m.GetSystemVersionInfo())
		for _, r := range m.GetResources() {
			var head wireWriter
			head.text(3, r.GetName())
			head.text(1, r.GetVersion())
			w.any(2, head.small, r.GetResource())
		}
		w.text(4, m.GetTypeUrl())
		w.text(5, m.GetNonce())
		for _, name := range m.GetRemovedResources() {
			w.small = protowire.AppendString(protowire.AppendTag(w.small, 6, protowire.BytesType), name)
		}
	default:
		return c.CodecV2.Marshal(s.Message)
	}
	w.flush()
	return w.out, nil
}

// wireWriter writes protobuf's wire format, in pieces where one is large.
type wireWriter struct {
	out   mem.BufferSlice
	small []byte // what is not in out yet
}

func (w *wireWriter) text(field protowire.Number, s string) {
	if s != "" {
		w.small = protowire.AppendString(protowire.AppendTag(w.small, field, protowire.BytesType), s)
	}
}

// any writes an Any as a field: where head is nil the Any itself, else a Resource that begins
// with head and has the Any as its field 2.
func (w *wireWriter) any(field protowire.Number, head []byte, a *anypb.Any) {
	size := protowire.SizeTag(1) + protowire.SizeBytes(len(a.GetTypeUrl()))
	if len(a.GetValue()) > 0 {
		size += protowire.SizeTag(2) + protowire.SizeBytes(len(a.GetValue()))
	}
	w.small = protowire.AppendTag(w.small, field, protowire.BytesType)
	if head != nil {
		w.small = protowire.AppendVarint(w.small, uint64(len(head)+protowire.SizeTag(2)+protowire.SizeBytes(size))) //nolint:gosec // a length
		w.small = append(w.small, head...)
		w.small = protowire.AppendTag(w.small, 2, protowire.BytesType)
	}
	w.small = protowire.AppendVarint(w.small, uint64(size)) //nolint:gosec // a length
	w.small = protowire.AppendString(protowire.AppendTag(w.small, 1, protowire.BytesType), a.GetTypeUrl())
	if len(a.GetValue()) == 0 {
		return
	}
	w.small = protowire.AppendTag(w.small, 2, protowire.BytesType)
	w.small = protowire.AppendVarint(w.small, uint64(len(a.GetValue())))
	if len(a.GetValue()) < shareAbove {
		w.small = append(w.small, a.GetValue()...)
		return
	}
	w.flush()
	w.out = append(w.out, mem.SliceBuffer(a.GetValue()))
}

func (w *wireWriter) flush() {
	if len(w.small) > 0 {
		w.out = append(w.out, mem.SliceBuffer(w.small))
		w.small = nil
	}
}
