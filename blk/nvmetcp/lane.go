package nvmetcp

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// A lane's way, over these files:
//
//	Submit ─▶ task ─▶ issue ─▶ commands ─▶ line ─▶ push ─▶ Send        lane_task.go, lane_command.go, lane_send.go
//	                                        ▲              │
//	                              R2T ──────┘              ▼ socket
//	Done ◀─ task ◀─ finish ◀─ CapsuleResp, SUCCESS ◀─ consume ◀─ Recv  lane_receive.go
//
// A task is a request; it needs a command, or several where the request is longer than the controller takes at once. Everything has its place from
// the beginning, and is found by an index: tasks by Request.Slot, commands by their CID.
//
// Memory of a guest that the kernel has is that of the commands in the vector being sent, and of the one read that is being received directly. Neither ends
// (Done) before the kernel has given it back.

// laneState is how a lane fares.
type laneState uint8

const (
	laneDown     laneState = iota // there is no connection
	laneUp                        // takes requests
	laneHeld                      // connected, but the namespace is not accessible through this controller
	laneBreaking                  // what the kernel has under way is ending
)

// Sizes of what a lane holds.
const (
	// A CID is an index and, in what bits are left, how often that was used, so that an answer that comes twice meets no other command.
	indexBits = 10
	maxDepth  = 1<<indexBits - 1

	receiveSize = 64 << 10  // private memory data is received into
	shortSize   = 4 << 10   // as much of it as is used while a long read is under way, so that little of that lands there
	directFrom  = 16 << 10  // data of at least so many bytes goes directly into the guest's memory
	bounceSize  = 64 << 10  // private copies of data with a digest, being sent
	sendMost    = 512 << 10 // bytes in one send, about
	headSize    = 192       // private memory of a command; see command.head
	vectorSize  = 130       // buffers in a vector: 65 writes of a page at once
)

// lane is one worker's IO queue. Its fields are the worker's, except where they say otherwise.
type lane struct {
	store  *Store
	host   blk.Host
	events blk.Events
	qid    uint16

	// The manager's (manage.go).
	using *association  // that the lane was attached to, and not taken down from
	quiet chan struct{} // closed by the worker when the kernel has nothing of the lane's any more

	state       laneState
	closed      bool
	heard       bool  // it has said that it is up, or why not
	why         error // of the state, if it is laneBreaking
	risky       bool  // the controller had commands that change the disk; the manager's to read after quiet
	association *association
	limits      limits
	fd          int // the socket; the manager's again after quiet
	file        uring.File
	memory      *uring.Memory // private: what is received, bounced, and every command's head

	// Requests and commands.
	tasks    []task
	idle     []int32 // free tasks
	waiting  fifo    // tasks that need commands
	commands []command
	free     []int32 // commands
	refused  bool    // a request was handed back
	carried  bool    // a command has succeeded
	reads    int     // long reads under way
	closing  []int32 // tasks that end when the kernel has given back what is theirs; see withdraw

	// Sending; see lane_send.go.
	send    uring.Op
	out     *uring.Vector
	line    fifo // commands that have something to send
	current *command
	left    uint32 // bytes of the current PDU's data that are not in a vector yet
	trailer bool   // its data digest is not, either
	sum     uint32
	wire    []int32 // commands in the vector
	bounce  []byte
	bounced int

	// Receiving; see lane_receive.go.
	recv    uring.Op
	in      *uring.Vector
	buffer  []byte
	r, w    int      // of buffer: what is not consumed
	data    *command // whose data is coming; nil: data is drained
	due     int      // bytes of it
	skip    int      // bytes of padding before it
	digest  bool     // a digest follows it
	arrived uint32   // the sum of what has come
	last    bool     // its PDU says SUCCESS
	direct  int      // bytes of the vector that are the guest's

	soon, tick, retry uring.Timer
	broken            error // fail with it, soon
	pumping           bool  // a completion is being worked off, which sends what there is at its end
}

