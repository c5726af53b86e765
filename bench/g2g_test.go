package bench

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
)

// macTable is the least a switch can be: a lookup per frame.
type macTable struct{ slots [1024]entry }

type entry struct {
	mac uint64
	to  *dataplane.Link
}

func (t *macTable) slot(mac uint64) *entry { return &t.slots[(mac*0x9e3779b97f4a7c15)>>54] }

func (t *macTable) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		mac := binary.LittleEndian.Uint64(f.Head()) & 0xffffffffffff
		e := t.slot(mac)
		if e.mac != mac {
			w.Drop(from, f, dataplane.DropFault)
			continue
		}
		w.Send(e.to, f)
	}
}

func connectTable(_ *dataplane.Worker, links [2]*dataplane.Link) (macs [2][6]byte, err error) {
	t := &macTable{}
	for i := range macs {
		macs[i] = [6]byte{0x52, 0x54, 0, 0, 0, byte(i + 1)}
		mac := uint64(macs[i][0]) | uint64(macs[i][1])<<8 | uint64(macs[i][5])<<40
		*t.slot(mac) = entry{mac: mac, to: links[i]}
		links[i].Forwarder = t
	}
	return macs, nil
}

func TestGuestToGuest(t *testing.T) {
	for _, both := range []bool{false, true} {
		r, err := GuestToGuest(t.Context(), GuestToGuestOptions{
			Both: both, Duration: 2 * time.Second, WorkerCPU: 0, GuestCPU: 1, Collections: 100, Connect: connectTable,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("both=%v: %.2f Mpps, %.0f ns busy a packet, offered %d delivered %d dropped %d; %v", both, r.Mpps, r.BusyNanos, r.Offered, r.Delivered, r.Dropped, r.Pauses)
		if r.Offered != r.Delivered+r.Dropped {
			t.Errorf("%d frames offered, %d delivered, %d dropped: %d lost", r.Offered, r.Delivered, r.Dropped, r.Offered-r.Delivered-r.Dropped)
		}
		if r.Pauses.Median > time.Millisecond {
			t.Errorf("median stop %v", r.Pauses.Median)
		}
	}
}
