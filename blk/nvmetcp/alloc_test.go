package nvmetcp

import (
	"testing"

	"github.com/shuntio/shunt/blk"
)

// Nothing is allocated for a request, whatever it is: the peer's part is played with buffers of its own.
func TestAllocations(t *testing.T) {
	for _, digest := range []bool{false, true} {
		r := newRig(t, digest)
		l := rigLimits()
		l.terms.headerDigest, l.terms.dataDigest = digest, digest
		r.attach(r.Pair(false), l)
		wire, answer := make([]byte, 256<<10), make([]byte, 256<<10)
		over := 0
		if digest {
			over = digestLength
		}
		// complete answers a command: with a response capsule, or with data and SUCCESS.
		complete := func(cid uint16, data int) {
			h := header(answer)
			clear(h[:64])
			n := 0
			if data > 0 {
				le.PutUint16(h[8:], cid)
				le.PutUint32(h[16:], uint32(data))
				n = l.terms.seal(h[:maxDataOffset], pduC2HData, flagLast|flagSuccess, headerLength, uint32(data))
				if digest {
					le.PutUint32(h[n+data:], crc32c(h[n:][:data]))
					n += digestLength
				}
			} else {
				le.PutUint16(h[20:], cid)
				n = l.terms.seal(h[:maxDataOffset], pduCapsuleResp, 0, headerLength, 0)
			}
			r.write(answer[:n+data])
		}
		for _, c := range []struct {
			name string
			op   blk.Op
			size int
		}{{"read", blk.OpRead, 4096}, {"long read", blk.OpRead, 64 << 10}, {"write", blk.OpWrite, 4096}, {"long write", blk.OpWrite, 64 << 10},
			{"flush", blk.OpFlush, 0}, {"discard", blk.OpDiscard, 1 << 20}, {"write zeroes", blk.OpWriteZeroes, 1 << 20}} {
			request := &blk.Request{Op: c.op, Length: uint64(c.size), Handler: r}
			if c.op <= blk.OpWrite {
				request.Buffers = [][]byte{r.memory[:1000], r.memory[5000:][:c.size-1000]}
			}
			once := func() {
				ended := r.ended
				if !r.lane.Submit(request) {
					t.Fatal("refused")
				}
				capsule := wire[:commandLength+over]
				r.read(capsule)
				cid := sqe(capsule[commonLength:]).cid()
				data := 0
				switch {
				case c.op == blk.OpRead:
					data = c.size
				case c.op == blk.OpWrite && c.size > int(l.inCapsule):
					h := header(answer)
					le.PutUint16(h[8:], cid)
					le.PutUint16(h[10:], 7)
					le.PutUint32(h[12:], 0)
					le.PutUint32(h[16:], uint32(c.size))
					r.write(h[:l.terms.seal(h[:maxDataOffset], pduR2T, 0, headerLength, 0)])
					r.read(wire[:headerLength+over+c.size+over])
				default:
					if rest := int(header(capsule).plen()) - len(capsule); rest > 0 {
						r.read(wire[:rest])
					}
				}
				complete(cid, data)
				r.Turn(r.lane, func() bool { return r.ended > ended })
				if r.last != blk.OK {
					t.Fatalf("%s: outcome %d, %v", c.name, r.last, r.why)
				}
			}
			once()
			if n := testing.AllocsPerRun(50, once); n != 0 {
				t.Errorf("%s, digests %v: %v allocations", c.name, digest, n)
			}
		}
	}
}