func newLane(s *Store, h blk.Host, e blk.Events) (*lane, error) {
	depth := s.o.QueueDepth
	l := &lane{store: s, host: h, events: e, fd: -1, tasks: make([]task, depth), idle: make([]int32, 0, depth), commands: make([]command, depth),
		free: make([]int32, 0, depth), wire: make([]int32, 0, depth), closing: make([]int32, 0, depth)}
	l.waiting.make(depth)
	l.line.make(depth)
	size := receiveSize + depth*headSize
	if s.o.DataDigest {
		size += bounceSize
	}
	var err error
	if l.memory, err = uring.NewMemory(size); err != nil {
		return nil, fmt.Errorf("memory of an NVMe/TCP lane: %w", err)
	}
	b := l.memory.Bytes()
	l.buffer, b = b[:receiveSize], b[receiveSize:]
	for i := range l.commands {
		l.commands[i].head, b = b[:headSize:headSize], b[headSize:]
		l.commands[i].index, l.commands[i].task = int32(i), nobody
	}
	l.bounce = b
	for i := range l.tasks {
		l.tasks[i].index = int32(i)
		l.idle = append(l.idle, int32(depth-1-i))
	}
	l.send.Handler, l.recv.Handler = l, l
	l.soon.Handler, l.tick.Handler, l.retry.Handler = l, l, l
	return l, nil
}

// release gives back what newLane took.
func (l *lane) release() {
	if l.memory != nil {
		l.memory.Free()
		l.memory = nil
	}
}

// attach gives the lane a connection to its IO queue. The socket is the lane's from then on, unless there is an error.
func (l *lane) attach(a *association, fd int, limits limits, kept, accessible bool) (err error) {
	if l.closed {
		return ErrClosed
	}
	if l.out == nil {
		l.out, l.in = l.host.Ring.Vector(vectorSize), l.host.Ring.Vector(vectorSize)
	}
	if l.out == nil || l.in == nil {
		l.giveVectors()
		return fmt.Errorf("%w: its io_uring has no vector left for another lane (uring.Options.Vectors)", errWorker)
	}
	if l.file, err = l.host.Ring.Register(fd); err != nil {
		return fmt.Errorf("%w: %w", errWorker, err)
	}
	l.association, l.limits, l.fd, l.why, l.broken = a, limits, fd, nil, nil
	l.reset()
	l.state = laneHeld
	l.receive()
	if accessible {
		l.state = laneUp
		l.refused, l.heard = false, true
		l.events.Up(kept)
	}
	return nil
}

// reset forgets what was on a former connection.
func (l *lane) reset() {
	l.line.clear()
	l.current, l.left, l.trailer, l.wire = nil, 0, false, l.wire[:0]
	l.r, l.w, l.data, l.due, l.skip, l.digest, l.direct, l.reads = 0, 0, nil, 0, 0, false, 0, 0
	l.carried = false
	l.out.Reset()
	l.in.Reset()
	l.free = l.free[:0]
	for i := l.limits.depth - 1; i >= 0; i-- {
		c := &l.commands[i]
		*c = command{head: c.head, index: c.index, uses: c.uses + 1, task: nobody}
		l.free = append(l.free, int32(i))
	}
}

func (l *lane) connected() bool { return l.state == laneUp || l.state == laneHeld }

// fail ends the connection. Requests come back when the kernel has nothing of theirs any more.
func (l *lane) fail(why error) {
	if !l.connected() {
		return
	}
	was := l.state
	l.state, l.why, l.risky = laneBreaking, why, l.changes()
	l.association.fail(fmt.Errorf("IO queue %d: %w", l.qid, why))
	l.host.Ring.Cancel(&l.send)
	l.host.Ring.Cancel(&l.recv)
	if was == laneUp {
		l.events.Down(why)
	}
	l.settle()
}

// failSoon is fail from where its consequences cannot be borne, such as within Submit.
func (l *lane) failSoon(why error) {
	if l.broken == nil {
		l.broken = why
		l.host.Ring.Start(&l.soon, 0)
	}
}

// settle ends what fail or Close began, once the kernel has nothing of the lane's.
func (l *lane) settle() {
	if l.state != laneBreaking || l.send.Busy() || l.recv.Busy() {
		return
	}
	l.state = laneDown
	l.host.Ring.Unregister(l.file)
	for _, t := range []*uring.Timer{&l.soon, &l.tick, &l.retry} {
		l.host.Ring.Stop(t)
	}
	l.closing = l.closing[:0]
	if l.closed {
		l.giveVectors()
		unix.SetsockoptLinger(l.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}) // nothing is under way
		l.hangUp()
		l.release()
	} else {
		l.lose()
	}
	l.association = nil
	close(l.quiet)
}

