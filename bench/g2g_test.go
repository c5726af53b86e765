package bench

import (
	"testing"
	"time"
)

// The first claim of all: one pinned worker, guest to guest with a lookup and a judgement of each frame's source, at 5 Mpps or more, while garbage
// collections are forced.
func TestGuestToGuest(t *testing.T) {
	for _, both := range []bool{false, true} {
		r, err := GuestToGuest(t.Context(), GuestToGuestOptions{Both: both, WorkerCPU: 0, GuestCPU: 1, Collections: 100})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("both ways %v: %.2f Mpps, %.0f ns busy a frame; %d frames: %d delivered, %d dropped; %v",
			both, r.Mpps, r.BusyNanos, r.Offered, r.Delivered, r.Dropped, r.Pauses)
		if r.Offered != r.Delivered+r.Dropped {
			t.Errorf("%d frames offered, %d delivered, %d dropped: %d lost", r.Offered, r.Delivered, r.Dropped, r.Offered-r.Delivered-r.Dropped)
		}
		if r.Pauses.Median > time.Millisecond {
			t.Errorf("median stop %v", r.Pauses.Median)
		}
	}
}
