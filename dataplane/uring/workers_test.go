package uring

import "testing"

// However many operations hang, there is a thread for one more.
func TestThreadsForAll(t *testing.T) {
	for workers, want := range map[int]uint32{0: 128, 5: 5} {
		r := newRing(t, Options{Entries: 100, IOWorkers: workers})
		limits, err := limitWorkers(r.fd, 0, 0)
		if err != nil || limits != [2]uint32{want, want} {
			t.Errorf("%d asked for: io-wq has %d threads at most, want %d; %v", workers, limits, want, err)
		}
	}
}
