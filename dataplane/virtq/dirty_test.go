package virtq

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// testLog is a dirty log and the front-end's side of it.
type testLog struct {
	*guestmem.Log
	words []uint64
}

func newTestLog(t testing.TB, pages int) *testLog {
	t.Helper()
	fd, err := shm.NewMemFD("virtq-log", 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mapping, err := shm.Map(shm.MapOptions{FD: fd, Length: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mapping.Free() })
	log, err := guestmem.OpenLog(guestmem.LogOptions{FD: fd, Size: uint64(pages+7) / 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Free() })
	words, err := shm.View[uint64](mapping.Bytes(), 512)
	if err != nil {
		t.Fatal(err)
	}
	return &testLog{Log: log, words: words}
}

// take takes the marks away, as addresses of pages.
func (l *testLog) take() (pages []uint64) {
	for i := range l.words {
		for bits := atomic.SwapUint64(&l.words[i], 0); bits != 0; bits &= bits - 1 {
			pages = append(pages, uint64(i*64+trailing(bits))*guestmem.LogPage)
		}
	}
	return pages
}

func trailing(bits uint64) (n int) {
	for bits&1 == 0 {
		bits >>= 1
		n++
	}
	return n
}

// twin is the guest's memory on the machine it moves to.
type twin map[uint64]string

func (r *rig) page(addr uint64) string { return string(r.memory.View(addr, guestmem.LogPage)) }

func (r *rig) copyAll(to twin) {
	for addr := uint64(rigBase); addr < rigEnd; addr += guestmem.LogPage {
		to[addr] = r.page(addr)
	}
}

// mover is a pair whose guest moves, perhaps: log is set and taken away while the queue runs.
type mover struct {
	*pair
	log *testLog
	on  bool
	to  twin
}

// driver does something on the guest's side. What that writes, the hypervisor knows.
func (m *mover) guest(do func(*rapid.T)) func(*rapid.T) {
	return func(t *rapid.T) {
		before := twin{}
		if m.on {
			m.copyAll(before)
		}
		do(t)
		for addr, was := range before {
			if now := m.page(addr); now != was {
				m.to[addr] = now
			}
		}
	}
}

func (m *mover) complete(t *rapid.T) {
	before := len(m.used)
	m.pair.complete(t)
	if len(m.used) > before {
		// The device writes before it completes; done here after it, as nothing of that is seen before Publish.
		q := m.requests[m.used[before]]
		m.write(q.writable, q.written)
	}
}

// back writes something before it gives the chain back.
func (m *mover) back(t *rapid.T) {
	if n := len(m.taken); n > 0 {
		head := m.taken[n-1]
		if m.pair.back(t); len(m.taken) < n {
			m.write(m.requests[head].writable, 10)
		}
	}
}

// write changes the first bytes of buffers.
func (m *mover) write(buffers []Buffer, left uint32) {
	for _, b := range buffers {
		n := min(left, b.Len)
		fill := m.memory.View(b.Addr, n)
		for i := range fill {
			fill[i] += byte(i) + 1
		}
		left -= n
	}
}

func (m *mover) several(t *rapid.T) {
	m.guest(func(t *rapid.T) {
		for range rapid.IntRange(1, 5).Draw(t, "added") {
			m.add(t)
		}
		m.publish(t)
	})(t)
	for range len(m.offered) {
		m.next(t)
	}
	for range rapid.IntRange(0, len(m.taken)).Draw(t, "completed") {
		m.complete(t)
	}
}

// switchLog begins or ends the move. Only a Lasting queue has chains under way then, unless they are read-only.
func (m *mover) switchLog(t *rapid.T) {
	if !m.device.dirty.lasting {
		for _, head := range append(append([]uint16{}, m.taken...), m.used...) {
			if len(m.requests[head].writable) > 0 {
				return
			}
		}
	}
	if m.on = !m.on; m.on {
		m.log.take()
		m.device.SetLog(m.log.Log, rigBase+rigUsed)
		m.to = twin{}
		m.copyAll(m.to)
	} else {
		m.device.SetLog(nil, 0)
		if m.log.take(); m.log.Missed() != 0 {
			t.Fatal("marks beyond the log")
		}
	}
}

// sync copies what is marked. What is not, must be the same on both sides, but for buffers that are written and not published.
func (m *mover) sync(t *rapid.T) {
	if !m.on {
		return
	}
	for _, addr := range m.log.take() {
		m.to[addr] = m.page(addr)
	}
	if len(m.used) > 0 {
		return
	}
	for addr, was := range m.to {
		if m.page(addr) != was {
			t.Fatalf("the page at %#x was written and is not marked", addr)
		}
	}
}

// A guest that moves at any time finds its memory as it was: buffers, used ring, descriptors, event suppression.
func TestDirtyLog(t *testing.T) {
	for _, m := range modes() {
		for _, lasting := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v lasting=%v", m, lasting), func(t *testing.T) {
				log := newTestLog(t, rigEnd/guestmem.LogPage)
				rapid.Check(t, func(rt *rapid.T) {
					size := 16
					base := rapid.SampledFrom(m.bases(size)).Draw(rt, "base")
					p := &mover{pair: newPair(fatal{rt}, size, base, m), log: log}
					o := p.options(size, base, base)
					o.Lasting = lasting
					p.replace(fatal{rt}, o)
					rt.Repeat(map[string]func(*rapid.T){
						"add": p.guest(p.add), "publish": p.guest(p.publish), "reclaim": p.guest(p.reclaim), "armDriver": p.guest(p.armDriver),
						"next": p.next, "complete": p.complete, "publishUsed": p.publishUsed, "back": p.back, "rewind": p.rewind,
						"armDevice": p.armDevice, "switch": p.switchLog, "sync": p.sync, "several": p.several,
					})
					p.publishUsed(rt)
					p.sync(rt)
				})
			})
		}
	}
}

