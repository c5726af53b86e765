package verify

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ErrData says that the device has lost, torn, misplaced or made up data, or vouched for what is not there.
var ErrData = errors.New("data is not what it must be")

// Model is what may lie on a disk. Any goroutine may use it.
type Model struct {
	unit    int // bytes
	seed    uint64
	durable bool // what ended is durable: there is no volatile cache

	mu      sync.Mutex
	units   []unit
	now     uint64 // counts events
	flushed uint64 // the latest beginning of a flush that ended well
	crashes []crash
	flushes []uint64 // under way, by when they were issued
	vouches []vouch
}

// vouch is a flush that ended well while others were under way. If one of those fails, the driver was told then: answers on several queues have no order.
type vouch struct {
	issued uint64
	waits  []uint64 // flushes that were under way when it ended, and still are
}

// unit is a piece of the disk, and what may lie there, oldest first.
type unit struct {
	writes           []write
	readers, writers uint16 // requests under way
}

// kind is what a write leaves.
type kind uint8

const (
	data kind = iota
	zeroes
	discarded // zeroes, or what was there
	unknown   // anything: the disk as it was found
)

type write struct {
	issued, ended uint64 // ended 0: under way
	unseen        uint64 // when something else was seen in its place; 0: not so
	kind          kind
	failed        bool
}

// crash is one of a server.
type crash struct {
	at      uint64 // it was over
	flushed uint64 // what ended before this survived
	told    bool   // a flush has failed since
	lost    []loss // what was found lost, and nobody was told yet
}

type loss struct {
	ended uint64
	what  string
}

// newModel makes the model of a disk of so many units.
func newModel(units, size int, seed uint64, first kind, durable bool) *Model {
	m := &Model{unit: size, seed: seed, durable: durable, units: make([]unit, units), now: 1}
	for i := range m.units {
		m.units[i].writes = []write{{issued: 1, ended: 1, kind: first}}
	}
	return m
}

func (m *Model) tick() uint64 {
	m.now++
	return m.now
}

// free tells whether a request for units from … to-1 can be begun without meeting another: a read may meet reads.
func (m *Model) free(from, to int, writes bool) bool {
	for i := from; i < to; i++ {
		if u := &m.units[i]; u.writers > 0 || writes && u.readers > 0 {
			return false
		}
	}
	return true
}

// beginRead notes a read of units, and when it began. Unless overlapping is allowed, it may not meet a write.
func (m *Model) beginRead(from, to int, overlap bool) (issued uint64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !overlap && !m.free(from, to, false) {
		return 0, false
	}
	for i := from; i < to; i++ {
		m.units[i].readers++
	}
	return m.tick(), true
}

// endRead judges what a read of units brought; p nil: it failed.
func (m *Model) endRead(from, to int, issued uint64, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	for i := from; i < to; i++ {
		if p != nil && err == nil {
			err = m.see(i, issued, p[(i-from)*m.unit:][:m.unit])
		}
		m.units[i].readers--
		m.prune(&m.units[i])
	}
	return err
}

// beginWrite notes a write, which is issued now.
func (m *Model) beginWrite(from, to int, k kind, overlap bool) (issued uint64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !overlap && !m.free(from, to, true) {
		return 0, false
	}
	issued = m.tick()
	for i := from; i < to; i++ {
		u := &m.units[i]
		m.prune(u)
		u.writers++
		u.writes = append(u.writes, write{issued: issued, kind: k})
	}
	return issued, true
}

// endWrite notes its end.
func (m *Model) endWrite(from, to int, issued uint64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := m.tick()
	for i := from; i < to; i++ {
		u := &m.units[i]
		u.writers--
		for j := range u.writes {
			if w := &u.writes[j]; w.issued == issued {
				w.ended, w.failed = end, !ok
			}
		}
	}
}

func (m *Model) beginFlush() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes = append(m.flushes, m.tick())
	return m.now
}

// forgetFlush takes back beginFlush: it was not issued.
func (m *Model) forgetFlush(issued uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes = without(m.flushes, issued)
	for i := range m.vouches {
		m.vouches[i].waits = without(m.vouches[i].waits, issued)
	}
}

// endFlush notes the end of a flush. One that ends well vouches for all that ended before it began; one that fails has told the driver of every crash up to now.
func (m *Model) endFlush(issued uint64, ok bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes = without(m.flushes, issued)
	if ok {
		m.flushed = max(m.flushed, issued)
		m.vouches = append(m.vouches, vouch{issued, slices.Clone(m.flushes)})
	} else {
		for i := range m.crashes {
			m.crashes[i].told = true
		}
		m.vouches = slices.DeleteFunc(m.vouches, func(v vouch) bool { return slices.Contains(v.waits, issued) })
	}
	waiting := m.vouches[:0]
	var err error
	for _, v := range m.vouches {
		if v.waits = without(v.waits, issued); len(v.waits) > 0 {
			waiting = append(waiting, v)
		} else if e := m.believe(v.issued); e != nil {
			err = e
		}
	}
	m.vouches = waiting
	return err
}

// believe applies what a flush vouches for to the crashes that nobody was told of.
func (m *Model) believe(issued uint64) error {
	for i := range m.crashes {
		c := &m.crashes[i]
		if c.told {
			continue
		}
		c.flushed = max(c.flushed, issued)
		for _, l := range c.lost {
			if l.ended < issued {
				return fmt.Errorf("%w: a server crashed and lost an acknowledged write, the next flush ended well all the same: %s", ErrData, l.what)
			}
		}
	}
	return nil
}

func without(all []uint64, one uint64) []uint64 {
	return slices.DeleteFunc(all, func(x uint64) bool { return x == one })
}

