package shm

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Signalling an eventfd whose file somebody hostile shares.
//
// O_NONBLOCK is a flag of the shared file, and the counter is shared, too. Who clears the one and fills the other makes write(2) wait
// until he reads, and no flag of a write can forbid that (RWF_NOWAIT is refused for eventfds; looking first is a race). The kernel itself
// signals eventfds all the time and never waits: its eventfd_signal adds one, or leaves a full counter full, and wakes the readers. So a signal is the
// completion of an asynchronous read of no bytes from /dev/null, which io_submit(2) carries out at once and in place; IOCB_FLAG_RESFD has the kernel
// signal the eventfd for it. The completions themselves, which nobody wants to see, are thrown away a few hundred at a time, when there is
// no room for the next one.
//
//	Signal ─▶ io_submit ─▶ read(/dev/null, 0 bytes) ─▶ eventfd_signal(fd)
//	              └─ no room ─▶ io_getevents ─▶ once more

// ErrNoSignal says that this process cannot signal eventfds safely.
var ErrNoSignal = errors.New("cannot signal eventfds of other processes safely")

// room is how many completions there may be before they are thrown away; the kernel gives at least twice as many.
const room = 128

// aio is the process's context, shared by all workers: the kernel locks it for the few instructions that write a completion.
var aio struct {
	once    sync.Once
	context uintptr
	null    uint32 // descriptor of /dev/null
	err     error
}

// OpenSignals prepares Signal and tells whether it can be used; it may be called any number of times.
func OpenSignals() error {
	aio.once.Do(func() { aio.err = openAIO() })
	return aio.err
}

func openAIO() error {
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: open %s: %w", ErrNoSignal, os.DevNull, err)
	}
	aio.null = uint32(null)
	_, _, errno := unix.Syscall(unix.SYS_IO_SETUP, room, uintptr(unsafe.Pointer(&aio.context)), 0)
	if errno == 0 {
		return nil
	}
	unix.Close(null)
	switch errno {
	case unix.EAGAIN:
		return fmt.Errorf("%w: io_setup: other programs have used up fs.aio-max-nr: raise it with sysctl", ErrNoSignal)
	case unix.ENOSYS, unix.EPERM:
		return fmt.Errorf("%w: io_setup: %w: allow io_setup, io_submit and io_getevents in this program's system call filter (@aio)", ErrNoSignal, errno)
	}
	return fmt.Errorf("%w: io_setup: %w", ErrNoSignal, errno)
}

// iocb is the kernel's struct iocb (linux/aio_abi.h) with the fields we need, the others zero.
type iocb struct {
	_         [2]uint64 // data, key, rw_flags
	opcode    uint16
	_         int16 // reqprio
	fd        uint32
	_         [4]uint64 // buf, nbytes, offset, reserved2
	flags     uint32
	signalled uint32 // resfd
}

const (
	cmdPread     = 0 // IOCB_CMD_PREAD
	flagSignal   = 1 // IOCB_FLAG_RESFD
	signalTries  = 8
	sizeOfResult = 32 // struct io_event
)

// junk is where completions are thrown away to, and count where Drain reads to: nobody looks, so all workers may share them.
var (
	junk     [4 * room * sizeOfResult]byte
	soon     unix.Timespec // zero: do not wait
	count    [8]byte
	countVec = unix.Iovec{Base: &count[0], Len: 8}
	one      = [8]byte{1}
)

// Signal adds one to an eventfd, for twice the price of a write, and never waits, whatever others do to the file; a counter that is full stays full, and its reader is
// woken. Where OpenSignals fails it writes, and may be used for eventfds that nobody hostile shares.
func Signal(fd int) {
	if OpenSignals() != nil {
		_, _, _ = unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8)
		return
	}
	request := iocb{opcode: cmdPread, fd: aio.null, flags: flagSignal, signalled: uint32(fd)}
	list := &request
	for range signalTries {
		_, _, errno := unix.RawSyscall(unix.SYS_IO_SUBMIT, aio.context, 1, uintptr(unsafe.Pointer(&list)))
		if errno != unix.EAGAIN {
			return
		}
		_, _, _ = unix.RawSyscall6(unix.SYS_IO_GETEVENTS, aio.context, 0, uintptr(len(junk)/sizeOfResult),
			uintptr(unsafe.Pointer(&junk)), uintptr(unsafe.Pointer(&soon)), 0)
	}
}

// Drain sets an eventfd back to zero. It never waits: whoever shares the file can make it blocking and be quicker to read it, so each
// call says RWF_NOWAIT.
func Drain(fd int) {
	const here = ^uintptr(0) // the file's own position: an eventfd has none
	_, _, _ = unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&countVec)), 1, here, here, unix.RWF_NOWAIT)
}
