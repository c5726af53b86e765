package virtq

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/shuntio/shunt/dataplane/shm"
)

// take offers head as the next chain and lets the device have it.
func (r *rig) take(t *testing.T, head uint16) error {
	t.Helper()
	r.offer(r.device.availNext, head)
	n, err := r.device.Available()
	if err != nil {
		return err
	}
	if n != 1 {
		t.Fatalf("%d chains are available, want 1", n)
	}
	return r.device.Next(r.chain)
}

// want compares the chain just taken.
func (r *rig) want(t *testing.T, readable, writable []piece) {
	t.Helper()
	gotR, okR := r.pieces(r.chain.Readable)
	gotW, okW := r.pieces(r.chain.Writable)
	if !okR || !okW {
		t.Fatal("a view is outside the guest's memory")
	}
	if !reflect.DeepEqual(gotR, readable) || !reflect.DeepEqual(gotW, writable) {
		t.Errorf("readable %x writable %x, want %x and %x", gotR, gotW, readable, writable)
	}
}

const (
	data = rigBase + rigData
	next = descNext
	wr   = descWrite
	ind  = descIndirect
)

// table is where indirect tables lie: an offset in the file, and a guest address.
const table, tableAddr = 0x8000, rigBase + 0x8000

func TestChains(t *testing.T) {
	for name, c := range map[string]struct {
		build              func(r *rig)
		readable, writable []piece
	}{
		"one readable": {func(r *rig) { r.put(0, 5, data, 60, 0, 9) }, []piece{{data, 60}}, nil},
		"one writable": {func(r *rig) { r.put(0, 5, data, 60, wr, 9) }, nil, []piece{{data, 60}}},
		"both": {func(r *rig) {
			r.put(0, 5, data, 12, next, 0)
			r.put(0, 0, data+100, 50, next, 15)
			r.put(0, 15, data+200, 1, next|wr, 1)
			r.put(0, 1, data+300, 2, wr, 0)
		}, []piece{{data, 12}, {data + 100, 50}}, []piece{{data + 200, 1}, {data + 300, 2}}},
		"empty buffers": {func(r *rig) {
			r.put(0, 5, data, 0, next, 6)
			r.put(0, 6, data, 8, next, 7)
			r.put(0, 7, data, 0, wr, 0)
		}, []piece{{data, 8}}, nil},
		"one empty":             {func(r *rig) { r.put(0, 5, data, 0, 0, 0) }, nil, nil},
		"unknown flags":         {func(r *rig) { r.put(0, 5, data, 4, 0xfff8, 0) }, []piece{{data, 4}}, nil},
		"last bytes":            {func(r *rig) { r.put(0, 5, rigEnd-4, 4, 0, 0) }, []piece{{rigEnd - 4, 4}}, nil},
		"into the next region":  {func(r *rig) { r.put(0, 5, rigMiddle-3, 10, wr, 0) }, nil, []piece{{rigMiddle - 3, 3}, {rigMiddle, 7}}},
		"the tables themselves": {func(r *rig) { r.put(0, 5, rigBase, rigData, 0, 0) }, []piece{{rigBase, rigData}}, nil},
		"indirect": {func(r *rig) {
			r.put(0, 5, tableAddr, 48, ind, 0)
			r.put(table, 0, data, 12, next, 2)
			r.put(table, 2, data+64, 100, next|wr, 1)
			r.put(table, 1, rigMiddle-1, 2, wr, 0)
		}, []piece{{data, 12}}, []piece{{data + 64, 100}, {rigMiddle - 1, 1}, {rigMiddle, 1}}},
		"indirect of one, write flag beside it": {func(r *rig) {
			r.put(0, 5, tableAddr, 16, ind|wr, 77) // the flag is to be ignored (2.7.5.3.2)
			r.put(table, 0, data, 12, 0, 99)
		}, []piece{{data, 12}}, nil},
		"indirect longer than the queue": {func(r *rig) {
			r.put(0, 5, tableAddr, 40*16, ind, 0)
			for i := range 40 {
				r.put(table, i, data+uint64(i), 1, next, uint16(i+1))
			}
			r.put(table, 39, data+39, 1, 0, 0)
		}, func() (p []piece) {
			for i := range 40 {
				p = append(p, piece{data + uint64(i), 1})
			}
			return p
		}(), nil},
		"direct, then indirect": {func(r *rig) { // must be handled (2.7.5.3.2)
			r.put(0, 5, data, 12, next, 6)
			r.put(0, 6, tableAddr, 32, ind, 0)
			r.put(table, 0, data+32, 20, next, 1)
			r.put(table, 1, data+64, 30, wr, 0)
		}, []piece{{data, 12}, {data + 32, 20}}, []piece{{data + 64, 30}}},
		"as long as the queue": {func(r *rig) {
			for i := range 16 {
				r.put(0, (5+i)%16, data+uint64(i), 1, next, uint16(6+i)%16)
			}
			r.put(0, 4, data+15, 1, 0, 5)
		}, func() (p []piece) {
			for i := range 16 {
				p = append(p, piece{data + uint64(i), 1})
			}
			return p
		}(), nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, DeviceOptions{Indirect: true})
			c.build(r)
			if err := r.take(t, 5); err != nil {
				t.Fatal(err)
			}
			if r.chain.Head != 5 {
				t.Errorf("head is %d", r.chain.Head)
			}
			r.want(t, c.readable, c.writable)
			// The oracle of the fuzz target agrees.
			readable, writable, ok := r.chainOf(5, true, cap(r.chain.views))
			if !ok || !reflect.DeepEqual(readable, c.readable) || !reflect.DeepEqual(writable, c.writable) {
				t.Errorf("oracle: %x %x %v", readable, writable, ok)
			}
		})
	}
}

