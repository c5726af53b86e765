package virtq

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/shuntio/shunt/dataplane/shm"
)

// Turn bits of a descriptor that is available, in rounds with wrap counter 1 and 0.
const (
	av  = 1 << 7
	av0 = 1 << 15
)

func newPackedRig(t testing.TB, o DeviceOptions) *rig {
	t.Helper()
	o.Packed = true
	if o.Base == 0 && o.UsedBase == 0 {
		o.Base, o.UsedBase = PackedStart, PackedStart
	}
	return newRig(t, o)
}

// takePacked lets the device have the next chain.
func (r *rig) takePacked(t *testing.T) error {
	t.Helper()
	n, err := r.device.Available()
	if err != nil {
		return err
	}
	if n != 1 {
		t.Fatalf("%d chains are available, want 1", n)
	}
	return r.device.Next(r.chain)
}

func TestPackedChains(t *testing.T) {
	many := func(n int) (p []piece) {
		for i := range n {
			p = append(p, piece{data + uint64(i), 1})
		}
		return p
	}
	for name, c := range map[string]struct {
		build              func(r *rig)
		slots              uint16
		readable, writable []piece
	}{
		"one readable": {func(r *rig) { r.putPacked(0, 0, data, 60, 5, av) }, 1, []piece{{data, 60}}, nil},
		"one writable": {func(r *rig) { r.putPacked(0, 0, data, 60, 5, av|wr) }, 1, nil, []piece{{data, 60}}},
		"both, the id in the last": {func(r *rig) {
			r.putPacked(0, 0, data, 12, 77, av|next)
			r.putPacked(0, 1, data+100, 50, 999, av|next)
			r.putPacked(0, 2, data+200, 1, 0, av|next|wr)
			r.putPacked(0, 3, data+300, 2, 5, av|wr)
		}, 4, []piece{{data, 12}, {data + 100, 50}}, []piece{{data + 200, 1}, {data + 300, 2}}},
		"empty buffers": {func(r *rig) {
			r.putPacked(0, 0, data, 0, 0, av|next)
			r.putPacked(0, 1, data, 8, 0, av|next)
			r.putPacked(0, 2, data, 0, 5, av|wr)
		}, 3, []piece{{data, 8}}, nil},
		"one empty":            {func(r *rig) { r.putPacked(0, 0, data, 0, 5, av) }, 1, nil, nil},
		"unknown flags":        {func(r *rig) { r.putPacked(0, 0, data, 4, 5, av|0x7f78) }, 1, []piece{{data, 4}}, nil},
		"last bytes":           {func(r *rig) { r.putPacked(0, 0, rigEnd-4, 4, 5, av) }, 1, []piece{{rigEnd - 4, 4}}, nil},
		"into the next region": {func(r *rig) { r.putPacked(0, 0, rigMiddle-3, 10, 5, av|wr) }, 1, nil, []piece{{rigMiddle - 3, 3}, {rigMiddle, 7}}},
		"as long as the queue": {func(r *rig) {
			for i := range 16 {
				r.putPacked(0, i, data+uint64(i), 1, 5, av|next)
			}
			r.putPacked(0, 15, data+15, 1, 5, av)
		}, 16, many(16), nil},
		"indirect, from first to last, whatever its flags and ids": {func(r *rig) {
			r.putPacked(0, 0, tableAddr, 48, 5, av|ind)
			r.putPacked(table, 0, data, 12, 9, next)
			r.putPacked(table, 1, data+64, 100, 5, wr|ind)
			r.putPacked(table, 2, rigMiddle-1, 2, 0xffff, wr|av|av0)
		}, 1, []piece{{data, 12}}, []piece{{data + 64, 100}, {rigMiddle - 1, 1}, {rigMiddle, 1}}},
		"indirect of one, write flag beside it": {func(r *rig) {
			r.putPacked(0, 0, tableAddr, 16, 5, av|ind|wr) // the flag is to be ignored (2.8.7)
			r.putPacked(table, 0, data, 12, 0, 0)
		}, 1, []piece{{data, 12}}, nil},
		"indirect longer than the queue": {func(r *rig) {
			r.putPacked(0, 0, tableAddr, 40*16, 5, av|ind)
			for i := range 40 {
				r.putPacked(table, i, data+uint64(i), 1, 0, 0)
			}
		}, 1, many(40), nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newPackedRig(t, DeviceOptions{Indirect: true})
			c.build(r)
			if err := r.takePacked(t); err != nil {
				t.Fatal(err)
			}
			if r.chain.Head != 5 || r.chain.Slots != c.slots || r.device.Base() != (cursor{at: c.slots % 16, wrap: 1 ^ c.slots/16}).base() {
				t.Errorf("head is %d, %d descriptors, base %#x", r.chain.Head, r.chain.Slots, r.device.Base())
			}
			r.want(t, c.readable, c.writable)
			readable, writable, slots, id, ok := r.packedChainOf(0, 16, true, cap(r.chain.views))
			if !ok || !reflect.DeepEqual(readable, c.readable) || !reflect.DeepEqual(writable, c.writable) || slots != int(c.slots) || id != 5 {
				t.Errorf("oracle: %x %x %d %d %v", readable, writable, slots, id, ok)
			}
		})
	}
}

