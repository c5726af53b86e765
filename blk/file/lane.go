package file

import (
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// The way of a request through a lane:
//
//	Submit ─▶ slot ─▶ step: one operation ─▶ Completed ─▶ judge ─┬─ more to do ─▶ step
//	                   └─ no room ─▶ stalled ─▶ Flush, or a timer ─┘               (or stalled)
//	                                                              └─ end ─▶ Handler.Done ─▶ Events.Room

// lane is one worker's way to the file.
type lane struct {
	store  *Store
	host   blk.Host
	ring   *uring.Ring
	events blk.Events
	file   uring.File

	// What takes a thread of io-wq; see turn.go.
	syncs, fallocates turn
	witness           uring.File // the same file, for fdatasync
	second            int        // its descriptor; -1: there is none

	slots   []slot
	free    []int
	stalled []int // slots whose next operation found no room in the ring
	bounce  bounce
	writer  *writer // nil: the ring writes

	left   int  // reads that were given up, and the kernel has not ended
	closed bool // with some left

	owes  bool // a request was handed back, and Room is due
	timer uring.Timer

	// Reads of what the page cache has not that are under way, and were at the last look; whether none has ended for so long.
	fetches, fetched int
	dry              bool

	// While there are requests, somebody looks whether any ends.
	watch uring.Timer
	wait  time.Duration // until the next look
	moves bool          // one has ended since the last
}

// slot is what the lane keeps of a request.
type slot struct {
	op        uring.Op // its Tag is the slot's number
	r         *blk.Request
	vector    *uring.Vector
	chunk     []byte // of bounce memory; nil: the request's own buffers are used
	done      uint64 // bytes of the request that are
	length    uint64 // bytes that the operation under way is for
	stage     stage
	retries   uint8
	broken    bool // the guest took its memory away
	fetches   bool // the page cache has not all of what is being read
	withdrawn bool
}

// stage is which way a request is being done.
type stage uint8

const (
	transferring  stage = iota // reading, writing
	flushing                   // fdatasync
	punching                   // giving blocks back, which then read as zeroes
	discarding                 // the same for a device, which may as well not zero them
	freeing                    // the same, until kernel 6.11
	ranging                    // making a range zero without giving it back
	writingZeroes              // from memory
	syncing                    // the fdatasync behind a fallocate with FUA
)

// pause is how long the lane waits for room in a ring that others have filled.
const pause = time.Millisecond

// share is how much of what is left of the ring a lane may have: that many requests, for each that could yet begin, are another one's. However many lanes have all they may of
// files that do not answer, there is some left for the next one: with n of them a part in 1+n/share.
const share = 4

// remoteDepth is how many requests a lane takes for a file each of whose operations takes a thread of io-wq, and may keep it.
const remoteDepth = 64

// How long nothing may end before io-wq is nudged, at first and as time goes by.
const (
	leastWait = 50 * time.Millisecond
	mostWait  = time.Second
)

// maxRetries bounds how often an operation that ended for no reason of its own (EINTR, EAGAIN) begins again.
const maxRetries = 16

func newLane(s *Store, h blk.Host, e blk.Events) (*lane, error) {
	depth := s.options.Depth
	if s.shape.remote {
		depth = min(depth, remoteDepth)
	}
	l := &lane{store: s, host: h, ring: h.Ring, events: e, slots: make([]slot, depth), free: make([]int, depth), stalled: make([]int, 0, depth),
		syncs: newTurn(depth), fallocates: newTurn(depth), second: -1}
	l.timer.Handler, l.watch.Handler = l, l
	for i := range l.slots {
		l.slots[i].op = uring.Op{Handler: l, Tag: i}
		l.free[i] = len(l.free) - 1 - i
	}
	if s.shape.direct || s.shape.remote {
		if err := l.bounce.open(); err != nil {
			return nil, err
		}
	}
	l.openWitness()
	var err error
	h.Worker.Do(func() {
		if err = l.register(); err == nil {
			e.Up(true) // the kernel keeps what it was given, whoever was killed
		}
	})
	if err == nil && s.shape.waits {
		if l.writer, err = newWriter(l, s.fd, len(l.slots)); err != nil {
			h.Worker.Do(l.unregister)
		}
	}
	if err != nil {
		l.closeWitness()
		l.bounce.close()
		return nil, err
	}
	return l, nil
}

// Submit implements blk.Lane.
func (l *lane) Submit(r *blk.Request) bool {
	if n := len(l.slots) - len(l.free); n > 0 && n*share > l.ring.Room(len(r.Buffers)) || len(l.free) == 0 {
		return l.refuse()
	}
	index := l.free[len(l.free)-1]
	s := &l.slots[index]
	*s = slot{op: s.op, r: r, stage: l.first(r)}
	if !l.prepare(s) || !l.step(s) {
		l.release(s)
		return l.refuse()
	}
	r.Slot = index
	l.free = l.free[:len(l.free)-1]
	l.host.Worker.Owe(1)
	if !l.watch.Running() {
		l.wait = leastWait
		l.ring.Start(&l.watch, leastWait)
	}
	return true
}

// refuse hands a request back. A completion will make room; a timer looks for it where none is under way.
func (l *lane) refuse() bool {
	l.owes = true
	if !l.timer.Running() {
		l.ring.Start(&l.timer, pause)
	}
	return false
}

// first is how a request begins.
func (l *lane) first(r *blk.Request) stage {
	switch {
	case r.Op == blk.OpFlush:
		return flushing
	case r.Op == blk.OpDiscard && l.store.shape.device:
		return l.store.discards()
	case r.Op == blk.OpDiscard, r.Op == blk.OpWriteZeroes && r.Unmap && !l.store.noPunch.Load():
		return punching
	case r.Op == blk.OpWriteZeroes && !l.store.noRange.Load():
		return ranging
	case r.Op == blk.OpWriteZeroes:
		return writingZeroes
	}
	return transferring
}

// step begins a request's next operation; false: there is no room for it in the ring.
func (l *lane) step(s *slot) bool {
	switch s.stage {
	case transferring:
		return l.transfer(s)
	case writingZeroes:
		return l.writeZeroes(s)
	}
	return l.inTurn(s)
}

// again begins the next operation now, or when there is room.
func (l *lane) again(s *slot) {
	if l.step(s) {
		return
	}
	l.stalled = append(l.stalled, s.op.Tag)
	if !l.timer.Running() {
		l.ring.Start(&l.timer, pause)
	}
}

// resume begins what found no room.
func (l *lane) resume() {
	n := 0
	for n < len(l.stalled) && l.step(&l.slots[l.stalled[n]]) {
		n++
	}
	l.stalled = l.stalled[:copy(l.stalled, l.stalled[n:])]
}

// write begins a write of the slot's vector: by the ring, or by the thread that may wait.
func (l *lane) write(s *slot, offset uint64) bool {
	if l.writer != nil {
		l.writer.ask(s.op.Tag, s.vector, int64(offset), stable(s.r))
		return true
	}
	return l.ring.Writev(&s.op, l.file, s.vector, int64(offset), stable(s.r))
}

// written takes what the writer has done.
func (l *lane) written(index int, res int32) {
	s := &l.slots[index]
	if s.r == nil {
		l.forget(s)
		return
	}
	s.op.Handler.Completed(&s.op, res, 0)
}

// Completed implements uring.Handler, also for what the writer did.
func (l *lane) Completed(op *uring.Op, res int32, _ uint32) {
	s := &l.slots[op.Tag]
	if l.moves = true; s.fetches {
		l.arrived(s)
	}
	if s.r == nil {
		l.ended(s)
		return
	}
	t, off := l.leave(s), s.withdrawn
	if l.take(s, res); t != nil {
		l.next(t, res, off)
	}
	l.room()
}

// arrived counts the end of a read that the disk was asked for.
func (l *lane) arrived(s *slot) {
	s.fetches = false
	l.fetches--
	l.fetched, l.dry = 0, false
}

// take takes the result of a slot's operation.
func (l *lane) take(s *slot, res int32) {
	if outcome, ended := l.judge(s, res); ended {
		l.end(s, outcome)
	} else {
		l.again(s)
	}
}

// room tells that there is some, if somebody waits for it.
func (l *lane) room() {
	if l.owes && len(l.free) > 0 {
		l.owes = false
		l.events.Room()
	}
}

// look nudges io-wq if nothing of what it may have has ended, and notes whether the disk gives nothing.
func (l *lane) look() {
	if len(l.free) == len(l.slots) {
		return
	}
	if l.moves {
		l.wait = leastWait
	} else {
		if l.asks() {
			l.ring.Nudge()
		}
		l.wait = min(l.wait+l.wait/4, mostWait)
	}
	l.moves = false
	l.fetched, l.dry = l.fetches, l.dry || l.fetched > 0
	l.ring.Start(&l.watch, l.wait)
}

// asks tells whether the ring has anything of the lane's; the writer's is none of io-wq's business.
func (l *lane) asks() bool {
	for i := range l.slots {
		if l.slots[i].op.Busy() {
			return true
		}
	}
	return false
}

// Expired implements uring.TimerHandler: others may have made room in the ring.
func (l *lane) Expired(t *uring.Timer) {
	if t == &l.watch {
		l.look()
		return
	}
	l.resume()
	l.room()
	if len(l.stalled) > 0 {
		l.ring.Start(&l.timer, pause)
	}
}

// judge takes the result of an operation: what becomes of the request, or that it goes on.
func (l *lane) judge(s *slot, res int32) (o blk.Outcome, ended bool) {
	switch {
	case s.broken:
		return blk.Failed, true
	case res < 0:
		if o, ended = l.failed(s, unix.Errno(-res)); ended {
			return o, true
		}
	case s.stage == flushing || s.stage == syncing:
		if l.store.doubtful.Load() {
			return blk.Failed, true
		}
		return blk.OK, true
	default:
		if ok := l.progress(s, uint64(res)); !ok {
			return blk.Failed, true
		}
		if s.done == s.r.Length {
			if !s.r.FUA || s.stage == transferring || s.stage == writingZeroes {
				return blk.OK, true
			}
			s.stage = syncing
		}
	}
	if s.withdrawn {
		return blk.Withdrawn, true
	}
	return blk.OK, false
}

// progress counts what an operation has done; false: nothing, or into memory that is gone.
func (l *lane) progress(s *slot, n uint64) bool {
	if s.stage != transferring && s.stage != writingZeroes {
		n = s.length // fallocate does all or nothing
	}
	if s.done+n < s.r.Length {
		n &^= l.store.shape.offsetMask // what is left begins at a block again
	}
	if n == 0 && s.done < s.r.Length {
		return false // the file has become shorter
	}
	if s.chunk != nil && s.r.Op == blk.OpRead && !scatter(s.r.Buffers, s.done, s.chunk[:n]) {
		return false
	}
	s.done += n
	s.retries = 0
	return true
}

// failed takes an error: what becomes of the request, or that it is tried again, perhaps in another way.
func (l *lane) failed(s *slot, errno unix.Errno) (o blk.Outcome, ended bool) {
	switch errno {
	case unix.ECANCELED:
		if s.withdrawn {
			return blk.Withdrawn, true
		}
		return blk.Lost, true // the ring is being closed
	case unix.EINTR, unix.EAGAIN:
		s.retries++
		return blk.Failed, s.retries > maxRetries && !s.withdrawn
	case unix.EOPNOTSUPP, unix.ENOSYS:
		return blk.Unsupported, !l.fallBack(s)
	}
	l.doubt(s, errno)
	return blk.Failed, true
}

// doubt notes that the kernel could not write back what lies in the page cache. It tells that once, to whoever asks first, and forgets what it could not
// write: no flush can be believed from then on, until the file is opened anew.
func (l *lane) doubt(s *slot, errno unix.Errno) {
	if l.store.shape.direct {
		return // what is written is at the disk, and each flush asks the disk itself
	}
	flush := s.stage == flushing || s.stage == syncing
	if flush || errno == unix.EIO && s.r.Op != blk.OpRead && stable(s.r) != 0 {
		l.store.doubtful.Store(true)
	}
}

// end gives the slot back and tells who submitted the request, who may submit the next one at once.
func (l *lane) end(s *slot, o blk.Outcome) {
	r := s.r
	l.vacate(s)
	l.host.Worker.Owe(-1)
	r.Handler.Done(r, o)
}

// vacate makes the slot free.
func (l *lane) vacate(s *slot) {
	l.release(s)
	s.r = nil
	l.free = append(l.free, s.op.Tag)
}

// giveUp ends a request before its operation has ended, which no memory of the guest's has part in.
func (l *lane) giveUp(s *slot) {
	r, t := s.r, l.leave(s)
	s.r = nil
	l.host.Worker.Owe(-1)
	if t != nil {
		l.begin(t)
	}
	r.Handler.Done(r, blk.Withdrawn)
}

// forget frees the slot of a request that was given up.
func (l *lane) forget(s *slot) {
	l.vacate(s)
	l.room()
}

// ended hears that the kernel has nothing more of a read that was given up, perhaps of a lane that is closed.
func (l *lane) ended(s *slot) {
	l.left--
	l.forget(s)
	if l.closed && l.left == 0 {
		l.bounce.close()
	}
}

// release gives back what a request had.
func (l *lane) release(s *slot) {
	if s.vector != nil {
		l.ring.Free(s.vector)
		s.vector = nil
	}
	if s.chunk != nil {
		l.bounce.put(s.chunk)
		s.chunk = nil
	}
}

// Withdraw implements blk.Lane: what waits comes back now, what is under way is cancelled. What a device has begun comes back when it has done it; but for a read into
// bounce memory, which nobody waits for: the guest's memory is no part of it any more.
func (l *lane) Withdraw(r *blk.Request) {
	if r.Slot < 0 || r.Slot >= len(l.slots) || l.slots[r.Slot].r != r {
		return
	}
	s := &l.slots[r.Slot]
	s.withdrawn = true
	if l.ring.Cancel(&s.op) {
		if s.chunk != nil && r.Op == blk.OpRead {
			l.left++
			l.giveUp(s) // and Completed frees the slot
		}
		return
	}
	if l.writer != nil && l.writer.takeBack(r.Slot) {
		l.giveUp(s) // and written frees the slot
		return
	}
	t := l.turn(s)
	if without(&l.stalled, r.Slot) || without(&t.waiting, r.Slot) || without(&t.along, r.Slot) {
		l.end(s, blk.Withdrawn)
		l.begin(t) // it may have been this one's turn
	}
}

// Flush implements blk.Lane. The ring, which its worker flushes, sends what was pushed.
func (l *lane) Flush() {
	if len(l.stalled) > 0 {
		l.resume()
	}
}

// Close implements blk.Lane.
func (l *lane) Close() {
	l.ring.Stop(&l.timer)
	l.ring.Stop(&l.watch)
	if l.writer != nil {
		l.writer.close()
		for i := range l.slots {
			if s := &l.slots[i]; !s.op.Busy() {
				l.release(s) // what was taken back, and not yet passed over
			}
		}
	}
	l.unregister()
	l.closeWitness()
	l.owes = false
	if l.closed = true; l.left == 0 {
		l.bounce.close()
	}
	l.store.gone()
}
