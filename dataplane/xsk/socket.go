package xsk

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// Mode says how packets get between device and frames.
type Mode uint8

const (
	// ModeAuto takes zero copy where the driver has it, else copy. Socket.ZeroCopy tells which it became.
	ModeAuto Mode = iota
	// ModeCopy copies, and works with every driver.
	ModeCopy
	// ModeZeroCopy lets the device work on the frames themselves, or fails with ErrNoZeroCopy.
	ModeZeroCopy
)

// String is the mode's name in the configuration.
func (m Mode) String() string {
	switch m {
	case ModeAuto:
		return "auto"
	case ModeCopy:
		return "copy"
	case ModeZeroCopy:
		return "zerocopy"
	}
	return fmt.Sprintf("mode-%d", uint8(m))
}

const (
	// RingSize is the default of all four rings: at 3 Mpps the kernel may be left alone, or leave us alone, for 2048/3e6 =
	// 680 us, which spans the pauses of a shared core that are common, not those that are rare.
	RingSize = 2048
	// kernelBudget is how many descriptors one system call takes in copy mode if nothing else is asked for; also the least that can be.
	kernelBudget = 32
	// chargePerFrame is what a frame under way costs of SO_SNDBUF in copy mode at most: a socket buffer that
	// holds a whole chunk (4096 + headroom, rounded up to 8192) and its descriptor.
	chargePerFrame = 8192 + 512
	// busyWait is how long Open waits for a queue: the kernel takes it from a socket that was closed, or whose process was killed, some
	// milliseconds later, in a work queue.
	busyWait = 2 * time.Second
)

// SocketOptions configure a Socket. Device must be set; everything else may be zero.
type SocketOptions struct {
	// Device to bind to, from LookupDevice.
	Device Device
	// Queue of the device, from 0.
	Queue int
	// Owner is another socket bound to the same queue, which has the fill and completion rings; this one then has none. nil:
	// this socket owns the queue.
	Owner *Socket
	// Rx and Tx are sizes in entries, powers of two. Zero: RingSize. Negative: no such ring.
	Rx, Tx int
	// Fill and Completion are sizes in entries, powers of two, of an owner's rings. Zero: RingSize.
	Fill, Completion int
	// Mode asks for zero copy or copy. Zero: ModeAuto.
	Mode Mode
	// MultiBuffer lets packets span descriptors. It needs a kernel that has the MultiBuffer feature, and is for an MTU that
	// does not fit one chunk: ModeAuto takes copy with it where the driver has no zero copy of such packets.
	MultiBuffer bool
	// BusyPoll says whether the driver's receiving runs on the worker's thread, when that asks for it, rather than in an interrupt.
	// Zero: BusyPollOff. Only for a queue's owner.
	BusyPoll BusyPoll
	// BusyPollBudget is how many packets the driver handles in one such call at most. Zero: 64.
	BusyPollBudget int
	// Budget is how many descriptors a system call transmits at most in copy mode, from 32 to Tx. Zero: 32. More
	// needs a kernel that has the TxBudget feature.
	Budget int
	// SendBuffer is SO_SNDBUF in bytes, which copy mode charges with every packet under way. Zero: enough for a full tx ring
	// of the largest frames.
	SendBuffer int
	// BusyWait is how long to wait for a queue that another socket holds. Zero: 2 s. Negative: not at all.
	BusyWait time.Duration
}

// Socket is an AF_XDP socket bound to a queue of a device. Its rings are for one worker.
type Socket struct {
	// Rx brings packets, Tx takes them.
	Rx Consumer[Desc]
	Tx Producer[Desc]
	// Fill takes chunks to receive into, Completion gives back those transmitted. Only a queue's owner has them.
	Fill       Producer[uint64]
	Completion Consumer[uint64]

	umem     *UMEM
	o        SocketOptions
	fd       int
	zeroCopy bool
	busyPoll atomic.Bool // written by the worker, when that is settled
	settled  bool
	pieces   int      // descriptors that a packet to be sent may have
	maps     [][]byte // the rings' mappings

	// send and receive are the two system calls that wake the kernel, napi asks it whom receive wakes. Fields, so that a test can be the kernel.
	send, receive func(fd int) unix.Errno
	napi          func(fd int) int
}

