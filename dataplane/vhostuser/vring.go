package vhostuser

import "fmt"

// maxRingSize is virtio's limit for split rings (virtio 1.2, 2.7); packed ones have the same.
const maxRingSize = 1 << 15

// VringLog (VHOST_VRING_F_LOG) in the flags of a ring: what the device writes to the used ring is to be marked in the log, as if the
// ring lay at LogAddr.
const VringLog = 1

// vring is what the front-end told about a ring so far. The session's goroutine alone touches it.
type vring struct {
	config  VringConfig // Size 0: not told yet
	placed  bool        // SET_VRING_ADDR was seen
	started bool        // SET_VRING_KICK was seen since the last stop
	enabled bool        // by SET_VRING_ENABLE
	running bool        // the device has it
	lack    string      // what it was last found waiting for, to say it once
}

func newVrings(n int) []vring {
	rings := make([]vring, n)
	for i := range rings {
		rings[i].config = VringConfig{Index: i, Kick: -1, Call: -1, Err: -1}
	}
	return rings
}

// layout is the sizes of the three parts of a ring and their alignments (virtio 1.2, 2.7 and 2.8).
func layout(size uint64, features uint64) (parts [3]struct{ bytes, align uint64 }) {
	parts[0].bytes, parts[0].align = 16*size, 16
	if features&featurePacked != 0 {
		parts[1].bytes, parts[1].align = 4, 4
		parts[2].bytes, parts[2].align = 4, 4
		return parts
	}
	parts[1].bytes, parts[1].align = 4+2*size, 2
	parts[2].bytes, parts[2].align = 4+8*size, 4
	if features&featureEventIdx != 0 {
		parts[1].bytes += 2 // used_event
		parts[2].bytes += 2 // avail_event
	}
	return parts
}

// missing says what a started and enabled ring waits for; empty: nothing.
func (r *vring) missing(features uint64, memory regionTable) string {
	c := &r.config
	switch {
	case c.Size == 0:
		return "its size (SET_VRING_NUM)"
	case !r.placed:
		return "its addresses (SET_VRING_ADDR)"
	}
	addrs := [3]uint64{c.DescAddr, c.AvailAddr, c.UsedAddr}
	for i, part := range layout(uint64(c.Size), features) {
		if !memory.holdsUser(addrs[i], part.bytes) {
			return fmt.Sprintf("memory: no region holds its %s, %d bytes at %#x",
				[3]string{"descriptor table", "avail ring", "used ring"}[i], part.bytes, addrs[i])
		}
	}
	return ""
}

// wrong says why a complete ring can never work with these features; empty: it can.
func (r *vring) wrong(features uint64) string {
	c := &r.config
	if features&featurePacked == 0 && c.Size&(c.Size-1) != 0 {
		return fmt.Sprintf("size %d of a split ring is no power of two", c.Size)
	}
	if features&featurePacked == 0 && c.Base > 0xffff {
		return fmt.Sprintf("base %#x of a split ring is beyond 16 bits", c.Base)
	}
	if avail, used := c.PackedBase(); features&featurePacked != 0 && (avail&0x7fff >= uint16(c.Size) || used&0x7fff >= uint16(c.Size)) {
		return fmt.Sprintf("base %#x of a packed ring is beyond its %d descriptors", c.Base, c.Size)
	}
	addrs := [3]uint64{c.DescAddr, c.AvailAddr, c.UsedAddr}
	for i, part := range layout(uint64(c.Size), features) {
		if addrs[i]%part.align != 0 {
			return fmt.Sprintf("address %#x is not aligned to %d bytes", addrs[i], part.align)
		}
	}
	return ""
}

// closeFDs gives up the ring's descriptors; the device must not have it.
func (r *vring) closeFDs() {
	for _, fd := range [...]*int{&r.config.Kick, &r.config.Call, &r.config.Err} {
		closeFD(*fd)
		*fd = -1
	}
}
