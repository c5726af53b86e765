package blktest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane"
)

// Options configure a Store. Size must be set.
type Options struct {
	Size uint64
	// BlockSize is what survives a power cut or does not, as one. Zero: 512.
	BlockSize uint32
	// NoFlush, NoFUA: the store does not know them. Without flush it has no cache.
	NoFlush, NoFUA, ReadOnly bool
	// Lanes is as in blk.Info.
	Lanes int
	// Quiesce is as in blk.Info.
	Quiesce time.Duration
	// Depth is how many requests a lane takes at once. Zero: 1024.
	Depth int
	// Delay is how long a request takes, and up to Jitter longer. Zero: it is done when the lane is polled next.
	Delay, Jitter time.Duration
	// Away: the store is not there until Restore.
	Away bool
	// Null: no data is kept or touched, so that requests cost as little as can be.
	Null bool
	// Seed of all that is left to chance.
	Seed uint64
	// Clock is what delays are measured by. Nil: dataplane.Clock.
	Clock func() int64
	// Watcher hears of Resize; nil: nobody does.
	Watcher blk.Watcher
}

// Store is a blk.Store in memory.
type Store struct {
	options Options

	mu     sync.Mutex // workers hold it for a batch of requests
	info   blk.Info
	state  blk.State
	cache  []byte
	stable []byte // what a power cut leaves
	dirty  []bool // blocks in which these differ
	blocks []int  // the same, as a list
	lanes  []*lane
	chance *rand.Rand
	depth  int
	delay  time.Duration
	jitter time.Duration
	silent bool
	deaf   bool
	fails  []fault
	counts [blk.Ops]uint64
	lost   int
}

type fault struct {
	op    blk.Op
	after int
	o     blk.Outcome
}

var _ blk.Store = (*Store)(nil)

// ErrAway is why the store is away that was opened so.
var ErrAway = errors.New("the store is not there yet")

// New makes a store full of zeroes.
func New(o Options) *Store {
	if o.BlockSize == 0 {
		o.BlockSize = 512
	}
	if o.Depth == 0 {
		o.Depth = 1024
	}
	if o.Clock == nil {
		o.Clock = dataplane.Clock
	}
	s := &Store{options: o, depth: o.Depth, delay: o.Delay, jitter: o.Jitter, chance: rand.New(rand.NewPCG(o.Seed, 1))}
	s.info = blk.Info{
		Size: o.Size, BlockSize: o.BlockSize, Flush: !o.NoFlush, FUA: !o.NoFUA && !o.NoFlush, ReadOnly: o.ReadOnly, Lanes: o.Lanes, Quiesce: o.Quiesce,
		Discard: true, WriteZeroes: true, Describe: "a disk in memory",
	}
	s.state = blk.State{Up: true, Since: time.Now()}
	if o.Away {
		s.state.Up, s.state.Why = false, ErrAway
	}
	s.grow()
	return s
}

// grow makes room for the size.
func (s *Store) grow() {
	if s.options.Null {
		return
	}
	more := int(s.info.Size) - len(s.cache)
	if more <= 0 {
		return
	}
	s.cache = append(s.cache, make([]byte, more)...)
	s.stable = append(s.stable, make([]byte, more)...)
	blocks := len(s.cache) / int(s.options.BlockSize)
	s.dirty = append(s.dirty, make([]bool, blocks-len(s.dirty))...)
	s.blocks = append(make([]int, 0, blocks), s.blocks...)
}

// settle makes all that is in the cache stable.
func (s *Store) settle() {
	for _, i := range s.blocks {
		copy(s.block(s.stable, i), s.block(s.cache, i))
		s.dirty[i] = false
	}
	s.blocks = s.blocks[:0]
}

func (s *Store) block(of []byte, i int) []byte {
	size := int(s.options.BlockSize)
	return of[i*size:][:size]
}

// Info implements blk.Store.
func (s *Store) Info() blk.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// Refresh implements blk.Store.
func (s *Store) Refresh(context.Context) (blk.Info, error) { return s.Info(), nil }

// State implements blk.Store.
func (s *Store) State() blk.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Close implements blk.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lanes) > 0 {
		return errors.New("blktest: the store is closed before its lanes")
	}
	return nil
}

