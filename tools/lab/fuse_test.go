package lab

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/need"
)

// fuse is a file system with one file, "memory", that any user may mount: whoever touches it waits for us (linux/fuse.h, protocol 7.31).
type fuse struct {
	// fd is "memory", open; not an os.File, for that asks the kernel whether it can be polled, which asks us, and keeps a Go processor meanwhile: serve may
	// get none.
	fd    int
	dead  atomic.Bool
	asked atomic.Int64 // requests that were left without an answer
	end   func()
}

// mountFUSE serves the file until the end of the test.
func mountFUSE(t *testing.T, size uint64) *fuse {
	t.Helper()
	need.Root(t)
	need.Device(t, "/dev/fuse")
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err = unix.Mount("shunt-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev))
	if err != nil {
		unix.Close(dev)
		need.Missing(t, "a FUSE file system cannot be mounted: %v", err)
	}
	f := &fuse{fd: -1}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.serve(dev, size)
	}()
	gone := false
	f.end = func() {
		if !gone {
			gone = true
			_ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) // force: whoever waits for an answer gets an error
			if f.fd >= 0 {
				unix.Close(f.fd)
			}
			unix.Close(dev)
			<-ended
		}
	}
	t.Cleanup(f.end)
	if f.fd, err = unix.Open(filepath.Join(dir, "memory"), unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// Operations of the protocol.
const (
	fuseLookup, fuseForget, fuseGetattr, fuseOpen, fuseInit, fuseBatchForget = 1, 2, 3, 14, 26, 42
)

func (f *fuse) serve(dev int, size uint64) {
	request := make([]byte, 1<<17)
	for {
		n, err := unix.Read(dev, request)
		switch {
		case err == unix.EINTR || err == unix.ENOENT:
			continue
		case err != nil || n < 40:
			return // unmounted
		}
		le := binary.LittleEndian
		op, unique, node := le.Uint32(request[4:]), le.Uint64(request[8:]), le.Uint64(request[16:])
		if op == fuseForget || op == fuseBatchForget {
			continue
		}
		if f.dead.Load() {
			f.asked.Add(1)
			continue
		}
		answer, errno := fuseAnswer(op, node, size)
		out := le.AppendUint32(nil, uint32(16+len(answer)))
		out = le.AppendUint32(out, uint32(-int32(errno)))
		out = append(le.AppendUint64(out, unique), answer...)
		_, _ = unix.Write(dev, out)
	}
}

func fuseAnswer(op uint32, node, size uint64) (b []byte, errno unix.Errno) {
	le := binary.LittleEndian
	attr := func(b []byte, node uint64) []byte {
		mode := uint32(unix.S_IFREG | 0o600)
		if node == 1 {
			mode = unix.S_IFDIR | 0o700
		}
		b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, node), size), size/512)
		b = append(b, make([]byte, 3*8+3*4)...) // times
		b = le.AppendUint32(le.AppendUint32(b, mode), 1)
		return append(b, make([]byte, 5*4)...)
	}
	switch op {
	case fuseInit:
		b = make([]byte, 64)
		le.PutUint32(b, 7)
		le.PutUint32(b[4:], 31)
		le.PutUint32(b[20:], 4096)
		return b, 0
	case fuseLookup:
		b = le.AppendUint64(nil, 2)
		return attr(append(b, make([]byte, 8+16+8)...), 2), 0
	case fuseGetattr:
		return attr(make([]byte, 16), node), 0
	case fuseOpen:
		return make([]byte, 16), 0
	}
	return nil, unix.ENOSYS
}
