package vnet

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/wire"
)

// Transmit puts frames into the guest's receiveq:
//
//	frames ──▶ TCP segments merged (Options.Coalesce)
//	       ──▶ put ──▶ header, head, body copied into one chain of buffers ──▶ published once, at the end
//	               └─▶ scatter: into several buffers, and as many chains as it takes (MRG_RXBUF)
//
// It keeps no frame. Those it drops on the way it marks at once: a fault in a later frame's body counts what is still in the vector.
func (p *Pair) Transmit(frames []*frame.Frame, pool *frame.Pool) {
	q := &p.rx
	if q.ring == nil {
		p.lose(frames, DropGuestNotReady)
		return
	}
	q.ring.Rewind() // what a call left that the memory of a frame's sender cut off
	packets := len(frames)
	if p.coalesce && p.offers.takes&(dataplane.OffloadTSO4|dataplane.OffloadTSO6) != 0 {
		frames = p.merge(frames, pool)
	}
	bytes, scarce := 0, math.MaxInt
	for i, f := range frames {
		chains, err := q.ring.Available()
		if err != nil {
			p.fail(err)
			p.lose(frames, DropGuestNotReady) // with those not published yet
			p.absorbed = 0
			return
		}
		if chains == 0 {
			packets -= p.lose(frames[i:], DropGuestRingFull)
			break
		}
		if i%virtq.HintEvery == 0 {
			q.ring.Hint(len(frames) - i)
		}
		total := p.offers.header + f.Len()
		if total >= scarce { // where less found no room there is none for this
			packets -= p.lose(frames[i:i+1], DropGuestRingFull)
			continue
		}
		drop, ok := p.put(f, total)
		if ok {
			bytes += f.Len()
			continue
		}
		if q.ring == nil { // put failed the port
			p.lose(frames, drop)
			p.absorbed = 0
			return
		}
		if drop == DropGuestRingFull {
			scarce = total
		}
		packets -= p.lose(frames[i:i+1], drop)
	}
	q.publish()
	p.absorbed = 0
	p.counters.TxPackets.Add(uint64(packets))
	p.counters.TxBytes.Add(uint64(bytes))
}

// lose drops those of the frames that are not dropped yet, and tells how many packets that were.
func (p *Pair) lose(frames []*frame.Frame, why dataplane.Reason) (packets int) {
	for _, f := range frames {
		if f != nil && f.Dropped == 0 {
			why.Mark(f)
			packets += p.packets(f)
		}
	}
	p.counters.Drop(why, packets)
	return packets
}

// merge merges TCP segments. All that follows counts in the packets that came: a merged frame stands for its segments.
func (p *Pair) merge(frames []*frame.Frame, pool *frame.Pool) []*frame.Frame {
	p.counters.Drop(dataplane.DropFault, p.absorbed) // by a call that was cut off: the worker has counted the frames that it found
	p.uncut = p.uncut[:0]
	for _, f := range frames {
		if f.GSO.Type != frame.GSONone {
			p.uncut = append(p.uncut, f)
		}
	}
	n := p.coalescer.Merge(frames, pool, p.offers.takes)
	p.absorbed = len(frames) - n
	return frames[:n]
}

// packets is how many of those that came a frame stands for.
func (p *Pair) packets(f *frame.Frame) int {
	if p.absorbed == 0 || f.GSO.Type == frame.GSONone || slices.Contains(p.uncut, f) {
		return 1
	}
	headers := int(f.Checksum.Start) + wire.TCP(f.Head()[f.Checksum.Start:]).HeaderLen()
	return (f.Len() - headers + int(f.GSO.Size) - 1) / int(f.GSO.Size)
}

// put copies a frame, with its header total bytes, into the next chain, and further ones if it must and may.
func (p *Pair) put(f *frame.Frame, total int) (drop dataplane.Reason, ok bool) {
	q := &p.rx
	if err := q.ring.Next(q.chain); err != nil {
		p.fail(err)
		return DropGuestNotReady, false
	}
	if len(q.chain.Writable) == 1 && len(f.Body()) == 0 && !f.Checksum.Needed { // the common case
		buffer := q.chain.Writable[0]
		if len(buffer) >= total {
			p.plainHeader(buffer, f.Checksum.Valid)
			copy(buffer[p.offers.header:], f.Head())
			q.ring.Complete(q.chain.Head, uint32(total))
			return 0, true
		}
	}
	return p.scatter(f, total)
}

// plainHeader writes the header of a complete frame in one chain.
func (p *Pair) plainHeader(buffer []byte, valid bool) {
	flags := uint64(0)
	if valid {
		flags = uint64(p.offers.valid)
	}
	binary.LittleEndian.PutUint64(buffer, flags)
	if p.offers.header == maxHeader {
		binary.LittleEndian.PutUint32(buffer[8:], 1<<16) // csum_offset 0, num_buffers 1
	} else {
		binary.LittleEndian.PutUint16(buffer[8:], 0)
	}
}