func TestBadChains(t *testing.T) {
	for name, c := range map[string]struct {
		build func(r *rig)
		want  error
	}{
		"head out of range":  {func(r *rig) { r.offer(0, 16) }, ErrHead},
		"head far out":       {func(r *rig) { r.offer(0, 0xffff) }, ErrHead},
		"next out of range":  {func(r *rig) { r.put(0, 5, data, 1, next, 16) }, ErrHead},
		"next to itself":     {func(r *rig) { r.put(0, 5, data, 1, next, 5) }, ErrChain},
		"empty buffers loop": {func(r *rig) { r.put(0, 5, data, 0, next, 5) }, ErrChain},
		"loop of two": {func(r *rig) {
			r.put(0, 5, data, 1, next, 6)
			r.put(0, 6, data, 1, next, 5)
		}, ErrChain},
		"readable behind writable": {func(r *rig) {
			r.put(0, 5, data, 1, next|wr, 6)
			r.put(0, 6, data, 1, 0, 0)
		}, ErrChain},
		"readable behind empty writable": {func(r *rig) {
			r.put(0, 5, data, 0, next|wr, 6)
			r.put(0, 6, data, 1, 0, 0)
		}, ErrChain},
		"below memory":    {func(r *rig) { r.put(0, 5, rigBase-1, 1, 0, 0) }, ErrAddress},
		"above memory":    {func(r *rig) { r.put(0, 5, rigEnd, 1, 0, 0) }, ErrAddress},
		"empty, above":    {func(r *rig) { r.put(0, 5, rigEnd, 0, 0, 0) }, ErrAddress},
		"over the end":    {func(r *rig) { r.put(0, 5, rigEnd-1, 2, 0, 0) }, ErrAddress},
		"longest":         {func(r *rig) { r.put(0, 5, rigBase, math.MaxUint32, wr, 0) }, ErrAddress},
		"wraps":           {func(r *rig) { r.put(0, 5, math.MaxUint64-1, 4, 0, 0) }, ErrAddress},
		"wraps to memory": {func(r *rig) { r.put(0, 5, math.MaxUint64, rigEnd, 0, 0) }, ErrAddress},
		"second outside": {func(r *rig) {
			r.put(0, 5, data, 1, next, 6)
			r.put(0, 6, 0, 1, 0, 0)
		}, ErrAddress},
		"indirect, empty":          {func(r *rig) { r.put(0, 5, tableAddr, 0, ind, 0) }, ErrIndirect},
		"indirect, half":           {func(r *rig) { r.put(0, 5, tableAddr, 8, ind, 0) }, ErrIndirect},
		"indirect, one and a half": {func(r *rig) { r.put(0, 5, tableAddr, 24, ind, 0) }, ErrIndirect},
		"indirect, too long":       {func(r *rig) { r.put(0, 5, tableAddr, 16*MaxSize+16, ind, 0) }, ErrIndirect},
		"indirect, longest":        {func(r *rig) { r.put(0, 5, tableAddr, math.MaxUint32&^15, ind, 0) }, ErrIndirect},
		"indirect and next":        {func(r *rig) { r.put(0, 5, tableAddr, 16, ind|next, 0) }, ErrIndirect},
		"indirect, odd address":    {func(r *rig) { r.put(0, 5, tableAddr+4, 16, ind, 0) }, ErrIndirect},
		"indirect, outside":        {func(r *rig) { r.put(0, 5, rigEnd, 16, ind, 0) }, ErrAddress},
		"indirect, over the end":   {func(r *rig) { r.put(0, 5, rigEnd-16, 32, ind, 0) }, ErrAddress},
		"indirect, in two regions": {func(r *rig) { r.put(0, 5, rigMiddle-16, 32, ind, 0) }, ErrAddress},
		"indirect, wraps":          {func(r *rig) { r.put(0, 5, math.MaxUint64-7, 16, ind, 0) }, ErrAddress},
		"indirect in indirect": {func(r *rig) {
			r.put(0, 5, tableAddr, 32, ind, 0)
			r.put(table, 0, tableAddr, 16, ind, 0)
		}, ErrIndirect},
		"indirect in indirect, later": {func(r *rig) {
			r.put(0, 5, tableAddr, 32, ind, 0)
			r.put(table, 0, data, 1, next, 1)
			r.put(table, 1, tableAddr, 16, ind, 0)
		}, ErrIndirect},
		"indirect is its own table": {func(r *rig) { r.put(0, 5, rigBase+5*16, 16, ind, 0) }, ErrIndirect},
		"next beyond indirect": {func(r *rig) {
			r.put(0, 5, tableAddr, 32, ind, 0)
			r.put(table, 0, data, 1, next, 2)
		}, ErrHead},
		"loop in indirect": {func(r *rig) {
			r.put(0, 5, tableAddr, 32, ind, 0)
			r.put(table, 0, data, 1, next, 1)
			r.put(table, 1, data, 1, next, 0)
		}, ErrChain},
		"more views than room": {func(r *rig) {
			r.put(0, 5, tableAddr, 65*16, ind, 0)
			for i := range 65 {
				r.put(table, i, data, 1, next, uint16(i+1))
			}
			r.put(table, 64, data, 1, 0, 0)
		}, ErrChain},
		"more empty buffers than room": {func(r *rig) { // 32768 of them, at no cost to the driver
			r.put(0, 5, tableAddr, 1000*16, ind, 0)
			for i := range 1000 {
				r.put(table, i, data, 0, next, uint16(i+1))
			}
			r.put(table, 999, data, 0, 0, 0)
		}, ErrChain},
		"crossing without room for both": {func(r *rig) {
			r.put(0, 5, tableAddr, 64*16, ind, 0)
			for i := range 64 {
				r.put(table, i, data, 1, next, uint16(i+1))
			}
			r.put(table, 63, rigMiddle-1, 2, 0, 0)
		}, ErrChain},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, DeviceOptions{Indirect: true})
			head := uint16(5)
			c.build(r)
			if strings.HasPrefix(name, "head") {
				head = 16
			}
			if err := r.take(t, head); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if _, _, ok := r.chainOf(head, true, cap(r.chain.views)); ok {
				t.Error("oracle: a good chain")
			}
		})
	}
}

