package bench

import (
	"fmt"
	"testing"
	"time"
)

// medianStop is how long a forced garbage collection may stop a spinning worker, at the median; tries, because on a machine whose CPUs others use a stop
// waits for threads that do not run at all.
const (
	medianStop = time.Millisecond
	tries      = 5
)

// One pinned worker, guest to guest with a lookup and a judgement of each frame's source, while garbage collections are forced: every frame is
// accounted for, and the collector finds the worker in time. The rate is held by TestGuestToGuestVirtioUser.
func TestGuestToGuest(t *testing.T) {
	for _, o := range []GuestToGuestOptions{{}, {Both: true}, {Packed: true}, {Packed: true, InOrder: true}} {
		t.Run(fmt.Sprintf("both=%v packed=%v inOrder=%v", o.Both, o.Packed, o.InOrder), func(t *testing.T) {
			o.WorkerCPU, o.GuestCPU, o.Collections = 0, 1, 100
			if testing.Short() {
				o.Duration, o.Collections = 200*time.Millisecond, 10
			}
			for n := 1; ; n++ {
				r, err := GuestToGuest(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%.2f Mpps, best quarter of windows %.2f, %.0f ns busy a frame; %d frames: %d delivered, %d dropped; %v",
					r.Mpps, r.Quartile, r.BusyNanos, r.Offered, r.Delivered, r.Dropped, r.Pauses)
				if r.Offered != r.Delivered+r.Dropped {
					t.Errorf("%d frames offered, %d delivered, %d dropped: %d lost", r.Offered, r.Delivered, r.Dropped, r.Offered-r.Delivered-r.Dropped)
				}
				if testing.Short() || r.Pauses.Median <= medianStop {
					return
				}
				if n == tries {
					t.Fatalf("median stop %v, want at most %v", r.Pauses.Median, medianStop)
				}
			}
		})
	}
}