// beginCrash and endCrash note that a server crashes at a time between them.
func (m *Model) beginCrash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashes = append(m.crashes, crash{at: ^uint64(0), flushed: m.flushed})
}

func (m *Model) endCrash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashes[len(m.crashes)-1].at = m.tick()
}

// holds tells whether a write that ended well is still there after all crashes. strict: as if there had been none.
func (m *Model) holds(w *write, strict bool) bool {
	if w.ended == 0 || w.failed || w.kind == discarded {
		return false
	}
	if strict || m.durable {
		return true
	}
	for i := range m.crashes {
		if c := &m.crashes[i]; w.issued < c.at && w.ended >= c.flushed {
			return false
		}
	}
	return true
}

// hidden tells whether a write is hidden by one that ended before a time; by which.
func (m *Model) hidden(u *unit, w *write, before uint64, strict bool) *write {
	if w.ended == 0 {
		return nil
	}
	for i := range u.writes {
		if k := &u.writes[i]; k.ended < before && k.issued > w.ended && m.holds(k, strict) {
			return k
		}
	}
	return nil
}

// prune drops what can never be seen again: hidden by what is durable.
func (m *Model) prune(u *unit) {
	if u.readers > 0 || len(u.writes) == 1 {
		return
	}
	before := m.flushed
	if m.durable {
		before = m.now + 1
	}
	kept := u.writes[:0]
	for i := range u.writes {
		w := u.writes[i]
		if m.hidden(u, &w, before, false) == nil && !m.sameDiscard(u, &w) {
			kept = append(kept, w)
		}
	}
	u.writes = kept
}

// sameDiscard tells whether a discard is followed by another one, which leaves what it leaves.
func (m *Model) sameDiscard(u *unit, w *write) bool {
	return w.kind == discarded && w.ended != 0 && slices.ContainsFunc(u.writes, func(k write) bool {
		return k.kind == discarded && k.issued > w.ended
	})
}

// visible tells whether a read that was issued then may see a write.
func (m *Model) visible(u *unit, w *write, issued uint64, strict bool) bool {
	if w.unseen != 0 && w.unseen < issued && !slices.ContainsFunc(m.crashes, func(c crash) bool { return c.at > w.unseen }) {
		return false
	}
	return m.hidden(u, w, issued, strict) == nil
}

// see judges one unit, block by block.
func (m *Model) see(i int, issued uint64, p []byte) error {
	u := &m.units[i]
	seen, same := -1, true
	for at := 0; at < len(p); at += blockSize {
		block := p[at : at+blockSize]
		sector := uint64(i*m.unit+at) / blockSize
		j := m.match(u, sector, issued, block, true)
		if j < 0 {
			if j = m.match(u, sector, issued, block, false); j < 0 {
				return fmt.Errorf("%w: sector %d has %s; it may have %s", ErrData, sector, describe(block), m.allowed(u, sector, issued))
			}
			m.excuse(u, j, issued, fmt.Sprintf("sector %d has %s", sector, describe(block)))
		}
		if seen >= 0 && j != seen {
			same = false
		}
		seen = j
	}
	if same && u.writers == 0 {
		m.settle(u, seen, issued)
	}
	return nil
}

// match finds the write that a block is of; negative: none that it may be.
func (m *Model) match(u *unit, sector, issued uint64, block []byte, strict bool) int {
	s, f := read(block)
	for j := len(u.writes) - 1; j >= 0; j-- {
		w, is := &u.writes[j], false
		switch w.kind {
		case data:
			is = f == foundData && s == stamp{sector: sector, generation: w.issued, seed: m.seed}
		case zeroes, discarded:
			is = f == foundZero
		case unknown:
			is = true
		}
		if is && m.visible(u, w, issued, strict) {
			return j
		}
	}
	return -1
}

// excuse notes that a write is seen that is hidden but for a crash: one that the driver was told of, or else the next flush must fail.
func (m *Model) excuse(u *unit, j int, issued uint64, what string) {
	k := m.hidden(u, &u.writes[j], issued, true)
	if k == nil {
		return
	}
	var untold *crash
	for i := range m.crashes {
		c := &m.crashes[i]
		if k.issued >= c.at || k.ended < c.flushed {
			continue
		}
		if c.told {
			return
		}
		untold = c
	}
	if untold != nil {
		untold.lost = append(untold.lost, loss{k.ended, what})
	}
}

// settle notes that a unit was seen to hold one write throughout, while nobody wrote: others are not to be seen any more, unless a crash brings them back.
func (m *Model) settle(u *unit, seen int, issued uint64) {
	if slices.ContainsFunc(u.writes, func(w write) bool {
		return w.kind == discarded || w.kind == unknown || w.issued > issued || w.ended > issued
	}) {
		return
	}
	for j := range u.writes {
		if w := &u.writes[j]; j == seen {
			w.unseen = 0
		} else if w.unseen == 0 || slices.ContainsFunc(m.crashes, func(c crash) bool { return c.at > w.unseen }) {
			w.unseen = m.now
		}
	}
}

// allowed lists what a sector may have, for people.
func (m *Model) allowed(u *unit, sector, issued uint64) string {
	var all []string
	for j := range u.writes {
		w := &u.writes[j]
		if !m.visible(u, w, issued, false) {
			continue
		}
		state := "acknowledged"
		switch {
		case w.ended == 0:
			state = "under way"
		case w.failed:
			state = "failed"
		}
		what := [...]string{data: fmt.Sprintf("generation %d", w.issued), zeroes: "zeroes", discarded: "zeroes (discarded)", unknown: "anything"}[w.kind]
		all = append(all, what+" "+state)
	}
	return fmt.Sprintf("%q", all)
}
