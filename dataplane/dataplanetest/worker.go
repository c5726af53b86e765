package dataplanetest

import (
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
)

// NewWorker makes a worker with a pool of so many frames, to be driven by Round.
func NewWorker(tb testing.TB, frames int) *dataplane.Worker {
	tb.Helper()
	return NewWorkers(tb, 1, frames)[0]
}

// NewWorkers makes workers with a pool of so many frames each, connected, to be driven by Round or to Run.
func NewWorkers(tb testing.TB, n, frames int) []*dataplane.Worker {
	tb.Helper()
	memory, err := frame.NewMemory(make([]byte, n*frames*frame.ChunkSize))
	if err != nil {
		tb.Fatal(err)
	}
	workers := make([]*dataplane.Worker, n)
	for i := range workers {
		pool, err := memory.NewPool(i*frames, frames)
		if err != nil {
			tb.Fatal(err)
		}
		w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool, Index: i})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = w.Close() })
		workers[i] = w
	}
	if err := dataplane.Connect(workers); err != nil {
		tb.Fatal(err)
	}
	return workers
}

// Settle drives the worker until a round finds nothing to do.
func Settle(w *dataplane.Worker) {
	for w.Round() > 0 {
	}
}