// Open implements blk.Store. The worker polls the lane itself; the ring is not used.
func (s *Store) Open(h blk.Host, e blk.Events) (blk.Lane, error) {
	l := newLane(s, h, e)
	s.mu.Lock()
	s.lanes = append(s.lanes, l)
	up := s.state.Up
	s.mu.Unlock()
	h.Worker.Do(func() {
		h.Worker.Add(l)
		if l.up = up; up {
			e.Up(true)
		}
	})
	return l, nil
}

// on runs fn for each lane, on its worker.
func (s *Store) on(fn func(*lane)) {
	s.mu.Lock()
	lanes := append([]*lane(nil), s.lanes...)
	s.mu.Unlock()
	for _, l := range lanes {
		l.host.Worker.Do(func() { fn(l) })
	}
}

// Break has all lanes lose the store. What they had was executed, or was not.
func (s *Store) Break(why error) {
	s.mu.Lock()
	s.state = blk.State{Why: why, Since: time.Now(), Reconnects: s.state.Reconnects}
	s.mu.Unlock()
	s.on(func(l *lane) { l.fall(why) })
}

// Restore has the store be back, on all lanes. If nothing is kept, each block that was not flushed is as it was then, or as it was written.
func (s *Store) Restore(kept bool) {
	s.mu.Lock()
	s.lost = 0
	if !kept {
		s.cut()
	}
	s.state = blk.State{Up: true, Since: time.Now(), Reconnects: s.state.Reconnects + 1}
	s.mu.Unlock()
	s.on(func(l *lane) { l.rise(kept) })
}

// Restart has the store die and be there anew at once, as Restore(false) says, while the lanes know nothing of it: they take requests that nobody answers until they Fall.
func (s *Store) Restart() {
	s.on(func(l *lane) { l.die() })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = 0
	s.cut()
}

// Lanes is how many there are, in the order in which they were opened.
func (s *Store) Lanes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lanes)
}

// Fall has one lane lose the store, and Rise has it back.
func (s *Store) Fall(lane int, why error) {
	l := s.lane(lane)
	l.host.Worker.Do(func() { l.fall(why) })
}

// Rise has one lane find the store again. kept is what it tells, true or not.
func (s *Store) Rise(lane int, kept bool) {
	l := s.lane(lane)
	l.host.Worker.Do(func() { l.rise(kept) })
}

func (s *Store) lane(i int) *lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[i]
}

// cut is the power cut.
func (s *Store) cut() {
	for _, i := range s.blocks {
		if s.chance.IntN(2) == 0 {
			copy(s.block(s.cache, i), s.block(s.stable, i))
			s.lost++
		}
	}
	s.settle()
}

// Lost is how many blocks the last Restore left without what had been written.
func (s *Store) Lost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Fail has a request of that kind end so: the first after so many others of it.
func (s *Store) Fail(op blk.Op, after int, o blk.Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = append(s.fails, fault{op, after, o})
}

// Silence has the store answer nothing, until it is called with false. Requests can be withdrawn.
func (s *Store) Silence(on bool) { s.set(func() { s.silent = on }) }

// Deafen has the store not hear that requests are withdrawn, like a file's read that the kernel has begun.
func (s *Store) Deafen(on bool) { s.set(func() { s.deaf = on }) }

// SetDepth changes how many requests a lane takes.
func (s *Store) SetDepth(n int) { s.set(func() { s.depth = n }) }

// set changes a fault and has every lane look at it.
func (s *Store) set(fn func()) {
	s.mu.Lock()
	fn()
	s.mu.Unlock()
	s.on((*lane).look)
}

// Resize changes the size and tells the watcher. The disk does not shrink.
func (s *Store) Resize(size uint64) { s.Become(func(i *blk.Info) { i.Size = size }) }

// Become changes what the store is and tells the watcher.
func (s *Store) Become(change func(*blk.Info)) {
	s.mu.Lock()
	change(&s.info)
	s.grow()
	i := s.info
	s.mu.Unlock()
	if s.options.Watcher != nil {
		s.options.Watcher.Changed(i)
	}
}

// Content is what a read finds. Stable is what it would find after a power cut in which nothing survives that was not flushed.
func (s *Store) Content(offset, n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.cache[offset:offset+n]...)
}

// Stable is what is on stable storage.
func (s *Store) Stable(offset, n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.stable[offset:offset+n]...)
}

// Count is how many requests of that kind were executed.
func (s *Store) Count(op blk.Op) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}
