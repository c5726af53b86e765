// Package vnettest is the other side of a virtio-net device: a guest made of the driver's sides of its virtqueues in memory of its own. Tests,
// load generators and benchmarks of everything behind vnet use it in place of a VM.
//
//	                 one memfd, mapped here and by the device, for each pair of queues
//	┌──────────────┬──────────────┬───────────────────┬───────────────────┐
//	│ rx tables    │ tx tables    │ rx buffers        │ tx buffers        │ ...
//	└──────────────┴──────────────┴───────────────────┴───────────────────┘
//
// A Guest is used by one goroutine at a time, or each of its Pairs by one.
package vnettest

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
	"golang.org/x/sys/unix"
)

// Where the guest's memory lies: in its own eyes, and in its front-end's.
const (
	GuestBase = 0x4000_0000
	UserBase  = 0x7f00_0000_0000
	// HeaderLen is the length of the virtio-net header with VERSION_1.
	HeaderLen = 12
)

// Options configure a Guest; zero values are good.
type Options struct {
	// QueueSize is the number of descriptors of each queue. Zero: 256.
	QueueSize int
	// BufferSize is the size of each buffer in bytes. Zero: 2048.
	BufferSize int
	// Features the driver accepts. Zero: VERSION_1 and MRG_RXBUF.
	Features uint64
	// Pairs is the number of queue pairs. Zero: 1.
	Pairs int
	// Polled: the driver gives no kick descriptors, and the device has to look by itself.
	Polled bool
}

// Guest is a virtio-net driver. What it does with frames it does with its first pair, unless one of Pairs is asked.
type Guest struct {
	*Pair
	// Pairs are its queue pairs.
	Pairs []*Pair
	// Memory is the guest's whole memory, and FD the memfd behind it.
	Memory []byte
	FD     int

	options Options
	mapping *shm.Mapping
}

// New makes a guest with its rings empty and every receive buffer offered.
func New(o Options) (*Guest, error) {
	if o.QueueSize == 0 {
		o.QueueSize = 256
	}
	if o.BufferSize == 0 {
		o.BufferSize = 2048
	}
	if o.Features == 0 {
		o.Features = vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf
	}
	if o.Pairs == 0 {
		o.Pairs = 1
	}
	g := &Guest{options: o, FD: -1}
	for range o.Pairs {
		g.Pairs = append(g.Pairs, &Pair{guest: g, kick: [2]int{-1, -1}, call: [2]int{-1, -1}, broken: [2]int{-1, -1}})
	}
	g.Pair = g.Pairs[0]
	if err := g.allocate(g.layout()); err != nil {
		g.Close()
		return nil, err
	}
	return g, g.Restart()
}

// layout places tables and buffers, and returns the size of the memory.
func (g *Guest) layout() int {
	at, n := 0, g.options.QueueSize
	place := func(size, align int) (offset int) {
		at = (at + align - 1) / align * align
		offset = at
		at += size
		return offset
	}
	for _, p := range g.Pairs {
		for q := range p.tables {
			p.tables[q] = [3]int{place(virtq.DescBytes(n), 4096), place(virtq.AvailBytes(n), 64), place(virtq.UsedBytes(n), 64)}
		}
		for q := range p.buffers {
			p.buffers[q] = place(n*g.options.BufferSize, 4096)
		}
	}
	return place(0, 2<<20)
}

func (g *Guest) allocate(size int) (err error) {
	if g.FD, err = shm.NewMemFD("shunt-test-guest", int64(size)); err != nil {
		return err
	}
	if g.mapping, err = shm.Map(shm.MapOptions{FD: g.FD, Length: size, Populate: true}); err != nil {
		return err
	}
	g.Memory = g.mapping.Bytes()
	for _, p := range g.Pairs {
		for _, fd := range p.eventfds() {
			if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
				return fmt.Errorf("eventfd: %w", err)
			}
		}
	}
	return nil
}

