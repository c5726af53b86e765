package shm

import (
	"encoding/binary"
	"os"
	"os/exec"
	"runtime"
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

// Where a hostile counter makes Signal wait, the garbage collector need not.
func TestSignalLetsTheCollectorWork(t *testing.T) {
	fd := eventFD(t)
	var full [8]byte
	binary.LittleEndian.PutUint64(full[:], ^uint64(0)-1)
	if _, err := unix.Write(fd, full[:]); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	signalled, collected := make(chan struct{}), make(chan struct{})
	go func() {
		Signal(fd)
		close(signalled)
	}()
	// Were it not so, not even a timer would fire here: another process ends the wait.
	rescue := exec.Command("sh", "-c", "sleep 5; exec dd bs=8 count=1 status=none <&3")
	file := os.NewFile(uintptr(mustDup(t, fd)), "eventfd")
	defer file.Close()
	rescue.ExtraFiles = []*os.File{file}
	rescue.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // so that sleep ends with it
	if err := rescue.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rescue.Wait() }()
	time.Sleep(50 * time.Millisecond) // so that it waits
	began := time.Now()
	go func() {
		runtime.GC()
		close(collected)
	}()
	<-collected
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("a collection waited %v for Signal", took)
	}
	_ = unix.Kill(-rescue.Process.Pid, unix.SIGKILL)
	Drain(fd)
	<-signalled
}

func mustDup(t *testing.T, fd int) int {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return dup
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
