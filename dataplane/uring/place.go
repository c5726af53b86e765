package uring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Place puts the calling thread where the ring's io-wq threads may run: a thread of ours that waits for disks as they do is not to take the worker's core either. Anybody
// may call it.
func (r *Ring) Place() error {
	if len(r.options.Cores) == 0 {
		return nil
	}
	var cores unix.CPUSet
	for _, c := range r.options.Cores {
		cores.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &cores); err != nil {
		return fmt.Errorf("run on cores %v: %w", r.options.Cores, err)
	}
	return nil
}
