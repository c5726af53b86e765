package uring

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A vector that is no ring's takes what others have, as much as it has room for, and is written without a ring. Asking whether writes wait changes nothing.
func TestWriteWaiting(t *testing.T) {
	want := bytes.Repeat([]byte("as it was "), 1000)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	check := func() {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("other bytes in the file, %v", err)
		}
	}
	t.Logf("writes wait: %v", WritesWait(fd))
	check()
	m, err := NewMemory(64)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	copy(m.Bytes(), "one..two...three")
	var vectors [3]*Vector
	for i, n := range []int{2, 1, 1} {
		if vectors[i], err = NewVector(n); err != nil {
			t.Fatal(err)
		}
		defer vectors[i].Close()
	}
	joined := vectors[0]
	joined.Add(m.Bytes()[:3])
	vectors[1].Add(m.Bytes()[5:8])
	vectors[2].Add(m.Bytes()[11:16])
	if !joined.Append(vectors[1]) || joined.Append(vectors[2]) || joined.Len() != 6 {
		t.Errorf("%d bytes are joined, want 6", joined.Len())
	}
	if n := joined.WriteWaiting(fd, 100, 0); n != 6 {
		t.Errorf("%d bytes written, want 6", n)
	}
	copy(want[100:], "onetwo")
	check()
	if n := joined.WriteWaiting(-1, 0, 0); n != -int32(unix.EBADF) {
		t.Errorf("to no file: %d", n)
	}
}

// A thread that waits for disks runs where io-wq may.
func TestPlace(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and not unlocked: it is where no other goroutine wants to be
		var mask unix.CPUSet
		err := (&Ring{options: Options{Cores: []int{0}}}).Place()
		if err == nil {
			err = unix.SchedGetaffinity(0, &mask)
		}
		if err == nil && (mask.Count() != 1 || !mask.IsSet(0)) {
			t.Errorf("it may run on %d cores", mask.Count())
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := (&Ring{options: Options{Cores: []int{1023}}}).Place(); err == nil {
		t.Error("on a core that there is not")
	}
	if err := new(Ring).Place(); err != nil {
		t.Error(err)
	}
}
