package vxlan

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/offload"
	"github.com/shuntio/shunt/vxlan/acl"
)

// lane is what one worker has of the switch: only that worker touches it. What belongs to a worker and to a network or a port lies with these, by the
// lane's number.
type lane struct {
	sw     *Switch
	worker *dataplane.Worker
	number int

	// Of the vector of frames under way: the configuration, and the time in ticks.
	now  *snapshot
	tick uint32

	// Of the frame under way: its outer headers, what its flow is known by, and what filters judge it by, once it isRead.
	outer            outer
	key              flowKey
	packet           packet
	isRead, readable bool
	uncached         bool // for tests
	recalled         int  // frames whose flow was known

	// same is the flow of the frame before; nil: it had to be decided. run is how many frames in a row were recalled that the same rules decided about:
	// outRules of the port they come from, inRules of the one they go to, ruled.
	same              *flow
	run               int
	rules             ruling
	ruled             place
	outRules, inRules *acl.Compiled

	segmenter offload.Segmenter
	// held is a segment on its way to several places, which came by the link heldFrom. A fault leaves it here.
	held     *frame.Frame
	heldFrom *dataplane.Link
}

// makeLanes gives each worker its lane.
func (s *Switch) makeLanes(workers []*dataplane.Worker) {
	for i, w := range workers {
		if w.Index() != i {
			panic(fmt.Sprintf("vxlan: worker %d has index %d: workers must be given in order", i, w.Index()))
		}
		l := &lane{sw: s, worker: w, number: i, uncached: s.options.uncached}
		s.lanes = append(s.lanes, l)
		w.Listen(l)
	}
}

// begin picks up the configuration for a vector of frames.
func (s *Switch) begin(w *dataplane.Worker) *lane {
	l := s.lanes[w.Index()]
	l.end()
	l.now, l.tick = s.current.Load(), s.tickOf(w)
	if l.held != nil {
		l.drop(l.heldFrom, &l.held, dataplane.DropFault)
	}
	return l
}

// end shows what was counted of a vector of frames.
func (l *lane) end() { l.over() }

// anew begins to decide about a frame. That may end what other verdicts stand on.
func (l *lane) anew() {
	l.over()
	l.isRead = false
}

// tickOf is the worker's time in ticks.
func (s *Switch) tickOf(w *dataplane.Worker) uint32 {
	if s.options.clock != nil {
		return s.options.clock.Load()
	}
	return uint32(w.Now() >> tickShift)
}

// grace returns when no worker uses an earlier snapshot any more.
func (s *Switch) grace() {
	for _, l := range s.lanes {
		l.worker.Do(func() {})
	}
}

// way is the links by which one worker sends to a port or an uplink.
type way struct {
	links []*dataplane.Link // those it prefers
	all   []*dataplane.Link
	asks  bool // some may not be ready
}

// pick chooses the link for a frame. Those of one flow go by one link, so that they stay in order.
func (y *way) pick(l *lane, f *frame.Frame) *dataplane.Link {
	if len(y.all) == 1 {
		return y.all[0]
	}
	return y.choose(l.hash(f))
}

// choose is pick where there is a choice.
func (y *way) choose(hash uint32) *dataplane.Link {
	if y.asks {
		if link := pickReady(y.links, hash); link != nil {
			return link
		}
		if link := pickReady(y.all, hash); link != nil {
			return link
		}
	}
	return y.links[uint64(hash)*uint64(len(y.links))>>32]
}

// pickReady chooses among the links that are ready; nil if none is.
func pickReady(links []*dataplane.Link, hash uint32) *dataplane.Link {
	ready := 0
	for _, link := range links {
		if link.Ready.Load() {
			ready++
		}
	}
	nth := int(uint64(hash) * uint64(ready) >> 32)
	for _, link := range links {
		if link.Ready.Load() {
			if nth == 0 {
				return link
			}
			nth--
		}
	}
	return nil
}

// newWays chooses each worker's links: those it owns itself, since frames to others have to cross. If it owns none, all that somebody owns;
// and if nobody owns any, all, which then drop what they get. A link that moves afterwards costs crossings until Refresh, nothing else.
func (s *Switch) newWays(links []*dataplane.Link, asks bool) []way {
	ways := make([]way, len(s.lanes))
	var owned []*dataplane.Link
	for _, link := range links {
		if w := link.Owner(); w != nil {
			owned = append(owned, link)
			if i := w.Index(); i < len(ways) {
				ways[i].links = append(ways[i].links, link)
			}
		}
	}
	if len(owned) == 0 {
		owned = links
	}
	for i := range ways {
		ways[i].all, ways[i].asks = owned, asks
		if len(ways[i].links) == 0 {
			ways[i].links = owned
		}
	}
	return ways
}
