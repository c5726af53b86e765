package dataplane

import (
	"time"

	"github.com/shuntio/shunt/dataplane/frame"
)

// DropLimit is for frames beyond what their destination may get.
var DropLimit = NewReason("limit", "the frame is beyond the limit of what its destination may receive")

// LimitOptions say how much may pass. Zero values do not limit.
type LimitOptions struct {
	// PPS is in packets a second; a packet that is to be cut counts for its segments.
	PPS uint64
	// BPS is in bits a second, of frames with their Ethernet headers.
	BPS uint64
	// Burst is how much may pass at once after a pause, as time at the limit. Zero: 10 ms.
	Burst time.Duration
}

// Limit bounds frames by packets and bits a second. What comes in waits at its port, where the guest sees its ring fill; what goes out beyond the
// limit is dropped. Links that share a Limit share the bound, on whatever worker they are.
type Limit struct {
	packets, bits Bucket
}

// NewLimit makes a limit that has its whole burst to give; nil if nothing is limited.
func NewLimit(o LimitOptions) *Limit {
	if o.PPS == 0 && o.BPS == 0 {
		return nil
	}
	if o.Burst == 0 {
		o.Burst = 10 * time.Millisecond
	}
	l := new(Limit)
	l.packets.Set(o.PPS, o.Burst)
	l.bits.Set(o.BPS, o.Burst)
	return l
}

// frames is how many frames may come in now, at most as many as asked for. Their length is not known yet, nor how many packets they are to be cut
// into, so more than there is room for may pass, and those after it wait longer.
func (l *Limit) frames(now int64, most int) int {
	if l.bits.Room(now, 1) == 0 {
		return 0
	}
	return l.packets.Room(now, most)
}

// took is told what came in.
func (l *Limit) took(now int64, frames []*frame.Frame, bytes uint64) {
	if l.packets.rate > 0 {
		packets := 0
		for _, f := range frames {
			packets += segments(f)
		}
		l.packets.Take(now, packets)
	}
	l.bits.Take(now, int(8*bytes))
}

// Pass tells whether a frame may pass now, and takes it into account then. It is for who drops the others.
func (l *Limit) Pass(now int64, f *frame.Frame) bool {
	if l.packets.Room(now, 1) == 0 || l.bits.Room(now, 1) == 0 {
		return false
	}
	l.packets.Take(now, segments(f))
	l.bits.Take(now, 8*f.Len())
	return true
}

// police drops what may not go out and closes the gaps. It returns how many frames are left.
func (l *Limit) police(w *Worker, to *Link, frames []*frame.Frame) (n int) {
	for i, f := range frames {
		frames[i] = nil
		if !l.Pass(w.now, f) {
			w.Drop(to, f, DropLimit)
			continue
		}
		frames[n] = f
		n++
	}
	return n
}

// segments is how many packets a frame stands for.
func segments(f *frame.Frame) int {
	if f.GSO.Type == frame.GSONone || f.GSO.Size == 0 {
		return 1
	}
	return (f.Len() + int(f.GSO.Size) - 1) / int(f.GSO.Size)
}

// held is how long the link's limit keeps it from taking anything in; Forever if it does not.
func (l *Link) held(now int64) time.Duration {
	if limit := l.Limits[In].Load(); limit != nil {
		if wait := max(limit.packets.Wait(now), limit.bits.Wait(now)); wait > 0 {
			return wait
		}
	}
	return Forever
}

// quantum keeps links that bring long frames from taking more of a round than others: deficit round robin (Shreedhar and Varghese, 1995),
// where a port says only afterwards how many bytes it brought.
type quantum struct {
	average uint64 // bytes of a frame, in the last vector
	deficit int64  // bytes the link may bring
}

// quantumBytes is what a link may bring into a round: a vector of full Ethernet frames.
const quantumBytes = Quantum * 1518

// turn begins a round of the link, and is how many frames it may bring; 0 while it has to pay for what it brought before.
func (q *quantum) turn() int {
	q.deficit = min(q.deficit+quantumBytes, quantumBytes)
	switch {
	case q.deficit <= 0:
		return 0
	case q.average*Quantum <= uint64(q.deficit):
		return Quantum
	}
	return 1 + int(uint64(q.deficit)/q.average)
}

// took is told what the link brought.
func (q *quantum) took(frames int, bytes uint64) {
	q.average = bytes / uint64(frames)
	q.deficit -= int64(bytes)
}
