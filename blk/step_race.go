//go:build race

package blk

// step is behind every store that a killed process may be the last to have made. Where tests look for races, they also see what becomes of a
// process that ends there.
func step() {
	if killed != nil {
		killed()
	}
}

// killed is a test's; nil: nobody is killed.
var killed func()