func TestBadPackedChains(t *testing.T) {
	for name, c := range map[string]struct {
		build func(r *rig)
		want  error
	}{
		"id out of range":      {func(r *rig) { r.putPacked(0, 0, data, 1, 16, av) }, ErrHead},
		"id far out":           {func(r *rig) { r.putPacked(0, 0, data, 1, 0xffff, av) }, ErrHead},
		"id of the last":       {func(r *rig) { r.putPacked(0, 0, data, 1, 0, av|next); r.putPacked(0, 1, data, 1, 16, av) }, ErrHead},
		"id of an indirect":    {func(r *rig) { r.putPacked(0, 0, tableAddr, 16, 16, av|ind); r.putPacked(table, 0, data, 1, 0, 0) }, ErrHead},
		"the rest not offered": {func(r *rig) { r.putPacked(0, 0, data, 1, 0, av|next) }, ErrChain},
		"the rest used":        {func(r *rig) { r.putPacked(0, 0, data, 1, 0, av|next); r.putPacked(0, 1, data, 1, 0, av|av0) }, ErrChain},
		"the rest of the next round": {func(r *rig) {
			r.putPacked(0, 0, data, 1, 0, av|next)
			r.putPacked(0, 1, data, 1, 0, av0)
		}, ErrChain},
		"without end": {func(r *rig) {
			for i := range 16 {
				r.putPacked(0, i, data, 1, 0, av|next)
			}
		}, ErrChain},
		"empty without end": {func(r *rig) {
			for i := range 16 {
				r.putPacked(0, i, data, 0, 0, av|next)
			}
		}, ErrChain},
		"readable behind writable":       {func(r *rig) { r.putPacked(0, 0, data, 1, 0, av|next|wr); r.putPacked(0, 1, data, 1, 0, av) }, ErrChain},
		"readable behind empty writable": {func(r *rig) { r.putPacked(0, 0, data, 0, 0, av|next|wr); r.putPacked(0, 1, data, 1, 0, av) }, ErrChain},
		"below memory":                   {func(r *rig) { r.putPacked(0, 0, rigBase-1, 1, 0, av) }, ErrAddress},
		"above memory":                   {func(r *rig) { r.putPacked(0, 0, rigEnd, 1, 0, av) }, ErrAddress},
		"over the end":                   {func(r *rig) { r.putPacked(0, 0, rigEnd-1, 2, 0, av) }, ErrAddress},
		"longest":                        {func(r *rig) { r.putPacked(0, 0, rigBase, math.MaxUint32, 0, av|wr) }, ErrAddress},
		"wraps":                          {func(r *rig) { r.putPacked(0, 0, math.MaxUint64-1, 4, 0, av) }, ErrAddress},
		"second outside":                 {func(r *rig) { r.putPacked(0, 0, data, 1, 0, av|next); r.putPacked(0, 1, 0, 1, 0, av) }, ErrAddress},
		"indirect, empty":                {func(r *rig) { r.putPacked(0, 0, tableAddr, 0, 0, av|ind) }, ErrIndirect},
		"indirect, half":                 {func(r *rig) { r.putPacked(0, 0, tableAddr, 8, 0, av|ind) }, ErrIndirect},
		"indirect, one and a half":       {func(r *rig) { r.putPacked(0, 0, tableAddr, 24, 0, av|ind) }, ErrIndirect},
		"indirect, longest":              {func(r *rig) { r.putPacked(0, 0, tableAddr, math.MaxUint32&^15, 0, av|ind) }, ErrIndirect},
		"indirect and next":              {func(r *rig) { r.putPacked(0, 0, tableAddr, 16, 0, av|ind|next) }, ErrIndirect},
		"indirect behind another": {func(r *rig) {
			r.putPacked(0, 0, data, 1, 0, av|next)
			r.putPacked(0, 1, tableAddr, 16, 0, av|ind)
		}, ErrIndirect},
		"indirect, odd address":    {func(r *rig) { r.putPacked(0, 0, tableAddr+4, 16, 0, av|ind) }, ErrIndirect},
		"indirect, outside":        {func(r *rig) { r.putPacked(0, 0, rigEnd, 16, 0, av|ind) }, ErrAddress},
		"indirect, in two regions": {func(r *rig) { r.putPacked(0, 0, rigMiddle-16, 32, 0, av|ind) }, ErrAddress},
		"indirect, wraps":          {func(r *rig) { r.putPacked(0, 0, math.MaxUint64-7, 16, 0, av|ind) }, ErrAddress},
		"indirect of empty ones without room": {func(r *rig) {
			r.putPacked(0, 0, tableAddr, 65*16, 0, av|ind)
			for i := range 65 {
				r.putPacked(table, i, data, 0, 0, 0)
			}
		}, ErrChain},
		"crossing without room for both": {func(r *rig) {
			r.putPacked(0, 0, tableAddr, 64*16, 0, av|ind)
			for i := range 64 {
				r.putPacked(table, i, data, 1, 0, 0)
			}
			r.putPacked(table, 63, rigMiddle-1, 2, 0, 0)
		}, ErrChain},
	} {
		t.Run(name, func(t *testing.T) {
			r := newPackedRig(t, DeviceOptions{Indirect: true})
			c.build(r)
			if err := r.takePacked(t); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if _, _, _, id, ok := r.packedChainOf(0, 16, true, cap(r.chain.views)); ok && int(id) < 16 {
				t.Error("oracle: a good chain")
			}
		})
	}
	r := newPackedRig(t, DeviceOptions{})
	r.putPacked(0, 0, tableAddr, 16, 0, av|ind)
	r.putPacked(table, 0, data, 1, 0, 0)
	if err := r.takePacked(t); !errors.Is(err, ErrIndirect) {
		t.Errorf("not negotiated: %v", err)
	}
}

// A chain has no more descriptors than its Chain has room for buffers, though they be empty.
func TestPackedLongChain(t *testing.T) {
	for n, want := range map[int]error{64: nil, 65: ErrChain} {
		r := newPackedRig(t, DeviceOptions{Size: 100})
		r.chain = NewChain(0)
		for i := range n {
			r.putPacked(0, i, data, 0, 0, av|next)
		}
		r.putPacked(0, n-1, data, 0, 0, av)
		if err := r.takePacked(t); !errors.Is(err, want) {
			t.Errorf("%d empty buffers: %v, want %v", n, err, want)
		}
	}
}

// A driver that offers what is under way already, with the same id or in the same descriptors.
func TestPackedTwice(t *testing.T) {
	take := func(ids ...uint16) (r *rig) {
		r = newPackedRig(t, DeviceOptions{Size: 4})
		for i, id := range ids {
			r.putPacked(0, i, data, 1, id, av)
		}
		for range 2 {
			if err := r.device.Next(r.chain); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	r := take(0, 1, 1, 3)
	if err := r.device.Next(r.chain); !errors.Is(err, ErrHead) {
		t.Errorf("id 1 a second time: %v", err)
	}
	r = take(0, 1, 2, 3)
	for range 2 {
		if err := r.device.Next(r.chain); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := r.device.Available(); n != 0 || err != nil || r.device.Pending() {
		t.Errorf("all taken: %d more, %v", n, err)
	}
	r.putPacked(0, 0, data, 1, 0, av0)
	if n, err := r.device.Available(); n != 0 || !errors.Is(err, ErrIndex) || !r.device.Pending() {
		t.Errorf("a fifth descriptor of four: %d, %v", n, err)
	}
	if err := r.device.Next(r.chain); !errors.Is(err, ErrIndex) {
		t.Errorf("a fifth descriptor of four taken: %v", err)
	}
	before := string(r.file[16 : 4*16])
	r.device.Complete(0, 0)
	r.device.Complete(0, 0)
	r.device.Complete(9, 0)
	r.device.Publish()
	if string(r.file[16:4*16]) != before {
		t.Error("descriptors of chains under way were written")
	}
	if base := r.device.UsedBase(); base != PackedStart|1 {
		t.Errorf("used base %#x after one chain was completed, twice, and one that there is not", base)
	}
	r.putPacked(0, 0, data, 1, 3, av0) // its id is still under way
	if err := r.device.Next(r.chain); !errors.Is(err, ErrHead) {
		t.Errorf("id 3 a second time: %v", err)
	}
	// A chain that goes on in descriptors under way.
	r = newPackedRig(t, DeviceOptions{Size: 4})
	r.putPacked(0, 0, data, 1, 0, av|next)
	r.putPacked(0, 1, data, 1, 0, av)
	if err := r.device.Next(r.chain); err != nil {
		t.Fatal(err)
	}
	for i, flags := range []uint16{av0 | next, av0, av | next, av | next} {
		r.putPacked(0, i, data, 1, 1, flags)
	}
	if err := r.device.Next(r.chain); !errors.Is(err, ErrChain) {
		t.Errorf("a chain over others: %v", err)
	}
}

// Flags that change between Available and Next: what was offered once is taken as it was then, and what is behind it as it is.
func TestPackedFlagsFlap(t *testing.T) {
	r := newPackedRig(t, DeviceOptions{})
	r.putPacked(0, 0, data, 1, 0, av)
	r.putPacked(0, 1, data, 1, 1, av)
	if n, err := r.device.Available(); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	r.putPacked(0, 0, data, 4096, 7, 0)
	for head := range uint16(2) {
		if err := r.device.Next(r.chain); err != nil || r.chain.Head != head || len(r.chain.Readable[0]) != 1 {
			t.Errorf("head %d of %d bytes, %v; want %d of 1, as it was offered", r.chain.Head, len(r.chain.Readable[0]), err, head)
		}
	}
	if err := r.device.Next(r.chain); !errors.Is(err, ErrIndex) {
		t.Errorf("%v, want ErrIndex", err)
	}
}

// Chains of two are taken at once, and their number is right around the ring's end. More than a batch are not looked for.
func TestPackedAvailable(t *testing.T) {
	r := newPackedRig(t, DeviceOptions{Size: 16, Base: 13, UsedBase: 13}) // wrap counter 0
	for i := range 6 {
		turn := uint16(av0)
		if 13+i >= 16 {
			turn = av
		}
		r.putPacked(0, (13+i)%16, data, 1, uint16(i), turn|uint16(i&1^1))
	}
	if n, err := r.device.Available(); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	r.putPacked(0, 3, data, 1, 6, av) // one more, which is not looked for now
	for i := range 3 {
		if err := r.device.Next(r.chain); err != nil || r.chain.Head != uint16(2*i+1) || len(r.chain.Readable) != 2 {
			t.Fatal(i, err, r.chain)
		}
	}
	if n, err := r.device.Available(); n != 1 || err != nil {
		t.Error(n, err)
	}
	r = newPackedRig(t, DeviceOptions{Size: 200})
	for i := range 200 {
		r.putPacked(0, i, data, 1, uint16(i), av)
	}
	taken := 0
	for {
		n, err := r.device.Available()
		if n > look || err != nil {
			t.Fatal(n, err)
		}
		if n == 0 {
			break
		}
		for ; n > 0; n-- {
			if err := r.device.Next(r.chain); err != nil || int(r.chain.Head) != taken {
				t.Fatal(err)
			}
			taken++
		}
	}
	if taken != 200 {
		t.Errorf("%d of 200 taken", taken)
	}
}

// What Publish leaves in the ring, byte by byte: used descriptors where the oldest taken ones were.
func TestPackedUsed(t *testing.T) {
	for _, inOrder := range []bool{false, true} {
		r := newPackedRig(t, DeviceOptions{Size: 8, Base: PackedStart | 5, UsedBase: PackedStart | 5, InOrder: inOrder})
		r.putPacked(0, 5, data, 1, 0, av|next) // chain 3: two readable, chain 4: one readable, chain 5: both, chain 6: one readable
		r.putPacked(0, 6, data, 1, 3, av)
		r.putPacked(0, 7, data, 1, 4, av)
		r.putPacked(0, 0, data, 1, 0, av0|next)
		r.putPacked(0, 1, data, 9, 5, av0|wr)
		r.putPacked(0, 2, data, 1, 6, av0)
		for range 4 {
			if err := r.device.Next(r.chain); err != nil {
				t.Fatal(err)
			}
		}
		before := append([]byte{}, r.file[:8*16]...)
		r.device.Complete(3, 0)
		r.device.Complete(4, 0)
		r.device.Complete(5, 7)
		r.device.Complete(6, 0)
		if string(before) != string(r.file[:8*16]) {
			t.Error("Complete wrote to the ring")
		}
		r.device.Publish()
		type used struct {
			at        int
			n         uint32
			id, flags uint16
		}
		want := []used{{5, 0, 3, 0x8080}, {7, 0, 4, 0x8080}, {0, 7, 5, wr}, {2, 0, 6, 0}}
		if inOrder { // 3 and 4 have nothing to write, so 5 stands for them, too
			want = []used{{5, 7, 5, 0x8080 | wr}, {2, 0, 6, 0}}
		}
		written := map[int]bool{}
		for _, w := range want {
			d := r.descriptor(0, w.at)
			if written[w.at] = true; d.addr != data || d.n != w.n || d.third != w.id || d.last != w.flags {
				t.Errorf("inOrder=%v, descriptor %d: %+v, want %+v", inOrder, w.at, d, w)
			}
		}
		for i := range 8 {
			if !written[i] && string(r.file[16*i:16*i+16]) != string(before[16*i:16*i+16]) {
				t.Errorf("inOrder=%v: descriptor %d was written", inOrder, i)
			}
		}
		if r.device.UsedBase() != 3 || r.device.Base() != 3 {
			t.Errorf("bases %#x and %#x", r.device.Base(), r.device.UsedBase())
		}
	}
}

func TestPackedBackAndRewind(t *testing.T) {
	r := newPackedRig(t, DeviceOptions{Size: 4})
	r.putPacked(0, 0, data, 1, 2, av|wr)
	r.putPacked(0, 1, data, 1, 0, av|next)
	r.putPacked(0, 2, data, 1, 1, av|wr)
	r.putPacked(0, 3, data, 1, 0, av|wr)
	next := func(want uint16) {
		t.Helper()
		if n, err := r.device.Available(); n == 0 || err != nil {
			t.Fatalf("%d available, %v", n, err)
		}
		if err := r.device.Next(r.chain); err != nil || r.chain.Head != want {
			t.Fatalf("chain %d, %v, want %d", r.chain.Head, err, want)
		}
	}
	r.device.Back(0) // nothing to give back
	next(2)
	next(1)
	next(0)
	if base := r.device.Base(); base != 0 {
		t.Errorf("base %#x after a round", base)
	}
	r.device.Back(0)
	r.device.Back(0)
	if base := r.device.Base(); base != PackedStart|1 {
		t.Errorf("base %#x after one chain", base)
	}
	next(1)
	r.device.Complete(2, 1)
	r.device.Complete(1, 1)
	r.device.Rewind()
	if r.device.Base() != PackedStart || r.device.Publish() || r.device.UsedBase() != PackedStart {
		t.Errorf("bases %#x and %#x after Rewind", r.device.Base(), r.device.UsedBase())
	}
	for _, id := range []uint16{2, 1, 0} {
		next(id)
		r.device.Complete(id, 5)
	}
	r.device.Publish()
	for range 3 {
		r.device.Back(0) // published
	}
	if r.device.Base() != 0 || r.device.UsedBase() != 0 {
		t.Errorf("bases %#x and %#x after a round", r.device.Base(), r.device.UsedBase())
	}
}

func TestPackedBases(t *testing.T) {
	r := newPackedRig(t, DeviceOptions{Size: 6})
	for _, c := range []struct {
		base, used uint16
		ok         bool
	}{
		{PackedStart, PackedStart, true}, {0, 0, true}, {0, PackedStart, true}, {PackedStart, 0, true}, {5, PackedStart | 5, true},
		{PackedStart | 3, PackedStart | 1, true}, {PackedStart | 1, PackedStart | 3, false}, {1, PackedStart | 3, true}, {4, PackedStart | 3, false},
		{6, 0, false}, {PackedStart | 6, PackedStart | 6, false}, {0x7fff, 0x7fff, false}, {0xffff, 0xffff, false},
	} {
		q, err := NewDevice(DeviceOptions{Layout: r.layout(r.file), Size: 6, Packed: true, Base: c.base, UsedBase: c.used})
		if (err == nil) != c.ok {
			t.Errorf("base %#x, used base %#x: %v", c.base, c.used, err)
		}
		if err == nil && (q.Base() != c.base || q.UsedBase() != c.used) {
			t.Errorf("base %#x, used base %#x became %#x and %#x", c.base, c.used, q.Base(), q.UsedBase())
		}
	}
	q, err := NewDevice(DeviceOptions{Layout: r.layout(r.file), Size: 6, Packed: true, Base: 1, UsedBase: PackedStart | 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		head, slots uint16
		ok          bool
	}{{6, 1, false}, {0, 0, false}, {0, 5, false}, {0, 3, true}, {0, 1, false}, {1, 2, false}, {1, 1, true}, {2, 1, false}} {
		if err := q.Resume(c.head, c.slots); (err == nil) != c.ok {
			t.Errorf("resume %+v: %v", c, err)
		}
	}
	q.Complete(1, 0)
	q.Complete(0, 0)
	if q.Publish(); q.UsedBase() != 1 {
		t.Errorf("used base %#x", q.UsedBase())
	}
}

func TestNewPackedDeviceRefuses(t *testing.T) {
	mapping, err := shm.Map(shm.MapOptions{FD: -1, Length: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mapping.Free()
	b := mapping.Bytes()
	good := Layout{Desc: b[:DescBytes(7)], Avail: b[4096:][:EventBytes], Used: b[8192:][:EventBytes]}
	if _, err := NewDevice(DeviceOptions{Layout: good, Size: 7, Packed: true}); err != nil {
		t.Fatalf("a good layout: %v", err)
	}
	if _, err := NewDevice(DeviceOptions{Layout: Layout{b, b, b}, Size: MaxSize, Packed: true}); err != nil {
		t.Errorf("the largest: %v", err)
	}
	for name, c := range map[string]struct {
		size   int
		change func(*Layout)
	}{
		"no size":            {0, func(*Layout) {}},
		"negative size":      {-8, func(*Layout) {}},
		"too large":          {MaxSize + 1, func(l *Layout) { l.Desc, l.Avail, l.Used = b, b, b }},
		"no tables":          {7, func(l *Layout) { *l = Layout{} }},
		"short ring":         {7, func(l *Layout) { l.Desc = b[:DescBytes(7)-1] }},
		"short driver event": {7, func(l *Layout) { l.Avail = l.Avail[:3] }},
		"short device event": {7, func(l *Layout) { l.Used = l.Used[:3] }},
		"ring aligned to 8":  {7, func(l *Layout) { l.Desc = b[8:][:DescBytes(7)] }},
		"driver event at 2":  {7, func(l *Layout) { l.Avail = b[4098:][:EventBytes] }},
		"device event at 2":  {7, func(l *Layout) { l.Used = b[8194:][:EventBytes] }},
	} {
		l := good
		c.change(&l)
		if _, err := NewDevice(DeviceOptions{Layout: l, Size: c.size, Packed: true}); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := NewDriver(DriverOptions{Layout: l, Size: c.size, Packed: true}); err == nil {
			t.Errorf("%s: accepted for a driver", name)
		}
	}
}

func TestCursor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint16Range(1, MaxSize).Draw(t, "size")
		c := cursor{at: rapid.Uint16Range(0, size-1).Draw(t, "at"), wrap: rapid.Uint16Range(0, 1).Draw(t, "wrap")}
		n := rapid.Uint16Range(0, size).Draw(t, "n")
		if cursorOf(c.base()) != c {
			t.Fatalf("%v is not %#x", c, c.base())
		}
		d := c
		d.advance(n, size)
		if place := int(c.at) + int(n); int(d.at) != place%int(size) || (d.wrap != c.wrap) != (place >= int(size)) {
			t.Fatalf("%v and %d of %d are %v", c, n, size, d)
		}
		if got, ok := c.behind(d, size); got != n || !ok {
			t.Fatalf("%v is %d behind %v, want %d, %v", c, got, d, n, ok)
		}
		if _, ok := d.behind(c, size); ok && n != 0 && n != size {
			t.Fatalf("%v is behind %v", d, c)
		}
		if d.retreat(n, size); d != c {
			t.Fatalf("%v back by %d is %v", c, n, d)
		}
		if a, u := c.available(), c.used(); a == u || a&^restTurn != 0 || a != restAvail*uint64(c.wrap)|restUsed*uint64(c.wrap^1) || u != restTurn*uint64(c.wrap) {
			t.Fatalf("%v: available %#x, used %#x", c, a, u)
		}
	})
}

// wanted by the letter of virtio 1.2, 2.8.10: of the descriptors written, is one the descriptor that the event names, in that round?
func TestWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]uint16{1, 2, 3, 8, MaxSize - 1, MaxSize}).Draw(t, "size")
		before := cursor{at: rapid.Uint16Range(0, size-1).Draw(t, "at"), wrap: rapid.Uint16Range(0, 1).Draw(t, "wrap")}
		n := rapid.Uint16Range(1, size).Draw(t, "n")
		now := before
		now.advance(n, size)
		event := cursor{at: rapid.Uint16Range(0, size-1).Draw(t, "event"), wrap: rapid.Uint16Range(0, 1).Draw(t, "event wrap")}
		passed := false
		for c, i := before, uint16(0); i < n; i++ {
			passed = passed || c == event
			c.advance(1, size)
		}
		reserved := rapid.Uint32Range(0, 1<<14-1).Draw(t, "reserved") << 18
		for _, c := range []struct {
			flags    uint32
			eventIdx bool
			want     bool
		}{{0, true, true}, {0, false, true}, {1, true, false}, {1, false, false}, {2, true, passed}, {2, false, true}, {3, true, true}, {3, false, true}} {
			if got := wanted(reserved|c.flags<<16|uint32(event.base()), c.eventIdx, now, before, size); got != c.want {
				t.Fatalf("flags %d, eventIdx=%v, event %v, from %v to %v of %d: %v", c.flags, c.eventIdx, event, before, now, size, got)
			}
		}
	})
}

