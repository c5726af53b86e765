package drivertest

import "encoding/binary"

// do carries a request out on the content, or does not, as the faults say.
func (c *Content) do(r *ring, op uint32, sector uint64, in []byte, out [][]byte) (n uint32, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &r.backend.o.Faults
	switch op {
	case 0:
		return c.read(sector, out, r.every(f.StaleRead))
	case 1:
		if r.every(f.DropWrite) {
			return 0, true
		}
		if r.every(f.MisplaceWrite) && c.holds(sector+1, len(in)) {
			sector++
		}
		if r.every(f.TearWrite) {
			in = in[:len(in)-200]
		}
		if !c.holds(sector, len(in)) {
			return 0, false
		}
		copy(c.now[sector*512:], in)
		return 0, true
	case 4:
		if c.failing {
			c.failing = false
			return 0, false
		}
		if !r.every(f.LieFlush) {
			copy(c.durable, c.now)
		}
		return 0, true
	case 11, 13:
		for ; len(in) >= 16; in = in[16:] {
			at, bytes := binary.LittleEndian.Uint64(in), 512*int(binary.LittleEndian.Uint32(in[8:]))
			if !c.holds(at, bytes) {
				return 0, false
			}
			clear(c.now[at*512:][:bytes])
		}
		return 0, true
	}
	return 0, false
}

func (c *Content) holds(sector uint64, n int) bool {
	return sector <= uint64(len(c.now)/512) && n <= len(c.now)-int(sector)*512
}

func (c *Content) read(sector uint64, out [][]byte, short bool) (n uint32, ok bool) {
	for _, b := range out {
		if !c.holds(sector, int(n)+len(b)) {
			return 0, false
		}
		if !short || n == 0 {
			copy(b, c.now[sector*512+uint64(n):])
		}
		n += uint32(len(b))
	}
	return n, true
}
