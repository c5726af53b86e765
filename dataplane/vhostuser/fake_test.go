package vhostuser

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// fakeDevice is a Device that believes nothing: it keeps its own account of rings and memory and complains
// when the session tells something that the interface promises cannot be.
type fakeDevice struct {
	complain func(format string, args ...any)
	offer    Offer

	mu       sync.Mutex
	events   []string
	memory   []Region
	rings    map[int]VringConfig
	features uint64
	base     uint32 // answered by StopVring, if not zero, else the ring's own
	fail     map[string]error
	hold     chan struct{} // StopVring waits for it, if not nil
	mtu      uint16
	rarp     [6]byte
	log      *guestmem.Log
	inflight *Inflight
	config   [60]byte
	gone     int
}

func newFake(tb testing.TB) *fakeDevice {
	return &fakeDevice{
		complain: tb.Errorf,
		offer: Offer{Features: 1<<32 | 1<<29 | 1<<28 | 1<<15, Vrings: 2, QueueNum: 1,
			ProtocolFeatures: DefaultProtocolFeatures | ProtocolConfig | ProtocolNetMTU},
		rings: map[int]VringConfig{},
	}
}

func (d *fakeDevice) note(what string, args ...any) error {
	if len(d.events) < 10000 {
		d.events = append(d.events, fmt.Sprintf(what, args...))
	}
	for name, err := range d.fail {
		if len(what) >= len(name) && what[:len(name)] == name {
			return err
		}
	}
	return nil
}

func (d *fakeDevice) Offer() Offer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.offer
}

func (d *fakeDevice) SetFeatures(features uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if features&^(d.offer.Features|d.offer.Accepted|FeatureLogAll) != 0 {
		d.complain("features %#x beyond the offer", features)
	}
	if len(d.rings) > 0 && features^d.features != FeatureLogAll {
		d.complain("features change from %#x to %#x while rings run", d.features, features)
	}
	if err := d.note("features %#x", features); err != nil {
		return err
	}
	d.features = features
	return nil
}

func (d *fakeDevice) checkRegion(r Region) {
	if r.Size == 0 || r.GuestAddr+r.Size < r.GuestAddr || r.UserAddr+r.Size < r.UserAddr {
		d.complain("impossible region %v", r)
	}
	size, err := shm.CheckBacking(r.FD)
	if err != nil || uint64(size) < r.MmapOffset+r.Size {
		d.complain("region %v: file of %d bytes, %v", r, size, err)
	}
	for _, o := range d.memory {
		if r.GuestAddr < o.GuestAddr+o.Size && o.GuestAddr < r.GuestAddr+r.Size {
			d.complain("%v overlaps %v", r, o)
		}
	}
}

func (d *fakeDevice) SetMemory(regions []Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.rings) > 0 {
		d.complain("memory replaced under running rings")
	}
	if err := d.note("memory %d", len(regions)); err != nil {
		return err
	}
	d.memory = nil
	for _, r := range regions {
		d.checkRegion(r)
		d.memory = append(d.memory, r)
	}
	return nil
}

func (d *fakeDevice) AddMemory(r Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.checkRegion(r)
	if len(d.memory) >= MaxMemSlots {
		d.complain("region %d added", len(d.memory))
	}
	if err := d.note("add %#x", r.GuestAddr); err != nil {
		return err
	}
	d.memory = append(d.memory, r)
	return nil
}

func (d *fakeDevice) RemoveMemory(r Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.note("remove %#x", r.GuestAddr); err != nil {
		return err
	}
	for i, o := range d.memory {
		if o.same(r) {
			d.memory = append(d.memory[:i:i], d.memory[i+1:]...)
			for _, c := range d.rings {
				d.checkRing(c)
			}
			return nil
		}
	}
	d.complain("removed region %v was never there", r)
	return nil
}

func (d *fakeDevice) checkRing(c VringConfig) {
	if c.Size == 0 || c.Size > maxRingSize || d.features&featurePacked == 0 && (c.Size&(c.Size-1) != 0 || c.Base > 0xffff) {
		d.complain("ring %+v has an impossible size or base", c)
	}
	addrs := [3]uint64{c.DescAddr, c.AvailAddr, c.UsedAddr}
	for i, part := range layout(uint64(c.Size), d.features) {
		held := false
		for _, r := range d.memory {
			held = held || r.holdsUser(addrs[i], part.bytes)
		}
		if !held || addrs[i]%part.align != 0 {
			d.complain("part %d of ring %+v is not in memory, or crooked", i, c)
		}
	}
	for _, fd := range [...]int{c.Kick, c.Call, c.Err} {
		if fd != -1 && CheckEventfd(fd) != nil {
			d.complain("ring %d: descriptor %d is no eventfd", c.Index, fd)
		}
	}
}

func (d *fakeDevice) StartVring(c VringConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.rings[c.Index]; ok || c.Index >= d.offer.Vrings {
		d.complain("ring %d started twice, or not ours", c.Index)
	}
	d.checkRing(c)
	if err := d.note("start %d base %d", c.Index, c.Base); err != nil {
		return err
	}
	d.rings[c.Index] = c
	return nil
}

func (d *fakeDevice) UpdateVring(c VringConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, ok := d.rings[c.Index]
	if !ok {
		d.complain("update of ring %d, which does not run", c.Index)
	}
	for _, fd := range [...]int{old.Kick, old.Call, old.Err} {
		if fd != -1 && CheckEventfd(fd) != nil {
			d.complain("ring %d: descriptor %d was closed before its update", c.Index, fd)
		}
	}
	d.checkRing(c)
	if err := d.note("update %d", c.Index); err != nil {
		return err
	}
	d.rings[c.Index] = c
	return nil
}

