package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/asavie/xdp"
	"github.com/pawelgaczynski/giouring"
	"github.com/shuntio/shunt/tools/need"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These show some of the reasons of docs/dependencies.md, so that none is hearsay.

// submit has the ring do one entry and returns its result.
func submit(t *testing.T, ring *giouring.Ring, prepare func(*giouring.SubmissionQueueEntry)) int32 {
	t.Helper()
	sqe := ring.GetSQE()
	if sqe == nil {
		t.Fatal("the ring has no free entry")
	}
	prepare(sqe)
	if _, err := ring.SubmitAndWait(1); err != nil {
		t.Fatal(err)
	}
	cqe, err := ring.WaitCQE()
	if err != nil {
		t.Fatal(err)
	}
	result := cqe.Res
	ring.CQESeen(cqe)
	return result
}

func newRing(t *testing.T, entries uint32) *giouring.Ring {
	t.Helper()
	ring, err := giouring.CreateRing(entries)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ring.QueueExit)
	return ring
}

func tempFile(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "file"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f
}

// A good write fails because the entry was an fsync before.
func TestGiouringStaleEntry(t *testing.T) {
	f := tempFile(t, "")
	ring := newRing(t, 1) // so that the entry is used again at once
	data := []byte("data")
	write := func(sqe *giouring.SubmissionQueueEntry) {
		sqe.PrepareWrite(int(f.Fd()), uintptr(unsafe.Pointer(&data[0])), uint32(len(data)), 0)
	}
	if result := submit(t, ring, write); result != int32(len(data)) {
		t.Fatalf("the first write returned %d", result)
	}
	const datasync = 1 // IORING_FSYNC_DATASYNC
	if result := submit(t, ring, func(sqe *giouring.SubmissionQueueEntry) { sqe.PrepareFsync(int(f.Fd()), datasync) }); result != 0 {
		t.Fatalf("fsync returned %d", result)
	}
	if result := submit(t, ring, write); result != -int32(unix.EINVAL) {
		t.Errorf("the same write after fsync returned %d, want EINVAL", result)
	}
}

// A registered file is not where it was registered.
func TestGiouringRegisterFiles(t *testing.T) {
	a, b := tempFile(t, "aaaa"), tempFile(t, "bbbb")
	ring := newRing(t, 8)
	if _, err := ring.RegisterFiles([]int{int(a.Fd()), int(b.Fd())}); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4)
	const fixedFile = 1 // IOSQE_FIXED_FILE
	result := submit(t, ring, func(sqe *giouring.SubmissionQueueEntry) {
		sqe.PrepareRead(1, uintptr(unsafe.Pointer(&data[0])), 4, 0)
		sqe.SetFlags(fixedFile)
	})
	if result == 4 && string(data) == "bbbb" {
		t.Error("slot 1 reads the second file, as it should")
	}
}

// Without the linker's check switched off it does not link.
func TestGiouringNeedsLinknameCheckOff(t *testing.T) {
	out, err := exec.Command("go", "build", "-o", filepath.Join(t.TempDir(), "baseline"), ".").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "invalid reference to syscall.m") {
		t.Errorf("go build without -checklinkname=0: %v\n%s", err, out)
	}
}

// Finding a free frame takes the longer the more are in use.
func TestAsavieScansAllFrames(t *testing.T) {
	need.Root(t)
	const many = 1 << 16
	w, err := newWiring()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	var socket *xdp.Socket
	if err := w.near.Do(func() error {
		dev, err := netlink.LinkByName(nearName)
		if err != nil {
			return err
		}
		socket, err = xdp.NewSocket(dev.Attrs().Index, 0, &xdp.SocketOptions{
			NumFrames: many, FrameSize: 2048, FillRingNumDescs: many,
			CompletionRingNumDescs: 64, RxRingNumDescs: 64, TxRingNumDescs: 64,
		})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })

	free := timeGetDescs(t, socket)
	if filled := socket.Fill(socket.GetDescs(many - 1)); filled != many-1 {
		t.Fatalf("%d frames went to the fill ring, want %d", filled, many-1)
	}
	if full := timeGetDescs(t, socket); full < 10*free {
		t.Errorf("one frame takes %v of all free and %v of one free: no scan", free, full)
	} else {
		t.Logf("finding one frame takes %v when all are free, %v when one is", free, full)
	}
}

// timeGetDescs is the shortest time of several that finding one free frame takes.
func timeGetDescs(t *testing.T, socket *xdp.Socket) time.Duration {
	t.Helper()
	shortest := time.Hour
	for range 100 {
		start := time.Now()
		descs := socket.GetDescs(1)
		shortest = min(shortest, time.Since(start))
		if len(descs) != 1 {
			t.Fatal("no free frame")
		}
	}
	return shortest
}
