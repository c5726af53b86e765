package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/need"
)

// copier is the part of a hypervisor that moves memory: it takes marks and copies pages, while the daemon writes. lossy is what it would have if one mark
// in three were left out, which must show.
type copier struct {
	memory, copied, lossy []byte
	log                   *guestmem.Log
	pages, rounds         int
}

func (c *copier) take() {
	c.rounds++
	c.log.Take(func(page uint64) {
		at := int(page)*guestmem.LogPage - vnettest.GuestBase
		if at < 0 || at >= len(c.memory) {
			return
		}
		c.pages++
		copy(c.copied[at:at+guestmem.LogPage], c.memory[at:])
		if page%3 != 0 {
			copy(c.lossy[at:at+guestmem.LogPage], c.memory[at:])
		}
	})
}

// A front-end of ours clears and copies the dirty log while a neighbour and the guest send to each other. What the device wrote
// until the rings were stopped is in the copy, byte by byte: buffers, used rings or descriptors, its word about kicks.
func TestDirtyLogUnderTraffic(t *testing.T) {
	for name, features := range map[string]uint64{"split": splitRing, "packed": packedRing} {
		t.Run(name, func(t *testing.T) { dirtyLog(t, features) })
	}
}

// The used ring of so many takes three pages, so that each kind of mark has one of its own.
const logQueue, logBuffer = 1024, 1024

func dirtyLog(t *testing.T, features uint64) {
	during := 2 * time.Second
	if need.Soak() {
		during = time.Minute
	}
	ctx := within(t, time.Minute+during)
	d, socket, mac := neighbours(t, "moves", "stays")
	moves := newOwnGuest(t, socket("moves"), mac("moves"), vnettest.Options{Features: features, QueueSize: logQueue, BufferSize: logBuffer})
	stays := newOwnGuest(t, socket("stays"), mac("stays"), vnettest.Options{Features: splitRing, BufferSize: 2048})
	for _, g := range []*ownGuest{moves, stays} {
		if err := g.attach(ctx); err != nil {
			t.Fatal(err)
		}
	}
	babbling, moving := babble(t, stays, moves.mac), babble(t, moves, stays.mac)

	c := newCopier(t, moves)
	c.take()
	for begin := time.Now(); time.Since(begin) < during; {
		c.take()
	}
	// The driver stops first, so that the device was the last to write wherever both do.
	moving()
	full := func() uint64 { return counters(t, d, control.KindPort, "moves").Drops["guest-ring-full"] }
	for was := full(); full() == was; c.take() {
		if ctx.Err() != nil {
			t.Fatal("the neighbour does not fill the receiveq")
		}
	}
	for q := range 2 {
		if _, err := moves.front.StopVring(q); err != nil {
			t.Fatal(err)
		}
	}
	c.take()
	babbling()
	compared, wrong := written(moves, c.memory, c.copied)
	if wrong != "" {
		t.Errorf("the copy is not what the device wrote: %s", wrong)
	}
	if _, wrong := written(moves, c.memory, c.lossy); wrong == "" {
		t.Error("a copy without a third of the marks is as good, so this test sees nothing")
	}
	if c.pages < 100 || c.rounds < 10 || compared < logQueue*logBuffer {
		t.Errorf("%d pages were copied in %d rounds, %d bytes compared", c.pages, c.rounds, compared)
	}
	t.Logf("%d rounds copied %d pages while %d frames came and %d went; %d bytes compared", c.rounds, c.pages, moves.Received, moves.Pairs[0].Sent, compared)
}

// newCopier begins a migration: marks first, then the whole memory is copied.
func newCopier(t *testing.T, g *ownGuest) *copier {
	t.Helper()
	size := uint64(vnettest.GuestBase+len(g.Memory))/guestmem.LogPage/8 + 8
	size = (size + 4095) &^ 4095
	fd, err := shm.NewMemFD("dirty-log", int64(size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	c := &copier{}
	if c.log, err = guestmem.OpenLog(guestmem.LogOptions{FD: fd, Size: size}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.log.Free() })
	// The hypervisor's own view of the memory.
	view, err := shm.Map(shm.MapOptions{FD: g.FD, Length: len(g.Memory)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = view.Free() })
	c.memory = view.Bytes()
	if err := g.front.SetLog(fd, size, 0); err != nil {
		t.Fatal(err)
	}
	var rings []vhostuser.VringConfig
	for q := range 2 {
		ring := g.Vring(q)
		ring.LogAddr = ring.UsedAddr - vnettest.UserBase + vnettest.GuestBase
		rings = append(rings, ring)
	}
	if err := g.front.LogAll(true, rings...); err != nil {
		t.Fatal(err)
	}
	c.copied = bytes.Clone(c.memory)
	c.lossy = bytes.Clone(c.copied)
	return c
}

// babble has a guest send frames of all lengths to another and take what comes, until the function returned is called.
func babble(t *testing.T, g *ownGuest, to [6]byte) (end func()) {
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- func() error {
			for n := uint64(0); ; {
				select {
				case <-stop:
					return nil
				default:
				}
				b, err := g.Recv()
				if err != nil {
					return err
				}
				if b != nil {
					if _, _, _, err := readNumbered(b); err != nil {
						return err
					}
				}
				if _, err := g.Blast(0, 0); err != nil {
					return err
				}
				if g.Tx.Free() < 2 {
					time.Sleep(20 * time.Microsecond)
					continue
				}
				frame := make([]byte, 60+rand.IntN(1400))
				putNumbered(frame, to, g.mac, 0, n)
				if err := g.Send(frame); err != nil {
					return err
				}
				n++
			}
		}()
	}()
	done := false
	end = func() {
		if done {
			return
		}
		done = true
		close(stop)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	return end
}

// written compares all that the device may have written last, and tells what differs first.
func written(g *ownGuest, memory, copied []byte) (compared int, wrong string) {
	look := func(what string, at, n int) {
		compared += n
		if wrong != "" || bytes.Equal(memory[at:at+n], copied[at:at+n]) {
			return
		}
		for memory[at] == copied[at] {
			at++
		}
		wrong = fmt.Sprintf("%s, at %#x: %#x, copied %#x", what, at, memory[at], copied[at])
	}
	buffers := 0
	for q := range 2 {
		l := g.Layout(q)
		desc, used := len(memory)-len(l.Desc), len(memory)-len(l.Used)
		buffers = (used + virtq.UsedBytes(logQueue) + 4095) &^ 4095 // the receive buffers lie behind all tables
		if g.Features()&vnet.FeaturePacked == 0 {
			look(fmt.Sprintf("used ring of queue %d", q), used, virtq.UsedBytes(logQueue))
			continue
		}
		look(fmt.Sprintf("device event suppression of queue %d", q), used, virtq.EventBytes)
		for i := range logQueue {
			flags := binary.LittleEndian.Uint16(memory[desc+16*i+14:])
			if flags>>7&1 == flags>>15&1 { // used
				look(fmt.Sprintf("descriptor %d of queue %d", i, q), desc+16*i, 16)
			}
		}
	}
	look("receive buffers", buffers, logQueue*logBuffer)
	return compared, wrong
}
