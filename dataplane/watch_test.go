package dataplane_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"golang.org/x/sys/unix"
)

// A file that cannot be watched, for want of memory or because it is none to wait for, makes the worker look again and again, until it is gone.
func TestWatchInVain(t *testing.T) {
	w := newWorker(t, dataplane.WorkerOptions{Idle: dataplane.Interrupt})
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	run(t, w)
	w.Do(func() { w.Watch(fd, unix.POLLIN, true) })
	within(t, func() {
		for from := w.Stats().Timeouts.Load(); w.Stats().Timeouts.Load() < from+10; {
			time.Sleep(time.Millisecond)
		}
	})
	w.Do(func() { w.Unwatch(fd) })
	within(t, func() { // it may have been on its way out of a sleep
		for from := uint64(0); w.Stats().Sleeps.Load() != from; time.Sleep(20 * time.Millisecond) {
			from = w.Stats().Sleeps.Load()
		}
	})
	if n := w.Watched(); n != 1 {
		t.Errorf("%d files are watched, want the mailbox's alone", n)
	}
}
