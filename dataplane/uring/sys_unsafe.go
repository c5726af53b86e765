package uring

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func setup(entries uint32, p *params) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// enter submits and runs what is to be done on this thread, and waits for nothing. A short one keeps the scheduler out of it, and so
// delays the garbage collector by as long as it takes.
func enter(fd int, submit uint32, short bool) (int, unix.Errno) {
	var n uintptr
	var errno unix.Errno
	if short {
		n, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), 0, enterGetEvents, 0, 0)
	} else {
		n, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), 0, enterGetEvents, 0, 0)
	}
	return int(n), errno
}

// getEventsArg is struct io_uring_getevents_arg.
type getEventsArg struct {
	sigmask   uint64
	sigmaskSz uint32
	_         uint32
	ts        unsafe.Pointer
}

// await submits, and waits for a completion, or for so long.
func await(fd int, submit uint32, limit time.Duration) (int, unix.Errno) {
	ts := unix.NsecToTimespec(int64(limit))
	arg := getEventsArg{ts: unsafe.Pointer(&ts)}
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), 1, enterGetEvents|enterExtArg,
		uintptr(unsafe.Pointer(&arg)), unsafe.Sizeof(arg))
	return int(n), errno
}

func register(fd int, what uint32, arg unsafe.Pointer, n uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), uintptr(what), uintptr(arg), uintptr(n), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func enable(fd int) error { return register(fd, registerEnableRings, nil, 0) }

// announce names the eventfd that completions, and work for our thread, are signalled by.
func announce(fd int, event int32) error {
	return register(fd, registerEventFD, unsafe.Pointer(&event), 1)
}

// sparse makes a table of n files or buffers, all empty.
func sparse(fd int, what uint32, n int) error {
	r := rsrcRegister{nr: uint32(n), flags: registerSparse}
	return register(fd, what, unsafe.Pointer(&r), uint32(unsafe.Sizeof(r)))
}

// updateFile puts a file, or -1, into a slot of the table.
func updateFile(fd int, slot uint32, file int32) error {
	update := struct {
		offset, _ uint32
		fds       unsafe.Pointer
	}{offset: slot, fds: unsafe.Pointer(&file)}
	return register(fd, registerFilesUpdate, unsafe.Pointer(&update), 1)
}

// updateBuffer puts memory, or none, into a slot of the table.
func updateBuffer(fd int, slot uint32, b []byte) error {
	v := iovec{base: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), len: uint64(len(b))}
	update := struct {
		offset, _ uint32
		data      unsafe.Pointer
		tags      uint64
		nr, _     uint32
	}{offset: slot, data: unsafe.Pointer(&v), nr: 1}
	return register(fd, registerBuffersUpdate, unsafe.Pointer(&update), uint32(unsafe.Sizeof(update)))
}

func probeOpcodes(fd int) (*probe, error) {
	p := new(probe)
	return p, register(fd, registerProbe, unsafe.Pointer(p), probeOps)
}

// limitWorkers bounds the calling thread's io-wq threads: those for files, and others; 0: as before. It returns what the limits were.
func limitWorkers(fd int, bounded, unbounded uint32) (before [2]uint32, err error) {
	limits := [2]uint32{bounded, unbounded}
	err = register(fd, registerIOWQMaxWorkers, unsafe.Pointer(&limits), 2)
	return limits, err
}

// placeWorkers says where the calling thread's io-wq threads may run.
func placeWorkers(fd int, cores *unix.CPUSet) error {
	return register(fd, registerIOWQAff, unsafe.Pointer(cores), uint32(unsafe.Sizeof(*cores)))
}

func registerBuffers(fd int, what uint32, reg *bufReg) error {
	return register(fd, what, unsafe.Pointer(reg), 1)
}

// addressOf is where something outside Go's memory lies.
func addressOf[T iovec | msghdr](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }
