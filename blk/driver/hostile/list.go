package hostile

import (
	"bytes"
	"encoding/binary"
	"math"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// shapes are legal: any layout of buffers is (virtio 1.2, 2.7.4, 5.2.6).
func shapes() []Attack {
	out := func(r *Rig) []byte { return bytes.Repeat([]byte{0x77}, 512) }
	return []Attack{
		{Name: "header in 8 descriptors", Expect: MustSucceed, write: func(r *Rig) {
			var all []Piece
			for h := header(driver.In, 0); len(h) > 0; h = h[2:] {
				all = append(all, r.Bytes(h[:2]))
			}
			r.Chain(append(all, r.Room(512), r.Status())...)
		}},
		{Name: "header and data in one", Expect: MustSucceed, write: func(r *Rig) {
			r.Chain(r.Bytes(append(header(driver.Out, scratchFirst), out(r)...)), r.Status())
		}},
		{Name: "header with the beginning of the data", Expect: MustSucceed, write: func(r *Rig) {
			b := append(header(driver.Out, scratchFirst), out(r)...)
			r.Chain(r.Bytes(b[:100]), r.Bytes(b[100:101]), r.Bytes(b[101:]), r.Status())
		}},
		{Name: "data and status in one", Expect: MustSucceed, write: func(r *Rig) {
			all := r.Room(513)
			at := int(all.Addr-driver.BuffersAddr) + 512
			r.Disk.Buffers()[at] = noAnswer
			r.status = append(r.status, at)
			r.Chain(r.Header(driver.In, 0), all)
		}},
		{Name: "data in odd pieces", Expect: MustSucceed, write: func(r *Rig) {
			r.Chain(r.Header(driver.In, 0), r.Room(1), r.Room(510), r.Room(513), r.Status())
		}},
		{Name: "indirect table of everything", Expect: MustSucceed, write: func(r *Rig) {
			r.Chain(r.Table(r.Header(driver.In, 0), r.Room(512), r.Room(512), r.Status()))
		}},
		{Name: "descriptors backwards", Expect: MustSucceed, SplitOnly: true, write: func(r *Rig) {
			r.Desc(9, r.describe(r.Header(driver.In, 0), true, 5, false))
			r.Desc(5, r.describe(r.Room(512), true, 1, false))
			r.Desc(1, r.describe(r.Status(), false, 0, false))
			r.Avail(9)
		}},
		{Name: "two requests, one bad", Expect: Survive, write: func(r *Rig) {
			r.Chain(r.Header(driver.In, math.MaxUint64), r.Room(512), r.Status())
			r.Chain(r.Header(driver.In, 0), r.Room(512), r.Status())
		}},
	}
}

// requests are chains in order that ask for what there is not.
func requests() []Attack {
	one := func(name string, e Expect, op driver.Op, sector func(r *Rig) uint64, n int) Attack {
		return Attack{Name: name, Expect: e, write: func(r *Rig) {
			h := r.Header(op, sector(r))
			if op == driver.Out {
				r.Chain(h, r.Bytes(make([]byte, n)), r.Status())
			} else {
				r.Chain(h, r.Room(n), r.Status())
			}
		}}
	}
	end := func(back uint64) func(*Rig) uint64 {
		return func(r *Rig) uint64 { return r.Disk.Config().Capacity - back }
	}
	at := func(n uint64) func(*Rig) uint64 { return func(*Rig) uint64 { return n } }
	var all []Attack
	for _, op := range []driver.Op{driver.In, driver.Out} {
		name := op.String() + " "
		all = append(all,
			one(name+"beyond the end", MustFail, op, end(0), 512), one(name+"across the end", MustFail, op, end(1), 1024),
			one(name+"of the last sector there can be", MustFail, op, at(math.MaxUint64), 512),
			one(name+"of a sector whose offset wraps to 0", MustFail, op, at(1<<55), 512),
			one(name+"of a sector whose offset is negative", MustFail, op, at(1<<54), 512),
			one(name+"that ends where 64 bits do", MustFail, op, at(math.MaxUint64-1), 1024),
			one(name+"of half a sector", MustFail, op, at(0), 256), one(name+"of 513 bytes", MustFail, op, at(0), 513),
			one(name+"of nothing", Survive, op, at(0), 0))
	}
	return append(append(all, oddRequests()...), rangeRequests()...)
}

func oddRequests() []Attack {
	return []Attack{
		{Name: "type that there is not", Expect: MustFail, write: func(r *Rig) { r.Chain(r.Header(99, 0), r.Room(512), r.Status()) }},
		{Name: "type of 32 ones", Expect: MustFail, write: func(r *Rig) { r.Chain(r.Header(math.MaxUint32, 0), r.Room(512), r.Status()) }},
		{Name: "SCSI command", Expect: MustFail, write: func(r *Rig) { r.Chain(r.Header(2, 0), r.Bytes(make([]byte, 32)), r.Room(512), r.Status()) }},
		{Name: "secure erase", Expect: MustFail, write: func(r *Rig) {
			r.Chain(r.Header(driver.SecureErase, 0), r.Bytes(ranges([3]uint64{0, 8, 0})), r.Status())
		}},
		{Name: "IN with readable data", Expect: Survive, write: func(r *Rig) {
			r.Chain(r.Header(driver.In, 0), r.Bytes(make([]byte, 512)), r.Status())
		}},
		{Name: "OUT with writable data", Expect: Survive, write: func(r *Rig) { r.Chain(r.Header(driver.Out, 0), r.Room(512), r.Status()) }},
		{Name: "FLUSH with data", Expect: Survive, write: func(r *Rig) {
			r.Chain(r.Header(driver.Flush, 77), r.Bytes(make([]byte, 512)), r.Room(512), r.Status())
		}},
		{Name: "GET_ID into one byte", Expect: Survive, write: func(r *Rig) { r.Chain(r.Header(driver.GetID, 0), r.Room(1), r.Status()) }},
		{Name: "GET_ID into 4096", Expect: Survive, write: func(r *Rig) { r.Chain(r.Header(driver.GetID, 0), r.Room(4096), r.Status()) }},
		{Name: "GET_ID into nothing", Expect: Survive, write: func(r *Rig) { r.Chain(r.Header(driver.GetID, 0), r.Status()) }},
		{Name: "GET_LIFETIME into one byte", Expect: Survive, write: func(r *Rig) { r.Chain(r.Header(driver.GetLifetime, 0), r.Room(1), r.Status()) }},
		{Name: "header of 15 bytes", Expect: MustFail, write: func(r *Rig) { r.Chain(r.Bytes(header(driver.In, 0)[:15]), r.Room(512), r.Status()) }},
		{Name: "no header", Expect: MustFail, write: func(r *Rig) { r.Chain(r.Room(512), r.Status()) }},
		{Name: "header alone", Expect: MustFail, write: func(r *Rig) { r.Chain(r.Header(driver.Flush, 0)) }},
		{Name: "status missing", Expect: MustFail, write: func(r *Rig) { r.Chain(r.Header(driver.Out, scratchFirst), r.Bytes(make([]byte, 512))) }},
		{Name: "status of no bytes", Expect: MustFail, write: func(r *Rig) {
			r.Chain(r.Header(driver.Out, scratchFirst), r.Bytes(make([]byte, 512)), r.Room(0))
		}},
		{Name: "status that may not be written", Expect: MustFail, write: func(r *Rig) {
			s := r.Status()
			s.Flags = 0
			r.writable = r.writable[:len(r.writable)-1]
			r.Chain(r.Header(driver.Flush, 0), s)
		}},
	}
}

// rangeRequests are discards and zeroes.
func rangeRequests() (all []Attack) {
	for _, op := range []driver.Op{driver.Discard, driver.WriteZeroes} {
		one := func(name string, e Expect, b func(r *Rig) []byte) {
			all = append(all, Attack{Name: op.String() + " " + name, Expect: e, write: func(r *Rig) {
				r.Chain(r.Header(op, 0), r.Bytes(b(r)), r.Status())
			}})
		}
		of := func(list ...[3]uint64) func(*Rig) []byte { return func(*Rig) []byte { return ranges(list...) } }
		one("beyond the end", MustFail, func(r *Rig) []byte { return ranges([3]uint64{r.Disk.Config().Capacity, 8, 0}) })
		one("across the end", MustFail, func(r *Rig) []byte { return ranges([3]uint64{r.Disk.Config().Capacity - 4, 8, 0}) })
		one("that wraps", MustFail, of([3]uint64{math.MaxUint64 - 3, 8, 0}))
		one("whose offset wraps to 0", MustFail, of([3]uint64{1 << 55, 8, 0}))
		one("of all sectors there can be", MustFail, of([3]uint64{0, math.MaxUint32, 0}))
		one("of half a range", MustFail, func(*Rig) []byte { return ranges([3]uint64{scratchFirst, 8, 0})[:8] })
		one("with flags there are not", MustFail, of([3]uint64{scratchFirst, 8, 0xfffffffe}))
		one("of no range", Survive, func(*Rig) []byte { return nil })
		one("of a good range and a bad one", Survive, of([3]uint64{scratchFirst, 8, 0}, [3]uint64{1 << 60, 8, 0}))
		one("of 1000 ranges", Survive, func(*Rig) []byte { return bytes.Repeat(ranges([3]uint64{scratchFirst, 8, 0}), 1000) })
	}
	return append(all, Attack{Name: "DISCARD with unmap", Expect: MustFail, write: func(r *Rig) {
		r.Chain(r.Header(driver.Discard, 0), r.Bytes(ranges([3]uint64{scratchFirst, 8, 1})), r.Status())
	}})
}

// addresses are buffers where there is nothing.
func addresses() (all []Attack) {
	end := uint64(driver.BuffersAddr + memoryBytes)
	for name, p := range map[string]Piece{
		"at 0":                     {Addr: 0, Len: 512},
		"between the regions":      {Addr: driver.BuffersAddr - 4096, Len: 512},
		"across a region's begin":  {Addr: driver.BuffersAddr - 256, Len: 512},
		"across the end of memory": {Addr: end - 256, Len: 512},
		"behind the memory":        {Addr: end, Len: 512},
		"that wraps":               {Addr: math.MaxUint64 - 255, Len: 512},
		"at the last address":      {Addr: math.MaxUint64, Len: 512},
		"of 4 GiB":                 {Addr: driver.BuffersAddr, Len: math.MaxUint32 &^ 511},
		"non-canonical":            {Addr: 1 << 62, Len: 512},
	} {
		for _, op := range []driver.Op{driver.In, driver.Out} {
			all = append(all, Attack{Name: op.String() + " of data " + name, Expect: MustFail, write: func(r *Rig) {
				if p := p; op == driver.In {
					p.Flags = Write
					r.Chain(r.Header(op, 0), p, r.Status())
				} else {
					r.Chain(r.Header(op, scratchFirst), p, r.Status())
				}
			}})
		}
		all = append(all, Attack{Name: "header " + name, Expect: MustFail, write: func(r *Rig) { r.Chain(p, r.Room(512), r.Status()) }},
			Attack{Name: "status " + name, Expect: Survive, write: func(r *Rig) {
				p := p
				p.Flags = Write
				r.Chain(r.Header(driver.Flush, 0), p)
			}})
	}
	return append(all,
		Attack{Name: "IN over the ring", Expect: Survive, write: func(r *Rig) {
			r.Chain(r.Header(driver.In, 0), Piece{Addr: driver.TablesAddr, Len: 8192, Flags: Write}, r.Status())
		}},
		Attack{Name: "status on the header", Expect: Survive, write: func(r *Rig) {
			h := r.Header(driver.In, 0)
			at := int(h.Addr - driver.BuffersAddr)
			r.writable = append(r.writable, [2]int{at, at + 1})
			r.Chain(h, r.Room(512), Piece{Addr: h.Addr, Len: 1, Flags: Write})
		}},
		Attack{Name: "more data than there are addresses", Expect: MustFail, write: func(r *Rig) {
			var many []Piece
			for range 8192 {
				many = append(many, Piece{Addr: driver.BuffersAddr, Len: memoryBytes, Flags: Write})
			}
			h, s := r.Header(driver.In, 0), r.Status()
			r.Chain(r.Table(append(append([]Piece{h}, many...), s)...))
			r.Publish()
		}, free: true})
}

// tables are indirect ones that are none.
func tables() []Attack {
	good := func(r *Rig) Piece { return r.Table(r.Header(driver.In, 0), r.Room(512), r.Status()) }
	with := func(name string, change func(r *Rig, t Piece) []Piece) Attack {
		return Attack{Name: "indirect " + name, Expect: MustFail, write: func(r *Rig) { r.Chain(change(r, good(r))...) }}
	}
	return []Attack{
		with("of no bytes", func(_ *Rig, t Piece) []Piece { t.Len = 0; return []Piece{t} }),
		with("of 47 bytes", func(_ *Rig, t Piece) []Piece { t.Len = 47; return []Piece{t} }),
		with("in an indirect one", func(r *Rig, t Piece) []Piece { return []Piece{r.Table(t)} }),
		with("where there is no memory", func(_ *Rig, t Piece) []Piece { t.Addr = 1 << 50; return []Piece{t} }),
		with("of 4 GiB", func(_ *Rig, t Piece) []Piece { t.Len = math.MaxUint32 &^ 15; return []Piece{t} }),
		with("and next", func(r *Rig, t Piece) []Piece { return []Piece{t, r.Room(512)} }),
		{Name: "indirect that links to itself", Expect: MustFail, SplitOnly: true, write: func(r *Rig) {
			t := good(r)
			at := int(t.Addr - driver.BuffersAddr)
			binary.LittleEndian.PutUint16(r.Disk.Buffers()[at+16+14:], 1) // the second's next is the second
			r.Chain(t)
		}},
		{Name: "indirect that links out of the table", Expect: MustFail, SplitOnly: true, write: func(r *Rig) {
			t := good(r)
			binary.LittleEndian.PutUint16(r.Disk.Buffers()[int(t.Addr-driver.BuffersAddr)+14:], 3)
			r.Chain(t)
		}},
	}
}

// rings are split rings that are none.
func rings() []Attack {
	good := func(r *Rig) { r.Chain(r.Header(driver.In, 0), r.Room(512), r.Status()) }
	ring := func(name string, e Expect, write func(r *Rig)) Attack {
		return Attack{Name: name, Expect: e, SplitOnly: true, write: write}
	}
	return []Attack{
		{Name: "readable behind writable", Expect: MustFail, write: func(r *Rig) {
			r.Chain(r.Header(driver.In, 0), r.Room(512), r.Bytes(make([]byte, 512)), r.Status())
		}},
		ring("chain that links to itself", MustFail, func(r *Rig) {
			r.Desc(0, r.describe(r.Header(driver.In, 0), true, 0, false))
			r.Avail(0)
		}),
		ring("chain that goes round", MustFail, func(r *Rig) {
			r.Desc(0, r.describe(r.Header(driver.In, 0), true, 1, false))
			r.Desc(1, r.describe(r.Room(512), true, 2, false))
			r.Desc(2, r.describe(r.Room(512), true, 1, false))
			r.Avail(0)
		}),
		ring("next out of the table", MustFail, func(r *Rig) {
			r.Desc(0, r.describe(r.Header(driver.In, 0), true, queueSize, false))
			r.Avail(0)
		}),
		ring("head out of the table", MustFail, func(r *Rig) { r.Avail(queueSize) }),
		ring("head of 16 ones", MustFail, func(r *Rig) { r.Avail(math.MaxUint16) }),
		ring("index that jumps", Survive, func(r *Rig) {
			good(r)
			r.avail += queueSize
		}),
		ring("index that goes back", Survive, func(r *Rig) {
			good(r)
			r.avail = math.MaxUint16
		}),
		ring("one head twice", Survive, func(r *Rig) {
			good(r)
			r.Avail(0)
		}),
	}
}

// packedRings are packed ones that are none.
func packedRings() []Attack {
	ring := func(name string, write func(r *Rig)) Attack {
		return Attack{Name: name, Expect: MustFail, PackedOnly: true, write: write}
	}
	id := func(r *Rig, at int, v uint16) { binary.LittleEndian.PutUint16(r.layout.Desc[16*at+12:], v) }
	return []Attack{
		ring("packed chain without an end", func(r *Rig) {
			for at := range queueSize {
				r.Desc(at, r.describe(r.Bytes(make([]byte, 16)), true, 0, false))
			}
			r.next, r.heads = queueSize, 1
		}),
		{Name: "packed id out of range", Expect: Survive, PackedOnly: true, write: func(r *Rig) {
			r.Chain(r.Header(driver.In, 0), r.Room(512), r.Status())
			id(r, 2, queueSize)
		}},
		{Name: "packed id of 16 ones", Expect: Survive, PackedOnly: true, write: func(r *Rig) {
			r.Chain(r.Header(driver.In, 0), r.Room(512), r.Status())
			id(r, 2, math.MaxUint16)
		}},
		{Name: "packed ids the same", Expect: Survive, PackedOnly: true, write: func(r *Rig) {
			r.Chain(r.Header(driver.In, 0), r.Room(512), r.Status())
			r.Chain(r.Header(driver.In, 0), r.Room(512), r.Status())
		}},
	}
}

// memories take the memory away, or let it change, while the device works.
func memories() []Attack {
	many := func(r *Rig) {
		for range 5 {
			r.Chain(r.Header(driver.In, 0), r.Room(64<<10), r.Status())
		}
	}
	return []Attack{
		{Name: "buffers truncated before", Fatal: true, free: true, write: func(r *Rig) {
			many(r)
			_, tables := r.Disk.Length()
			r.without(tables, r.Publish)
		}},
		{Name: "buffers truncated meanwhile", Fatal: true, free: true, write: func(r *Rig) {
			many(r)
			r.Publish()
			_, tables := r.Disk.Length()
			r.without(tables, func() {})
		}},
		{Name: "tables truncated", Fatal: true, free: true, write: func(r *Rig) {
			many(r)
			r.Publish()
			r.without(0, r.Kick)
		}},
		{Name: "buffers removed", Fatal: true, free: true, write: func(r *Rig) {
			many(r)
			r.Publish()
			_ = r.Disk.Frontend(func(f *vhostuser.Frontend) error { return f.SetMemory(r.Disk.Regions()[:1]...) })
		}},
		{Name: "headers rewritten meanwhile", free: true, write: func(r *Rig) {
			many(r)
			r.Publish()
			b := r.Disk.Buffers()
			for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
				for i := range 64 {
					b[i] ^= byte(i) // IN becomes all sorts of things, but not OUT: its bit 0 stays
				}
			}
		}},
	}
}