func TestIndirectNotNegotiated(t *testing.T) {
	r := newRig(t, DeviceOptions{})
	r.put(0, 5, tableAddr, 16, ind, 0)
	r.put(table, 0, data, 1, 0, 0)
	if err := r.take(t, 5); !errors.Is(err, ErrIndirect) {
		t.Errorf("%v, want ErrIndirect", err)
	}
}

func TestAvailIndex(t *testing.T) {
	for _, base := range []uint16{0, 1, 65535, 65530, 32768} {
		for ahead, ok := range map[uint16]bool{0: true, 1: true, 15: true, 16: true, 17: false, 1000: false, 32768: false, 65535: false} {
			r := newRig(t, DeviceOptions{Base: base})
			r.setAvail(base + ahead)
			n, err := r.device.Available()
			if ok && (err != nil || n != int(ahead)) || !ok && !errors.Is(err, ErrIndex) {
				t.Errorf("from %d, %d ahead: %d, %v", base, ahead, n, err)
			}
			if pending := r.device.Pending(); pending != (ahead != 0) {
				t.Errorf("from %d, %d ahead: pending is %v", base, ahead, pending)
			}
		}
	}
}

// The index is only looked at when all that it told of is taken, and Back does not confuse that.
func TestBackAndRewind(t *testing.T) {
	r := newRig(t, DeviceOptions{Base: 65534})
	for i := range uint16(4) {
		r.put(0, int(i), data+uint64(i)*64, 64, wr, 0)
		r.offer(65534+i, i)
	}
	r.device.Available()
	next := func(want uint16) {
		t.Helper()
		if n, err := r.device.Available(); n == 0 || err != nil {
			t.Fatalf("%d available, %v", n, err)
		}
		if err := r.device.Next(r.chain); err != nil || r.chain.Head != want {
			t.Fatalf("chain %d, %v, want %d", r.chain.Head, err, want)
		}
	}
	next(0)
	r.device.Complete(0, 1)
	r.device.Publish()
	next(1)
	next(2)
	r.device.Back(0)
	r.device.Back(0)
	next(1)
	r.device.Complete(1, 7)
	next(2)
	next(3)
	if n, _ := r.device.Available(); n != 0 {
		t.Errorf("%d chains available after the last", n)
	}
	r.device.Rewind() // one completed, two not, none published
	if base := r.device.Base(); base != 65535 {
		t.Errorf("base %d after Rewind, want 65535", base)
	}
	if r.device.Publish() || r.usedIndex() != 65535 {
		t.Errorf("used index %d after Rewind, want 65535", r.usedIndex())
	}
	for i := range uint16(3) {
		next(i + 1)
		r.device.Complete(i+1, uint32(i)+10)
	}
	r.device.Publish()
	if r.usedIndex() != 2 {
		t.Errorf("used index %d, want 2", r.usedIndex())
	}
	for i := range uint16(3) {
		if id, n := r.usedElem(65535 + i); id != uint32(i)+1 || n != uint32(i)+10 {
			t.Errorf("element %d: chain %d with %d bytes", 65535+i, id, n)
		}
	}
}

