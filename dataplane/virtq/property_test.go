package virtq

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/shuntio/shunt/dataplane/shm"
)

// mode is what was negotiated.
type mode struct{ packed, eventIdx, inOrder, indirect bool }

func (m mode) String() string {
	return fmt.Sprintf("packed=%v eventIdx=%v inOrder=%v indirect=%v", m.packed, m.eventIdx, m.inOrder, m.indirect)
}

// modes are all of them.
func modes() (all []mode) {
	for i := range 16 {
		all = append(all, mode{i&1 != 0, i&2 != 0, i&4 != 0, i&8 != 0})
	}
	return all
}

// sizes are those that a mode's ring may have.
func (m mode) sizes() []int {
	if m.packed {
		return []int{1, 3, 16}
	}
	return []int{1, 4, 16}
}

// request is a chain under way, as the driver knows it.
type request struct {
	readable, writable []Buffer
	table              int    // in rigTables of its indirect table; -1: none
	written            uint32 // what the device says it wrote
	slots              uint16 // of a packed ring, as the device says
	turn               int    // when it was taken: the first chain of all is 1
}

func (q *request) descriptors() int {
	if q.table >= 0 {
		return 1
	}
	return len(q.readable) + len(q.writable)
}

func (q *request) room() (n uint32) {
	for _, b := range q.writable {
		n += b.Len
	}
	return n
}

// pair is a driver and a device on one queue, and what a perfect queue would do.
type pair struct {
	*rig
	mode
	driver *Driver
	at     uint64           // where the next buffer is put
	tables map[int]struct{} // indirect tables in use

	added, offered []uint16           // heads: not published yet, published
	taken, used    []uint16           // by the device: not completed; completed and not published
	returned       []uint16           // published by the device
	requests       map[uint16]request // by head
	turns          int                // chains taken
	last           []int              // turns, the last one at the end, of this device alone
	shown          int                // the largest turn of a chain published as used

	deviceWaits, driverWaits bool // armed, and found nothing
}

// rigTables is where indirect tables lie, an offset in the file and in region 0: one for each descriptor.
const (
	rigTables  = 0xc000
	tableBytes = 128
)

// newPair begins both sides at an index of a split ring, or in place of a packed one, so that wrapping comes soon.
func newPair(t fataler, size int, base uint16, m mode) *pair {
	p := &pair{mode: m, requests: map[uint16]request{}, tables: map[int]struct{}{}}
	p.rig = newRig(t, p.options(size, base, base))
	clear(p.file[:rigData])
	var err error
	p.driver, err = NewDriver(DriverOptions{Layout: p.layout(p.file), Size: size, Packed: m.packed, EventIdx: m.eventIdx, InOrder: m.inOrder})
	if err != nil {
		t.Fatal(err)
	}
	if m.packed {
		// As if all rounds before had been used.
		c := cursorOf(base)
		for i := range size {
			before := cursor{wrap: c.wrap ^ 1}
			if i < int(c.at) {
				before = c
			}
			p.putPacked(0, i, 0, 0, 0, uint16(before.used()>>48))
		}
		p.driver.ring.avail, p.driver.ring.shown, p.driver.ring.used = c, c, c
		p.driver.newest, p.driver.oldest = c.at, c.at
	} else {
		p.driver.availNext, p.driver.availShown, p.driver.usedNext, p.driver.usedSeen = base, base, base, base
		p.setAvail(base)
		p.setUsed(base)
	}
	p.device.Disarm()
	p.driver.Disarm()
	return p
}

func (p *pair) options(size int, base, usedBase uint16) DeviceOptions {
	return DeviceOptions{Size: size, Base: base, UsedBase: usedBase,
		Packed: p.packed, EventIdx: p.eventIdx, InOrder: p.inOrder, Indirect: p.indirect}
}

func (p *pair) buffers(t *rapid.T, label string) (all []Buffer) {
	for range rapid.IntRange(0, 3).Draw(t, label) {
		n := rapid.Uint32Range(1, 100).Draw(t, "length")
		all = append(all, Buffer{Addr: rigBase + rigData + p.at%0x8000, Len: n})
		p.at += 128
	}
	return all
}

