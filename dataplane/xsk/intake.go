package xsk

import (
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// The way of a packet from the device, for the port that owns the queue and for receivers of other workers alike:
//
//	rx ──▶ take ──▶ the usual packet, one descriptor ─────────▶ into
//	           └──▶ join, descriptor by descriptor ──▶ whole ──▶ into

// intake takes packets out of a socket's rx ring.
type intake struct {
	s        *Socket
	counters *dataplane.Counters
	unknown  *atomic.Uint64 // addresses that nobody gave
	from     mark           // of the chunks that packets arrive in
	shared   bool           // others take such chunks as well
	partial  bool           // find open checksums

	packet *frame.Frame // the first descriptors of a packet whose last one has not come
	ruined bool         // within a packet that is being dropped
}

// receive returns how many packets it put into the vector, and how many chunks it took from the kernel for them.
func (in *intake) receive(into []*frame.Frame, pool *frame.Pool) (n, taken int) {
	ready := in.s.Rx.Peek(len(into))
	if ready == 0 {
		return 0, 0
	}
	bytes, dropped := 0, 0
	for i := range ready {
		d := in.s.Rx.At(i)
		f, off := in.s.umem.take(d.Addr, in.from, in.shared)
		if f == nil {
			in.unknown.Add(1)
		} else if taken++; !f.SetHead(off, d.Len) {
			pool.Put(f)
			f = nil
		}
		if more := d.Options&unix.XDP_PKT_CONTD != 0; f == nil || more || in.packet != nil || in.ruined {
			var done bool
			if f, done = in.join(f, more, pool); !done {
				continue
			}
		}
		if f == nil {
			dropped++
			continue
		}
		if in.partial {
			findPartial(f)
		}
		into[n] = f
		n++
		bytes += f.Len()
	}
	in.s.Rx.Release(ready)
	in.counters.RxPackets.Add(uint64(n + dropped))
	in.counters.RxBytes.Add(uint64(bytes))
	if dropped > 0 {
		in.counters.Drop(DropMalformed, dropped)
	}
	return n, taken
}

// join adds a descriptor's frame, or nil for one that made no sense, to the packet it belongs to. With the last descriptor it is done and returns
// the packet, or nil if that is to be dropped: a piece is missing, there are too many, or nobody asked for packets of several.
func (in *intake) join(f *frame.Frame, more bool, pool *frame.Pool) (packet *frame.Frame, done bool) {
	switch {
	case f == nil || !in.s.o.MultiBuffer && (more || in.packet != nil):
		in.ruined = true
	case in.ruined:
	case in.packet == nil:
		in.packet, f = f, nil
	case in.packet.Attach(f, 0):
		f = nil
	default:
		in.ruined = true
	}
	if f != nil {
		pool.Put(f)
	}
	if in.ruined {
		in.giveUp(pool)
	}
	if more {
		return nil, false
	}
	packet = in.packet
	in.packet, in.ruined = nil, false
	return packet, true
}

// giveUp puts back what there is of an unfinished packet.
func (in *intake) giveUp(pool *frame.Pool) (n int) {
	if in.packet == nil {
		return 0
	}
	n = 1 + len(in.packet.Body())
	pool.Put(in.packet)
	in.packet = nil
	return n
}
