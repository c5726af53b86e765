package blk

import (
	"encoding/binary"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// store is what is behind the gate of a bed: a disk in memory, which answers when it is told to.
type ram struct {
	disk    []byte
	waiting []*Request
	hold    bool // requests are answered by step or answer alone, and not at the end of a round
	deaf    bool // withdrawing has no effect
	fail    Outcome
	order   func(n int) int // which of n that wait is answered next
	log     []Request       // what came, in order
	called  int             // times that requests were called back

	marks     marks  // told the device
	inherited []bool // from a process before
}

func (g *ram) Submit(r *Request) {
	g.waiting = append(g.waiting, r)
	if g.log != nil {
		g.log = append(g.log, *r)
	}
}

func (g *ram) Flush() {
	for !g.hold && len(g.waiting) > 0 {
		g.answer(OK)
	}
}

func (g *ram) Withdraw() {
	g.called++
	for !g.deaf && len(g.waiting) > 0 {
		g.end(0, Withdrawn)
	}
}

// answer does one request, or ends it otherwise.
func (g *ram) answer(o Outcome) {
	i := 0
	if g.order != nil {
		i = g.order(len(g.waiting))
	}
	if o == OK {
		o = g.fail
	}
	if o == OK {
		if g.perform(g.waiting[i]); g.waiting[i].Op == OpWrite {
			g.marks.written = max(g.marks.flushed, 1) // of the epoch that no flush covers
		}
	}
	g.end(i, o)
}

func (g *ram) Busy() int { return len(g.waiting) }

func (g *ram) Marks() marks { return g.marks }

func (g *ram) Inherit(lost bool) {
	g.inherited = append(g.inherited, lost)
	g.marks.written, g.marks.flushed = 1, 1
}

func (g *ram) end(i int, o Outcome) {
	r := g.waiting[i]
	copy(g.waiting[i:], g.waiting[i+1:])
	g.waiting = g.waiting[:len(g.waiting)-1]
	r.Handler.Done(r, o)
}

func (g *ram) perform(r *Request) {
	at := g.disk[r.Offset : r.Offset+r.Length]
	switch r.Op {
	case OpRead:
		for _, b := range r.Buffers {
			at = at[copy(b, at):]
		}
	case OpWrite:
		for _, b := range r.Buffers {
			at = at[copy(at, b):]
		}
	case OpDiscard, OpWriteZeroes:
		clear(at)
	}
}

// bed is a device with one queue under test, driven by hand: the test is worker, guest and front-end. Chains are made in the guest's second region.
//
//	guest address  0x10000             0x40000                        0x140000
//	               ├ tables ──────┤ nothing ├ buffers, one MiB ───────┤
type bed struct {
	testing.TB
	worker   *dataplane.Worker
	gate     *ram
	dev      *Device
	fd       int
	memory   []byte
	driver   *virtq.Driver
	features uint64
	call     int
	broken   int
	at       int // of the next buffer
	failed   []error
	size     int // of the ring
	area     *vhostuser.Inflight
}

const (
	bedQueue   = 64
	bedTables  = 0x10000
	bedBuffers = 0x40000
	bedRoom    = 1 << 20
	bedUser    = 0x7f00_0000_0000
	bedSize    = 256 << 10 // of the disk

	modern = FeatureVersion1 | FeatureIndirect | FeatureFlush | FeatureConfigWCE | FeatureDiscard | FeatureWriteZeroes
)

var bedInfo = Info{Size: bedSize, BlockSize: 512, Flush: true, FUA: true, Discard: true, WriteZeroes: true, Lifetime: &Lifetime{1, 2, 3}}

func newBed(tb testing.TB, i Info, features uint64) *bed {
	tb.Helper()
	b := bare(tb, features, bedQueue)
	b.gate.disk = make([]byte, i.Size)
	b.begin(i)
	b.drive()
	b.connect()
	b.start(nil)
	tb.Cleanup(b.hangUp)
	return b
}

// bare is guest and front-end alone.
func bare(tb testing.TB, features uint64, size int) *bed {
	tb.Helper()
	b := &bed{TB: tb, worker: dataplanetest.NewWorker(tb, 64), features: features, size: size, gate: &ram{}}
	var err error
	if b.fd, err = shm.NewMemFD("shunt-test-guest", bedTables+bedRoom); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Close(b.fd) })
	mapping, err := shm.Map(shm.MapOptions{FD: b.fd, Length: bedTables + bedRoom})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { mapping.Free() })
	b.memory = mapping.Bytes()
	b.call, b.broken = eventfd(tb), eventfd(tb)
	return b
}