func (p *pair) add(t *rapid.T) {
	q := request{readable: p.buffers(t, "readable"), writable: p.buffers(t, "writable"), table: -1}
	n := len(q.readable) + len(q.writable)
	needs := n
	var head uint16
	var ok bool
	if p.indirect && rapid.Bool().Draw(t, "indirect") {
		needs = 1
		for q.table = 0; ; q.table++ {
			if _, busy := p.tables[q.table]; !busy {
				break
			}
		}
		at := rigTables + q.table*tableBytes
		head, ok = p.driver.AddIndirect(p.file[at:at+tableBytes], rigBase+uint64(at), q.readable, q.writable)
	} else {
		head, ok = p.driver.Add(q.readable, q.writable)
	}
	if fits := n > 0 && needs <= p.freeDescriptors(); ok != fits {
		t.Fatalf("%d buffers in %d descriptors, with %d free: %v", n, needs, p.freeDescriptors(), ok)
	}
	if !ok {
		return
	}
	if _, twice := p.requests[head]; twice {
		t.Fatalf("head %d is under way already", head)
	}
	if q.table >= 0 {
		p.tables[q.table] = struct{}{}
	}
	p.requests[head] = q
	p.added = append(p.added, head)
}

func (p *pair) freeDescriptors() int {
	n := p.size
	for _, q := range p.requests {
		n -= q.descriptors()
	}
	return n
}

func (p *pair) publish(t *rapid.T) {
	kick := p.driver.Publish()
	if kick && len(p.added) == 0 {
		t.Fatal("kick without anything new")
	}
	if len(p.added) > 0 && p.deviceWaits && !kick {
		t.Fatal("the device waits, chains were added, and it is not kicked")
	}
	if kick {
		p.deviceWaits = false
	}
	p.offered = append(p.offered, p.added...)
	p.added = nil
}

func (p *pair) next(t *rapid.T) {
	n, err := p.device.Available()
	if err != nil {
		t.Fatal(err)
	}
	if n > len(p.offered) || n == 0 && len(p.offered) > 0 {
		t.Fatalf("%d chains available, %d were published", n, len(p.offered))
	}
	if n == 0 {
		return
	}
	p.device.Hint(n)
	if err := p.device.Next(p.chain); err != nil {
		t.Fatal(err)
	}
	head := p.offered[0]
	q := p.requests[head]
	if p.chain.Head != head || !p.same(p.chain.Readable, q.readable) || !p.same(p.chain.Writable, q.writable) {
		t.Fatalf("took chain %d, %x %x, want %d, %+v", p.chain.Head, p.chain.Readable, p.chain.Writable, head, q)
	}
	p.turns++
	q.turn, q.slots = p.turns, p.chain.Slots
	p.requests[head] = q
	p.last = append(p.last, q.turn)
	p.offered, p.taken = p.offered[1:], append(p.taken, head)
}

func (p *pair) same(views [][]byte, buffers []Buffer) bool {
	got, ok := p.pieces(views)
	if !ok || len(got) != len(buffers) {
		return false
	}
	for i, b := range buffers {
		if got[i] != (piece{b.Addr, int(b.Len)}) {
			return false
		}
	}
	return true
}

// complete returns any chain that was taken: the order is the device's, unless it was promised.
func (p *pair) complete(t *rapid.T) {
	if len(p.taken) == 0 {
		return
	}
	i := 0
	if !p.inOrder {
		i = rapid.IntRange(0, len(p.taken)-1).Draw(t, "which")
	}
	head := p.taken[i]
	q := p.requests[head]
	q.written = rapid.Uint32Range(0, q.room()).Draw(t, "written")
	p.requests[head] = q
	p.device.Complete(head, q.written)
	p.taken = append(p.taken[:i:i], p.taken[i+1:]...)
	p.used = append(p.used, head)
}

func (p *pair) publishUsed(t *rapid.T) {
	call := p.device.Publish()
	if call && len(p.used) == 0 {
		t.Fatal("call without anything new")
	}
	if len(p.used) > 0 && p.driverWaits && !call {
		t.Fatal("the driver waits, chains were used, and it is not called")
	}
	if call {
		p.driverWaits = false
	}
	for _, head := range p.used {
		p.shown = max(p.shown, p.requests[head].turn)
	}
	p.returned = append(p.returned, p.used...)
	p.used = nil
}

func (p *pair) reclaim(t *rapid.T) {
	head, n, ok, err := p.driver.Used()
	if err != nil {
		t.Fatal(err)
	}
	if ok != (len(p.returned) > 0) {
		t.Fatalf("Used is %v with %d chains returned", ok, len(p.returned))
	}
	if !ok {
		return
	}
	q := p.requests[p.returned[0]]
	if head != p.returned[0] || n != q.written {
		t.Fatalf("chain %d with %d bytes came back, want %d with %d", head, n, p.returned[0], q.written)
	}
	delete(p.requests, head)
	delete(p.tables, q.table)
	p.returned = p.returned[1:]
}

