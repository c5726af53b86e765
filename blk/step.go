//go:build !race

package blk

// step is behind every store that a killed process may be the last to have made; see step_race.go.
func step() {}
