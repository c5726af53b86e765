package daemon

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
)

// A volume's wait is what is left of the longest one that has an end.
func TestWaitOf(t *testing.T) {
	now := time.Now()
	past, open, short, long := control.VolumeWait{Until: now.Add(-time.Hour)}, control.VolumeWait{}, control.VolumeWait{Until: now.Add(time.Second)}, control.VolumeWait{Until: now.Add(time.Minute)}
	for want, waits := range map[time.Duration][]control.VolumeWait{0: {past, open}, time.Second: {open, short}, time.Minute: {short, long, past}} {
		if got := waitOf(control.VolumeStatus{Waits: waits}, now); got != want {
			t.Errorf("%v of %v, want %v", got, waits, want)
		}
	}
}