// back gives back the chain taken last, if it is not completed.
func (p *pair) back(*rapid.T) {
	n, m := len(p.taken), len(p.last)
	if n == 0 || m == 0 || p.requests[p.taken[n-1]].turn != p.last[m-1] {
		return
	}
	p.device.Back(math.MaxUint32)
	p.offered = append([]uint16{p.taken[n-1]}, p.offered...)
	p.taken, p.last = p.taken[:n-1], p.last[:m-1]
}

// rewind gives back what was taken and not published. That works for a device that has published in order so far.
func (p *pair) rewind(*rapid.T) {
	out := append(append([]uint16{}, p.used...), p.taken...)
	for _, head := range out {
		if p.requests[head].turn < p.shown {
			return
		}
	}
	slices.SortFunc(out, func(a, b uint16) int { return p.requests[a].turn - p.requests[b].turn })
	p.device.Rewind()
	p.offered = append(out, p.offered...)
	p.taken, p.used = nil, nil
	p.last = p.last[:max(0, len(p.last)-len(out))]
}

// restart puts a new device in the place of the old one, which goes on where that was.
func (p *pair) restart(t *rapid.T) {
	p.publishUsed(t) // what was not, its driver never sees
	o := p.options(p.size, p.device.Base(), p.device.UsedBase())
	p.replace(fatal{t}, o)
	for i := range p.taken { // in any order
		head := p.taken[len(p.taken)-1-i]
		if err := p.device.Resume(head, p.requests[head].slots); err != nil {
			t.Fatal(err)
		}
	}
	p.last, p.deviceWaits = nil, false
}

// fatal lends a rapid.T to helpers of tests.
type fatal struct{ *rapid.T }

func (f fatal) Helper() {}

// several goes on with what is mostly done: chains go all the way, some of them.
func (p *pair) several(t *rapid.T) {
	for range rapid.IntRange(1, 5).Draw(t, "added") {
		p.add(t)
	}
	p.publish(t)
	for range len(p.offered) {
		p.next(t)
	}
	for range rapid.IntRange(0, len(p.taken)).Draw(t, "completed") {
		p.complete(t)
	}
}

func (p *pair) armDevice(t *rapid.T) {
	p.device.Arm()
	shm.Fence()
	if pending := p.device.Pending(); pending != (len(p.offered) > 0) {
		t.Fatalf("pending is %v with %d chains offered", pending, len(p.offered))
	} else if pending {
		p.device.Disarm()
		p.deviceWaits = false
	} else {
		p.deviceWaits = true
	}
}

func (p *pair) armDriver(t *rapid.T) {
	p.driver.Arm()
	shm.Fence()
	if pending := p.driver.Pending(); pending != (len(p.returned) > 0) {
		t.Fatalf("pending is %v with %d chains returned", pending, len(p.returned))
	} else if pending {
		p.driver.Disarm()
		p.driverWaits = false
	} else {
		p.driverWaits = true
	}
}

// finish has everything under way come back.
func (p *pair) finish(t *rapid.T) {
	p.publish(t)
	for len(p.offered) > 0 {
		p.next(t)
	}
	for len(p.taken) > 0 {
		p.complete(t)
	}
	p.publishUsed(t)
	for len(p.returned) > 0 {
		p.reclaim(t)
	}
	if len(p.requests) != 0 || p.driver.Free() != p.size {
		t.Fatalf("%d chains lost, %d of %d descriptors free", len(p.requests), p.driver.Free(), p.size)
	}
}

// bases are indices and places that wrap soon, and others.
func (m mode) bases(size int) []uint16 {
	if !m.packed {
		return []uint16{0, 65535, 65530, 65500, 32760}
	}
	last := uint16(size - 1)
	return []uint16{PackedStart, 0, PackedStart | last, last, PackedStart | last/2}
}

// Whatever the two sides do, in whatever order, every chain is delivered once, as it was, and comes back once; and a side that
// waits is told.
func TestDriverAndDevice(t *testing.T) {
	for _, m := range modes() {
		for _, size := range m.sizes() {
			t.Run(fmt.Sprintf("%v size=%d", m, size), func(t *testing.T) {
				rapid.Check(t, func(rt *rapid.T) {
					p := newPair(fatal{rt}, size, rapid.SampledFrom(m.bases(size)).Draw(rt, "base"), m)
					actions := map[string]func(*rapid.T){
						"add": p.add, "publish": p.publish, "next": p.next, "complete": p.complete,
						"publishUsed": p.publishUsed, "reclaim": p.reclaim, "back": p.back, "rewind": p.rewind,
						"armDevice": p.armDevice, "armDriver": p.armDriver, "restart": p.restart, "several": p.several,
					}
					for range 5 {
						rt.Repeat(actions)
					}
					p.finish(rt)
				})
			})
		}
	}
}

