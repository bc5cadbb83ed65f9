//go:build race

package preflight

const raceEnabled = true
