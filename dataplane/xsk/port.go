package xsk

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// Why a port drops frames.
var (
	// DropTooLong is for frames that the uplink's MTU, or a chunk, can't hold.
	DropTooLong = dataplane.NewReason("too-long-for-uplink", "the frame is longer than the uplink's MTU allows; lower the MTU of the network or raise the uplink's")
	// DropTooShort is for frames without a whole Ethernet header.
	DropTooShort = dataplane.NewReason("too-short-for-uplink", "the frame has no whole Ethernet header")
	// DropUnsegmented is for frames that got here to be cut into segments, which is a bug.
	DropUnsegmented = dataplane.NewReason("uplink-unsegmented", "the frame reached the uplink without being segmented; please report it")
	// DropPieces is for frames whose body lies in more pieces than the kernel takes.
	DropPieces = dataplane.NewReason("uplink-pieces", "the frame lies in more pieces of memory than the uplink's socket takes")
	// DropNoChunk is for long frames for whose rest there was no memory.
	DropNoChunk = dataplane.NewReason("uplink-no-chunk", "no frame was free to copy the rest of a long frame to; give the workers more frame memory")
	// DropChecksum is for frames that got here with a checksum nobody completed, which is a bug.
	DropChecksum = dataplane.NewReason("uplink-checksum", "the frame reached the uplink without its checksum; please report it")
	// DropRingFull is for frames that come faster than the uplink takes them.
	DropRingFull = dataplane.NewReason("uplink-ring-full", "the uplink's transmit ring is full: frames come faster than the device takes them")
	// DropBusy is for frames that the kernel took and the device then refused. They are among TxPackets.
	DropBusy = dataplane.NewReason("uplink-busy", "the uplink's device refused the frame; no carrier, or its own queue is full")
	// DropDown is for frames while the uplink is down or gone.
	DropDown = dataplane.NewReason("uplink-down", "the uplink's interface is down or was removed")
	// DropMalformed is for received packets one of whose descriptors makes no sense, and those of several where that was not asked for.
	DropMalformed = dataplane.NewReason("uplink-malformed", "the uplink received a packet that does not fit one frame")
)

// Why the kernel drops packets that were steered to a socket, before a port sees them. It counts them in Statistics, as RxDropped and
// RxRingFull; the names are here for those who report that.
var (
	DropNoFrame     = dataplane.NewReason("uplink-no-frame", "the kernel found no free frame for a packet from the uplink, or one longer than a frame: packets come faster than the worker takes them, or its frames are all in use")
	DropReceiveFull = dataplane.NewReason("uplink-receive-full", "the receive ring of the uplink's socket was full: packets come faster than the worker takes them")
)

const (
	// ethernetHeader is what a device sends beside its MTU: the header, and a VLAN tag.
	ethernetHeader, vlanTag = 14, 4
	// noFileTells is how long a worker may sleep while something can happen that no file reports: completions
	// come back, a full device takes frames again.
	noFileTells = 200 * time.Microsecond
	// downRetry is how long it sleeps while an uplink with a backlog is down.
	downRetry = 100 * time.Millisecond
)

// PortOptions configure a Port. Socket and Counters must be set.
type PortOptions struct {
	// Socket is bound to the queue, owns it, and is the port's from now on.
	Socket *Socket
	// Pool is the worker's, of the same memory as the socket's UMEM. Its frames keep the fill ring full.
	Pool *frame.Pool
	// Counters of the port.
	Counters *dataplane.Counters
	// Fill is how many frames lie ready to receive into. Zero, or more than that: as many as the fill ring has entries.
	Fill int
	// CompletePartial finds packets whose checksum the sender's kernel left open, and says so in Frame.Checksum. It is for
	// the host end of a veth: from a wire no such packets come, and one that looks like it would be looked for in vain.
	CompletePartial bool
}

// Frames is how many frames ports with these options keep in the kernel at most; each Receiver adds its own.
func (o *PortOptions) Frames() int { return o.fill() + o.sent() }

func (o *PortOptions) fill() int {
	if n := o.Socket.Fill.Len(); o.Fill <= 0 || o.Fill > n {
		return n
	}
	return o.Fill
}

// sent is bounded by the completion ring: with no more under way the kernel never finds it full.
func (o *PortOptions) sent() int { return o.Socket.Completion.Len() }

// Port is a queue of an uplink as a dataplane.Port. One worker calls it.
type Port struct {
	s        *Socket
	pool     *frame.Pool
	counters *dataplane.Counters
	in       intake

	txMark        mark // in the UMEM's ledger; that of what is filled is in.from
	filled, fill  int  // frames in the receiving half of the kernel, and how many are to be
	sent, limit   int  // frames in its transmitting half, and how many may be
	staged        int  // descriptors that Transmit has written and not submitted yet
	stagedPackets int  // which they describe
	stagedBytes   int
	maxLen        int  // of a packet, in bytes
	down          bool // the last try to transmit found the interface down
	gone          bool // ... or unregistered, for good
	parts         [frame.MaxBody]*frame.Frame

	receivers []*Receiver
	wake      int // eventfd for them; -1 before there are any

	_        [64]byte      // the next line is read by the receivers' workers
	asleep   atomic.Bool   // the worker sleeps, or is about to
	patience atomic.Uint32 // how many chunks each of them may take before it wakes that
	_        [64]byte

	stats PortStats
}