// A queue goes round its indices' 65536, or its ring, many times.
func TestManyRounds(t *testing.T) {
	const rounds = 100_000
	for _, m := range modes() {
		if m.indirect {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			base := m.bases(8)[0]
			p := newPair(t, 8, base, m)
			kicks, calls := 0, 0
			var one [1]Buffer
			for i := range rounds {
				one[0] = Buffer{Addr: data + uint64(i%64)*64, Len: uint32(i%64) + 1}
				head, ok := p.driver.Add(nil, one[:])
				if !ok {
					t.Fatal("no descriptor free")
				}
				p.device.Arm()
				if p.driver.Publish() {
					kicks++
				}
				if n, err := p.device.Available(); n != 1 || err != nil {
					t.Fatalf("round %d: %d available, %v", i, n, err)
				}
				if err := p.device.Next(p.chain); err != nil || p.chain.Head != head || len(p.chain.Writable[0]) != int(one[0].Len) {
					t.Fatalf("round %d: chain %d, %v", i, p.chain.Head, err)
				}
				p.device.Complete(head, uint32(i))
				p.driver.Arm()
				if p.device.Publish() {
					calls++
				}
				if got, n, ok, err := p.driver.Used(); got != head || n != uint32(i) || !ok || err != nil {
					t.Fatalf("round %d: %d %d %v %v", i, got, n, ok, err)
				}
			}
			if kicks != rounds || calls != rounds {
				t.Errorf("%d kicks and %d calls in %d rounds that were all waited for", kicks, calls, rounds)
			}
			p.device.Disarm()
			p.driver.Disarm()
			for i := range 60_000 {
				head, _ := p.driver.Add(one[:], nil)
				if p.driver.Publish() {
					t.Fatalf("round %d: kick, though the device polls", i)
				}
				p.device.Available()
				_ = p.device.Next(p.chain)
				p.device.Complete(head, 0)
				if p.device.Publish() {
					t.Fatalf("round %d: call, though the driver polls", i)
				}
				p.driver.Used()
			}
		})
	}
}

func TestDriverRefuses(t *testing.T) {
	p := newPair(t, 8, 0, mode{})
	one := []Buffer{{Addr: data, Len: 1}}
	head, _ := p.driver.Add(one, nil)
	p.driver.Publish()
	used := func(index uint16, id uint32) {
		binary.LittleEndian.PutUint32(p.file[rigUsed+4+8*(int(index)%8):], id)
		p.setUsed(index + 1)
	}
	used(8, 0)
	if _, _, _, err := p.driver.Used(); err == nil {
		t.Error("used index jumped by 9 in a queue of 8")
	}
	for _, id := range []uint32{uint32(head) + 1, 8, 1 << 16, 1<<16 | uint32(head), 1<<32 - 1} {
		used(0, id)
		if _, _, _, err := p.driver.Used(); err == nil {
			t.Errorf("chain %d came back, which was not under way", id)
		}
	}
	used(0, uint32(head))
	if got, _, ok, err := p.driver.Used(); got != head || !ok || err != nil {
		t.Errorf("%d %v %v", got, ok, err)
	}
	if _, ok := p.driver.Add(nil, nil); ok {
		t.Error("an empty chain was added")
	}
	if _, ok := p.driver.Add(make([]Buffer, 9), nil); ok {
		t.Error("a chain longer than the queue was added")
	}
	if _, ok := p.driver.AddIndirect(make([]byte, 31), data, one, one); ok {
		t.Error("two buffers were put into an indirect table of 31 bytes")
	}
}

// Devices that return what they were not given.
func TestPackedDriverRefuses(t *testing.T) {
	p := newPair(t, 8, PackedStart, mode{packed: true})
	head, _ := p.driver.Add([]Buffer{{Addr: data, Len: 1}}, nil)
	p.driver.Publish()
	for _, id := range []uint16{head ^ 1, 8, 1 << 15, 1<<16 - 1} {
		p.putPacked(0, 0, 0, 0, id, 0x8080)
		if _, _, _, err := p.driver.Used(); err == nil {
			t.Errorf("chain %d came back, which was not under way", id)
		}
	}
	for _, flags := range []uint16{0, 0x80, 0x8000} {
		p.putPacked(0, 0, 0, 0, head, flags)
		if _, _, ok, err := p.driver.Used(); ok || err != nil {
			t.Errorf("flags %#x: %v %v", flags, ok, err)
		}
	}
	p.putPacked(0, 0, 0, 77, head, 0x8080) // the length counts only with the write flag
	if got, n, ok, err := p.driver.Used(); got != head || n != 0 || !ok || err != nil {
		t.Errorf("%d %d %v %v", got, n, ok, err)
	}
}
