package main

import (
	"runtime"
	"testing"
)

// A worker that polls never lets go of its thread, so all of them at once must leave some to the control side.
func TestMakeRoom(t *testing.T) {
	was := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(was)
	for _, test := range []struct{ workers, want int }{{1, 3}, {8, 10}, {2, 10}} {
		if makeRoom(test.workers); runtime.GOMAXPROCS(0) != test.want {
			t.Errorf("with %d workers, Go runs %d threads at once, want %d", test.workers, runtime.GOMAXPROCS(0), test.want)
		}
	}
}