func TestNewDeviceRefuses(t *testing.T) {
	mapping, err := shm.Map(shm.MapOptions{FD: -1, Length: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mapping.Free()
	b := mapping.Bytes()
	good := Layout{Desc: b[:DescBytes(8)], Avail: b[4096:][:AvailBytes(8)], Used: b[8192:][:UsedBytes(8)]}
	if _, err := NewDevice(DeviceOptions{Layout: good, Size: 8}); err != nil {
		t.Fatalf("a good layout: %v", err)
	}
	for name, c := range map[string]struct {
		size   int
		change func(*Layout)
	}{
		"no size":            {0, func(*Layout) {}},
		"negative size":      {-8, func(*Layout) {}},
		"no power of two":    {6, func(*Layout) {}},
		"too large":          {65536, func(l *Layout) { l.Desc, l.Avail, l.Used = b, b, b }},
		"no tables":          {8, func(l *Layout) { *l = Layout{} }},
		"short table":        {8, func(l *Layout) { l.Desc = b[:DescBytes(8)-1] }},
		"short avail ring":   {8, func(l *Layout) { l.Avail = l.Avail[:AvailBytes(8)-1] }},
		"short used ring":    {8, func(l *Layout) { l.Used = l.Used[:UsedBytes(8)-1] }},
		"table aligned to 8": {8, func(l *Layout) { l.Desc = b[8:][:DescBytes(8)] }},
		"avail ring odd":     {8, func(l *Layout) { l.Avail = b[4097:][:AvailBytes(8)] }},
		"used ring at 2":     {8, func(l *Layout) { l.Used = b[8194:][:UsedBytes(8)] }},
	} {
		l := good
		c.change(&l)
		if _, err := NewDevice(DeviceOptions{Layout: l, Size: c.size}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
