package blk

import (
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane"
)

// trunk is a volume's lane on one worker, with the gates of all its queues there. It hears what the lane has to say and tells the gates, each time beginning
// with another one, so that the room there is goes around.
//
//	Queue ─▶ Gate ─┐
//	Queue ─▶ Gate ─┴▶ trunk ─▶ Lane
type trunk struct {
	volume *Volume
	host   Host
	gates  []*Gate // by the control side, within Do
	page   *page   // in the volume's ledger

	// The worker's.
	lane  Lane // nil until it is opened
	up    bool // the lane is
	seen  bool // it was up, or down, before: it is not just being opened
	full  bool // the lane has handed a request back, and will say when it has room
	dirty bool // the lane has requests that it has not sent
	first int  // the gate that is told first
	stats trunkStats

	pending, latest atomic.Pointer[survey] // that was asked for and is not there; that was there last
}

// trunkStats count how often the lane came back, and went away.
type trunkStats struct{ backs, downs uint64 }

// open tells whether it is worth asking the lane.
func (t *trunk) open() bool { return t.up && !t.full && t.lane != nil }

// attach gives the trunk its lane, which may have said that it is up before it was there.
func (t *trunk) attach(l Lane) {
	t.lane = l
	t.Room()
}

// Up implements Events.
func (t *trunk) Up(kept bool) {
	v := t.volume
	t.up, t.full, t.seen = true, false, true
	if t.stats.downs > 0 {
		t.stats.backs++
		v.note(noteUp, t.host.Worker.Index(), nil, 0)
	}
	if !kept {
		t.tell((*Gate).rewrite) // what was said to be done after Down
		v.restarted.Store(true)
		if n := v.ledger.judge(t.page, dataplane.Clock()); n > 0 {
			v.note(noteLoss, t.host.Worker.Index(), nil, n)
		}
	}
	t.tell((*Gate).send)
}

// Down implements Events.
func (t *trunk) Down(why error) {
	if t.up || !t.seen {
		t.stats.downs++
		t.page.down = dataplane.Clock()
		t.volume.note(noteDown, t.host.Worker.Index(), why, 0)
	}
	t.up, t.seen = false, true
	t.tell((*Gate).down)
}

// Room implements Events.
func (t *trunk) Room() {
	t.full = false
	t.tell((*Gate).send)
}

func (t *trunk) tell(what func(*Gate)) {
	n := len(t.gates)
	if n == 0 {
		return
	}
	t.first = (t.first + 1) % n
	for i := range n {
		what(t.gates[(t.first+i)%n])
	}
}

// submit gives the lane a request, and remembers if it does not take it.
func (t *trunk) submit(r *Request) bool {
	if t.lane.Submit(r) {
		t.dirty = true
		return true
	}
	t.full = true
	return false
}

// flush has the lane send what it was given.
func (t *trunk) flush() {
	if t.dirty {
		t.dirty = false
		t.lane.Flush()
	}
}
