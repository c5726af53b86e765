package dataplane_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// A captured guest takes its memory away: the capture is one more that looks at bodies, and changes nothing of what holds without it. Nothing in a
// record is of a frame that was not whole.
func TestMemoryGoesAwayUnderCapture(t *testing.T) {
	l := newLAN(t, 3, vnettest.Options{QueueSize: faultQueue, BufferSize: faultBuffer, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf})
	c := dataplane.NewCapture(dataplane.CaptureOptions{Workers: 1})
	var points []*dataplane.Point
	reasons := [dataplane.MaxReasons]bool{}
	for i := range reasons {
		reasons[i] = true
	}
	for i, h := range l.hosts {
		p := c.Point(dataplane.PointOptions{ID: uint32(i), In: true, Out: true, Drops: reasons})
		h.link.Tap.Store(dataplane.NewTap(p))
		points = append(points, p)
	}
	a := l.hosts[0]
	size := int64(len(a.Memory))
	faults, records, drops := 0, uint64(0), 0
	for _, step := range faultSteps {
		for i, pages := range faultPages() {
			if i%4 != 0 {
				continue
			}
			before := l.worker.Stats().Faults.Load()
			l.storm(step, int64(pages)*4096)
			if l.worker.Stats().Faults.Load() != before {
				faults++
			}
			l.afterwards(a)
			var r dataplane.Record
			for c.Read(&r) {
				if records++; r.Dropped {
					drops++
				} else if len(r.Data) != r.Length {
					t.Errorf("a record has %d bytes of %d", len(r.Data), r.Length)
				}
			}
			if t.Failed() {
				t.Fatalf("the file cut to %d pages at %s", pages, step)
			}
			if err := unix.Ftruncate(a.FD, size); err != nil {
				t.Fatal(err)
			}
			a.Detach(a.dev)
			clear(a.Memory)
			if err := a.Restart(); err != nil {
				t.Fatal(err)
			}
			if err := a.Attach(a.dev); err != nil {
				t.Fatal(err)
			}
		}
	}
	var seen, missed uint64
	for _, p := range points {
		seen += p.Seen()
		missed += p.Missed()
	}
	if records != seen-missed || faults == 0 || drops == 0 || missed != 0 {
		t.Errorf("%d records, %d of them drops, of %d seen and %d missed, %d faults", records, drops, seen, missed, faults)
	}
	t.Logf("%d records, %d drops, %d faults", records, drops, faults)
}
