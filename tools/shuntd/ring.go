package main

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// ring is the worker's io_uring, which is opened when it is needed first and stays: idle it costs nothing. The kernel's
// threads for slow IO run where no worker does, if there is such a core.
func (e *engine) ring(w *worker) (*uring.Ring, error) {
	e.rings.Lock()
	defer e.rings.Unlock()
	if w.ring != nil {
		return w.ring, nil
	}
	r, err := uring.Open(uring.Options{Entries: ringEntries, Files: e.files, Cores: e.others})
	if err != nil {
		return nil, err
	}
	w.Do(func() {
		if err = r.Enable(); err == nil {
			w.Add(r)
			w.Watch(r.FD(), unix.POLLIN, true)
		}
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("worker %d: %w", w.Index(), err), r.Close())
	}
	w.ring = r
	e.log.Info("worker has an io_uring", "worker", w.Index(), "modes", r.InForce().String())
	return r, nil
}

// What a worker's ring has room for: a full lane of 128 requests for each of 16 busy volumes, and a few for the next one where a hundred have all they get of files that do not
// answer, since each leaves a part to others (blk/file); and the files and connections of more volumes than a worker serves well, at eight bytes of the kernel's each.
const (
	ringEntries = 4096
	ringFiles   = 4096
)

// mostFiles is how many files a ring may have: it cannot be told of more than the process may have open, and that is for all rings and what else there is.
func mostFiles() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return ringFiles
	}
	return int(min(ringFiles, limit.Cur/2))
}

// crowded says what to do where a ring has no place for a volume's file or connection.
func (e *engine) crowded(err error) error {
	if !errors.Is(err, uring.ErrFiles) {
		return err
	}
	return &refusal{fmt.Sprintf("its worker has %d files and connections of volumes, and can have no more: give the volume to another one with workers", e.files),
		[]error{err, errHere}}
}

// ringLast makes the worker come to its ring after all that use it, so that what they asked for in a round goes out at its end.
func (w *worker) ringLast() {
	w.Do(func() {
		w.Remove(w.ring)
		w.Add(w.ring)
	})
}

// ringOf is the worker's ring, nil if it has none.
func (e *engine) ringOf(w *worker) *uring.Ring {
	e.rings.Lock()
	defer e.rings.Unlock()
	return w.ring
}

// uringModes is for the status of a worker.
func (e *engine) uringModes(w *worker) string {
	r := e.ringOf(w)
	if r == nil {
		return ""
	}
	if modes := r.InForce().String(); modes != "" {
		return modes
	}
	return "basic"
}

// countRing adds what the worker's ring counts.
func (e *engine) countRing(w *worker, more map[string]uint64) {
	r := e.ringOf(w)
	if r == nil {
		return
	}
	s := r.Stats()
	more["uring-operations"], more["uring-completions"], more["uring-enters"] = s.Operations.Load(), s.Completions.Load(), s.Enters.Load()
	more["uring-punted"], more["uring-overflows"], more["uring-full"] = s.Punted.Load(), s.Overflows.Load(), s.Full.Load()
}