// No more is marked than was written.
func TestDirtyPages(t *testing.T) {
	for _, m := range []mode{{}, {packed: true}, {inOrder: true}, {packed: true, inOrder: true}} {
		p := newPair(t, 16, m.bases(16)[0], m)
		log := newTestLog(t, rigEnd/guestmem.LogPage)
		p.device.SetLog(log.Log, rigBase+rigUsed)
		p.driver.Add([]Buffer{{data, 100}}, []Buffer{{data + 0x1000, 100}, {data + 0x2ffe, 4}, {rigMiddle, 10}})
		p.driver.Publish()
		if err := p.device.Next(p.chain); err != nil {
			t.Fatal(err)
		}
		p.device.Complete(p.chain.Head, 103) // up to the third byte of the second buffer
		if pages := log.take(); len(pages) != 0 {
			t.Errorf("%v: %#x marked before Publish", m, pages)
		}
		p.device.Publish()
		ring := uint64(rigBase + rigUsed)
		if m.packed {
			ring = rigBase
		}
		if pages, want := log.take(), []uint64{ring, data + 0x1000, data + 0x2000, data + 0x3000}; !slices.Equal(pages, want) {
			t.Errorf("%v: %#x marked, want %#x", m, pages, want)
		}
		p.device.Arm()
		if pages, want := log.take(), []uint64{rigBase + rigUsed}; !slices.Equal(pages, want) {
			t.Errorf("%v: Arm marked %#x, want %#x", m, pages, want)
		}
		p.device.SetLog(nil, 0)
		p.device.Disarm()
		if pages := log.take(); len(pages) != 0 || log.Missed() != 0 {
			t.Errorf("%v: %#x marked without a log", m, pages)
		}
	}
}

