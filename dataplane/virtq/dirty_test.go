package virtq

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

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

// switchLog begins or ends the move. Only a Lasting queue has chains under way then, unless they are read-only.
func (m *mover) switchLog(t *rapid.T) {
	if !m.device.dirty.lasting {
		m.publishUsed(t)
		if len(m.taken) > 0 {
			return
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
						"armDevice": p.armDevice, "switch": p.switchLog, "sync": p.sync,
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

// A front-end copies what is marked while the device works, and is the same in the end. What is marked too early shows here.
func TestDirtyLogMeanwhile(t *testing.T) {
	for _, m := range []mode{{}, {packed: true}, {packed: true, inOrder: true, eventIdx: true}} {
		t.Run(m.String(), func(t *testing.T) {
			p := newPair(t, 16, m.bases(16)[0], m)
			log := newTestLog(t, rigEnd/guestmem.LogPage)
			p.device.SetLog(log.Log, rigBase+rigUsed)
			copies := make([]byte, rigMiddle-rigBase)
			memory := p.memory.View(rigBase, rigMiddle-rigBase)
			copyMarked := func() {
				for _, addr := range log.take() {
					copy(copies[addr-rigBase:][:guestmem.LogPage], memory[addr-rigBase:])
				}
			}
			copy(copies, memory)
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					default:
						copyMarked()
					}
				}
			}()
			var one [1]Buffer
			for i := range uint64(20_000) {
				one[0] = Buffer{Addr: data + i%8*guestmem.LogPage, Len: 8}
				p.driver.Add(nil, one[:])
				p.driver.Publish()
				log.Mark(rigBase, rigUsed-1) // what the driver writes, by the hypervisor
				if err := p.device.Next(p.chain); err != nil {
					t.Fatal(err)
				}
				binary.LittleEndian.PutUint64(p.chain.Writable[0], i)
				p.device.Complete(p.chain.Head, 8)
				p.device.Publish()
				p.device.Arm()
				p.driver.Used()
			}
			close(stop)
			<-done
			copyMarked()
			for addr := 0; addr < len(copies); addr += guestmem.LogPage {
				if string(copies[addr:addr+guestmem.LogPage]) != string(memory[addr:addr+guestmem.LogPage]) {
					t.Errorf("the page at %#x differs", rigBase+addr)
				}
			}
		})
	}
}
