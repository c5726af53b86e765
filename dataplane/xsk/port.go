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

// Why a port drops frames. What the kernel drops is in Statistics.
var (
	// DropTooLong is for frames that the uplink's MTU, or a chunk, can't hold.
	DropTooLong = dataplane.NewReason("too-long-for-uplink", "the frame is longer than the uplink's MTU allows; lower the MTU of the network or raise the uplink's")
	// DropTooShort is for frames without a whole Ethernet header.
	DropTooShort = dataplane.NewReason("too-short-for-uplink", "the frame has no whole Ethernet header")
	// DropChecksum is for frames that got here with a checksum nobody completed, which is a bug.
	DropChecksum = dataplane.NewReason("uplink-checksum", "the frame reached the uplink without its checksum; please report it")
	// DropRingFull is for frames that come faster than the uplink takes them.
	DropRingFull = dataplane.NewReason("uplink-ring-full", "the uplink's transmit ring is full: frames come faster than the device takes them")
	// DropBusy is for frames that the kernel took and the device then refused. They are among TxPackets.
	DropBusy = dataplane.NewReason("uplink-busy", "the uplink's device refused the frame; no carrier, or its own queue is full")
	// DropDown is for frames while the uplink is down or gone.
	DropDown = dataplane.NewReason("uplink-down", "the uplink's interface is down or was removed")
	// DropMalformed is for received descriptors that make no sense, and packets that span several of them.
	DropMalformed = dataplane.NewReason("uplink-malformed", "the uplink received a packet that does not fit one frame")
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
}

// Frames is how many frames ports with these options keep in the kernel at most.
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

	fillMark, txMark mark // in the UMEM's ledger
	filled, fill     int  // frames in the receiving half of the kernel, and how many are to be
	sent, limit      int  // frames in its transmitting half, and how many may be
	maxLen           int  // of a frame, in bytes
	chain            bool // within a packet of several descriptors, which is being dropped
	down             bool // the last try to transmit found the interface down
	gone             bool // ... or unregistered, for good

	stats PortStats
}

