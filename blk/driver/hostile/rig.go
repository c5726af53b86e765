package hostile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Options say how the back-end is spoken to.
type Options struct {
	// Path of its socket.
	Path string
	// Packed rings; and an in-flight area.
	Packed, Inflight bool
	// Silence is how long a device may take to answer before it is said not to. Zero: 300 ms.
	Silence time.Duration
}

const (
	queueSize   = 16
	memoryBytes = 1 << 20
	// reference is how many bytes of the disk hold what must not change; attacks that may write, write behind.
	reference    = 256 << 10
	scratchFirst = reference / driver.SectorSize
	canary       = 0xc5
	noAnswer     = 0xa5
)

// Rig is a disk whose ring somebody writes by hand.
type Rig struct {
	Disk *driver.Disk
	o    Options

	layout   virtq.Layout
	kick     int
	next     int // the next free descriptor
	avail    uint16
	place    int // where the next buffer lies
	before   []byte
	writable [][2]int // where the device may write
	status   []int    // where answers are written
	heads    int
	expect   Expect
}

// Piece is one descriptor: flags are virtio's.
type Piece struct {
	Addr  uint64
	Len   uint32
	Flags uint16
}

// Descriptor flags.
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// newRig connects, with everything that a buffer may be in filled with a pattern.
func newRig(ctx context.Context, o Options) (*Rig, error) {
	d, err := driver.Dial(ctx, o.Path, driver.Options{Size: queueSize, Memory: memoryBytes, Packed: o.Packed, Indirect: true, Inflight: o.Inflight})
	if err != nil {
		return nil, err
	}
	r := &Rig{Disk: d, o: o}
	r.layout, r.kick, _ = d.Queue(0).Raw()
	b := d.Buffers()
	for i := range b {
		b[i] = canary
	}
	return r, nil
}

// Bytes makes a buffer that holds p, which the device may only read; Room one of n bytes that it may write.
func (r *Rig) Bytes(p []byte) Piece {
	at := r.take(len(p))
	copy(r.Disk.Buffers()[at:], p)
	return Piece{Addr: driver.BuffersAddr + uint64(at), Len: uint32(len(p))}
}

// Room makes a buffer of n bytes that the device may write.
func (r *Rig) Room(n int) Piece {
	at := r.take(n)
	r.writable = append(r.writable, [2]int{at, at + n})
	return Piece{Addr: driver.BuffersAddr + uint64(at), Len: uint32(n), Flags: Write}
}

// take leaves a gap behind each buffer.
func (r *Rig) take(n int) (at int) {
	at = r.place
	r.place += (n + 64 + 63) / 64 * 64
	return at
}

// Status makes the last byte of a request.
func (r *Rig) Status() Piece {
	p := r.Room(1)
	at := int(p.Addr - driver.BuffersAddr)
	r.Disk.Buffers()[at] = noAnswer
	r.status = append(r.status, at)
	return p
}

// Header makes the 16 bytes in front.
func (r *Rig) Header(op driver.Op, sector uint64) Piece { return r.Bytes(header(op, sector)) }

func header(op driver.Op, sector uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(op))
	return binary.LittleEndian.AppendUint64(append(b, 0, 0, 0, 0), sector)
}

