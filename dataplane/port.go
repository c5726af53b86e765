package dataplane

import (
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane/frame"
)

// Quantum is how many frames a port may bring into one round, and so the length of every vector of frames.
const Quantum = 64

// Forever is what Arm returns when nothing but its files need wake the worker.
const Forever = time.Duration(1<<63 - 1)

// Source is something a worker polls. All its methods are called by the owning worker.
type Source interface {
	// Poll does at most a quantum of work and tells how much it did.
	Poll() int
	// Flush ends a round: what Poll of this or other sources queued here goes out now.
	Flush()
	// Arm asks whoever feeds the source to wake the worker through the files it watches, with plain stores; the
	// worker fences once behind all of them. It returns how long the worker may sleep at most on this source's account.
	Arm() time.Duration
	// Pending tells, after the fence, whether work came in before Arm was seen.
	Pending() bool
	// Disarm takes Arm back.
	Disarm()
}

// Port is where frames enter and leave the engine: a guest's virtio-net device, an uplink's AF_XDP sockets.
// The worker that owns it calls these methods, nobody else.
type Port interface {
	// Receive takes frames from the pool, fills them, and returns how many slots of into it set. The slots are nil on
	// entry, and each is set before the guest's memory is touched for it, so that a fault loses no frame.
	//
	// A guest that takes its memory away ends Receive and Transmit at any instruction that touches it (see contain). What is still in a
	// vector's slot then is dropped and counted by the worker.
	Receive(into []*frame.Frame, pool *frame.Pool) int
	// Release ends what Receive began: bodies of received frames are no longer looked at, and their buffers go back.
	Release()
	// Transmit takes frames in order. It keeps a frame beyond the call by setting its slot to nil; the caller
	// recycles the others. What it can't take it drops and counts. The frames' bodies are memory of another port's guest: after a fault
	// there, all frames still in the vector count as dropped, and the next call finds the port as if this one had kept no more than
	// it had finished with. So a frame that was dropped and counted is marked (Reason.Mark) at once, or leaves the vector, if bodies of others are
	// still to be read.
	Transmit(frames []*frame.Frame, pool *frame.Pool)
	// Flush, Arm, Pending and Disarm are as in Source.
	Flush()
	Arm() time.Duration
	Pending() bool
	Disarm()
	// Fault tells the port that touching the address failed. If it lies in memory that the port's peer gave us, the port
	// takes itself out of service and reports true.
	Fault(address uintptr) bool
}

// Forwarder decides where the frames of one link go.
type Forwarder interface {
	// Forward takes every frame of the vector, sets its slot to nil, and then hands it to w.Send or w.Drop. What it decides
	// it decides on the frame's head alone. Whatever touches a body (Gather, Send of a clone) comes while the frame is still in
	// its slot: it may fault, and a frame that is in no slot then is lost to the pool.
	Forward(w *Worker, from *Link, frames []*frame.Frame)
}

// What a Link's port can take, as bits of Offloads.
const (
	// OffloadChecksum: frames whose checksum is still to be filled in.
	OffloadChecksum = 1 << iota
	// OffloadTSO4, OffloadTSO6: TCP packets longer than a segment, on IPv4 and IPv6; OffloadECN: those of them with CWR.
	OffloadTSO4
	OffloadTSO6
	OffloadECN
)

// Direction of a frame at a link, as the engine sees it.
type Direction int

// The directions: a frame enters the engine, or leaves it.
const (
	In Direction = iota
	Out
)

// Link is a port with its forwarder, as its worker sees it: the Source that moves frames.
type Link struct {
	// Name is the port's name in the configuration.
	Name string
	// Port and Forwarder are set before the link is added to its worker; Forwarder may be replaced on the worker.
	Port      Port
	Forwarder Forwarder
	// Counters are shared with the port, which counts what it receives and what it takes, and with the forwarder, which
	// counts what it drops.
	Counters *Counters

	// Offloads is what the port takes beside complete frames no longer than an MTU. The port's control side writes it when that is negotiated, forwarders
	// read it for each frame: one that is not taken as it is has to be made so before Send.
	Offloads atomic.Uint32
	// Ready: the port takes frames. Of a port with several links, such as the queue pairs of a guest, those that are not ready get none. Written by
	// the port, and only by one that may not be ready; read by forwarders.
	Ready atomic.Bool
	// Patient: what the port does not bring at once it brings later, and nothing is lost by that, as with a guest's ring. While another worker does not
	// keep up with what the link sends it, the link is not polled. Set before the link is added to its worker.
	//
	// Not so what the kernel receives for us: an AF_XDP socket's ring fills, and then the kernel drops whatever comes, be it for a destination that nobody floods. So
	// uplinks and the interfaces of containers are not patient, and what they send to a destination that is flooded is dropped there. See crossing.go.
	Patient bool
	// Limits bound what comes in and goes out; nil: nothing does. Several links may share one. Set by anybody at any time.
	Limits [2]atomic.Pointer[Limit]
	// Tap is shown what passes, while somebody captures; nil: nobody does. Set by anybody at any time.
	Tap atomic.Pointer[Tap]

	// owner polls the link; nil: nobody. Written by it, within Do, and read by every worker that has a frame for the link.
	owner   atomic.Pointer[Worker]
	quantum quantum
	waits   time.Duration // for its limit, in the coming sleep; Forever: it does not hold the link back. Arm's
	crowds  uint64        // of a patient link: the workers, by bits, with which its last batch left too little room to cross
	shares  []share       // of each worker's crossings to the owner, by its Index: that worker's

	// out holds frames on their way to Port.Transmit, at most until the end of the batch that brought them.
	out   [Quantum]*frame.Frame
	nout  int
	dirty bool // is in worker.dirty
}

// kind says which way to other workers the link's frames take.
func (l *Link) kind() kind {
	if l.Patient {
		return patient
	}
	return hasty
}

// share makes room to note what each of n workers sends the link.
func (l *Link) share(n int) {
	if len(l.shares) < n {
		l.shares = make([]share, n)
	}
}

// Owner is the worker that polls the link; nil: nobody does.
func (l *Link) Owner() *Worker { return l.owner.Load() }
