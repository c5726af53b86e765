package dataplane

import (
	"runtime"

	"github.com/shuntio/shunt/dataplane/frame"
)

// memoryFault is what the runtime panics with, under debug.SetPanicOnFault, when an address cannot be read or written.
type memoryFault interface {
	runtime.Error
	Addr() uintptr
}

// FaultAddress takes the address out of what recover returned, if that is a fault of memory and nothing else. It is for those
// who set something up in a guest's memory, whose worker does not know that it is that guest's yet.
func FaultAddress(recovered any) (address uintptr, ok bool) {
	fault, ok := recovered.(memoryFault)
	if !ok {
		return 0, false
	}
	return fault.Addr(), true
}

// contain is deferred around everything that touches memory shared with a guest. A guest may truncate the file behind its memory at any time;
// the fault that follows is its own affair: its port goes out of service, the frames in flight are dropped with a reason, the other
// ports go on. A fault anywhere else is our bug, and goes on as the panic it is. l is the link being served, or nil.
func (w *Worker) contain(l *Link) {
	r := recover()
	if r == nil {
		return
	}
	if address, ok := FaultAddress(r); !ok || !w.blame(address) {
		panic(r)
	}
	w.stats.Faults.Add(1)
	if l != nil {
		w.abandon(l)
	}
}

// spare is deferred around a port's Transmit: what a guest does to its own memory must not cost those who send to it a frame for others. A fault elsewhere,
// as in what the sender has lent, goes on to contain.
func (w *Worker) spare(to *Link, frames []*frame.Frame) {
	r := recover()
	if r == nil {
		return
	}
	if address, ok := FaultAddress(r); !ok || !to.Port.Fault(address) {
		panic(r)
	}
	w.stats.Faults.Add(1)
	dropped := 0
	for _, f := range frames {
		if f != nil && f.Dropped == 0 {
			DropFault.Mark(f)
			dropped++
		}
	}
	to.Counters.Drop(DropFault, dropped)
}

// blame finds the link whose guest's memory holds the address, and takes it out of service.
func (w *Worker) blame(address uintptr) bool {
	for _, l := range w.links {
		if l.Port.Fault(address) {
			return true
		}
	}
	return false
}

// abandon drops what the faulting batch of a link still held, in its own vector and on the way to others, and gives
// back what the link's port had lent, unless it is the one that failed. All of it counts at the link it came by, or, if another worker had
// sent it, at the one it was for.
func (w *Worker) abandon(l *Link) {
	dropped := 0
	drop := func(frames []*frame.Frame, to *Link) {
		for i, f := range frames {
			if f == nil {
				continue
			}
			switch {
			case f.Dropped != 0: // by a port, which has counted it
			case l == &w.arrived:
				to.Counters.Drop(DropFault, 1)
			default:
				dropped++
			}
			w.pool.Put(f)
			frames[i] = nil
		}
	}
	drop(w.batch[:], l)
	for i, to := range w.dirty {
		if to == nil {
			continue // flush had served it before the fault
		}
		drop(to.out[:to.nout], to)
		to.nout, to.dirty = 0, false
		w.dirty[i] = nil
	}
	w.dirty = w.dirty[:0]
	for i := range w.parcels {
		drop([]*frame.Frame{w.parcels[i].frame}, w.parcels[i].to)
		w.parcels[i] = parcel{}
	}
	for i := range w.boxes {
		o := &w.boxes[i]
		for j := range o.n {
			drop([]*frame.Frame{o.parcels[j].frame}, o.parcels[j].to)
			o.parcels[j] = parcel{}
		}
		if o.n = 0; o.ring != nil {
			w.depart(o) // those before the one that faulted
		}
	}
	l.Counters.Drop(DropFault, dropped)
	defer w.contain(nil) // its rings may lie in memory that is gone, too
	l.Port.Release()
}
