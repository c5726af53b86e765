package drivertest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// Faults say what a Backend does wrong, each on every so-manieth request of that kind; zero: never.
type Faults struct {
	// DropWrite acknowledges a write that it does not do, TearWrite does half of a sector, MisplaceWrite does it a sector further,
	// StaleRead fills only the first buffer, LieFlush flushes nothing.
	DropWrite, TearWrite, MisplaceWrite, StaleRead, LieFlush uint64
	// AnswerTwice, NoStatus, NoAnswer and NoCall break the ring.
	AnswerTwice, NoStatus, NoAnswer, NoCall uint64
}

// ring is one queue, on its goroutine:
//
//	run: take ─▶ under way ─▶ (a random one) do ─▶ complete ─▶ call
type ring struct {
	backend *Backend
	c       vhostuser.VringConfig
	device  *virtq.Device
	under   []*virtq.Chain
	random  *rand.Rand
	stop    int
	ended   sync.WaitGroup

	// The in-flight area of a split ring; nil: none.
	head    *vhostuser.SplitQueue
	entries []vhostuser.SplitEntry
	counter uint64
	used    uint16
}

func newRing(b *Backend, c vhostuser.VringConfig) (_ *ring, err error) {
	r := &ring{backend: b, c: c, random: rand.New(rand.NewPCG(7, uint64(c.Index)))}
	m, n := b.memory.Map(), int(c.Size)
	avail, used := virtq.AvailBytes(n), virtq.UsedBytes(n)
	if b.feature&packed != 0 {
		avail, used = virtq.EventBytes, virtq.EventBytes
	}
	l := virtq.Layout{Desc: m.User(c.DescAddr, virtq.DescBytes(n)), Avail: m.User(c.AvailAddr, avail), Used: m.User(c.UsedAddr, used)}
	o := virtq.DeviceOptions{Layout: l, Size: n, Memory: m, Base: uint16(c.Base), Packed: b.feature&packed != 0,
		EventIdx: b.feature&eventIdx != 0, Indirect: b.feature&indirect != 0}
	if o.Packed {
		o.Base, o.UsedBase = c.PackedBase()
	} else if b.area != nil {
		if r.head, r.entries, err = b.area.Split(c.Index, n); err != nil {
			return nil, err
		}
		o.Base = r.resume(l)
	}
	if r.device, err = virtq.NewDevice(o); err != nil {
		return nil, err
	}
	r.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return r, err
}

// resume puts what a killed back-end had under way to the front of what is available, as the entries there were all taken.
func (r *ring) resume(l virtq.Layout) (base uint16) {
	le := binary.LittleEndian
	r.used = le.Uint16(l.Used[2:])
	if r.head.UsedIdx != r.used {
		r.entries[r.head.LastBatchHead].Inflight = 0
		r.head.UsedIdx = r.used
	}
	var heads []uint16
	for i := range r.entries {
		if r.entries[i].Inflight != 0 {
			heads = append(heads, uint16(i))
			r.counter = max(r.counter, r.entries[i].Counter+1)
		}
	}
	slices.SortFunc(heads, func(a, b uint16) int { return int(r.entries[a].Counter) - int(r.entries[b].Counter) })
	for i, head := range heads {
		le.PutUint16(l.Avail[4+2*(int(r.used+uint16(i))&(len(r.entries)-1)):], head)
	}
	return r.used
}

// run serves the ring until it is stopped, and then, unless killed, what is under way.
func (r *ring) run() error {
	files := []unix.PollFd{{Fd: int32(r.c.Kick), Events: unix.POLLIN}, {Fd: int32(r.stop), Events: unix.POLLIN}}
	if r.c.Kick < 0 {
		return fmt.Errorf("ring %d has no kick", r.c.Index)
	}
	shm.Signal(r.c.Call) // what a back-end before us has answered, and did not call for
	for {
		if err := r.serve(); err != nil {
			return err
		}
		r.device.Arm()
		shm.Fence()
		if r.device.Pending() {
			continue
		}
		if _, err := unix.Poll(files, -1); err != nil && err != unix.EINTR {
			return err
		}
		shm.Drain(r.c.Kick)
		if files[1].Revents != 0 || r.backend.killed.Load() {
			return r.finish(0)
		}
	}
}

// halt has run end, and returns when it has.
func (r *ring) halt() {
	shm.Signal(r.stop)
	r.ended.Wait()
}

// serve takes all there is.
func (r *ring) serve() error {
	for {
		n, err := r.device.Available()
		if err != nil || n == 0 {
			if err == nil {
				err = r.finish(0)
			}
			return err
		}
		c := virtq.NewChain(int(r.c.Size))
		if err := r.device.Next(c); err != nil {
			return err
		}
		if r.head != nil {
			e := &r.entries[c.Head]
			e.Counter = r.counter
			r.counter++
			shm.Store16(&e.Next, 0)
			e.Inflight = 1
		}
		r.under = append(r.under, c)
		if err := r.finish(r.backend.o.Hold); err != nil {
			return err
		}
	}
}

// finish answers until no more than so many are under way.
func (r *ring) finish(keep int) error {
	for len(r.under) > keep && !r.backend.killed.Load() {
		i := r.random.IntN(len(r.under))
		c := r.under[i]
		r.under = slices.Delete(r.under, i, i+1)
		n, err := r.do(c)
		if err != nil {
			return err
		}
		if r.random.IntN(64) == 0 && r.backend.killed.Load() {
			return nil // done, and not answered
		}
		r.answer(c.Head, n)
	}
	return nil
}

func (r *ring) every(n uint64) bool { return n != 0 && r.backend.events.Add(1)%n == 0 }

// answer gives a chain back.
func (r *ring) answer(head uint16, n uint32) {
	f := &r.backend.o.Faults
	if r.every(f.NoAnswer) {
		return
	}
	times := 1
	if r.every(f.AnswerTwice) {
		times = 2
	}
	for range times {
		r.device.Complete(head, n)
		if r.head != nil {
			r.head.LastBatchHead = head
		}
		call := r.device.Publish()
		if r.head != nil {
			r.used++
			r.entries[head].Inflight = 0
			shm.Store16(&r.head.UsedIdx, r.used)
		}
		if call && !r.every(f.NoCall) && r.c.Call >= 0 {
			shm.Signal(r.c.Call)
		}
	}
}

// do carries a request out.
func (r *ring) do(c *virtq.Chain) (n uint32, err error) {
	in := slices.Concat(c.Readable...)
	if len(in) < 16 || len(c.Writable) == 0 {
		return 0, fmt.Errorf("request of %d readable bytes and %d writable buffers", len(in), len(c.Writable))
	}
	last := c.Writable[len(c.Writable)-1]
	status := &last[len(last)-1]
	c.Writable[len(c.Writable)-1] = last[:len(last)-1]
	n, ok := r.backend.o.Content.do(r, binary.LittleEndian.Uint32(in), binary.LittleEndian.Uint64(in[8:]), in[16:], c.Writable)
	switch {
	case r.every(r.backend.o.Faults.NoStatus):
	case ok:
		*status = 0
	default:
		*status = 1
	}
	return n + 1, nil
}
