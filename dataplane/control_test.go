package dataplane_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// The control side stops and starts rings, replaces eventfds, brings and takes memory, while frames go both ways between the two guests;
// neither the guests nor the frames notice, but for those dropped while a receive ring was stopped. Under the race detector this holds
// what the two sides share to what Do orders. (Guest memory is no Go memory: the detector does not watch it.)
func TestControlWhileFramesMove(t *testing.T) {
	l := newLAN(t, 2, vnettest.Options{QueueSize: 64, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | vnet.FeatureEventIdx})
	a, b := l.hosts[0], l.hosts[1]
	stop := run(t, l.worker)
	slot, err := shm.NewMemFD("slot", 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(slot)
	region := vhostuser.Region{GuestAddr: 0x10_0000_0000, UserAddr: 0x1000, Size: 1 << 16, FD: slot}

	turns := 300
	if testing.Short() {
		turns = 60
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		check := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		for i := range turns {
			h := l.hosts[i%2]
			q := i / 2 % 2
			check(h.dev.AddMemory(region))
			if i%3 == 0 {
				_, err := h.dev.StopVring(q)
				check(err)
				runtime.Gosched()
				check(h.dev.StartVring(h.Vring(q)))
			}
			check(h.dev.UpdateVring(h.Vring(q)))
			check(h.dev.RemoveMemory(region))
			if s := h.dev.State(); s.Failed != nil || !s.Running {
				t.Errorf("%s: %+v", h.name, s)
			}
		}
	}()
	within(t, func() {
		for moving := true; moving; {
			select {
			case <-ended:
				moving = false
			default:
			}
			for i := range 8 {
				a.send(1, 60+i*200)
				b.send(0, 60+i*200)
			}
			a.drain()
			b.drain()
			runtime.Gosched()
		}
	})
	stop()
	l.settle(a, b) // by hand now
	for _, h := range l.hosts {
		if in := h.link.Counters.RxPackets.Load(); in != h.sent {
			t.Errorf("%s: it sent %d frames, %d came in", h.name, h.sent, in)
		}
		if out := h.link.Counters.TxPackets.Load(); out != h.received {
			t.Errorf("%s: %d frames sent to it, %d arrived", h.name, out, h.received)
		}
	}
	t.Logf("%d frames in %d turns", a.received+b.received, turns)
	l.checkBalance()
}