// Rings longer than a page: of those pages, too, each that was written is marked and no other.
func TestDirtyRings(t *testing.T) {
	const size, base, page = 1024, rigBase, guestmem.LogPage
	for _, c := range []struct {
		packed     bool
		from, n    int
		used, ring []uint64 // pages of the used ring and of the descriptors, from their start
	}{
		{true, 0, 1, nil, []uint64{0}},
		{true, 250, 10, nil, []uint64{0, page}},
		{true, 1020, 10, nil, []uint64{0, 3 * page}},
		{true, 600, 1024, nil, []uint64{0, page, 2 * page, 3 * page}},
		{false, 0, 1, []uint64{0}, nil},
		{false, 600, 1, []uint64{0, page}, nil}, // and the index
		{false, 1020, 3, []uint64{0, page}, nil},
		{false, 1022, 10, []uint64{0, page, 2 * page}, nil}, // the last element lies on the border of two
		{false, 65533, 10, []uint64{0, page, 2 * page}, nil},
	} {
		fd, err := shm.NewMemFD("virtq-test", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		memory, err := guestmem.Open([]guestmem.Region{{GuestAddr: base, Size: 1 << 20, FD: fd}})
		if err != nil {
			t.Fatal(err)
		}
		defer memory.Free()
		b := memory.View(base, 1<<20)
		const used = 0x8000
		o := DeviceOptions{Layout: Layout{Desc: b, Avail: b[0x6000:], Used: b[used:]}, Size: size, Memory: memory, Packed: c.packed}
		if o.Base = uint16(c.from); c.packed {
			o.Base |= PackedStart
			o.UsedBase = o.Base
		} else {
			binary.LittleEndian.PutUint16(b[used+2:], o.Base)
			binary.LittleEndian.PutUint16(b[0x6002:], o.Base+uint16(c.n))
		}
		log := newTestLog(t, 1<<20/page+base/page)
		o.Log, o.UsedLog = log.Log, base+used
		q, err := NewDevice(o)
		if err != nil {
			t.Fatal(err)
		}
		at := cursorOf(o.Base)
		for i := range c.n {
			d := b[16*((c.from+i)%size):]
			binary.LittleEndian.PutUint64(d, base+0x10000)
			if c.packed {
				binary.LittleEndian.PutUint64(d[8:], packRest(1, uint16(i), 0)|at.available())
				at.advance(1, size)
			} else {
				binary.LittleEndian.PutUint16(b[0x6004+2*((c.from+i)%size):], uint16(c.from+i)%size)
				binary.LittleEndian.PutUint64(d[8:], 1)
			}
		}
		log.take() // of the event suppression
		chain := NewChain(size)
		for range c.n {
			if err := q.Next(chain); err != nil {
				t.Fatal(err)
			}
			q.Complete(chain.Head, 0)
		}
		q.Publish()
		var want []uint64
		for _, p := range c.ring {
			want = append(want, base+p)
		}
		for _, p := range c.used {
			want = append(want, base+used+p)
		}
		if pages := log.take(); !slices.Equal(pages, want) {
			t.Errorf("packed=%v, %d from %d: %#x marked, want %#x", c.packed, c.n, c.from, pages, want)
		}
		q.Arm()
		pages, want := log.take(), []uint64{base + used}
		if q.eventIdx = true; !slices.Equal(pages, want) {
			t.Errorf("packed=%v: Arm marked %#x, want %#x", c.packed, pages, want)
		}
		if q.Arm(); !c.packed {
			want[0] += 2 * page // avail_event lies behind the elements
		}
		if pages := log.take(); !slices.Equal(pages, want) {
			t.Errorf("packed=%v: Arm with an event index marked %#x, want %#x", c.packed, pages, want)
		}
	}
}

// Behind what was written of a chain lies a status that was, too: it is marked, and a packed ring says that something was written.
func TestDirtyStatus(t *testing.T) {
	for _, m := range []mode{{}, {packed: true}} {
		base := m.bases(16)[0]
		p := newPair(t, 16, base, m)
		o := p.options(16, base, base)
		o.Status = true
		p.replace(t, o)
		log := newTestLog(t, rigEnd/guestmem.LogPage)
		p.device.SetLog(log.Log, rigBase+rigUsed)
		head, _ := p.driver.Add(nil, []Buffer{{data, 100}, {data + 0x1000, 1}})
		p.driver.Publish()
		if err := p.device.Next(p.chain); err != nil {
			t.Fatal(err)
		}
		p.device.Complete(head, 0)
		p.device.Publish()
		ring := uint64(rigBase + rigUsed)
		if m.packed {
			ring = rigBase
			if flags := binary.LittleEndian.Uint16(p.file[14:]); flags&wr == 0 {
				t.Errorf("the used descriptor has flags %#x: nothing was written", flags)
			}
		}
		if pages, want := log.take(), []uint64{ring, data, data + 0x1000}; !slices.Equal(pages, want) {
			t.Errorf("%v: %#x marked, want %#x", m, pages, want)
		}
	}
}

// A log that comes and goes between Complete and Publish changes nothing of what the driver gets.
func TestLogComesAndGoes(t *testing.T) {
	for _, m := range []mode{{}, {packed: true}, {inOrder: true}} {
		p := newPair(t, 16, m.bases(16)[1], m)
		log := newTestLog(t, rigEnd/guestmem.LogPage)
		for on := range 4 {
			var heads [3]uint16
			for i := range heads {
				heads[i], _ = p.driver.Add(nil, []Buffer{{data, 100}})
			}
			p.driver.Publish()
			for i, head := range heads {
				if err := p.device.Next(p.chain); err != nil {
					t.Fatal(err)
				}
				p.device.Complete(head, uint32(i+1))
			}
			if on%2 == 0 {
				p.device.SetLog(log.Log, rigBase+rigUsed)
			} else {
				p.device.SetLog(nil, 0)
			}
			p.device.Publish()
			for i, head := range heads {
				if got, n, ok, err := p.driver.Used(); got != head || n != uint32(i+1) || !ok || err != nil {
					t.Errorf("%v: %d %d %v %v, want chain %d with %d", m, got, n, ok, err, head, i+1)
				}
			}
		}
	}
}

// What is kept for the log stays bounded, also if a driver offers one chain again and again.
func TestDirtyBounded(t *testing.T) {
	r := newRig(t, DeviceOptions{Size: 16})
	log := newTestLog(t, rigEnd/guestmem.LogPage)
	r.device.SetLog(log.Log, rigBase+rigUsed)
	for i := range 15 {
		r.put(0, i, data+uint64(i), 1, wr|next, uint16(i+1))
	}
	r.put(0, 15, data, 1, wr, 0)
	for i := range uint16(1000) {
		r.offer(i, 0)
		if err := r.device.Next(r.chain); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			r.device.Complete(0, 100)
			r.device.Publish()
		}
	}
	if n := len(r.device.dirty.extents); n > 17 {
		t.Errorf("%d extents for a chain of 16", n)
	}
}

