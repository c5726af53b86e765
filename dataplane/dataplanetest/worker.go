package dataplanetest

import (
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
)

// NewWorker makes a worker with a pool of so many frames, to be driven by Round.
func NewWorker(tb testing.TB, frames int) *dataplane.Worker {
	tb.Helper()
	memory, err := frame.NewMemory(make([]byte, frames*frame.ChunkSize))
	if err != nil {
		tb.Fatal(err)
	}
	pool, err := memory.NewPool(0, frames)
	if err != nil {
		tb.Fatal(err)
	}
	w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = w.Close() })
	return w
}

// Settle drives the worker until a round finds nothing to do.
func Settle(w *dataplane.Worker) {
	for w.Round() > 0 {
	}
}
