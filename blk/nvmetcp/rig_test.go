package nvmetcp

import (
	"context"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"golang.org/x/sys/unix"
)

// rig is a lane on a worker that the test turns by hand, and the other end of its socket.
type rig struct {
	*blktest.Rig
	lane   *lane
	memory []byte // the guest's

	ups, downs int
	why        error
	ended      int
	last       blk.Outcome
}

func (r *rig) Up(bool)                            { r.ups++ }
func (r *rig) Down(why error)                     { r.downs, r.why = r.downs+1, why }
func (r *rig) Room()                              {}
func (r *rig) Done(_ *blk.Request, o blk.Outcome) { r.ended, r.last = r.ended+1, o }

// rigLimits are of a controller that takes 8 KiB in capsules.
func rigLimits() limits {
	return limits{terms: terms{align: 4, maxH2CData: 128 << 10}, nsid: 1, shift: 9, depth: 31, inCapsule: 8 << 10, most: 128 << 10, mostZeroes: 32 << 20, mostDiscard: 1 << 40,
		timeout: 1 << 40, can: [blk.Ops]bool{true, true, true, true, true}}
}

func newRig(t testing.TB, dataDigest bool) *rig {
	t.Helper()
	r := &rig{Rig: blktest.NewRig(t)}
	r.memory = r.Memory(1 << 20)
	s := &Store{o: Options{QueueDepth: 32, DataDigest: dataDigest}, lanes: make([]*lane, 1)}
	var err error
	if r.lane, err = newLane(s, r.Host, r); err != nil {
		t.Fatal(err)
	}
	r.lane.qid, s.lanes[0] = 1, r.lane
	t.Cleanup(func() {
		r.lane.Close()
		r.Turn(r.lane, func() bool { return r.lane.memory == nil })
	})
	return r
}

func newAssociation() *association {
	a := &association{o: &Options{}, aborts: make(chan abort, 64), ana: make(chan struct{}, 1)}
	a.ctx, a.stop = context.WithCancelCause(context.Background())
	return a
}

// attach gives the lane a socket.
func (r *rig) attach(fd int, l limits) {
	r.Helper()
	r.lane.quiet = make(chan struct{})
	if err := r.lane.attach(newAssociation(), fd, l, true, true); err != nil {
		r.Fatal(err)
	}
}

// read takes n bytes that the lane has sent.
func (r *rig) read(b []byte) {
	for got := 0; got < len(b); {
		r.Round(r.lane)
		n, err := unix.Read(r.Peer, b[got:])
		if err != nil || n == 0 {
			r.Fatalf("read what the lane sent: %d, %v", n, err)
		}
		got += n
	}
}

func (r *rig) write(b []byte) {
	for len(b) > 0 {
		n, err := unix.Write(r.Peer, b)
		if err != nil {
			r.Fatal(err)
		}
		b = b[n:]
		r.Worker.Round()
	}
}
