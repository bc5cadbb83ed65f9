// Package envoy_test holds what a real Envoy does with Wasm filters that come by ECDS: the behaviour that
// internal/xds is built on. Nothing of stile runs here but envoytest; the control plane is a throw-away one that
// sends what a test tells it to. docs/envoy-observed.md has the table of belief, sight and consequence.
//
// A test that fails after a change of the pinned Envoy is news about Envoy: mend internal/xds and the table first.
package envoy_test

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
