package verify

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/need"
)

// TestControlStorm: front-ends exchange memory, reset, stop rings and hang up in the midst of it, while the store answers, is silent, or lets go of nothing. In the end the disk is
// as good as new.
func TestControlStorm(t *testing.T) {
	rounds := 60
	switch {
	case need.Soak():
		rounds = 500
	case testing.Short():
		rounds = 15
	}
	const queues = 6
	e := engine(t, drivertest.EngineOptions{Socket: socket(t), Size: 1 << 20, Queues: queues, Workers: 2, Delay: 300 * time.Microsecond})
	done, stop := context.WithCancel(t.Context())
	calm := make(chan struct{})
	go func() {
		defer close(calm)
		random := rand.New(rand.NewPCG(1, 3))
		for done.Err() == nil {
			e.Store.Silence(random.IntN(2) == 0)
			e.Store.Deafen(random.IntN(2) == 0)
			time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
		}
		e.Store.Deafen(false)
		e.Store.Silence(false)
	}()
	random := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		storm(t, e.Socket(), queues, random)
	}
	stop()
	<-calm

	d := dial(t, e.Socket(), queues)
	for i := range queues {
		y, err := d.NewSync(i, 4096)
		must(t, err)
		_, err = y.WriteAt(make([]byte, 4096), int64(i*4096))
		must(t, err)
		must(t, y.Flush())
	}
	if s := e.Device.State(); len(s.Waits) > 0 || s.Failed != nil {
		t.Errorf("in the end: %+v", s)
	}
	must(t, d.Close())
	addsUp(t, e)
}

// addsUp: every request that was taken is counted once more, as what became of it.
func addsUp(t *testing.T, e *drivertest.Engine) {
	t.Helper()
	s := e.Volume.Stats()
	taken, became := uint64(0), s.Withdrawn+uint64(s.InFlight+s.Waiting)
	for _, q := range e.Device.Queues() {
		taken += q.Stats().Chains.Load()
		became += q.Stats().Answered.Load() - q.Stats().Again.Load()
	}
	for _, o := range s.Ops {
		became += o.Done + o.Failed
	}
	if taken == 0 || taken != became {
		t.Errorf("%d requests were taken, and of %d is counted what became of them", taken, became)
	}
}

func dial(t testing.TB, path string, queues int) *driver.Disk {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := driver.Dial(ctx, path, driver.Options{Queues: queues, Size: 16, Memory: 1 << 20})
	must(t, err)
	return d
}

// storm is one front-end, from its coming to its end.
func storm(t *testing.T, path string, queues int, random *rand.Rand) {
	t.Helper()
	d := dial(t, path, queues)
	defer func() { must(t, d.Close()) }()
	for i := range queues {
		at, err := d.Alloc(4096)
		must(t, err)
		op := []driver.Op{driver.In, driver.Out}[random.IntN(2)]
		must(t, d.Queue(i).Submit(&driver.Request{Op: op, Sector: uint64(8 * i), Data: []virtq.Buffer{at.Segment(0, 4096)}}))
		d.Queue(i).Kick()
	}
	for range 1 + random.IntN(4) {
		var err error
		switch random.IntN(6) {
		case 0:
			err = d.Frontend(func(f *vhostuser.Frontend) error { return f.SetMemory(d.Regions()...) })
		case 1:
			err = d.Frontend(func(f *vhostuser.Frontend) error { return f.SetMemory(d.Regions()[:1]...) })
		case 2:
			err = errors.Join(d.Stop(), d.Start())
		case 3:
			err = d.Reset()
		case 4: // and hangs up while the rings stop
			err = d.Frontend(func(f *vhostuser.Frontend) error { return f.Send(vhostuser.SetStatus, make([]byte, 8)) })
			must(t, err)
			return
		case 5:
			return
		}
		must(t, err)
	}
}