// A chain taken before one that is published does not go back.
func TestPackedBackAndOthers(t *testing.T) {
	r := newPackedRig(t, DeviceOptions{Size: 4})
	r.putPacked(0, 0, data, 1, 0, av)
	r.putPacked(0, 1, data, 1, 1, av)
	for range 2 {
		if err := r.device.Next(r.chain); err != nil {
			t.Fatal(err)
		}
	}
	r.device.Complete(1, 0)
	r.device.Publish()
	r.device.Back(0)
	r.device.Back(0)
	if r.device.Base() != PackedStart|2 {
		t.Errorf("base %#x", r.device.Base())
	}
}

// The bits on the wire: what Arm and Disarm write.
func TestPackedNotificationFields(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		r := newPackedRig(t, DeviceOptions{Size: 8, Base: PackedStart | 7, UsedBase: PackedStart | 7, EventIdx: eventIdx})
		event := func() string { return fmt.Sprintf("% x", r.file[rigUsed:rigUsed+6]) }
		if got := event(); got != "00 00 01 00 00 00" {
			t.Errorf("a fresh queue is polled, so it wants no kicks: %s", got)
		}
		want := map[bool]string{false: "00 00 00 00 00 00", true: "07 80 02 00 00 00"}[eventIdx]
		if r.device.Arm(); event() != want {
			t.Errorf("armed: %s, want %s", event(), want)
		}
		r.putPacked(0, 7, data, 1, 0, av)
		if err := r.device.Next(r.chain); err != nil {
			t.Fatal(err)
		}
		want = map[bool]string{false: "00 00 00 00 00 00", true: "00 00 02 00 00 00"}[eventIdx]
		if r.device.Arm(); event() != want {
			t.Errorf("armed a round later: %s, want %s", event(), want)
		}
		if r.device.Disarm(); event() != "00 00 01 00 00 00" {
			t.Errorf("disarmed: %s", event())
		}
	}
}
