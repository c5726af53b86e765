package virtq

import (
	"encoding/binary"

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

func newRig(t fataler, o DeviceOptions) *rig {
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

// renew begins again with another device, with nothing under way.
func (r *rig) renew(t fataler, o DeviceOptions) {
	t.Helper()
	if !o.Packed {
		r.setUsed(o.Base)
	}
	r.replace(t, o)
}

// replace puts another device in the place of the one there is.
func (r *rig) replace(t fataler, o DeviceOptions) {
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

// putPacked writes a descriptor of a packed ring, or of its indirect table. In the ring flags have the turn bits.
func (r *rig) putPacked(table, i int, addr uint64, n uint32, id, flags uint16) {
	r.put(table, i, addr, n, id, flags)
}

// offer writes an entry of the avail ring and the index behind it.
func (r *rig) offer(index, head uint16) {
	binary.LittleEndian.PutUint16(r.file[rigAvail+4+2*(int(index)%r.size):], head)
	r.setAvail(index + 1)
}

func (r *rig) setAvail(index uint16) { binary.LittleEndian.PutUint16(r.file[rigAvail+2:], index) }

func (r *rig) setUsed(index uint16) { binary.LittleEndian.PutUint16(r.file[rigUsed+2:], index) }

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

// fataler is what testing.TB and rapid.T have in common.
type fataler interface {
	Helper()
	Fatal(...any)
	Cleanup(func())
}
