package xds

import (
	"bytes"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestSharingCodec_WritesWhatProtobufWouldAndCopiesNothingLarge(t *testing.T) {
	t.Parallel()
	small := &anypb.Any{TypeUrl: "a/b", Value: []byte("x")}
	large := &anypb.Any{TypeUrl: "a/c", Value: bytes.Repeat([]byte("y"), 1<<20)}
	empty := &anypb.Any{TypeUrl: "a/d"}
	for _, m := range []proto.Message{
		&discoveryv3.DiscoveryResponse{},
		&discoveryv3.DiscoveryResponse{VersionInfo: "v", TypeUrl: "t", Nonce: "1", Resources: []*anypb.Any{small, large, empty, large}},
		&discoveryv3.DeltaDiscoveryResponse{SystemVersionInfo: "v", TypeUrl: "t", Nonce: "1", RemovedResources: []string{"x", "y"}},
		&discoveryv3.DeltaDiscoveryResponse{Nonce: "2", Resources: []*discoveryv3.Resource{
			{Name: "n", Version: "1", Resource: large}, {Name: "m", Version: "2", Resource: small}, {Name: "o", Resource: empty}}},
		&discoveryv3.DiscoveryRequest{TypeUrl: "not a response"},
	} {
		out, err := newSharingCodec().Marshal(sharedResponse{m})
		if err != nil {
			t.Fatal(err)
		}
		got := m.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(out.Materialize(), got); err != nil || !proto.Equal(m, got) {
			t.Errorf("%v: got %v %v", m, got, err)
		}
		for _, b := range out {
			if d := b.ReadOnlyData(); len(d) > shareAbove && &d[0] != &large.Value[0] {
				t.Error("a large resource was copied")
			}
		}
	}
}
