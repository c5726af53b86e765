// Package frame holds packets while shunt works on them.
//
// All frames of the daemon lie in one Memory, which is also the UMEM of its AF_XDP sockets: a frame that came from a
// guest can leave by the wire, and the reverse, without another copy. A chunk looks like this:
//
//	0            off                  end                         ChunkSize
//	├─ headroom ─┼─ head (private) ───┼─ tailroom ──────────────────┤
//	             └─ then the body: views of guest memory, or of other frames' chunks, or nothing
//
// The head is private: whoever sent the frame cannot change it any more, and every decision is made on it alone.
// The body, if there is one, is what follows the head in the frame. A borrowed one lies in the sender's memory, is only valid
// until the port it came from is told to Release, and is never looked at, only copied. An owned one (body.go) lies in chunks of other
// frames that belong to this one: a frame from the wire that is longer than a chunk, one that was merged of several, one on its way to another worker.
//
// A Frame has one owner at a time, always a worker. Memory.Frame and a Pool move frames, nothing copies them. Each frame has a home, the
// pool it was made for (pool.go): wherever it is put back, it returns there.
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
	// MaxBody bounds the pieces of a body.
	MaxBody = 32
	// MaxLen bounds a whole frame, head and body: the largest TSO frame with its headers.
	MaxLen = 65536 + 256
)

// Frame is one packet. Its bytes are Head, then Body.
//
// A Frame is two cache lines, and a packet that lies in its chunk alone is moved without looking at the second one.
type Frame struct {
	buf  []byte // the chunk
	off  uint32 // first byte of the head in buf
	end  uint32 // one past the last byte of the head
	rest uint32 // length of the body

	index    uint32 // number of the chunk in its Memory
	colour   uint16 // where Reset puts the first byte
	home     uint16 // number of the pool it returns to
	borrowed bool   // some of body is the lender's
	far      bool   // there may be something in the second cache line: a body, or frames that are owned

	// Dropped says why a port that was to transmit the frame did not, for those who watch; 0: it did. It is the reason's number plus
	// one: the reasons are the engine's.
	Dropped uint8
	// Checksum is what the sender left to us. It refers to bytes of the frame as it stands, so whoever
	// moves the front of the frame (Prepend, Trim) finds it moved along.
	Checksum Checksum
	// GSO says that the frame is a TCP packet longer than its path allows.
	GSO GSO
	// Hash is of the flow the frame belongs to; 0: not computed yet.
	Hash uint32

	body   [][]byte         // borrowed: aliases an array of the port it came from; else spread
	owned  *Frame           // frames whose chunks hold the body, in no order
	next   *Frame           // in the list of frames that another one owns
	spread *[MaxBody][]byte // for the pieces of a body that no port's array holds

	_ [16]byte
}

// GSO says that a frame is a TCP packet to be cut into segments before it leaves for where such packets are not taken (virtio 1.2, 5.1.6.2): its
// headers are those of all segments, and its Checksum is Needed.
type GSO struct {
	Type GSOType
	// ECN: the first segment alone bears CWR (RFC 3168, 6.1.2).
	ECN bool
	// Size is the payload of each segment but the last, in bytes.
	Size uint16
}

// GSOType is the kind of packet; the zero value is one that is not to be cut.
type GSOType uint8

// The kinds of packets that can be cut.
const (
	GSONone GSOType = iota
	GSOTCP4         // TCP on IPv4
	GSOTCP6         // TCP on IPv6
)

// Checksum says that a transport checksum has yet to be filled in: the ones' complement sum from Start to the end of
// the frame is to be stored at Start+Offset, where the pseudo header's sum lies already (virtio 1.2, 5.1.6.2).
type Checksum struct {
	// Start and Offset are bytes from the frame's first byte, and from Start.
	Start, Offset uint16
	// Needed is false if the frame is complete.
	Needed bool
	// Valid: somebody has checked that the transport checksum is right. Never together with Needed.
	Valid bool
}

// Reset makes the frame empty, with Headroom in front.
func (f *Frame) Reset() {
	f.off, f.end = uint32(f.colour), uint32(f.colour)
	f.forget()
}

// forget clears everything but where the head lies.
func (f *Frame) forget() {
	if f.far {
		f.body, f.rest, f.borrowed = nil, 0, false
		f.far = f.owned != nil
	}
	f.Checksum, f.GSO, f.Hash, f.Dropped = Checksum{}, GSO{}, 0, 0
}

// SetHead says where in the chunk the head lies, after somebody else (the kernel) wrote it there.
// It reports false, and leaves the frame as it was, if that is not inside the chunk.
func (f *Frame) SetHead(off, length uint32) bool {
	if off > ChunkSize || length > ChunkSize-off {
		return false
	}
	f.off, f.end = off, off+length
	f.forget()
	return true
}

// Head is the private part of the frame, valid as long as the frame is owned.
func (f *Frame) Head() []byte { return f.buf[f.off:f.end] }

// Body is the rest, in order. If it is borrowed, it may be copied from until the port that lent it is told to Release.
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

// Address is where the frame's first byte lies in the Memory: what AF_XDP descriptors carry.
func (f *Frame) Address() uint64 { return uint64(f.index)*ChunkSize + uint64(f.off) }