// PortStats count what a port does beside moving frames. Its worker writes them, anybody reads.
type PortStats struct {
	// Kicks counts system calls to transmit, RxKicks those to receive.
	Kicks, RxKicks atomic.Uint64
	// Kept counts calls that left descriptors in the ring, for the next round: EAGAIN, ENOBUFS.
	Kept atomic.Uint64
	// Polls counts calls to run the driver's receiving on our own thread.
	Polls atomic.Uint64
	// Chained counts packets sent in several descriptors.
	Chained atomic.Uint64

	// Unknown counts addresses from the kernel that it did not have from us. They are ignored.
	Unknown atomic.Uint64
}

// NewPort makes a port and fills its fill ring. Only on the worker that is to own it, or before that runs.
func NewPort(o PortOptions) (*Port, error) {
	s := o.Socket
	switch {
	case s.Rx.Len() == 0 || s.Tx.Len() == 0 || s.Fill.Len() == 0 || s.Completion.Len() == 0:
		return nil, errors.New("AF_XDP port: its socket must have all four rings")
	case o.Pool.Memory() != s.umem.memory:
		return nil, errors.New("AF_XDP port: its pool is of another memory than its socket's UMEM")
	}
	p := &Port{s: s, pool: o.Pool, counters: o.Counters, fill: o.fill(), limit: o.sent(), wake: -1}
	p.in = intake{s: s, counters: o.Counters, unknown: &p.stats.Unknown, partial: o.CompletePartial}
	p.SetMTU(s.o.Device.MTU)
	var err error
	if p.in.from, p.txMark, err = s.umem.marks(); err != nil {
		return nil, err
	}
	p.refill(o.Pool)
	if p.filled == 0 {
		return nil, fmt.Errorf("AF_XDP port on %s: the pool has no free frame to receive into; it needs %d for this port",
			s.o.Device.Name, o.Frames())
	}
	return p, nil
}

// Socket is what the port moves frames through.
func (p *Port) Socket() *Socket { return p.s }

// Stats may be read by anybody.
func (p *Port) Stats() *PortStats { return &p.stats }

// SetMTU follows a change of the device's MTU, on the owning worker.
func (p *Port) SetMTU(mtu int) { p.maxLen = mtu + ethernetHeader + vlanTag }

// SetPool follows the port to another worker, whose pool this is; see dataplane.Link.Move. Frames in the kernel's hands return to the pools they
// came from.
func (p *Port) SetPool(pool *frame.Pool) { p.pool = pool }

// WakeFD is an eventfd by which receivers wake the port's worker, to be watched with draining like the socket's file; -1 while there were
// no receivers.
func (p *Port) WakeFD() int { return p.wake }

// Arm cleans up, since a fill ring that was left short would end all receiving, and tells how long nothing can happen but what the
// files report.
func (p *Port) Arm() time.Duration {
	if p.in.shared {
		p.asleep.Store(true)
	}
	p.reap(p.pool)
	if p.pool.Connected() {
		p.pool.Collect()
	}
	p.refill(p.pool)
	backlog := p.s.Tx.Unread() > 0
	switch {
	case p.gone:
		return dataplane.Forever
	case p.down && backlog:
		return downRetry
	case backlog, p.sent > 0 && p.pool.Len() == 0, p.starved():
		return noFileTells
	}
	return dataplane.Forever
}

// starved tells whether the kernel has few chunks because the frames are with other workers. That they come home is told by nothing.
func (p *Port) starved() bool {
	return p.pool.Connected() && p.pool.Len() == 0 && p.missing() > p.fill/2
}

// Pending tells whether a packet is there.
func (p *Port) Pending() bool { return p.s.Rx.Peek(1) > 0 }

// Disarm tells the receivers that the worker is awake.
func (p *Port) Disarm() {
	if p.in.shared {
		p.asleep.Store(false)
	}
}

// Fault is never ours: frames lie in private memory, the rings are the kernel's.
func (p *Port) Fault(uintptr) bool { return false }

// Close closes the socket, after the worker dropped the port, its receivers were closed and reclaimed, and before Reclaim. It may sleep: not on a worker.
func (p *Port) Close() error {
	err := p.s.Close()
	if p.wake >= 0 {
		err = errors.Join(err, unix.Close(p.wake))
		p.wake = -1
	}
	return err
}

// Reclaim gives the pool all frames that were in the kernel, and returns how many. On the pool's worker, after Close.
func (p *Port) Reclaim(pool *frame.Pool) int {
	p.filled, p.sent, p.staged, p.stagedPackets, p.stagedBytes = 0, 0, 0, 0, 0
	return p.in.giveUp(pool) + p.s.umem.reclaim(pool, p.in.from, p.txMark)
}
