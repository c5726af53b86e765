package shm

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file ends one wait for each signal, read or not, and so long the set is ready to be read. What was taken out ends none.
func TestPoller(t *testing.T) {
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	one, other := eventFD(t), eventFD(t)
	for _, fd := range []int{one, other} {
		if err := p.Add(fd, unix.POLLIN); err != nil {
			t.Fatal(err)
		}
	}
	ready := func(want int) {
		t.Helper()
		set := []unix.PollFd{{Fd: int32(p.FD()), Events: unix.POLLIN}}
		if n, err := unix.Poll(set, 0); n != min(want, 1) || err != nil {
			t.Errorf("poll of the set: %d, %v, where %d files are ready", n, err, want)
		}
		if n, err := p.Wait(0); n != want || err != nil {
			t.Errorf("%d files are ready, %v, want %d", n, err, want)
		}
	}
	ready(0)
	for range 3 {
		Signal(one)
		Signal(one)
		ready(1)
		ready(0)
	}
	Signal(one)
	Signal(other)
	ready(2)
	ready(0)
	Signal(one)
	if err := p.Remove(one); err != nil {
		t.Error(err)
	}
	ready(0)
	for waited := false; !waited; {
		began := time.Now()
		n, err := p.Wait(2 * time.Millisecond)
		if waited = err != unix.EINTR; waited && (n != 0 || err != nil || time.Since(began) < 2*time.Millisecond) {
			t.Errorf("%d files, %v after %v", n, err, time.Since(began))
		}
	}
	go Signal(other)
	if n, err := p.Wait(-1); n != 1 && err != unix.EINTR {
		t.Errorf("%d files, %v", n, err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = p.Wait(0) }); n != 0 {
		t.Errorf("%v allocations a wait", n)
	}
}

// A set that was closed is nobody's any more, also if its number is another file's.
func TestPollerClosed(t *testing.T) {
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := p.Add(eventFD(t), unix.POLLIN); err != unix.EBADF {
		t.Errorf("add to it: %v", err)
	}
}

// What a wait costs does not grow with the number of files that nothing happens to.
func BenchmarkPoller(b *testing.B) {
	for _, n := range []int{4, 400} {
		b.Run(map[int]string{4: "few", 400: "many"}[n], func(b *testing.B) {
			p, err := NewPoller()
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			for range n {
				fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
				if err != nil {
					b.Fatal(err)
				}
				defer unix.Close(fd)
				if err := p.Add(fd, unix.POLLIN); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				_, _ = p.Wait(0)
			}
		})
	}
}