// MoveMemory puts what the guest has into another file, as a migration does. It stays at its addresses; no device may have it meanwhile.
func (g *Guest) MoveMemory() error {
	fd, err := shm.NewMemFD("shunt-test-guest", int64(len(g.Memory)))
	if err != nil {
		return err
	}
	if _, err = unix.Pwrite(fd, g.Memory, 0); err == nil {
		_, _, errno := unix.Syscall6(unix.SYS_MMAP, shm.Address(g.Memory), uintptr(len(g.Memory)), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_SHARED|unix.MAP_FIXED, uintptr(fd), 0)
		if errno != 0 {
			err = errno
		}
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	closeFD(&g.FD)
	g.FD = fd
	return nil
}

// Restart is the driver's reset: all queues begin anew, all receive buffers are offered.
func (g *Guest) Restart() error {
	var errs []error
	for _, p := range g.Pairs {
		errs = append(errs, p.restart())
	}
	return errors.Join(errs...)
}

// Layout is where a queue's tables lie, by its number in the device.
func (g *Guest) Layout(q int) virtq.Layout {
	t := g.Pairs[q/2].tables[q%2]
	return virtq.Layout{Desc: g.Memory[t[0]:], Avail: g.Memory[t[1]:], Used: g.Memory[t[2]:]}
}

// Attach hands memory and rings to a device directly, without a connection.
func (g *Guest) Attach(d vhostuser.Device) error {
	if missing := g.options.Features &^ d.Offer().Features; missing != 0 {
		return fmt.Errorf("device lacks features %#x", missing)
	}
	if err := d.SetFeatures(g.options.Features); err != nil {
		return err
	}
	if err := d.SetMemory([]vhostuser.Region{g.Region()}); err != nil {
		return err
	}
	for q := range 2 * len(g.Pairs) {
		if err := d.StartVring(g.Vring(q)); err != nil {
			return err
		}
	}
	return nil
}

// Detach takes the rings back, as a front-end that goes away.
func (g *Guest) Detach(d vhostuser.Device) {
	for q := range 2 * len(g.Pairs) {
		_, _ = d.StopVring(q)
	}
	d.Disconnected()
}

// Region is the guest's memory as a front-end tells of it.
func (g *Guest) Region() vhostuser.Region {
	return vhostuser.Region{GuestAddr: GuestBase, UserAddr: UserBase, Size: uint64(len(g.Memory)), FD: g.FD}
}

// Vring is one of the queues as a front-end hands it over: from the beginning, as far as that knows.
func (g *Guest) Vring(q int) vhostuser.VringConfig {
	p := g.Pairs[q/2]
	t := p.tables[q%2]
	c := vhostuser.VringConfig{
		Index: q, Size: uint32(g.options.QueueSize), Kick: p.kick[q%2], Call: p.call[q%2], Err: p.broken[q%2],
		DescAddr: UserBase + uint64(t[0]), AvailAddr: UserBase + uint64(t[1]), UsedAddr: UserBase + uint64(t[2]),
	}
	if g.options.Features&vnet.FeaturePacked != 0 {
		c.Base = virtq.PackedStart | virtq.PackedStart<<16
	}
	if g.options.Polled {
		c.Kick = -1
	}
	return c
}

// Features are those the driver accepts.
func (g *Guest) Features() uint64 { return g.options.Features }

// QueueSize is the number of descriptors of each queue.
func (g *Guest) QueueSize() int { return g.options.QueueSize }

// CallFD is the eventfd that the device signals for a queue.
func (g *Guest) CallFD(q int) int { return g.Pairs[q/2].call[q%2] }

// KickFD is the eventfd that the guest signals for a queue.
func (g *Guest) KickFD(q int) int { return g.Pairs[q/2].kick[q%2] }

// ErrFD is the eventfd that the device signals when a queue has failed.
func (g *Guest) ErrFD(q int) int { return g.Pairs[q/2].broken[q%2] }

// Close frees everything; once is as good as twice.
func (g *Guest) Close() {
	for _, p := range g.Pairs {
		for _, fd := range p.eventfds() {
			closeFD(fd)
		}
	}
	closeFD(&g.FD)
	if g.mapping != nil {
		_ = g.mapping.Free()
		g.mapping, g.Memory = nil, nil
	}
}

func closeFD(fd *int) {
	if *fd >= 0 {
		_ = unix.Close(*fd)
		*fd = -1
	}
}