func (d *fakeDevice) StopVring(i int) (uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.rings[i]
	if !ok {
		d.complain("stop of ring %d, which does not run", i)
	}
	d.checkRing(c)
	delete(d.rings, i)
	if hold := d.hold; hold != nil {
		d.mu.Unlock()
		<-hold
		d.mu.Lock()
	}
	if d.base != 0 {
		c.Base = d.base
	}
	return c.Base, d.note("stop %d", i)
}

func (d *fakeDevice) Reset() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.rings) > 0 {
		d.complain("reset while rings run")
	}
	if err := d.note("reset"); err != nil {
		return err
	}
	d.features = 0
	return nil
}

func (d *fakeDevice) Disconnected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.rings) > 0 {
		d.complain("disconnected while rings run")
	}
	if d.log != nil || d.inflight != nil {
		d.complain("disconnected with a log or an in-flight area")
	}
	_ = d.note("disconnected")
	d.gone++
	d.memory, d.features = nil, 0
}

func (d *fakeDevice) ReadConfig(offset uint32, p []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if int(offset)+len(p) > len(d.config) {
		return fmt.Errorf("configuration has %d bytes", len(d.config))
	}
	copy(p, d.config[offset:])
	return nil
}

func (d *fakeDevice) WriteConfig(offset uint32, p []byte, migration bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if int(offset)+len(p) > len(d.config) || !migration {
		return fmt.Errorf("read-only, or beyond %d bytes", len(d.config))
	}
	copy(d.config[offset:], p)
	return nil
}

func (d *fakeDevice) SetLog(l *guestmem.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.note("log %v", l != nil); err != nil {
		return err
	}
	d.log.Mark(0, 1) // the one before is still there
	d.log = l
	d.log.Mark(0, 1)
	return nil
}

func (d *fakeDevice) SetInflight(a *Inflight) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.rings) > 0 {
		d.complain("in-flight area replaced under running rings")
	}
	if err := d.note("inflight %v", a != nil); err != nil {
		return err
	}
	for _, a := range []*Inflight{d.inflight, a} {
		for i := 0; a != nil && i < a.Queues; i++ {
			if q, entries, err := a.Split(i, a.Size); err == nil {
				q.UsedIdx++
				entries[a.Size-1].Inflight++
			}
			if q, entries, err := a.Packed(i, a.Size); err == nil {
				q.Used++
				entries[a.Size-1].Inflight++
			}
		}
	}
	d.inflight = a
	return nil
}

func (d *fakeDevice) SendRARP(mac [6]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if mac[0]&1 != 0 {
		d.complain("group address %x", mac)
	}
	d.rarp = mac
	return d.note("rarp %x", mac)
}

func (d *fakeDevice) SetMTU(mtu uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if mtu > 9000 {
		return fmt.Errorf("MTU %d is above 9000", mtu)
	}
	d.mtu = mtu
	return nil
}

// running copies what the device knows of ring i.
func (d *fakeDevice) running(i int) (VringConfig, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.rings[i]
	return c, ok
}

// set changes the device's behaviour between calls.
func (d *fakeDevice) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *fakeDevice) disconnects() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

func (d *fakeDevice) seen() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.events...)
}

// guest is memory and eventfds for a front-end under test. One file of 1 MiB: rings lie in its first page frames.
type guest struct {
	fd                   int
	kick, call, call2, e int
}

const (
	guestSize = 1 << 20
	guestPhys = 1 << 30
	guestUser = 0x7f00_0000_0000
)

func newGuest(tb testing.TB) *guest {
	tb.Helper()
	fd, err := shm.NewMemFD("guest", guestSize)
	if err != nil {
		tb.Fatal(err)
	}
	g := &guest{fd: fd, kick: eventfd(tb), call: eventfd(tb), call2: eventfd(tb), e: eventfd(tb)}
	tb.Cleanup(func() { unix.Close(fd) })
	return g
}

func eventfd(tb testing.TB) int {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

func (g *guest) region() Region {
	return Region{GuestAddr: guestPhys, Size: guestSize, UserAddr: guestUser, FD: g.fd}
}

func (g *guest) ring(i int) VringConfig {
	at := uint64(guestUser + i*0x10000)
	return VringConfig{Index: i, Size: 256, DescAddr: at, AvailAddr: at + 0x2000, UsedAddr: at + 0x4000,
		Kick: g.kick, Call: g.call, Err: g.e}
}

// listenFake serves a fake device until the test ends.
func listenFake(tb testing.TB, d *fakeDevice, o Options) *Backend {
	tb.Helper()
	return listenDevice(tb, d, o)
}

func listenDevice(tb testing.TB, d Device, o Options) *Backend {
	tb.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(tb.TempDir(), "s")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b, err := Listen(o, d)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := b.Close(); err != nil {
			tb.Error(err)
		}
	})
	return b
}

func dial(tb testing.TB, b *Backend) *Frontend {
	tb.Helper()
	f, err := Dial(b.path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

// patience is how long what comes sooner or later may take: a guest's firmware under software emulation, on a machine that does more than that.
const patience = time.Minute

// eventually waits for a condition.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// steadyFDs counts the descriptors while one connection is being served, by when every earlier one is closed on our side.
func steadyFDs(tb testing.TB, b *Backend) int {
	tb.Helper()
	f, err := Dial(b.path)
	must(tb, err)
	defer f.Close()
	must(tb, f.Barrier())
	return openFDs(tb)
}

func openFDs(tb testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}
