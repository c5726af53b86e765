package hostile

import (
	"encoding/binary"
	"math"
	"math/rand/v2"

	"github.com/shuntio/shunt/blk/driver"
)

// areas are in-flight areas as no back-end has left them behind. The rings are full of requests that do no harm, and go on where the area says.
func areas() (all []Attack) {
	le := binary.LittleEndian
	entries := func(r *Rig, b []byte, each func(i int, e []byte)) {
		head, size := 16, 16
		if r.o.Packed {
			head, size = 32, 32
		}
		for i := range queueSize {
			each(i, b[head+i*size:][:size])
		}
	}
	for name, scribble := range map[string]func(r *Rig, b []byte){
		"of ones": func(_ *Rig, b []byte) {
			for i := range b {
				b[i] = 0xff
			}
		},
		"of noise": func(_ *Rig, b []byte) {
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
		},
		"of noise behind its version": func(_ *Rig, b []byte) {
			for i := 12; i < len(b); i++ {
				b[i] = byte(rand.Uint32())
			}
		},
		"with everything in flight": func(r *Rig, b []byte) {
			entries(r, b, func(_ int, e []byte) { e[0] = 1 })
		},
		"with a list that goes round": func(r *Rig, b []byte) {
			le.PutUint16(b[12:], 3)
			entries(r, b, func(i int, e []byte) { e[0] = 1; le.PutUint16(e[6:], 3); le.PutUint16(e[2:], 3) })
		},
		"with heads out of the table": func(r *Rig, b []byte) {
			le.PutUint16(b[12:], math.MaxUint16)
			le.PutUint16(b[16:], math.MaxUint16)
			entries(r, b, func(_ int, e []byte) { e[0] = 1; le.PutUint16(e[6:], queueSize); le.PutUint16(e[2:], queueSize) })
		},
		"with another used index": func(_ *Rig, b []byte) { le.PutUint16(b[14:], le.Uint16(b[14:])+5) },
		"of another size":         func(_ *Rig, b []byte) { le.PutUint16(b[10:], 2*queueSize) },
		"of another version":      func(_ *Rig, b []byte) { le.PutUint16(b[8:], 7) },
		"truncated":               nil,
	} {
		all = append(all, Attack{Name: "in-flight area " + name, Inflight: true, Fatal: true, free: true, write: func(r *Rig) {
			for range 5 {
				r.Chain(r.Header(driver.In, 0), r.Room(512), r.Status())
			}
			r.Publish()
			r.settle()
			_ = r.Disk.Stop()
			b, free, err := r.Disk.Inflight()
			if err != nil {
				return
			}
			defer free()
			if scribble == nil {
				_ = r.Disk.TruncateInflight()
			} else {
				scribble(r, b)
			}
			_ = r.Disk.GiveInflight()
			_ = r.Disk.Start()
		}})
	}
	return all
}