// ranges are those of a discard as they lie in memory.
func ranges(all ...[3]uint64) (b []byte) {
	for _, r := range all {
		b = binary.LittleEndian.AppendUint64(b, r[0])
		b = binary.LittleEndian.AppendUint32(b, uint32(r[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(r[2]))
	}
	return b
}

// Table makes an indirect table, linked from its first to its last, and the descriptor that stands for it.
func (r *Rig) Table(pieces ...Piece) Piece {
	var b []byte
	for i, p := range pieces {
		b = append(b, r.describe(p, i < len(pieces)-1, uint16(i+1), true)...)
	}
	t := r.Bytes(b)
	t.Flags = Indirect
	return t
}

// describe is a descriptor in the ring's format. Those of a packed ring's indirect table have no next.
func (r *Rig) describe(p Piece, more bool, next uint16, table bool) []byte {
	b := binary.LittleEndian.AppendUint64(nil, p.Addr)
	b = binary.LittleEndian.AppendUint32(b, p.Len)
	flags := p.Flags
	if more && !(table && r.o.Packed) {
		flags |= Next
	}
	if r.o.Packed {
		b = binary.LittleEndian.AppendUint16(b, 0)
		return binary.LittleEndian.AppendUint16(b, flags)
	}
	b = binary.LittleEndian.AppendUint16(b, flags)
	return binary.LittleEndian.AppendUint16(b, next)
}

// Chain puts pieces into the ring as one chain. Publish shows it.
func (r *Rig) Chain(pieces ...Piece) {
	head := r.next
	for i, p := range pieces {
		at := r.next % queueSize
		r.Desc(at, r.describe(p, i < len(pieces)-1, uint16(at+1)%queueSize, false))
		r.next++
	}
	r.Avail(uint16(head % queueSize))
}

// Desc writes a descriptor as it is.
func (r *Rig) Desc(at int, b []byte) { copy(r.layout.Desc[16*at:16*at+16], b) }

// Avail makes a descriptor the next entry of a split ring's avail ring.
func (r *Rig) Avail(head uint16) {
	r.heads++
	if !r.o.Packed {
		binary.LittleEndian.PutUint16(r.layout.Avail[4+2*(int(r.avail)%queueSize):], head)
		r.avail++
	}
}

// Publish shows the device what was written, and kicks it.
func (r *Rig) Publish() {
	if r.o.Packed {
		const avail = 1 << 7
		for at := min(r.next, queueSize) - 1; at >= 0; at-- { // the first is written last
			flags := r.layout.Desc[16*at+14:]
			binary.LittleEndian.PutUint16(flags, binary.LittleEndian.Uint16(flags)|avail)
		}
	} else {
		r.Index(r.avail)
	}
	r.Kick()
}

// Index writes the avail index of a split ring.
func (r *Rig) Index(n uint16) {
	shm.Fence()
	binary.LittleEndian.PutUint16(r.layout.Avail[2:], n)
}

// Kick wakes the device.
func (r *Rig) Kick() {
	shm.Fence()
	shm.Signal(r.kick)
}

// returned is how many chains came back.
func (r *Rig) returned() (n int) {
	if !r.o.Packed {
		return int(binary.LittleEndian.Uint16(r.layout.Used[2:]))
	}
	for at := range queueSize {
		if flags := binary.LittleEndian.Uint16(r.layout.Desc[16*at+14:]); flags&(1<<15) != 0 && flags&(1<<7) != 0 {
			n++
		}
	}
	return n
}

// ErrDevice says that the device let the guest do what it must not.
var ErrDevice = errors.New("the device let a guest do what it must not")

// without runs f while the file behind the memory has only n bytes, and gives the device some time to stumble over it.
func (r *Rig) without(n int, f func()) {
	all, _ := r.Disk.Length()
	_ = r.Disk.Truncate(n)
	f()
	time.Sleep(20 * time.Millisecond)
	_ = r.Disk.Truncate(all)
}

// settle waits until everything came back, or nothing more is to be expected.
func (r *Rig) settle() {
	silence := r.o.Silence
	if silence == 0 {
		silence = 300 * time.Millisecond
	}
	if r.expect == MustSucceed {
		silence = 10 * time.Second
	}
	for end := time.Now().Add(silence); r.returned() < r.heads && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// judge waits for the outcome, and looks at what the expectation says of it.
func (r *Rig) judge() error {
	r.settle()
	answers := r.answers()
	switch ok := bytes.IndexByte(answers, byte(driver.OK)) >= 0; {
	case r.expect == MustSucceed && (r.returned() < r.heads || !bytes.Equal(answers, make([]byte, len(answers)))):
		return fmt.Errorf("%w: a legal request was answered with %v, %d of %d came back", driver.ErrStatus, answers, r.returned(), r.heads)
	case r.expect == MustFail && ok:
		return fmt.Errorf("%w: it answered OK", ErrDevice)
	}
	return r.untouched()
}

// answers are the status bytes.
func (r *Rig) answers() (all []byte) {
	for _, at := range r.status {
		all = append(all, r.Disk.Buffers()[at])
	}
	return all
}

// untouched compares memory with what it was.
func (r *Rig) untouched() error {
	now := bytes.Clone(r.Disk.Buffers())
	for _, w := range r.writable {
		copy(now[w[0]:w[1]], r.before[w[0]:w[1]])
	}
	for i := range now {
		if now[i] != r.before[i] {
			return fmt.Errorf("%w: it wrote %#x at %#x, where nothing lets it", ErrDevice, now[i], driver.BuffersAddr+uint64(i))
		}
	}
	return nil
}