// hangUp ends the connection.
func (b *bed) hangUp() {
	_, _ = b.dev.StopVring(0)
	b.must(b.dev.SetLog(nil))
	b.must(b.dev.SetInflight(nil))
	b.dev.Disconnected()
}

func eventfd(tb testing.TB) int {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

// begin makes a device, as a new process would.
func (b *bed) begin(i Info) {
	b.Helper()
	b.dev = newDevice(i, "a-disk", &Queue{worker: b.worker, gate: b.gate})
	b.dev.failed = func(err error) { b.failed = append(b.failed, err) }
	b.dev.drain = 0
}

// newDevice makes a device of queues with gates of their own.
func newDevice(i Info, serial string, queues ...*Queue) *Device {
	d := &Device{queues: queues}
	d.init(i, serial, nil)
	return d
}

// drive makes a new driver, with an empty ring.
func (b *bed) drive() {
	b.Helper()
	var err error
	b.driver, err = virtq.NewDriver(virtq.DriverOptions{
		Layout: b.layout(), Size: b.size, Packed: b.features&FeaturePacked != 0, EventIdx: b.features&FeatureEventIdx != 0,
	})
	if err != nil {
		b.Fatal(err)
	}
}

// connect is a front-end up to where rings are started.
func (b *bed) connect() {
	b.Helper()
	if extra := b.features &^ (b.dev.Offer().Features | vhostuser.FeatureLogAll); extra != 0 {
		b.Fatalf("features %#x are not offered", extra)
	}
	b.must(b.dev.SetFeatures(b.features))
	b.must(b.dev.SetMemory(b.regions()))
	b.must(b.dev.SetInflight(b.area))
}

func (b *bed) regions() []vhostuser.Region {
	return []vhostuser.Region{
		{GuestAddr: bedTables, UserAddr: bedUser, Size: bedTables, FD: b.fd},
		{GuestAddr: bedBuffers, UserAddr: bedUser + bedBuffers, Size: bedRoom, MmapOffset: bedTables, FD: b.fd},
	}
}

// start starts the ring; base nil: from its beginning.
func (b *bed) start(base *uint32) {
	b.Helper()
	b.must(b.dev.StartVring(b.vring(base)))
}

func (b *bed) vring(base *uint32) vhostuser.VringConfig {
	c := vhostuser.VringConfig{
		Size: uint32(b.size), DescAddr: bedUser, AvailAddr: bedUser + 0x2000, UsedAddr: bedUser + 0x4000, Kick: -1, Call: b.call, Err: b.broken,
	}
	if b.features&FeaturePacked != 0 {
		c.Base = virtq.PackedStart | virtq.PackedStart<<16
	}
	if base != nil {
		c.Base = *base
	}
	return c
}

func (b *bed) layout() virtq.Layout {
	return virtq.Layout{Desc: b.memory, Avail: b.memory[0x2000:], Used: b.memory[0x4000:]}
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bed) queue() *Queue { return b.dev.queues[0] }

// round is one of the worker's.
func (b *bed) round() (n int) {
	b.worker.Do(func() {
		n = b.queue().Poll()
		b.queue().Flush()
	})
	return n
}

// buffers reserves pieces of the guest's memory, with gaps between them.
func (b *bed) buffers(lengths ...int) (all []virtq.Buffer) {
	for _, n := range lengths {
		if b.at+n > bedRoom {
			b.at = 0
		}
		all = append(all, virtq.Buffer{Addr: uint64(bedBuffers + b.at), Len: uint32(n)})
		b.at += n + 3
	}
	return all
}

// view is what a buffer holds.
func (b *bed) view(x virtq.Buffer) []byte {
	if x.Addr < bedBuffers {
		return b.memory[x.Addr-bedTables:][:x.Len]
	}
	return b.memory[bedTables+x.Addr-bedBuffers:][:x.Len]
}

// put fills buffers, as far as they go.
func (b *bed) put(data []byte, into []virtq.Buffer) {
	for _, x := range into {
		data = data[copy(b.view(x), data):]
	}
}

func (b *bed) get(from []virtq.Buffer) (data []byte) {
	for _, x := range from {
		data = append(data, b.view(x)...)
	}
	return data
}

// add makes a chain available.
func (b *bed) add(readable, writable []virtq.Buffer) (head uint16) {
	b.Helper()
	head, ok := b.driver.Add(readable, writable)
	if !ok {
		b.Fatal("no descriptors free")
	}
	b.driver.Publish()
	return head
}

// do sends one request in a chain of simple shape and returns its status and what was read. extra is the room for what is read.
func (b *bed) do(header, data []byte, extra int) (status byte, read []byte) {
	b.Helper()
	readable := b.buffers(len(header))
	if len(data) > 0 {
		readable = append(readable, b.buffers(len(data))...)
	}
	var writable []virtq.Buffer
	if extra > 0 {
		writable = b.buffers(extra)
	}
	return b.chain(append(header[:len(header):len(header)], data...), readable, append(writable, b.buffers(1)...))
}

// chain sends a request in these buffers, and waits until it is answered.
func (b *bed) chain(request []byte, readable, writable []virtq.Buffer) (status byte, read []byte) {
	b.Helper()
	b.put(request, readable)
	last := writable[len(writable)-1]
	b.view(last)[last.Len-1] = 0xee
	head := b.add(readable, writable)
	room := uint32(0)
	for _, x := range writable {
		room += x.Len
	}
	for range 1000 {
		b.round()
		got, n, ok, err := b.driver.Used()
		b.must(err)
		if !ok {
			continue
		}
		all := b.get(writable)
		if want := usedLength(request, all[len(all)-1], room); got != head || n != want {
			b.Fatalf("chain %d came back with %d bytes, want %d with %d", got, n, head, want)
		}
		return all[len(all)-1], all[:len(all)-1]
	}
	b.Fatal("no answer")
	return 0, nil
}

// usedLength is what a device has to say of how much it wrote: data from the first byte on, and the status where that lies right behind (virtio 1.2, 2.7.8.2).
func usedLength(request []byte, status byte, room uint32) (n uint32) {
	if status == 0 {
		switch binary.LittleEndian.Uint32(request) {
		case 0:
			n = room - 1
		case 8:
			n = min(20, room-1)
		case 10:
			n = 6
		}
	}
	if n == room-1 {
		return room
	}
	return n
}

// header is a request's.
func header(kind uint32, sector uint64) []byte {
	h := binary.LittleEndian.AppendUint32(nil, kind)
	h = binary.LittleEndian.AppendUint32(h, 0)
	return binary.LittleEndian.AppendUint64(h, sector)
}

// zone is a range of a discard or write-zeroes.
func zone(sector uint64, n, flags uint32) []byte {
	z := binary.LittleEndian.AppendUint64(nil, sector)
	z = binary.LittleEndian.AppendUint32(z, n)
	return binary.LittleEndian.AppendUint32(z, flags)
}

func counting(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*31 + i>>8)
	}
	return data
}

func signalled(fd int) bool {
	var b [8]byte
	n, _ := unix.Read(fd, b[:])
	return n == 8
}

// rings are the kinds of rings there are.
var rings = map[string]uint64{
	"split": 0, "split, event index": FeatureEventIdx, "packed": FeaturePacked, "packed, event index": FeaturePacked | FeatureEventIdx,
}

func signal(tb testing.TB, fd int) {
	tb.Helper()
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		tb.Fatal(err)
	}
}

func truncate(fd int) error { return unix.Ftruncate(fd, 0) }