// giveVectors gives the ring back its vectors.
func (l *lane) giveVectors() {
	for _, v := range []**uring.Vector{&l.out, &l.in} {
		if *v != nil {
			l.host.Ring.Free(*v)
			*v = nil
		}
	}
}

// bury ends our side of the connection of a lane that is quiet, and gives the socket away (-1: there is none). A controller that broke the protocol is told so, if what
// we sent last was a whole PDU.
func (l *lane) bury() (fd int) {
	l.store.mu.Lock() // against drop
	fd, l.fd = l.fd, -1
	l.store.mu.Unlock()
	if fd < 0 {
		return -1
	}
	v, tell := l.why.(*violation) // on this connection
	tell = tell && l.current == nil && l.out.Len() == 0
	if tell {
		unix.SendmsgN(fd, v.termReq(), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
	unix.Shutdown(fd, unix.SHUT_WR)
	if tell {
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, termTime) // the other side hangs up when it has read that
	}
	return fd
}

// hangUp closes the connection.
func (l *lane) hangUp() {
	cut(l.fd)
	l.fd = -1
}

// hold gives back what is not under way, and takes nothing more: the controller does not reach the namespace.
func (l *lane) hold(why error) {
	if l.state != laneUp {
		return
	}
	l.state = laneHeld
	l.events.Down(why)
	l.loseWaiting()
}

// resume ends hold.
func (l *lane) resume(kept bool) {
	if l.state != laneHeld {
		return
	}
	l.state, l.refused, l.heard = laneUp, false, true
	l.events.Up(kept)
}

// missing tells of a lane that has never been up: who does not wait for a controller is not to wait for its first word either.
func (l *lane) missing(why error) {
	if !l.closed && !l.heard {
		l.heard = true
		l.events.Down(why)
	}
}

// Flush sends what was submitted.
func (l *lane) Flush() {
	if l.connected() && !l.pumping {
		l.push()
		l.receive() // nothing, but where the ring had no room
	}
}

// Close ends the lane, which has no request any more.
func (l *lane) Close() {
	if l.closed {
		return
	}
	l.closed = true
	l.store.drop(l)
	switch l.state {
	case laneDown:
		l.giveVectors()
		l.release()
	case laneUp, laneHeld:
		l.state = laneBreaking
		l.host.Ring.Cancel(&l.send)
		l.host.Ring.Cancel(&l.recv)
		l.settle()
	}
}

// Completed hears from the ring.
func (l *lane) Completed(op *uring.Op, res int32, _ uint32) {
	if l.state == laneBreaking {
		l.settle()
		return
	}
	if op == &l.send {
		l.sent(res)
	} else {
		l.received(res)
	}
}

// Expired hears of the lane's timers.
func (l *lane) Expired(t *uring.Timer) {
	switch t {
	case &l.soon:
		if l.broken != nil {
			l.fail(l.broken)
		} else {
			l.endClosing()
		}
	case &l.tick:
		l.findLate()
	case &l.retry:
		l.wakeTasks()
	}
}

// fifo is a queue of indexes that each are in it once at most.
type fifo struct {
	ring    []int32
	head, n int
}

func (f *fifo) make(n int) { f.ring = make([]int32, 1<<bits.Len(uint(n))) }
func (f *fifo) clear()     { f.head, f.n = 0, 0 }
func (f *fifo) empty() bool {
	return f.n == 0
}

func (f *fifo) push(i int32) {
	f.ring[(f.head+f.n)&(len(f.ring)-1)] = i
	f.n++
}

func (f *fifo) peek() int32 { return f.ring[f.head] }

func (f *fifo) pop() int32 {
	i := f.ring[f.head]
	f.head = (f.head + 1) & (len(f.ring) - 1)
	f.n--
	return i
}

// termTime is how many milliseconds a controller has to read a TermReq.
const termTime = 1000

// tickTime is between two looks for late commands, while there are commands.
const tickTime = time.Second
