package blk

import (
	"context"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/uring"
)

// Op is what a request asks for.
type Op uint8

// The operations of virtio-blk that reach a store (virtio 1.2, section 5.2.6).
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpDiscard
	OpWriteZeroes
	Ops = iota
)

// writes tells whether it changes the disk.
func (o Op) writes() bool { return o == OpWrite || o == OpDiscard || o == OpWriteZeroes }

// String is the operation's name in tables and metrics.
func (o Op) String() string {
	return [Ops]string{"read", "write", "flush", "discard", "write-zeroes"}[o]
}

// Outcome is how a request ended.
type Outcome uint8

const (
	// OK: done, as far as the store's word goes.
	OK Outcome = iota
	// Failed: the store refused it, and would again.
	Failed
	// Unsupported: the store cannot do such a thing.
	Unsupported
	// Lost: the way to the store broke, and nobody knows whether it was done. It may be submitted again once the lane is up.
	Lost
	// Withdrawn: taken back; nobody knows whether it was done.
	Withdrawn
)

// Request is one request on its way to a store and back. Who makes it keeps it; a lane has it from Submit until it calls Done.
type Request struct {
	Op Op
	// FUA: a write is on stable storage before it is done. Unmap: zeroes may be written by giving the blocks back.
	FUA, Unmap bool
	// Offset and Length are in bytes, multiples of Info.BlockSize, within Info.Size. A flush has neither.
	Offset, Length uint64
	// Buffers of a read or write are views of the guest's memory, of Length bytes together. The guest can write there at any time, and take the
	// memory away: what is touched by our own hand goes through guestmem.Copy.
	Buffers [][]byte
	// After is when a lane may have it at the earliest, by dataplane.Clock: a write waits for those of a dead process (Info.Quiesce). Zero: at once.
	After int64
	// Handler hears of the end.
	Handler Handler
	// Slot is the lane's, to find what it keeps of the request.
	Slot int
	// Began is when the lane was given it, for who measures (dataplane.Worker.Now).
	Began int64

	held ticket // the gate's that has it
}

// Handler hears how a request ended: on the lane's worker, never within Submit. From the call on nothing touches the request's buffers.
type Handler interface {
	Done(r *Request, o Outcome)
}

// Info is what a store is and can do.
type Info struct {
	// Size is in bytes, a multiple of BlockSize.
	Size uint64
	// BlockSize is what requests are aligned to, 512 at least; PhysicalBlock what the store writes without reading first; OptimalIO what it likes
	// best. Powers of two; zero: as BlockSize.
	BlockSize, PhysicalBlock, OptimalIO uint32
	// DiscardGranularity is what a discard must cover to have an effect. Zero: BlockSize.
	DiscardGranularity uint32
	// What it can do. Without Flush a write is stable when it is done, or the store knows no such thing.
	Flush, FUA, Discard, WriteZeroes bool
	ReadOnly, Rotational             bool
	// Lanes is how many workers may use the store at once so that each sees what another was told is done, and flushes it: 1, or 0 for any number.
	Lanes int
	// Quiesce is how long after the end of a process the store may still carry out writes that it had under way: so long its successor, which finds some in the in-flight
	// area, sends none. Zero: not at all, as where Open waits for a lock that they hold.
	Quiesce time.Duration
	// Lifetime is how much of a solid state device is used up, in the units of virtio 1.2, 5.2.6 (GET_LIFETIME); nil: the store does not know.
	Lifetime *Lifetime
	// Identity names the disk among all there are, wherever it is reached. Empty: the store knows no such name.
	Identity string
	// Describe is one line about the store for people: what answered, and how.
	Describe string
}

// Lifetime is struct virtio_blk_lifetime: 1 to 10 each stand for ten percent used, 11 for beyond; PreEOL 1 normal, 2 warning, 3 urgent.
type Lifetime struct{ PreEOL, TypeA, TypeB uint16 }

// Host is what a lane stands on.
type Host struct {
	Worker *dataplane.Worker
	// Ring is the worker's; it is enabled, and the worker polls it.
	Ring *uring.Ring
}

// Store is a disk somewhere: a file, an NBD export, an NVMe namespace. Its methods may wait for the network, and belong to the control side.
type Store interface {
	// Info is what the store was when it was asked last.
	Info() Info
	// Open makes the way of one worker to the store. It is up when Events.Up was called.
	Open(h Host, e Events) (Lane, error)
	// Refresh asks the store anew what it is: a file may have grown.
	Refresh(ctx context.Context) (Info, error)
	// State is for people and metrics, asked at any time by anybody.
	State() State
	// Close ends the store, after all its lanes were closed.
	Close() error
}

// Watcher hears what a store finds out by itself. Its method is called on any goroutine but a worker's.
type Watcher interface {
	// Changed: the store is not what it was, its size first of all.
	Changed(Info)
}

// Lane is one worker's way to a store. The worker that it was opened for calls these methods, nobody else.
type Lane interface {
	// Submit takes a request, or hands it back (false): the lane is full or down, and will call Events.Up or Events.Room.
	Submit(r *Request) bool
	// Withdraw asks for a request back. Done follows within 50 ms, with Withdrawn unless it has ended otherwise: whatever the network does. What only
	// the kernel can end (a read of a file that is under way) it ends when it does. A write that came back so, or Lost, may still be carried out; what the store's lanes are
	// given after that ends well only when it can be no more, as far as the store's protocol lets one know.
	Withdraw(r *Request)
	// Flush ends a round: what was submitted goes out now.
	Flush()
	// Close ends the lane. It has no request any more.
	Close()
}

// Events is what a lane tells who uses it, on its worker, never within Submit.
type Events interface {
	// Up: the lane takes requests, for the first time or again. By then no request that was Lost can still be executed, as far as the store's
	// protocol lets one know. kept: whatever the store has said is done still is, flushed or not. False where the store may have been restarted in between.
	Up(kept bool)
	// Down: the way broke, or there was none to begin with, why in one sentence. Requests come back Lost.
	Down(why error)
	// Room: a request that was handed back may be submitted.
	Room()
}

// State is how a store fares.
type State struct {
	// Up: every lane is.
	Up bool
	// Why the store is not up, or what is wrong although it is; nil otherwise. Since when it is up, or is not.
	Why   error
	Since time.Time
	// Reconnects counts successful ones since the store was opened.
	Reconnects uint64
}