// A front-end copies what is marked while the device works, and is the same whenever the device pauses. What is marked too early shows here.
func TestDirtyLogMeanwhile(t *testing.T) {
	for _, m := range []mode{{}, {packed: true}, {packed: true, inOrder: true, eventIdx: true}} {
		t.Run(m.String(), func(t *testing.T) {
			p := newPair(t, 16, m.bases(16)[0], m)
			log := newTestLog(t, rigEnd/guestmem.LogPage)
			p.device.SetLog(log.Log, rigBase+rigUsed)
			memory := p.memory.View(rigBase, rigMiddle-rigBase)
			// No Go memory, either: what orders the two sides is the log, and the race detector does not see into that.
			mapping, err := shm.Map(shm.MapOptions{FD: -1, Length: len(memory)})
			if err != nil {
				t.Fatal(err)
			}
			defer mapping.Free()
			copies := mapping.Bytes()
			copy(copies, memory)
			stop, done := make(chan struct{}), make(chan struct{})
			var passes atomic.Uint64 // of the front-end over the log
			go func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					default:
					}
					for _, addr := range log.take() {
						copy(copies[addr-rigBase:][:guestmem.LogPage], memory[addr-rigBase:])
					}
					passes.Add(1)
				}
			}()
			defer func() { close(stop); <-done }()
			var one [1]Buffer
			rounds := uint64(0)
			for until := time.Now().Add(500 * time.Millisecond); rounds < 10 || time.Now().Before(until); rounds++ {
				i := rounds
				one[0] = Buffer{Addr: data + i%8*guestmem.LogPage, Len: 8}
				p.driver.Add(nil, one[:])
				p.driver.Publish()
				log.Mark(rigBase, rigUsed-1) // what the driver writes, by the hypervisor
				if err := p.device.Next(p.chain); err != nil {
					t.Fatal(err)
				}
				binary.LittleEndian.PutUint64(p.chain.Writable[0], i+1)
				p.device.Complete(p.chain.Head, 8)
				p.device.Publish()
				for until := passes.Load() + 2; passes.Load() < until; {
					runtime.Gosched()
				}
				for _, at := range []uint64{0, rigUsed, one[0].Addr - rigBase} {
					if string(copies[at:at+guestmem.LogPage]) != string(memory[at:at+guestmem.LogPage]) {
						t.Fatalf("round %d: the page at %#x differs", i, rigBase+at)
					}
				}
				p.driver.Used()
			}
			t.Logf("%d rounds", rounds)
		})
	}
}
