package shm

import (
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func eventFD(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func readable(t *testing.T, fd int) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n == 1
}

func TestSignalAndDrain(t *testing.T) {
	fd := eventFD(t)
	Drain(fd) // empty: nothing happens
	for range 3 {
		Signal(fd)
	}
	var count [8]byte
	if _, err := unix.Read(fd, count[:]); err != nil || binary.LittleEndian.Uint64(count[:]) != 3 {
		t.Errorf("count is %d after three signals, %v", binary.LittleEndian.Uint64(count[:]), err)
	}
	Signal(fd)
	Drain(fd)
	if readable(t, fd) {
		t.Error("drained eventfd is readable")
	}
}

// A full counter is readable, which is all that its reader needs.
func TestSignalOnFullCounter(t *testing.T) {
	fd := eventFD(t)
	var full [8]byte
	binary.LittleEndian.PutUint64(full[:], ^uint64(0)-1)
	if _, err := unix.Write(fd, full[:]); err != nil {
		t.Fatal(err)
	}
	Signal(fd)
	if !readable(t, fd) {
		t.Error("not readable")
	}
	Drain(fd)
	if readable(t, fd) {
		t.Error("drained eventfd is readable")
	}
}

// Whoever shares the file can clear O_NONBLOCK and fill the counter, to where a write of anything but 0 waits, and then, with the kernel's help, to
// where every write does.
func TestSignalNeverWaits(t *testing.T) {
	if err := OpenSignals(); err != nil {
		t.Fatal(err)
	}
	fd := eventFD(t)
	var full [8]byte
	binary.LittleEndian.PutUint64(full[:], ^uint64(0)-1)
	if _, err := unix.Write(fd, full[:]); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		for range 1000 { // more than there is room for completions
			Signal(fd)
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("Signal waits for a reader")
		Drain(fd) // let it go
		<-done
	}
	if !readable(t, fd) {
		t.Error("its reader is not woken")
	}
	Drain(fd)
	if readable(t, fd) {
		t.Error("drained eventfd is readable")
	}
}

// Every signal of every worker arrives, also those for which completions had to be thrown away first.
func TestSignalsAreCounted(t *testing.T) {
	const workers, signals = 4, 20000
	fd := eventFD(t)
	var done sync.WaitGroup
	for range workers {
		done.Add(1)
		go func() {
			defer done.Done()
			for range signals {
				Signal(fd)
			}
		}()
	}
	done.Wait()
	var count [8]byte
	if _, err := unix.Read(fd, count[:]); err != nil || binary.LittleEndian.Uint64(count[:]) != workers*signals {
		t.Errorf("count is %d, %v", binary.LittleEndian.Uint64(count[:]), err)
	}
}

// A reader may watch for edges only: each signal is one, whether the counter was read or not.
func TestSignalIsAnEdge(t *testing.T) {
	fd := eventFD(t)
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll)
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		Signal(fd)
		var events [1]unix.EpollEvent
		if n, err := unix.EpollWait(epoll, events[:], 0); n != 1 {
			t.Errorf("signal %d is no edge: %v", i, err)
		}
		if n, _ := unix.EpollWait(epoll, events[:], 0); n != 0 {
			t.Errorf("signal %d is more than one edge", i)
		}
	}
}

// What is no eventfd any more is left alone.
func TestSignalOfSomethingElse(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	Signal(int(file.Fd()))
	Signal(-1)
	if info, err := file.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("%d bytes were written, %v", info.Size(), err)
	}
}

func TestSignalAllocatesNothing(t *testing.T) {
	fd := eventFD(t)
	if n := testing.AllocsPerRun(1000, func() { Signal(fd); Drain(fd) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkSignal compares a signal with what it replaces, which can wait.
func BenchmarkSignal(b *testing.B) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	b.Run("signal", func(b *testing.B) {
		for range b.N {
			Signal(fd)
		}
	})
	b.Run("write", func(b *testing.B) {
		for range b.N {
			_, _ = unix.Write(fd, one[:])
		}
	})
}

// Whoever shares the file may clear O_NONBLOCK and read the counter between our poll and our read.
func TestDrainNeverWaits(t *testing.T) {
	fd := eventFD(t)
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		Drain(fd)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("Drain waits for a signal")
		Signal(fd) // let it go
		<-done
	}
}
