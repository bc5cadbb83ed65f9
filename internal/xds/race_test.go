//go:build race

package xds_test

// The race detector costs ten times the processor's time and finds what it finds in fewer histories.
func init() { histories = 75 }
