package virtq

import "encoding/binary"

// The oracle: what the specification makes of a chain, found in another way than the device's: all descriptors first, then the rules,
// one after the other.

// descriptor is one of either format; last is next or flags, whichever the format has last.
type descriptor struct {
	addr        uint64
	n           uint32
	third, last uint16
}

func (r *rig) descriptor(table, i int) descriptor {
	b := r.file[table+16*i:]
	return descriptor{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]),
		binary.LittleEndian.Uint16(b[12:]), binary.LittleEndian.Uint16(b[14:])}
}

// element is a descriptor that is a buffer.
type element struct {
	addr  uint64
	n     uint32
	write bool
}

// offset is where a byte of the guest's lies in the file.
func offset(addr uint64) (at int, ok bool) {
	switch {
	case addr >= rigBase && addr < rigMiddle:
		return int(addr - rigBase), true
	case addr >= rigMiddle && addr < rigEnd:
		return int(addr-rigMiddle) + rigSecond, true
	}
	return 0, false
}

// tableOf is where the indirect table of a descriptor lies in the file, if it is one.
func tableOf(d descriptor) (at int, ok bool) {
	if d.n == 0 || d.n%16 != 0 || d.n > 16*MaxSize || d.addr%8 != 0 {
		return 0, false
	}
	at, first := offset(d.addr)
	end, last := offset(d.addr + uint64(d.n) - 1)
	return at, first && last && end == at+int(d.n)-1
}

// cut cuts buffers at the border between the regions, where every byte must be somewhere, and leaves empty ones out. room bounds views;
// also an empty buffer needs to find some.
func cut(list []element, room int) (readable, writable []piece, ok bool) {
	writing, views := false, 0
	for _, e := range list {
		if writing && !e.write {
			return nil, nil, false
		}
		writing = e.write
		var parts []piece
		switch end := e.addr + uint64(e.n); {
		case end < e.addr || e.addr < rigBase || e.addr >= rigEnd || end > rigEnd || views >= room:
			return nil, nil, false
		case e.addr < rigMiddle && end > rigMiddle:
			parts = []piece{{e.addr, int(rigMiddle - e.addr)}, {rigMiddle, int(end - rigMiddle)}}
		case e.n > 0:
			parts = []piece{{e.addr, int(e.n)}}
		}
		if views += len(parts); views > room {
			return nil, nil, false
		}
		if e.write {
			writable = append(writable, parts...)
		} else {
			readable = append(readable, parts...)
		}
	}
	return readable, writable, true
}

// chainOf is the chain of a split ring at a head. room bounds descriptors and views.
func (r *rig) chainOf(head uint16, indirect bool, room int) (readable, writable []piece, ok bool) {
	read := func(table int, count int, from uint16) (list []descriptor, ok bool) {
		for i := from; ; {
			if int(i) >= count || len(list) == min(count, room) {
				return nil, false
			}
			d := r.descriptor(table, int(i))
			list = append(list, d)
			if d.third&descNext == 0 || d.third&descIndirect != 0 {
				return list, true
			}
			i = d.last
		}
	}
	list, ok := read(0, r.size, head)
	if !ok {
		return nil, nil, false
	}
	if last := list[len(list)-1]; last.third&descIndirect != 0 {
		at, good := tableOf(last)
		if !good || !indirect || last.third&descNext != 0 {
			return nil, nil, false
		}
		more, ok := read(at, int(last.n/16), 0)
		if !ok {
			return nil, nil, false
		}
		list = append(list[:len(list)-1], more...)
	}
	var elements []element
	for _, d := range list {
		if d.third&descIndirect != 0 {
			return nil, nil, false
		}
		elements = append(elements, element{d.addr, d.n, d.third&descWrite != 0})
	}
	return cut(elements, room)
}

// offered tells whether a descriptor of a packed ring is the driver's offer at a place, which counts on around the ring: in even rounds
// the wrap counter is 1.
func (r *rig) offered(place int) bool {
	flags := r.descriptor(0, place%r.size).last
	avail, used, wrap := flags>>7&1 == 1, flags>>15&1 == 1, place/r.size%2 == 0
	return avail == wrap && used != wrap
}

// packedChainOf is the chain of a packed ring at a place, of which left descriptors are the driver's. room bounds views, and
// descriptors.
func (r *rig) packedChainOf(place, left int, indirect bool, room int) (readable, writable []piece, slots int, id uint16, ok bool) {
	var list []descriptor
	for more := true; more; slots++ {
		if slots == left || slots == room || !r.offered(place+slots) {
			return nil, nil, 0, 0, false
		}
		d := r.descriptor(0, (place+slots)%r.size)
		list = append(list, d)
		more = d.last&descNext != 0 && d.last&descIndirect == 0
	}
	last := list[len(list)-1]
	var elements []element
	for _, d := range list {
		elements = append(elements, element{d.addr, d.n, d.last&descWrite != 0})
	}
	if last.last&descIndirect != 0 {
		at, good := tableOf(last)
		if !good || !indirect || last.last&descNext != 0 || slots > 1 || int(last.n/16) > room {
			return nil, nil, 0, 0, false
		}
		elements = nil
		for i := range int(last.n / 16) {
			d := r.descriptor(at, i)
			elements = append(elements, element{d.addr, d.n, d.last&descWrite != 0})
		}
	}
	readable, writable, ok = cut(elements, room)
	return readable, writable, slots, last.third, ok
}
