package virtq

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// rig is a guest's memory with one queue in it, whose tables the test writes byte by byte.
//
//	guest address  0x10000                       0x20000               0x28000
//	               ├ desc │ avail │ used │ data ─┼─ data, elsewhere ───┤ nothing
//	               └ region 0                    └ region 1            └
//
// The regions touch, but lie apart in the file and so in our address space.
type rig struct {
	size   int
	file   []byte // the file, which is the memory
	memory *guestmem.Map
	device *Device
	chain  *Chain
}

const (
	rigBase   = 0x10000
	rigMiddle = 0x20000
	rigEnd    = 0x28000
	rigAvail  = 0x2000 // offsets in region 0 and in the file
	rigUsed   = 0x3000
	rigData   = 0x4000
	rigSecond = 0x40000 // where region 1 lies in the file
	rigFile   = 0x50000
)

func newRig(t testing.TB, o DeviceOptions) *rig {
	t.Helper()
	fd, err := shm.NewMemFD("virtq-test", rigFile)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mapping, err := shm.Map(shm.MapOptions{FD: fd, Length: rigFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mapping.Free() })
	memory, err := guestmem.Open([]guestmem.Region{
		{GuestAddr: rigBase, Size: rigMiddle - rigBase, FD: fd},
		{GuestAddr: rigMiddle, Size: rigEnd - rigMiddle, Offset: rigSecond, FD: fd},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Free() })
	if o.Size == 0 {
		o.Size = 16
	}
	r := &rig{size: o.Size, file: mapping.Bytes(), memory: memory, chain: NewChain(o.Size)}
	r.renew(t, o)
	return r
}

// renew begins again with another device.
func (r *rig) renew(t testing.TB, o DeviceOptions) {
	t.Helper()
	o.Size, o.Memory, o.Layout = r.size, r.memory, r.layout(r.memory.View(rigBase, rigMiddle-rigBase))
	var err error
	if r.device, err = NewDevice(o); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) layout(b []byte) Layout {
	return Layout{Desc: b, Avail: b[rigAvail:], Used: b[rigUsed:]}
}

// put writes a descriptor into the table at an offset of the file.
func (r *rig) put(table, i int, addr uint64, n uint32, flags, next uint16) {
	b := r.file[table+16*i:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// offer writes an entry of the avail ring and the index behind it.
func (r *rig) offer(index, head uint16) {
	binary.LittleEndian.PutUint16(r.file[rigAvail+4+2*(int(index)%r.size):], head)
	r.setAvail(index + 1)
}

func (r *rig) setAvail(index uint16) { binary.LittleEndian.PutUint16(r.file[rigAvail+2:], index) }

func (r *rig) usedIndex() uint16 { return binary.LittleEndian.Uint16(r.file[rigUsed+2:]) }

func (r *rig) usedElem(index uint16) (id, n uint32) {
	b := r.file[rigUsed+4+8*(int(index)%r.size):]
	return binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
}

// piece is a view as guest addresses.
type piece struct {
	addr uint64
	n    int
}

// pieces tells where views lie in the guest; ok is false if one is not in its memory. Empty ones are left out.
func (r *rig) pieces(views [][]byte) (all []piece, ok bool) {
	first, second := shm.Address(r.memory.View(rigBase, 1)), shm.Address(r.memory.View(rigMiddle, 1))
	for _, v := range views {
		at, n := shm.Address(v), uintptr(len(v))
		switch {
		case n == 0:
		case at-first < rigMiddle-rigBase && n <= rigMiddle-rigBase-(at-first):
			all = append(all, piece{rigBase + uint64(at-first), len(v)})
		case at-second < rigEnd-rigMiddle && n <= rigEnd-rigMiddle-(at-second):
			all = append(all, piece{rigMiddle + uint64(at-second), len(v)})
		default:
			return nil, false
		}
	}
	return all, true
}

// chainOf is what the specification makes of the chain at a head, found in another way than the device's: all descriptors
// first, then the rules, one after the other. room bounds descriptors and views. Nil slices and false: not a good chain.
func (r *rig) chainOf(head uint16, indirect bool, room int) (readable, writable []piece, ok bool) {
	type descriptor struct {
		addr        uint64
		n           uint32
		flags, next uint16
	}
	at := func(addr uint64) (offset int, ok bool) { // of 1 byte in the file
		switch {
		case addr >= rigBase && addr < rigMiddle:
			return int(addr - rigBase), true
		case addr >= rigMiddle && addr < rigEnd:
			return int(addr-rigMiddle) + rigSecond, true
		}
		return 0, false
	}
	read := func(table int, count int, from uint16) (list []descriptor, ok bool) {
		for i := from; ; {
			if int(i) >= count || len(list) == min(count, room) {
				return nil, false
			}
			b := r.file[table+16*int(i):]
			d := descriptor{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]),
				binary.LittleEndian.Uint16(b[12:]), binary.LittleEndian.Uint16(b[14:])}
			list = append(list, d)
			if d.flags&descNext == 0 || d.flags&descIndirect != 0 {
				return list, true
			}
			i = d.next
		}
	}
	list, ok := read(0, r.size, head)
	if !ok {
		return nil, nil, false
	}
	if last := list[len(list)-1]; last.flags&descIndirect != 0 {
		offset, inside := at(last.addr)
		switch {
		case !indirect || last.flags&descNext != 0 || last.n == 0 || last.n%16 != 0 || last.n > 16*MaxSize || last.addr%8 != 0 || !inside:
			return nil, nil, false
		}
		end, inside := at(last.addr + uint64(last.n) - 1)
		if !inside || end != offset+int(last.n)-1 {
			return nil, nil, false
		}
		more, ok := read(offset, int(last.n/16), 0)
		if !ok {
			return nil, nil, false
		}
		list = append(list[:len(list)-1], more...)
	}
	views := 0
	for _, d := range list {
		if d.flags&descIndirect != 0 {
			return nil, nil, false
		}
		write := d.flags&descWrite != 0
		if !write && len(writable) > 0 {
			return nil, nil, false
		}
		// Cut at the border between the regions; every byte must be somewhere.
		var cut []piece
		switch end := d.addr + uint64(d.n); {
		case end < d.addr || d.addr < rigBase || d.addr >= rigEnd || end > rigEnd:
			return nil, nil, false
		case d.addr < rigMiddle && end > rigMiddle:
			cut = []piece{{d.addr, int(rigMiddle - d.addr)}, {rigMiddle, int(end - rigMiddle)}}
		default:
			cut = []piece{{d.addr, int(d.n)}}
		}
		if views >= room {
			return nil, nil, false
		}
		for _, p := range cut {
			if p.n > 0 {
				if views++; views > room {
					return nil, nil, false
				}
			}
		}
		if write {
			writable = append(writable, cut...)
		} else {
			readable = append(readable, cut...)
		}
	}
	drop := func(from []piece) (kept []piece) {
		for _, p := range from {
			if p.n > 0 {
				kept = append(kept, p)
			}
		}
		return kept
	}
	return drop(readable), drop(writable), true
}
