package virtq

import (
	"encoding/binary"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/shuntio/shunt/dataplane/shm"
)

// request is a chain under way, as the driver knows it.
type request struct {
	readable, writable []Buffer
	written            uint32 // what the device says it wrote
}

// pair is a driver and a device on one queue, and what a perfect queue would do.
type pair struct {
	*rig
	driver   *Driver
	eventIdx bool
	at       uint64 // where the next buffer is put

	added, offered []uint16           // heads: not published yet, published
	taken, used    []uint16           // by the device: not completed; completed and not published
	returned       []uint16           // published by the device
	requests       map[uint16]request // by head

	deviceWaits, driverWaits bool // armed, and found nothing
}

// newPair begins both sides at an index, so that wrapping comes soon.
func newPair(t testing.TB, size int, base uint16, eventIdx bool) *pair {
	p := &pair{rig: newRig(t, DeviceOptions{Size: size, Base: base, EventIdx: eventIdx}), eventIdx: eventIdx, requests: map[uint16]request{}}
	clear(p.file[:rigData])
	var err error
	if p.driver, err = NewDriver(DriverOptions{Layout: p.layout(p.file), Size: size, EventIdx: eventIdx}); err != nil {
		t.Fatal(err)
	}
	p.driver.availNext, p.driver.availShown, p.driver.usedNext, p.driver.usedSeen = base, base, base, base
	binary.LittleEndian.PutUint16(p.file[rigUsed+2:], base)
	p.setAvail(base)
	p.device.Disarm()
	p.driver.Disarm()
	return p
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
	q := request{readable: p.buffers(t, "readable"), writable: p.buffers(t, "writable")}
	n := len(q.readable) + len(q.writable)
	head, ok := p.driver.Add(q.readable, q.writable)
	if fits := n > 0 && n <= p.freeDescriptors(); ok != fits {
		t.Fatalf("Add of %d buffers with %d descriptors free: %v", n, p.freeDescriptors(), ok)
	}
	if !ok {
		return
	}
	if _, twice := p.requests[head]; twice {
		t.Fatalf("head %d is under way already", head)
	}
	p.requests[head] = q
	p.added = append(p.added, head)
}

func (p *pair) freeDescriptors() int {
	n := p.size
	for _, q := range p.requests {
		n -= len(q.readable) + len(q.writable)
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
	if err := p.device.Next(p.chain); err != nil {
		t.Fatal(err)
	}
	head := p.offered[0]
	q := p.requests[head]
	if p.chain.Head != head || !p.same(p.chain.Readable, q.readable) || !p.same(p.chain.Writable, q.writable) {
		t.Fatalf("took chain %d, %x %x, want %d, %+v", p.chain.Head, p.chain.Readable, p.chain.Writable, head, q)
	}
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

// complete returns any chain that was taken: the order is the device's.
func (p *pair) complete(t *rapid.T) {
	if len(p.taken) == 0 {
		return
	}
	i := rapid.IntRange(0, len(p.taken)-1).Draw(t, "which")
	head := p.taken[i]
	q := p.requests[head]
	q.written = rapid.Uint32().Draw(t, "written")
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
	if want := p.returned[0]; head != want || n != p.requests[want].written {
		t.Fatalf("chain %d with %d bytes came back, want %d with %d", head, n, want, p.requests[want].written)
	}
	delete(p.requests, head)
	p.returned = p.returned[1:]
}

// back and rewind give back what was taken, as far as the device may.
func (p *pair) back(*rapid.T) {
	if n := len(p.taken); n > 0 && len(p.used) == 0 {
		// Only the chain taken last, and only if it was not completed meanwhile; with chains completed out of order this
		// device may not go back.
		if p.inOrder() {
			p.device.Back()
			p.offered, p.taken = append([]uint16{p.taken[n-1]}, p.offered...), p.taken[:n-1]
		}
	}
}

func (p *pair) rewind(*rapid.T) {
	if !p.inOrder() {
		return
	}
	p.device.Rewind()
	p.offered = append(append(append([]uint16{}, p.used...), p.taken...), p.offered...)
	p.taken, p.used = nil, nil
}

// inOrder tells whether the chains taken and not published are, in order, what the avail ring holds behind the used index.
func (p *pair) inOrder() bool {
	order := append(append([]uint16{}, p.used...), p.taken...)
	for i, head := range order {
		at := int(p.device.usedShown+uint16(i)) % p.size
		if binary.LittleEndian.Uint16(p.file[rigAvail+4+2*at:]) != head {
			return false
		}
	}
	return int(p.device.availNext-p.device.usedShown) == len(order)
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

// Whatever the two sides do, in whatever order, every chain is delivered once, as it was, and comes back once; and a side that
// waits is told.
func TestDriverAndDevice(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		for _, size := range []int{1, 4, 16} {
			t.Run(fmt.Sprintf("eventIdx=%v size=%d", eventIdx, size), func(t *testing.T) {
				rapid.Check(t, func(rt *rapid.T) {
					p := newPair(t, size, rapid.SampledFrom([]uint16{0, 65535, 65530, 65500, 32760}).Draw(rt, "base"), eventIdx)
					rt.Repeat(map[string]func(*rapid.T){
						"add": p.add, "publish": p.publish, "next": p.next, "complete": p.complete,
						"publishUsed": p.publishUsed, "reclaim": p.reclaim, "back": p.back, "rewind": p.rewind,
						"armDevice": p.armDevice, "armDriver": p.armDriver,
					})
					// Everything under way comes back.
					p.publish(rt)
					for len(p.offered) > 0 {
						p.next(rt)
					}
					for len(p.taken) > 0 {
						p.complete(rt)
					}
					p.publishUsed(rt)
					for len(p.returned) > 0 {
						p.reclaim(rt)
					}
					if len(p.requests) != 0 || p.driver.Free() != size {
						rt.Fatalf("%d chains lost, %d of %d descriptors free", len(p.requests), p.driver.Free(), size)
					}
				})
			})
		}
	}
}

// A queue goes round its indices' 65536 several times.
func TestManyRounds(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		p := newPair(t, 8, 0, eventIdx)
		kicks, calls := 0, 0
		var one [1]Buffer
		for i := range 200_000 {
			one[0] = Buffer{Addr: data + uint64(i%64)*64, Len: uint32(i%64) + 1}
			head, ok := p.driver.Add(one[:], nil)
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
			if err := p.device.Next(p.chain); err != nil || p.chain.Head != head || len(p.chain.Readable[0]) != int(one[0].Len) {
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
		if kicks != 200_000 || calls != 200_000 {
			t.Errorf("eventIdx=%v: %d kicks and %d calls in 200000 rounds that were all waited for", eventIdx, kicks, calls)
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
	}
}

func TestDriverRefuses(t *testing.T) {
	p := newPair(t, 8, 0, false)
	one := []Buffer{{Addr: data, Len: 1}}
	head, _ := p.driver.Add(one, nil)
	p.driver.Publish()
	used := func(index uint16, id uint32) {
		binary.LittleEndian.PutUint32(p.file[rigUsed+4+8*(int(index)%8):], id)
		binary.LittleEndian.PutUint16(p.file[rigUsed+2:], index+1)
	}
	used(8, 0)
	if _, _, _, err := p.driver.Used(); err == nil {
		t.Error("used index jumped by 9 in a queue of 8")
	}
	for _, id := range []uint32{uint32(head) + 1, 8, 1 << 16, 1<<32 - 1} {
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
}
