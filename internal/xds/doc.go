//go:generate go run generate_extensions.go
//go:generate ../../tools/wat2wasm.sh guard

// Package xds turns a plan into Envoy's configuration and delivers it: it reads the
// operator's Envoy YAML, translates a plugin.Plan into immutable snapshots, serves
// them over gRPC (ADS and the single-type LDS, RDS, CDS and ECDS services, state of
// the world and delta), and keeps a ledger of what each proxy was sent, accepted and
// rejected.
//
// Its one rule: what did not change is not sent, and what a proxy rejected is never
// sent to it again unless its bytes have changed. A proxy that runs something good is
// never sent anything worse by accident: resources may be held back (Resource.Hold)
// or kept (Resource.Keep), and an extension is never removed from a live proxy.
package xds
