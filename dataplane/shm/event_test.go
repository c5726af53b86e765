package shm

import (
	"encoding/binary"
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
