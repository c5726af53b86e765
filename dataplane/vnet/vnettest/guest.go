// Package vnettest is the other side of a virtio-net device: a guest made of the driver's side of two virtqueues in memory of its own. Tests,
// load generators and benchmarks of everything behind vnet use it in place of a VM.
//
//	                 one memfd, mapped here and by the device
//	┌──────────────┬──────────────┬───────────────────┬───────────────────┐
//	│ rx tables    │ tx tables    │ rx buffers        │ tx buffers        │
//	└──────────────┴──────────────┴───────────────────┴───────────────────┘
//
// A Guest is used by one goroutine at a time.
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
}

// Guest is a virtio-net driver.
type Guest struct {
	// Memory is the guest's whole memory, and FD the memfd behind it.
	Memory []byte
	FD     int
	// Rx and Tx are the driver's sides of receiveq and transmitq.
	Rx, Tx *virtq.Driver
	// Sent and Received count frames the device has taken from Tx and put into Rx.
	Sent, Received uint64

	options  Options
	mapping  *shm.Mapping
	tables   [2][3]int // offsets of the tables: queue, then descriptor, avail, used
	buffers  [2]int    // offset of the first buffer
	kick     [2]int    // eventfds
	call     [2]int
	freeTx   []uint16 // tx buffers that no chain uses
	rxOf     []uint16 // which buffer a chain of the receiveq has, by head
	txOf     []uint16
	merging  []byte // a frame that arrives in several buffers
	mergeFor int    // buffers of it still to come
	scratch  [1]virtq.Buffer
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
	g := &Guest{options: o, FD: -1, kick: [2]int{-1, -1}, call: [2]int{-1, -1}}
	size := g.layout()
	if err := g.allocate(size); err != nil {
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
	for q := range g.tables {
		g.tables[q] = [3]int{place(virtq.DescBytes(n), 4096), place(virtq.AvailBytes(n), 64), place(virtq.UsedBytes(n), 64)}
	}
	for q := range g.buffers {
		g.buffers[q] = place(n*g.options.BufferSize, 4096)
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
	for q := range g.kick {
		if g.kick[q], err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return fmt.Errorf("eventfd: %w", err)
		}
		if g.call[q], err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return fmt.Errorf("eventfd: %w", err)
		}
	}
	return nil
}

// Restart is the driver's reset: both queues begin anew, all receive buffers are offered.
func (g *Guest) Restart() error {
	n := g.options.QueueSize
	eventIdx := g.options.Features&vnet.FeatureEventIdx != 0
	var err error
	if g.Rx, err = virtq.NewDriver(virtq.DriverOptions{Layout: g.Layout(0), Size: n, EventIdx: eventIdx}); err != nil {
		return err
	}
	if g.Tx, err = virtq.NewDriver(virtq.DriverOptions{Layout: g.Layout(1), Size: n, EventIdx: eventIdx}); err != nil {
		return err
	}
	g.rxOf, g.txOf = make([]uint16, n), make([]uint16, n)
	g.freeTx = g.freeTx[:0]
	for i := range n {
		g.freeTx = append(g.freeTx, uint16(n-1-i))
		g.offer(uint16(i))
	}
	g.Rx.Publish()
	g.merging, g.mergeFor = nil, 0
	return nil
}

// Layout is where a queue's tables lie.
func (g *Guest) Layout(q int) virtq.Layout {
	t := g.tables[q]
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
	for q := range g.tables {
		if err := d.StartVring(g.Vring(q)); err != nil {
			return err
		}
	}
	return nil
}

// Detach takes the rings back, as a front-end that goes away.
func (g *Guest) Detach(d vhostuser.Device) {
	for q := range g.tables {
		_, _ = d.StopVring(q)
	}
	d.Disconnected()
}

// Region is the guest's memory as a front-end tells of it.
func (g *Guest) Region() vhostuser.Region {
	return vhostuser.Region{GuestAddr: GuestBase, UserAddr: UserBase, Size: uint64(len(g.Memory)), FD: g.FD}
}

// Vring is one of the queues as a front-end hands it over.
func (g *Guest) Vring(q int) vhostuser.VringConfig {
	t := g.tables[q]
	return vhostuser.VringConfig{
		Index: q, Size: uint32(g.options.QueueSize), Kick: g.kick[q], Call: g.call[q], Err: -1,
		DescAddr: UserBase + uint64(t[0]), AvailAddr: UserBase + uint64(t[1]), UsedAddr: UserBase + uint64(t[2]),
	}
}

// Features are those the driver accepts.
func (g *Guest) Features() uint64 { return g.options.Features }

// QueueSize is the number of descriptors of each queue.
func (g *Guest) QueueSize() int { return g.options.QueueSize }

// Close frees everything; once is as good as twice.
func (g *Guest) Close() {
	for _, fd := range []*int{&g.kick[0], &g.kick[1], &g.call[0], &g.call[1], &g.FD} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
	if g.mapping != nil {
		_ = g.mapping.Free()
		g.mapping, g.Memory = nil, nil
	}
}

// errFull is returned by Send if no buffer is free.
var errFull = errors.New("transmit queue is full")
