package blk

import (
	"sync"
	"sync/atomic"
)

// ledger knows whether a volume has writes that were acknowledged and may not be stable, over all of its lanes, without any of them writing what another
// one writes for each request.
//
//	flush submitted            epoch+1; the flush carries it
//	write acknowledged         its lane notes the epoch it fell into
//	flush done                 what was acknowledged in an epoch before the flush's own is stable: flushed
//	a lane up, nothing kept    is there a lane whose last write is in an epoch that is not flushed? Then the guest is to be told
//
// A flush covers the writes of all lanes that were done when it was submitted (Info.Lanes), and none that was done later.
//
// When a store has lost writes, every flush fails until one has told the guest, and so does each that was submitted before that: it might have covered them.
//
// What cannot be known here: a store that ends twice, while one lane is away all the time and another one comes back in between and has not noticed the second
// end. A flush on the first lane then goes well although it covers none of what the second lane wrote in between.
type ledger struct {
	epoch   atomic.Uint64 // of the last flush that was submitted; begins at 1
	flushed atomic.Uint64 // writes of earlier epochs are stable

	owed atomic.Bool   // the guest is to be told: all flushes fail
	lost atomic.Uint64 // those up to this epoch fail

	// losses counts stores that came back without what they had acknowledged; failed the flushes that told the guest.
	losses, failed atomic.Uint64

	mu    sync.Mutex // who judges, or adds a page; workers hold it for a moment, when a store comes back
	pages []*page
}

// page is a lane's in the ledger. When the lane is closed another one goes on with it, so that what it holds is not forgotten.
type page struct {
	last atomic.Uint64 // epoch of the last write acknowledged; written by the lane's worker
	told atomic.Uint64 // writes of earlier epochs are given up, and the guest is told
	up   atomic.Int64  // when the lane came back last, having lost what the store had; 0: never
	down int64         // when it went away last; the lane's worker's
	open bool          // a lane has it; under ledger.mu

	// count is how many writes were acknowledged since the last flush, at most; fresh those of them in the newest epoch. Written by the
	// lane's worker.
	count, fresh atomic.Uint64
	_            [64]byte // the next page belongs to another worker
}

func (l *ledger) init() {
	l.epoch.Store(1)
	l.flushed.Store(1)
}

// page gives a lane its page.
func (l *ledger) page() *page {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pages {
		if !p.open {
			p.open = true
			p.up.Store(0)
			p.down = 0
			return p
		}
	}
	p := &page{open: true}
	l.pages = append(l.pages, p)
	return p
}

func (l *ledger) leave(p *page) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.open = false
	p.up.Store(0)
}

// acknowledge notes a write that is done and may not be stable. On the page's worker.
func (l *ledger) acknowledge(p *page) {
	e := l.epoch.Load()
	if p.last.Load() != e {
		p.turn(l.flushed.Load())
		p.last.Store(e)
		// Who judges moves the epoch on and then looks at last. If that came in between, this write is one of the new epoch.
		if now := l.epoch.Load(); now != e {
			p.last.Store(now)
		}
	}
	p.fresh.Store(p.fresh.Load() + 1)
}

// turn begins another epoch of a page's count.
func (p *page) turn(flushed uint64) {
	if p.last.Load() < flushed {
		p.count.Store(0)
	} else {
		p.count.Store(p.count.Load() + p.fresh.Load())
	}
	p.fresh.Store(0)
}

// begin is for a flush that is submitted.
func (l *ledger) begin() (epoch uint64) { return l.epoch.Add(1) }

// cover is for a flush that is done.
func (l *ledger) cover(epoch uint64) { raise(&l.flushed, epoch) }

func raise(a *atomic.Uint64, to uint64) {
	for {
		old := a.Load()
		if old >= to || a.CompareAndSwap(old, to) {
			return
		}
	}
}

// unstable tells whether the page has writes that are neither stable nor given up.
func (l *ledger) unstable(p *page) bool { return p.last.Load() >= max(l.flushed.Load(), p.told.Load()) }

// judge is for a lane that came back to a store which has lost what was not flushed. It tells how many acknowledged writes are in doubt.
//
// Each lane finds out for itself, so the same end of a store is seen several times. What another lane was told was done since it came back from this end has not been
// lost by it: its last return is later than our departure.
func (l *ledger) judge(p *page, now int64) (doubtful uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	epoch, any := l.begin(), false
	for _, other := range l.pages {
		if other != p && other.up.Load() > p.down || !l.unstable(other) {
			continue
		}
		any = true
		doubtful += other.count.Load() + other.fresh.Load()
		raise(&other.told, epoch)
	}
	p.up.Store(now)
	if any {
		// What has survived is no more stable than it was. It is this lane's from now on, so that it counts if the store ends once more.
		p.last.Store(epoch)
		p.count.Store(doubtful)
		p.fresh.Store(0)
		l.losses.Add(1)
		l.owed.Store(true)
		return max(doubtful, 1)
	}
	return 0
}

// fails tells whether a flush of this epoch must fail because of what was lost.
func (l *ledger) fails(epoch uint64) bool { return l.owed.Load() || epoch <= l.lost.Load() }

// tell is for when a flush has failed for that, and the guest is about to know. Flushes that it submitted before it knew fail, too.
func (l *ledger) tell() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed.Add(1)
	if l.owed.Load() {
		l.lost.Store(l.epoch.Load())
		l.owed.Store(false)
	}
}

// unflushed is how many writes were acknowledged since the last flush that succeeded; at most, while several flushes are under way.
func (l *ledger) unflushed() (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pages {
		if l.unstable(p) {
			n += p.count.Load() + p.fresh.Load()
		}
	}
	return n
}