// PortStats count what a port does beside moving frames. Its worker writes them, anybody reads.
type PortStats struct {
	// Kicks counts system calls to transmit, RxKicks those to receive.
	Kicks, RxKicks atomic.Uint64
	// Kept counts calls that left descriptors in the ring, for the next round: EAGAIN, ENOBUFS.
	Kept atomic.Uint64
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
	p := &Port{s: s, pool: o.Pool, counters: o.Counters, fill: o.fill(), limit: o.sent()}
	p.SetMTU(s.o.Device.MTU)
	var err error
	if p.fillMark, p.txMark, err = s.umem.marks(); err != nil {
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

// Receive takes what arrived, and fills the fill ring up again at once, so that it never runs dry.
func (p *Port) Receive(into []*frame.Frame, pool *frame.Pool) int {
	p.reap(pool)
	n := p.receive(into, pool)
	p.refill(pool)
	return n
}

func (p *Port) receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	ready := p.s.Rx.Peek(len(into))
	if ready == 0 {
		return 0
	}
	bytes, malformed := 0, 0
	for i := range ready {
		d := p.s.Rx.At(i)
		f, off := p.s.umem.take(d.Addr, p.fillMark)
		if f == nil {
			p.stats.Unknown.Add(1)
			continue
		}
		p.filled--
		if !p.whole(&d) || !f.SetHead(off, d.Len) {
			pool.Put(f)
			malformed++
			continue
		}
		into[n] = f
		n++
		bytes += int(d.Len)
	}
	p.s.Rx.Release(ready)
	p.counters.RxPackets.Add(uint64(n + malformed))
	p.counters.RxBytes.Add(uint64(bytes))
	if malformed > 0 {
		p.counters.Drop(DropMalformed, malformed)
	}
	return n
}

// whole tells whether the descriptor is a packet by itself. The pieces of one that is not are all dropped, each counted.
func (p *Port) whole(d *Desc) bool {
	within := p.chain
	p.chain = d.Options&unix.XDP_PKT_CONTD != 0
	return !within && !p.chain
}

// refill gives the kernel chunks to receive into.
func (p *Port) refill(pool *frame.Pool) {
	n := min(p.fill-p.filled, pool.Len())
	if n <= 0 {
		return
	}
	n = p.s.Fill.Reserve(n)
	for i := range n {
		f := pool.Get()
		p.s.umem.give(f, p.fillMark)
		p.s.Fill.Set(i, f.Address()&^(frame.ChunkSize-1))
	}
	p.s.Fill.Submit(n)
	p.filled += n
	if p.s.wantsRx() {
		p.stats.RxKicks.Add(1)
		p.s.receive(p.s.fd)
	}
}

// Release has nothing to end: received frames borrow nothing.
func (p *Port) Release() {}

// Transmit writes descriptors of the frames and keeps them until the kernel gives them back. The kernel is called by Flush.
func (p *Port) Transmit(frames []*frame.Frame, pool *frame.Pool) {
	room := p.room(len(frames), pool)
	n, bytes := 0, 0
	for i, f := range frames {
		if f == nil {
			continue
		}
		if why, ok := p.fits(f); !ok {
			p.counters.Drop(why, 1)
			continue
		}
		if n == room {
			p.counters.Drop(p.noRoom(), 1)
			continue
		}
		length := f.HeadLen()
		p.s.umem.give(f, p.txMark)
		p.s.Tx.Set(n, Desc{Addr: f.Address(), Len: uint32(length)})
		frames[i] = nil
		n++
		bytes += length
	}
	if n == 0 {
		return
	}
	p.s.Tx.Submit(n)
	p.sent += n
	p.counters.TxPackets.Add(uint64(n))
	p.counters.TxBytes.Add(uint64(bytes))
}

// fits makes the frame one private piece that the device may be given, or says why it can't be.
func (p *Port) fits(f *frame.Frame) (why dataplane.Reason, ok bool) {
	switch n := f.Len(); {
	case n > p.maxLen:
		return DropTooLong, false
	case n < ethernetHeader: // the kernel would refuse an empty one and never give it back
		return DropTooShort, false
	case f.Checksum.Needed:
		return DropChecksum, false
	case !f.Gather():
		return DropTooLong, false
	}
	return 0, true
}

// room is how many descriptors can be written, at most n. Where there is not enough, it lets the kernel work first.
func (p *Port) room(n int, pool *frame.Pool) int {
	if p.gone || p.down && p.s.Tx.Unread() > 0 { // what waits shows when the interface is up again; no more behind it
		return 0
	}
	room := p.s.Tx.Reserve(min(n, p.limit-p.sent))
	if room < n {
		p.reap(pool)
		p.kick()
		p.reap(pool)
		room = p.s.Tx.Reserve(min(n, p.limit-p.sent))
	}
	return room
}

func (p *Port) noRoom() dataplane.Reason {
	if p.down || p.gone {
		return DropDown
	}
	return DropRingFull
}

// reap takes back the frames that were transmitted.
func (p *Port) reap(pool *frame.Pool) {
	if p.sent == 0 {
		return
	}
	n := p.s.Completion.Peek(p.s.Completion.Len())
	for i := range n {
		f, _ := p.s.umem.take(p.s.Completion.At(i), p.txMark)
		if f == nil {
			p.stats.Unknown.Add(1)
			continue
		}
		p.sent--
		pool.Put(f)
	}
	p.s.Completion.Release(n)
}

// Flush lets the kernel transmit.
func (p *Port) Flush() {
	if p.sent > 0 && !p.gone {
		p.kick()
	}
}

// kick calls the kernel until it took all descriptors or will not take more now. In copy mode one call takes as many as the budget,
// 32 unless set otherwise, and transmits them before it returns. What a call did is read off the ring: kernels
// before 6.7 or so return 0 as well when they stopped at a full completion ring.
func (p *Port) kick() {
	unread := p.s.Tx.Unread()
	for unread > 0 && p.s.wantsTx() {
		errno := p.s.send(p.s.fd)
		p.stats.Kicks.Add(1)
		p.down = errno == unix.ENETDOWN || errno == unix.ENXIO
		p.gone = errno == unix.ENXIO
		if errno == unix.EBUSY { // taken, freed, and its completion on the way: only not transmitted
			p.counters.Drop(DropBusy, 1)
		}
		before := unread
		unread = p.s.Tx.Unread()
		if unread == before {
			// Kept: EAGAIN (SO_SNDBUF, the completion ring or the device's queue is full), ENOBUFS, the interface is
			// down. In zero copy the driver goes on by itself.
			if !p.s.zeroCopy {
				p.stats.Kept.Add(1)
			}
			return
		}
	}
}

// Arm cleans up, since a fill ring that was left short would end all receiving, and tells how long nothing can happen but what the
// socket's file reports.
func (p *Port) Arm() time.Duration {
	p.reap(p.pool)
	p.refill(p.pool)
	switch backlog := p.s.Tx.Unread() > 0; {
	case p.gone:
		return dataplane.Forever
	case p.down && backlog:
		return downRetry
	case backlog, p.sent > 0 && p.pool.Len() == 0:
		return noFileTells
	}
	return dataplane.Forever
}

// Pending tells whether a packet is there.
func (p *Port) Pending() bool { return p.s.Rx.Peek(1) > 0 }

// Disarm has nothing to take back.
func (p *Port) Disarm() {}

// Fault is never ours: frames lie in private memory, the rings are the kernel's.
func (p *Port) Fault(uintptr) bool { return false }

// Close closes the socket, after the worker dropped the port and before Reclaim. It may sleep: not on a worker.
func (p *Port) Close() error { return p.s.Close() }

// Reclaim gives the pool all frames that were in the kernel, and returns how many. On the pool's worker, after Close.
func (p *Port) Reclaim(pool *frame.Pool) int {
	p.filled, p.sent = 0, 0
	return p.s.umem.reclaim(pool, p.fillMark, p.txMark)
}
