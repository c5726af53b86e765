package drivertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"golang.org/x/sys/unix"
)

// Backend is a vhost-user-blk device of its own, small and slow, that answers in random order, and wrongly where it is told to: what finds faults in devices is tried
// on it. It serves one front-end, a goroutine for each ring.
type Backend struct {
	vhostuser.Device // nil: what is not implemented is not called

	o       BackendOptions
	server  *vhostuser.Backend
	memory  vhostuser.Memory
	area    *vhostuser.Inflight
	mu      sync.Mutex // guards rings
	rings   []*ring
	killed  atomic.Bool
	events  atomic.Uint64 // counts what Faults count
	feature uint64
	failed  atomic.Pointer[error]
}

// BackendOptions configure a Backend. Path and Content must be set.
type BackendOptions struct {
	Path    string
	Content *Content
	// Queues is how many it offers. Zero: 1.
	Queues int
	// Hold is how many requests it keeps under way before it answers one. Zero: 4.
	Hold   int
	Faults Faults
}

// Content is what lies on a disk, and what of it would survive the crash of whoever keeps it. Backends share it one after the other.
type Content struct {
	mu      sync.Mutex
	now     []byte
	durable []byte
	random  *rand.Rand
	failing bool
}

// NewContent makes an empty disk.
func NewContent(size int) *Content {
	return &Content{now: make([]byte, size), durable: make([]byte, size), random: rand.New(rand.NewPCG(1, 2))}
}

// Crash takes back some of what was not flushed, sector by sector, and has the next flush fail if told.
func (c *Content) Crash(told bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := 0; at < len(c.now); at += 512 {
		if c.random.IntN(2) == 0 {
			copy(c.now[at:at+512], c.durable[at:])
		}
	}
	copy(c.durable, c.now)
	c.failing = told
}

// ReadAt implements io.ReaderAt.
func (c *Content) ReadAt(p []byte, at int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at >= int64(len(c.now)) {
		return 0, io.EOF
	}
	return copy(p, c.now[at:]), nil
}

// Grow makes the disk larger.
func (c *Content) Grow(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.durable = append(c.now, make([]byte, n)...), append(c.durable, make([]byte, n)...)
}

// Serve begins to serve it.
func Serve(o BackendOptions) (*Backend, error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.Hold == 0 {
		o.Hold = 4
	}
	b := &Backend{o: o, rings: make([]*ring, o.Queues)}
	b.memory = vhostuser.Memory{Use: func(*guestmem.Map) {}, Grace: func() {}}
	var err error
	b.server, err = vhostuser.Listen(vhostuser.Options{Path: o.Path, Log: slog.New(slog.DiscardHandler)}, b)
	return b, err
}

// Kill ends it where it stands: what is under way is not answered. Before the connection ends nothing of it moves any more, as if it were a process.
func (b *Backend) Kill() error {
	b.killed.Store(true)
	b.mu.Lock()
	for _, r := range b.rings {
		if r != nil {
			r.halt()
		}
	}
	b.mu.Unlock()
	return b.server.Close()
}

// Err is what went wrong in the device, if anything.
func (b *Backend) Err() error {
	if e := b.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// ConfigChanged tells the front-end so.
func (b *Backend) ConfigChanged() { b.server.ConfigChanged() }

// Features: SEG_MAX, BLK_SIZE, FLUSH, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES, INDIRECT_DESC, EVENT_IDX, VERSION_1, and RING_PACKED.
const backendFeatures = 1<<2 | 1<<6 | 1<<9 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | indirect | eventIdx | 1<<32 | packed

const (
	indirect = 1 << 28
	eventIdx = 1 << 29
	packed   = 1 << 34
)

// Offer implements vhostuser.Device.
func (b *Backend) Offer() vhostuser.Offer {
	return vhostuser.Offer{Features: backendFeatures, Vrings: b.o.Queues,
		ProtocolFeatures: vhostuser.DefaultProtocolFeatures | vhostuser.ProtocolConfig}
}

// SetFeatures implements vhostuser.Device.
func (b *Backend) SetFeatures(f uint64) error { b.feature = f; return nil }

// SetMemory implements vhostuser.Device.
func (b *Backend) SetMemory(r []vhostuser.Region) error { return b.memory.Set(r) }

// SetInflight implements vhostuser.InflightTracker.
func (b *Backend) SetInflight(a *vhostuser.Inflight) error { b.area = a; return nil }

// ReadConfig implements vhostuser.ConfigSpace.
func (b *Backend) ReadConfig(offset uint32, p []byte) error {
	b.o.Content.mu.Lock()
	defer b.o.Content.mu.Unlock()
	c, le := make([]byte, 256), binary.LittleEndian
	le.PutUint64(c, uint64(len(b.o.Content.now)/512))
	le.PutUint32(c[12:], 126)
	le.PutUint32(c[20:], 512)
	c[32] = 1
	le.PutUint16(c[34:], uint16(b.o.Queues))
	for _, at := range []int{36, 48} { // discard, write zeroes
		le.PutUint32(c[at:], 1<<16)
		le.PutUint32(c[at+4:], 1)
	}
	copy(p, c[min(int(offset), len(c)):])
	return nil
}

// WriteConfig implements vhostuser.ConfigSpace.
func (b *Backend) WriteConfig(uint32, []byte, bool) error { return errors.New("nothing can be set") }

// StartVring implements vhostuser.Device.
func (b *Backend) StartVring(c vhostuser.VringConfig) error {
	r, err := newRing(b, c)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rings[c.Index] = r
	if b.killed.Load() {
		return nil
	}
	r.ended.Go(func() {
		if err := r.run(); err != nil {
			b.failed.Store(&err)
		}
	})
	return nil
}

// UpdateVring implements vhostuser.Device.
func (b *Backend) UpdateVring(c vhostuser.VringConfig) error {
	base, err := b.StopVring(c.Index)
	if err != nil {
		return err
	}
	c.Base = base
	return b.StartVring(c)
}

// StopVring implements vhostuser.Device.
func (b *Backend) StopVring(i int) (uint32, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.rings[i]
	if r == nil {
		return 0, fmt.Errorf("ring %d does not run", i)
	}
	b.rings[i] = nil
	r.halt()
	_ = unix.Close(r.stop)
	if b.feature&packed != 0 {
		return uint32(r.device.Base()) | uint32(r.device.UsedBase())<<16, nil
	}
	return uint32(r.device.Base()), nil
}

// Reset implements vhostuser.Device.
func (b *Backend) Reset() error { return nil }

// Disconnected implements vhostuser.Device.
func (b *Backend) Disconnected() { b.memory.Clear() }