// wantsTx tells whether the kernel must be called for the tx ring, after something was submitted to it.
func (s *Socket) wantsTx() bool {
	shm.Fence() // orders the producer index that was stored before the flag that is loaded
	return s.Tx.NeedWakeup()
}

// wantsRx tells the same of the fill ring.
func (s *Socket) wantsRx() bool {
	shm.Fence()
	return s.Fill.NeedWakeup()
}

// FD is the file to put into an XSKMAP, and to wait on for POLLIN.
func (s *Socket) FD() int { return s.fd }

// ZeroCopy tells the mode in force.
func (s *Socket) ZeroCopy() bool { return s.zeroCopy }

// InForce is what a socket has of what the kernel and the device may lack.
type InForce struct {
	// ZeroCopy: the device works on the frames themselves.
	ZeroCopy bool
	// MultiBuffer: packets may span descriptors.
	MultiBuffer bool
	// BusyPoll: the driver's receiving runs on the worker's thread. It ends with the first packet if the driver cannot do that.
	BusyPoll bool
	// Budget is how many descriptors a system call transmits at most in copy mode.
	Budget int
}

// InForce may be called by any goroutine.
func (s *Socket) InForce() InForce {
	return InForce{ZeroCopy: s.zeroCopy, MultiBuffer: s.o.MultiBuffer, BusyPoll: s.busyPoll.Load(), Budget: max(s.o.Budget, kernelBudget)}
}

// Statistics are the kernel's counts of a socket (struct xdp_statistics).
type Statistics struct {
	// RxDropped packets found no frame in the fill ring or were longer than a chunk holds. RxRingFull ones found the
	// rx ring full. The two together are what was lost on the way in.
	RxDropped, RxRingFull uint64
	// FillRingEmpty counts how often the kernel wanted a chunk in vain; its packets are among RxDropped.
	FillRingEmpty uint64
	// RxInvalid and TxInvalid are chunks and descriptors the kernel refused to look at; any is a bug of ours.
	RxInvalid, TxInvalid uint64
}

// Statistics asks the kernel. Any goroutine may.
func (s *Socket) Statistics() (Statistics, error) {
	var k unix.XDPStatistics
	if err := getsockopt(s.fd, unix.XDP_STATISTICS, &k); err != nil {
		return Statistics{}, fmt.Errorf("statistics of AF_XDP on %s queue %d: %w", s.o.Device.Name, s.o.Queue, err)
	}
	return Statistics{
		RxDropped: k.Rx_dropped, RxRingFull: k.Rx_ring_full, FillRingEmpty: k.Rx_fill_ring_empty_descs,
		RxInvalid: k.Rx_invalid_descs, TxInvalid: k.Tx_invalid_descs,
	}, nil
}

// Orphaned tells whether the kernel has taken the socket off its device for good: that was deleted, or left this network namespace, and is another one to the
// kernel when it is back, be it with the index it had. The kernel tells it once. Any goroutine may ask.
func (s *Socket) Orphaned() bool {
	why, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && unix.Errno(why) == unix.ENETDOWN
}

// Close closes the socket; no goroutine may use it or its rings any more. The kernel writes into no frame after it. Sockets
// that share the queue are closed before its owner.
func (s *Socket) Close() error {
	wasOpen := s.fd >= 0
	err := errors.Join(s.shut(), s.unmap())
	if wasOpen && s.zeroCopy && s.o.Owner == nil {
		err = errors.Join(err, awaitFree(s.o.Device, s.o.Queue, busyWait))
	}
	return err
}

// shut closes the socket and leaves the rings as the kernel wrote them last: it waits for softirqs that still see the socket.
func (s *Socket) shut() error {
	if s.fd < 0 {
		return nil
	}
	s.umem.forget(s)
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}

// unmap takes the rings away.
func (s *Socket) unmap() (err error) {
	for _, b := range s.maps {
		err = errors.Join(err, unix.Munmap(b))
	}
	s.maps = nil
	s.Rx, s.Tx, s.Fill, s.Completion = Consumer[Desc]{}, Producer[Desc]{}, Producer[uint64]{}, Consumer[uint64]{}
	return err
}

// sendNow transmits what is in the tx ring. In copy mode that work is done in the call, about 1.5 us a descriptor;
// the scheduler need not know, see design.md section 4.
func sendNow(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}

// receiveNow wakes a driver that ran out of chunks.
func receiveNow(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}
