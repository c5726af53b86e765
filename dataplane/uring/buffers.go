package uring

import (
	"errors"
	"fmt"
	"slices"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// Buffers is a provided buffer ring: buffers that the kernel picks itself when data arrives.
//
//	Provide ─▶ ring of free buffers ─▶ kernel: data arrived ─▶ completion names the buffer ─▶ Bytes ─▶ Return ─▶ ring
type Buffers struct {
	ring        *Ring
	group       uint16
	count, size int
	memory      *Memory
	entries     []bufEntry // we write entries and the tail; the kernel's head is its own
	tail        *uint16
	data        []byte
	next        uint16
}

const (
	sizeofBufEntry = 16
	tailAt         = 14 // in the first entry
	maxBufferRing  = 1 << 15
	bufferShift    = 16 // of the number in a completion's flags
)

// Provide makes count buffers, a power of two up to 32768, of size bytes.
func (r *Ring) Provide(count, size int) (_ *Buffers, err error) {
	if count <= 0 || count > maxBufferRing || count&(count-1) != 0 || size <= 0 {
		return nil, fmt.Errorf("provide %d buffers of %d bytes: their number must be a power of two up to %d", count, size, maxBufferRing)
	}
	page := unix.Getpagesize()
	ring := (count*sizeofBufEntry + page - 1) / page * page
	b := &Buffers{ring: r, count: count, size: size}
	if b.memory, err = NewMemory(ring + count*size); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = b.memory.Free()
		}
	}()
	if b.entries, err = shm.View[bufEntry](b.memory.Bytes(), count); err != nil {
		return nil, err
	}
	tail, err := shm.View[uint16](b.memory.Bytes()[tailAt:], 1)
	if err != nil {
		return nil, err
	}
	b.tail, b.data = &tail[0], b.memory.Bytes()[ring:]
	group := slices.Index(r.groups, nil)
	if group < 0 {
		group = len(r.groups)
		r.groups = append(r.groups, nil)
	}
	b.group = uint16(group)
	reg := bufReg{ringAddr: uint64(shm.Address(b.memory.Bytes())), ringEntries: uint32(count), bgid: b.group}
	if err := registerBuffers(r.fd, registerPbufRing, &reg); errors.Is(err, unix.EEXIST) && r.thread != unix.Gettid() {
		return nil, ErrThread
	} else if err != nil {
		return nil, fmt.Errorf("provide %d buffers to the io_uring: %w", count, err)
	}
	r.groups[group] = b
	for i := range count {
		b.give(uint16(i))
	}
	return b, nil
}

// give puts a buffer into the ring. The tail is stored behind the entry; its own place in the first entry is left alone.
func (b *Buffers) give(bid uint16) {
	e := &b.entries[int(b.next)&(b.count-1)]
	e.addr = uint64(shm.Address(b.data[int(bid)*b.size:]))
	e.len = uint32(b.size)
	e.bid = bid
	b.next++
	shm.Store16(b.tail, b.next)
}

// Bytes is what a completion brought: the first n bytes of the buffer that its flags name. They are valid until Return.
func (b *Buffers) Bytes(flags uint32, n int) []byte {
	bid := int(flags >> bufferShift)
	if flags&Buffer == 0 || bid >= b.count || n < 0 || n > b.size {
		return nil
	}
	return b.data[bid*b.size:][:n:n]
}

// Return gives the buffer that a completion's flags name back to the kernel; nothing if they name none.
func (b *Buffers) Return(flags uint32) {
	if bid := int(flags >> bufferShift); flags&Buffer != 0 && bid < b.count {
		b.give(uint16(bid))
	}
}

// Free ends it. No operation may use it any more.
func (b *Buffers) Free() error {
	if b.ring.groups == nil || b.ring.groups[b.group] != b {
		return nil // with its ring
	}
	reg := bufReg{bgid: b.group}
	if err := registerBuffers(b.ring.fd, unregisterPbufRing, &reg); err != nil {
		return fmt.Errorf("take buffers from the io_uring: %w", err)
	}
	b.ring.groups[b.group] = nil
	return b.memory.Free()
}
