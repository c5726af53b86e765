package uring

import (
	"errors"

	"github.com/shuntio/shunt/dataplane/shm"
)

// Vector is a list of buffers, as iovecs where the kernel can see them. It belongs to an operation while that is under way.
type Vector struct {
	iovecs      []iovec
	header      *msghdr // outside Go's memory, like the iovecs
	first, last int     // of the iovecs in use
	bytes       int     // in them
	class       int
	lent        bool
	own         *shm.Mapping // of one that is no ring's
}

// MaxVector is the longest vector there is (UIO_MAXIOV).
const MaxVector = 1024

// lengths are the classes of vectors: a request of virtio-blk has rarely more than 16 buffers, the drivers of Linux at most 128, and each gets
// two more for what a protocol puts in front and behind.
var lengths = [...]int{smallVector, middleVector, MaxVector}

const smallVector, middleVector = 18, 130

// shares is how many of Options.Vectors one vector of a class costs.
var shares = [len(lengths)]int{1, 2, 8}

// vectors are a ring's, by class.
type vectors struct {
	memory *shm.Mapping
	free   [len(lengths)][]*Vector
}

const sizeofIovec, sizeofMsghdr = 16, 56

// open makes them: with n of 1024, 1024*(56+18*16) + 512*(56+130*16) + 128*(56+1024*16) bytes, 3.4 MiB, of which only what is used takes memory.
func (p *vectors) open(n int) (err error) {
	total := 0
	count := func(class int) int { return max(n/shares[class], 1) }
	for class, length := range lengths {
		total += count(class) * (sizeofMsghdr + length*sizeofIovec)
	}
	if p.memory, err = shm.Map(shm.MapOptions{FD: -1, Length: total}); err != nil {
		return err
	}
	rest := p.memory.Bytes()
	for class, length := range lengths {
		p.free[class] = make([]*Vector, 0, count(class))
		for range count(class) {
			v, err := newVector(rest, length, class)
			if err != nil {
				return err
			}
			rest = rest[sizeofMsghdr+length*sizeofIovec:]
			p.free[class] = append(p.free[class], v)
		}
	}
	return nil
}

// NewVector makes one of n buffers at most that is no ring's, and so may be anybody's: it is closed, and not given to Free.
func NewVector(n int) (*Vector, error) {
	m, err := shm.Map(shm.MapOptions{FD: -1, Length: sizeofMsghdr + n*sizeofIovec})
	if err != nil {
		return nil, err
	}
	v, err := newVector(m.Bytes(), n, 0)
	if err != nil {
		return nil, errors.Join(err, m.Free())
	}
	v.own = m
	return v, nil
}

// Close frees a vector that is no ring's.
func (v *Vector) Close() error { return v.own.Free() }

// newVector makes one of the beginning of some memory.
func newVector(b []byte, length, class int) (*Vector, error) {
	header, err := shm.View[msghdr](b, 1)
	if err != nil {
		return nil, err
	}
	iovecs, err := shm.View[iovec](b[sizeofMsghdr:], length)
	if err != nil {
		return nil, err
	}
	return &Vector{iovecs: iovecs, header: &header[0], class: class}, nil
}

func (p *vectors) close() error {
	if p.memory == nil {
		return nil
	}
	return p.memory.Free()
}

// Vector gives out an empty vector of at most n buffers; nil if none is free. Where there is no small one it is a longer one.
func (r *Ring) Vector(n int) *Vector {
	for class, length := range lengths {
		free := r.vectors.free[class]
		if n > length || len(free) == 0 {
			continue
		}
		v := free[len(free)-1]
		r.vectors.free[class] = free[:len(free)-1]
		v.lent = true
		v.Reset()
		return v
	}
	return nil
}

// Room is how many operations can begin yet, if each takes a vector of n buffers.
func (r *Ring) Room(n int) int {
	free := &r.vectors.free
	vectors := len(free[2])
	if n <= middleVector {
		vectors += len(free[1])
	}
	if n <= smallVector {
		vectors += len(free[0])
	}
	return min(vectors, len(r.free))
}

// Free takes a vector back, whose operation has ended.
func (r *Ring) Free(v *Vector) {
	if !v.lent {
		panic(errors.New("uring: a vector is freed twice"))
	}
	v.lent = false
	r.vectors.free[v.class] = append(r.vectors.free[v.class], v)
}

// Reset empties the vector.
func (v *Vector) Reset() { v.first, v.last, v.bytes = 0, 0, 0 }

// Add appends a buffer, which must lie outside Go's memory; false if there is no room. An empty one takes none, nor does one that begins where the
// last one ends.
func (v *Vector) Add(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	at := uint64(shm.Address(b))
	if v.last > v.first {
		if l := &v.iovecs[v.last-1]; l.base+l.len == at {
			l.len += uint64(len(b))
			v.bytes += len(b)
			return true
		}
	}
	if v.last == len(v.iovecs) {
		return false
	}
	v.iovecs[v.last] = iovec{base: at, len: uint64(len(b))}
	v.last++
	v.bytes += len(b)
	return true
}

// Append appends what another vector has left; false, and nothing happened, if there is no room.
func (v *Vector) Append(w *Vector) bool {
	if v.last+w.last-w.first > len(v.iovecs) {
		return false
	}
	v.last += copy(v.iovecs[v.last:], w.iovecs[w.first:w.last])
	v.bytes += w.bytes
	return true
}

// Advance takes n bytes away from the front, which were read or written; more than there are empty it.
func (v *Vector) Advance(n int) {
	if n >= v.bytes {
		v.Reset()
		return
	}
	v.bytes -= n
	for left := uint64(n); left > 0; {
		f := &v.iovecs[v.first]
		if left < f.len {
			f.base += left
			f.len -= left
			return
		}
		left -= f.len
		v.first++
	}
}

// Len is how many bytes are left.
func (v *Vector) Len() int { return v.bytes }

// address is where the iovecs in use lie.
func (v *Vector) address() uint64 {
	if v.first == v.last {
		return 0
	}
	return uint64(addressOf(&v.iovecs[v.first]))
}

// message fills the header in, and tells where it lies.
func (v *Vector) message() uint64 {
	*v.header = msghdr{iov: v.address(), iovlen: uint64(v.last - v.first)}
	return uint64(addressOf(v.header))
}
