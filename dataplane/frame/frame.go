// Package frame holds packets while shunt works on them.
//
// All frames of the daemon lie in one Memory, which is also the UMEM of its AF_XDP sockets: a frame that came from a
// guest can leave by the wire, and the reverse, without another copy. A chunk looks like this:
//
//	0            off                  end                         ChunkSize
//	├─ headroom ─┼─ head (private) ───┼─ tailroom ──────────────────┤
//	             └─ then the body: borrowed views of guest memory, or nothing
//
// The head is private: whoever sent the frame cannot change it any more, and every decision is made on it alone.
// The body, if there is one, is what follows the head in the frame; it lies in the sender's memory, is only valid
// until the port it came from is told to Release, and is never looked at, only copied.
//
// A Frame has one owner at a time, always a worker. Memory.Frame and a Pool move frames, nothing copies them.
package frame

// Sizes of a chunk's parts, in bytes.
const (
	// ChunkSize is what AF_XDP calls a chunk. 4 KiB, since 2 KiB would leave 1408 usable bytes in multi-buffer
	// zero copy, and AF_XDP takes nothing larger.
	ChunkSize = 4096
	// Headroom lies in front of every frame that comes from a guest: the outer Ethernet, IPv6, UDP and VXLAN headers
	// (14+40+8+8), and as much again for AF_XDP's transmit metadata, rounded up. A frame from the wire has at least this much: the kernel
	// leaves XDP_PACKET_HEADROOM (256) there.
	Headroom = 192
	// colours spread the first byte of frames over cache sets: chunks are a page apart, so without it the heads of
	// all frames would share the same few sets of the first-level cache.
	colours = 8
	// HeadLen is how much of a longer frame is copied before it is judged: enough for every header we read.
	HeadLen = 256
	// MaxBody bounds the pieces of a borrowed body.
	MaxBody = 32
	// MaxLen bounds a whole frame, head and body: the largest TSO frame with its headers.
	MaxLen = 65536 + 256
)

// Frame is one packet. Its bytes are Head, then Body.
type Frame struct {
	buf  []byte   // the chunk
	body [][]byte // borrowed; aliases an array of the port it came from
	off  uint32   // first byte of the head in buf
	end  uint32   // one past the last byte of the head
	rest uint32   // length of the body

	index  uint32 // number of the chunk in its Memory
	colour uint32 // where Reset puts the first byte

	// Checksum is what the sender left to us. It refers to bytes of the frame as it stands, so whoever
	// moves the front of the frame (Prepend, Trim) finds it moved along.
	Checksum Checksum
	// Hash is of the flow the frame belongs to; 0: not computed yet.
	Hash uint32
}

// Checksum says that a transport checksum has yet to be filled in: the ones' complement sum from Start to the end of
// the frame is to be stored at Start+Offset, where the pseudo header's sum lies already (virtio 1.2, 5.1.6.2).
type Checksum struct {
	// Start and Offset are bytes from the frame's first byte, and from Start.
	Start, Offset uint16
	// Needed is false if the frame is complete.
	Needed bool
}

// Reset makes the frame empty, with Headroom in front.
func (f *Frame) Reset() {
	f.off, f.end = f.colour, f.colour
	f.body, f.rest = nil, 0
	f.Checksum, f.Hash = Checksum{}, 0
}

// SetHead says where in the chunk the head lies, after somebody else (the kernel) wrote it there.
// It reports false, and leaves the frame as it was, if that is not inside the chunk.
func (f *Frame) SetHead(off, length uint32) bool {
	if off > ChunkSize || length > ChunkSize-off {
		return false
	}
	f.off, f.end = off, off+length
	f.body, f.rest = nil, 0
	f.Checksum, f.Hash = Checksum{}, 0
	return true
}

// Head is the private part of the frame, valid as long as the frame is owned.
func (f *Frame) Head() []byte { return f.buf[f.off:f.end] }

// Body is the borrowed rest, in order. It may be copied from until the port that lent it is told to Release.
func (f *Frame) Body() [][]byte { return f.body }

// Len is the length of the whole frame, in bytes.
func (f *Frame) Len() int { return int(f.end-f.off) + int(f.rest) }

// HeadLen is the length of the private part, in bytes.
func (f *Frame) HeadLen() int { return int(f.end - f.off) }

// Room is how many bytes can be appended to the head, or, for a frame that is to be sent whole, how long its body may be.
func (f *Frame) Room() int { return ChunkSize - int(f.end) }

// Front is how many bytes Prepend can take.
func (f *Frame) Front() int { return int(f.off) }

// Append makes the head n bytes longer and returns the new part; nil if the chunk has no room.
func (f *Frame) Append(n int) []byte {
	if uint(n) > uint(ChunkSize-f.end) {
		return nil
	}
	at := f.end
	f.end += uint32(n)
	return f.buf[at:f.end]
}

// Prepend makes the head n bytes longer in front and returns the new part; nil if the headroom is used up.
func (f *Frame) Prepend(n int) []byte {
	if uint(n) > uint(f.off) {
		return nil
	}
	f.off -= uint32(n)
	if f.Checksum.Needed {
		f.Checksum.Start += uint16(n)
	}
	return f.buf[f.off : f.off+uint32(n)]
}

// Trim takes n bytes off the front of the head; false, and nothing changes, if it has fewer or a checksum to be filled in covers
// some of them.
func (f *Frame) Trim(n int) bool {
	if uint(n) > uint(f.end-f.off) {
		return false
	}
	if f.Checksum.Needed {
		if int(f.Checksum.Start) < n {
			return false
		}
		f.Checksum.Start -= uint16(n)
	}
	f.off += uint32(n)
	return true
}

// Truncate cuts the head to n bytes; false if it has fewer or there is a body behind it.
func (f *Frame) Truncate(n int) bool {
	if f.rest != 0 || uint(n) > uint(f.end-f.off) {
		return false
	}
	f.end = f.off + uint32(n)
	return true
}

// Borrow sets the body: pieces of n bytes in all, that stay the lender's.
func (f *Frame) Borrow(pieces [][]byte, n int) {
	f.body, f.rest = pieces, uint32(n)
}

// Gather copies the body behind the head, so that the frame is private as a whole. It reports false, and changes
// nothing, if the chunk has no room for it.
func (f *Frame) Gather() bool {
	if f.rest == 0 {
		return true
	}
	if f.rest > ChunkSize-f.end {
		return false
	}
	at := f.end
	for _, piece := range f.body {
		at += uint32(copy(f.buf[at:], piece))
	}
	f.end, f.body, f.rest = at, nil, 0
	return true
}

// CopyFrom makes f a copy of g: its own head, the same borrowed body, the same metadata.
func (f *Frame) CopyFrom(g *Frame) {
	f.off, f.end = g.off, g.end
	copy(f.buf[f.off:f.end], g.buf[g.off:g.end])
	f.body, f.rest = g.body, g.rest
	f.Checksum, f.Hash = g.Checksum, g.Hash
}

// Address is where the frame's first byte lies in the Memory: what AF_XDP descriptors carry.
func (f *Frame) Address() uint64 { return uint64(f.index)*ChunkSize + uint64(f.off) }
