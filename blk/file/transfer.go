package file

import (
	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// transferPart bounds one operation: the kernel may copy all of it, or pin its pages, before it comes back to the worker, and a driver that does not look at
// the limits it is told of may ask for gigabytes.
const transferPart = 4 << 20

// prepare takes what a request that reads or writes needs until its end; false: there is none left.
func (l *lane) prepare(s *slot) bool {
	if s.stage != transferring {
		return true
	}
	n := min(len(s.r.Buffers), uring.MaxVector)
	if !l.store.shape.fits(s.r.Buffers) || l.store.shape.remote && s.r.Op == blk.OpRead {
		if s.chunk = l.bounce.get(); s.chunk == nil {
			return false
		}
		n = 1
	}
	s.vector = l.ring.Vector(n)
	return s.vector != nil
}

// fits tells whether buffers can be read and written as they are.
func (s *shape) fits(buffers [][]byte) bool {
	if !s.direct {
		return true
	}
	bits := uint64(0)
	for _, b := range buffers {
		bits |= uint64(shm.Address(b))&s.memoryMask | uint64(len(b))&s.offsetMask
	}
	return bits == 0
}

// transfer reads or writes what is left of a request, or as much as fits.
func (l *lane) transfer(s *slot) bool {
	r, v := s.r, s.vector
	v.Reset()
	if s.chunk == nil {
		fill(v, r.Buffers, s.done)
	} else {
		part := s.chunk[:min(uint64(len(s.chunk)), r.Length-s.done)]
		if r.Op == blk.OpWrite && !gather(part, r.Buffers, s.done) {
			s.broken = true
			return l.ring.Nop(&s.op) // Done is not to be called within Submit
		}
		v.Add(part)
	}
	offset := r.Offset + s.done
	if r.Op == blk.OpRead {
		return l.read(s, offset)
	}
	return l.write(s, offset)
}

// read begins a read of the slot's vector: by the ring, and what the page cache has not by a thread that may wait. When nothing of that comes any more all reads go there, since
// the kernel reads ahead also behind some of what it has.
func (l *lane) read(s *slot, offset uint64) bool {
	here := l.store.resident
	if here == nil {
		return l.ring.Readv(&s.op, l.file, s.vector, int64(offset))
	}
	s.fetches = !here.has(offset, uint64(s.vector.Len()), l.host.Worker.Now())
	if !s.fetches && !l.dry {
		return l.ring.Readv(&s.op, l.file, s.vector, int64(offset))
	}
	if !l.ring.ReadvApart(&s.op, l.file, s.vector, int64(offset)) {
		return false
	}
	if s.fetches {
		l.fetches++
	}
	return true
}

// stable is the flag of a write that must be on stable storage when it is done.
func stable(r *blk.Request) int32 {
	if r.FUA {
		return unix.RWF_DSYNC
	}
	return 0
}

// fill puts buffers into a vector, without their first bytes. What does not fit, or is too much for one operation, is another one.
func fill(v *uring.Vector, buffers [][]byte, skip uint64) {
	for _, b := range buffers {
		if skip >= uint64(len(b)) {
			skip -= uint64(len(b))
			continue
		}
		b = b[skip:]
		skip = 0
		if b = b[:min(len(b), transferPart-v.Len())]; len(b) == 0 || !v.Add(b) {
			return
		}
	}
}

// gather copies from buffers, without their first bytes; false: the guest has taken its memory away.
func gather(into []byte, buffers [][]byte, skip uint64) bool {
	for _, b := range buffers {
		if skip >= uint64(len(b)) {
			skip -= uint64(len(b))
			continue
		}
		n := min(len(into), len(b)-int(skip))
		if n == 0 {
			break
		}
		if !guestmem.Copy(into[:n], b[skip:]) {
			return false
		}
		into, skip = into[n:], 0
	}
	return true
}

// scatter copies into buffers behind their first bytes.
func scatter(buffers [][]byte, skip uint64, from []byte) bool {
	for _, b := range buffers {
		if skip >= uint64(len(b)) {
			skip -= uint64(len(b))
			continue
		}
		n := min(len(from), len(b)-int(skip))
		if n == 0 {
			break
		}
		if !guestmem.Copy(b[skip:], from[:n]) {
			return false
		}
		from, skip = from[n:], 0
	}
	return true
}

// Bounce memory of a lane: 32 chunks of 128 KiB, those used last used first. It serves what no usual driver asks for, buffers that are not aligned to sectors; and all reads
// of a file system that somebody else serves, who may answer long after the guest has other things in the buffers. So there it is also how many
// reads may be under way, each with a thread of io-wq.
const (
	bounceChunks = 32
	bounceChunk  = 128 << 10
)

type bounce struct {
	memory *shm.Mapping
	free   [][]byte
}

func (b *bounce) open() (err error) {
	if b.memory, err = shm.Map(shm.MapOptions{FD: -1, Length: bounceChunks * bounceChunk}); err != nil {
		return err
	}
	for i := bounceChunks - 1; i >= 0; i-- {
		b.put(b.memory.Bytes()[i*bounceChunk:][:bounceChunk:bounceChunk])
	}
	return nil
}

func (b *bounce) get() []byte {
	if len(b.free) == 0 {
		return nil
	}
	c := b.free[len(b.free)-1]
	b.free = b.free[:len(b.free)-1]
	return c
}

func (b *bounce) put(c []byte) { b.free = append(b.free, c) }

func (b *bounce) close() {
	if b.memory != nil {
		_ = b.memory.Free()
	}
}
