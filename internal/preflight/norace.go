//go:build !race

package preflight

const raceEnabled = false
