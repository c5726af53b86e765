package blk

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// Which chains of a ring are under way is written down in memory that outlives this process, where the front-end gives some (vhost-user, "Inflight
// I/O tracking"): a store completes requests in any order, so the ring alone does not tell.
//
//	Poll    took ──▶ counter, descriptors, inflight = 1 ──▶ the request goes to the store
//	Flush   publish ──▶ the batch is listed ──▶ used ring ──▶ inflight = 0, the batch is over
//
// A process may be killed between any two of these stores. What it had taken, the next one finds marked; what it was about to publish is a batch that
// either was shown to the driver or was not, and the area tells which.
//
// Nobody submits requests of a dead process anew in a way of their own. They are given back: made the driver's offer again, in the order of their counters,
// in the ring itself (virtq.Layout.Offer), and then taken from there like all others. The same is done with chains that a ring must let go of when the
// front-end stops it and the store has not answered; so a ring that was stopped in an orderly way has nothing under way, its base is its used index, and
// whoever has it next, on this machine or another, with an area or without, goes on with no request lost. Front-ends know no other way: what
// GET_VRING_BASE returns is one index, and QEMU gives the area to back-ends of this machine alone.
//
// What this costs is that a request that could not be called back may be done twice, as after a kill. Without an area the same notes are
// kept in memory of ours.
type inflight interface {
	// took notes a chain that was just taken from the ring; at is the ring's Base before.
	took(c *virtq.Chain, at uint16)
	// publish shows the driver that chains are used, which ring was told of by Complete in this order.
	publish(ring *virtq.Device, heads []uint16) (call bool)
	// giveBack makes all chains under way the driver's offer again, from the ring's used index on, and tells how many that were. All that was completed is
	// published, and no device uses the ring.
	giveBack(used uint16) (n int, err error)
}

// errInflight says that an area speaks of another ring than the one that is there.
var errInflight = errors.New("the in-flight area does not fit the ring: the front-end has to give a new one when it resets the device")

// openInflight begins to keep notes of a ring in the front-end's area, or in memory of ours if that is nil. What an area says is under way is given back.
// told is where a packed ring goes on if nobody but the front-end knows. It returns where the ring goes on, and how many chains were given back.
func openInflight(area *vhostuser.Inflight, queue int, l virtq.Layout, size int, packed bool, told uint16) (n inflight, base uint16, resumed int, err error) {
	if area != nil && queue >= area.Queues {
		return nil, 0, 0, fmt.Errorf("%w: it has room for %d rings", errInflight, area.Queues)
	}
	if packed {
		return openPacked(area, queue, l, size, told)
	}
	return openSplit(area, queue, l, size)
}
