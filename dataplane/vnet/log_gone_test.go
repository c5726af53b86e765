package vnet_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// unsealedLog is a dirty log in a file that cannot be kept from being truncated.
func unsealedLog(t *testing.T) (log *guestmem.Log, truncate func()) {
	t.Helper()
	const size = 1 << 16
	fd, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	if log, err = guestmem.OpenLog(guestmem.LogOptions{FD: fd, Size: size}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Free() })
	return log, func() {
		if err := unix.Ftruncate(fd, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// newLoggedHouse is a guest that is being migrated, with its log.
func newLoggedHouse(t *testing.T, workers, pairs int, features uint64) (h *house, truncate func()) {
	t.Helper()
	features |= vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf
	h = newHouse(t, workers, pairs, 0, vnettest.Options{QueueSize: 32, Features: features})
	if err := h.guest.Attach(h.dev); err != nil {
		t.Fatal(err)
	}
	log, truncate := unsealedLog(t)
	if err := h.dev.SetLog(log); err != nil {
		t.Fatal(err)
	}
	if err := h.dev.SetFeatures(features | vhostuser.FeatureLogAll); err != nil {
		t.Fatal(err)
	}
	return h, truncate
}

// turn has every pair send a frame and the workers move it.
func (h *house) turn(t *testing.T) {
	t.Helper()
	for _, p := range h.guest.Pairs {
		if err := p.Send(make([]byte, 60)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		for _, w := range h.workers {
			w.Do(func() { w.Round() })
		}
	}
}

// A log that is gone takes the pairs out of service, and is not written once more for what they had under way.
func TestLogGoes(t *testing.T) {
	for name, features := range formats {
		t.Run(name, func(t *testing.T) {
			h, truncate := newLoggedHouse(t, 1, 2, features)
			h.turn(t)
			truncate()
			h.turn(t)
			if s := h.dev.State(); s.Failed == nil || s.Running {
				t.Errorf("state %+v", s)
			}
		})
	}
}

// So does guest memory that goes at the same time.
func TestLogAndMemoryGo(t *testing.T) {
	for name, features := range formats {
		t.Run(name, func(t *testing.T) {
			h, truncate := newLoggedHouse(t, 1, 2, features)
			h.turn(t)
			for _, p := range h.guest.Pairs {
				if err := p.Send(make([]byte, 60)); err != nil {
					t.Fatal(err)
				}
			}
			truncate()
			if err := unix.Ftruncate(h.guest.FD, 0); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				h.workers[0].Do(func() { h.workers[0].Round() })
			}
			if s := h.dev.State(); s.Failed == nil || s.Running {
				t.Errorf("state %+v", s)
			}
		})
	}
}

// While logs are exchanged, the one before is still in use on workers that were not asked yet: if it goes, that is the guest's doing as well.
func TestLogGoesWhileExchanged(t *testing.T) {
	h, truncate := newLoggedHouse(t, 2, 2, 0)
	held, proceed, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		h.workers[1].Do(func() {
			close(held)
			<-proceed
			h.workers[1].Round()
		})
	}()
	<-held
	next := newBitmap(t, h.guest)
	exchanged := make(chan error, 1)
	go func() { exchanged <- h.dev.SetLog(next.log) }()
	for next.count() == 0 { // until the first worker has it
		h.workers[0].Do(func() {
			if err := h.guest.Pairs[0].Send(make([]byte, 60)); err != nil {
				t.Error(err)
			}
			h.workers[0].Round()
			if _, err := h.guest.Pairs[0].Recv(); err != nil {
				t.Error(err)
			}
		})
	}
	truncate()
	if err := h.guest.Pairs[1].Send(make([]byte, 60)); err != nil {
		t.Fatal(err)
	}
	close(proceed)
	<-done
	if err := <-exchanged; err != nil {
		t.Error(err)
	}
}

// A guest whose rings go while its log is exchanged has no use for the log; its other pairs have.
func TestMemoryGoesWhileLogIsGiven(t *testing.T) {
	features := uint64(vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf)
	h := newHouse(t, 2, 2, 0, vnettest.Options{QueueSize: 32, Features: features})
	if err := h.guest.Attach(h.dev); err != nil {
		t.Fatal(err)
	}
	if err := h.dev.SetFeatures(features | vhostuser.FeatureLogAll); err != nil {
		t.Fatal(err)
	}
	cut := int64(h.guest.Vring(2).DescAddr - vnettest.UserBase) // the second pair's memory goes, the first one's stays
	if err := unix.Ftruncate(h.guest.FD, cut); err != nil {
		t.Fatal(err)
	}
	log, _ := unsealedLog(t)
	if err := h.dev.SetLog(log); err != nil {
		_ = log.Free() // as a session does with one that was refused
	}
	if err := h.guest.Pairs[0].Send(make([]byte, 60)); err != nil {
		t.Fatal(err)
	}
	h.workers[0].Do(func() { h.workers[0].Round() })
	if b, err := h.guest.Pairs[0].Recv(); err != nil || len(b) != 60 {
		t.Errorf("%d bytes came back, %v", len(b), err)
	}
	if h.dev.State().Failed == nil {
		t.Error("the pair whose memory is gone is in service")
	}
}

// Of a chain that goes back, what was written is marked. A guest may make it as long as all of its memory.
func TestChainThatGoesBackIsMarkedAsFarAsWritten(t *testing.T) {
	for name, features := range formats {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, vnet.FeatureVersion1|vnet.FeatureMrgRxbuf|features)
			if err := b.dev.SetFeatures(b.features | vhostuser.FeatureLogAll); err != nil {
				t.Fatal(err)
			}
			log := newBitmap(t, b.guest)
			if err := b.dev.SetLog(log.log); err != nil {
				t.Fatal(err)
			}
			b.offer(0, 1, 32*guestmem.LogPage) // the first buffer cuts the header
			b.vector[0] = b.frameOf(counting(60))
			clear(log.bits)
			b.port.Transmit(b.vector[:1], b.pool)
			b.pool.PutAll(b.vector[:1])
			if n := log.count(); n == 0 || n > 2 || b.drops()[vnet.DropGuestBuffer] != 1 {
				t.Errorf("%d pages are marked, drops %v", n, b.drops())
			}
		})
	}
}
