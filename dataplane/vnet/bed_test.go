package vnet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// bed is a port under test with a guest, driven by hand: the test is the worker. The guest's own buffers are left alone; chains are made
// in the last half of its memory.
type bed struct {
	testing.TB
	worker   *dataplane.Worker
	pool     *frame.Pool
	frames   int
	counters *dataplane.Counters
	dev      *vnet.Device
	port     *vnet.Pair
	link     *dataplane.Link
	guest    *vnettest.Guest
	tx, rx   *virtq.Driver
	vector   [dataplane.Quantum]*frame.Frame
	failed   []error
	features uint64
}

const (
	bedQueue  = 64
	bedFrames = 128
	modern    = vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | vnet.FeatureCsum | vnet.FeatureIndirect
)

func newWorker(tb testing.TB, frames int) *dataplane.Worker {
	tb.Helper()
	memory, err := frame.NewMemory(make([]byte, frames*frame.ChunkSize))
	if err != nil {
		tb.Fatal(err)
	}
	pool, err := memory.NewPool(0, frames)
	if err != nil {
		tb.Fatal(err)
	}
	w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { w.Close() })
	return w
}

func newBed(tb testing.TB, features uint64) *bed {
	tb.Helper()
	b := &bed{TB: tb, worker: newWorker(tb, bedFrames), frames: bedFrames}
	b.pool = b.worker.Pool()
	var err error
	b.link = &dataplane.Link{Counters: &dataplane.Counters{}}
	b.counters = b.link.Counters
	b.dev, err = vnet.New(vnet.Options{
		Pairs: []vnet.PairOptions{{Worker: b.worker, Link: b.link}}, Failed: func(err error) { b.failed = append(b.failed, err) },
	})
	if err != nil {
		tb.Fatal(err)
	}
	b.port = b.link.Port.(*vnet.Pair)
	if b.guest, err = vnettest.New(vnettest.Options{QueueSize: bedQueue, Features: vnet.FeatureVersion1}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(b.close)
	b.attach(features)
	return b
}

// close ends the connection and frees the guest; once is as good as twice.
func (b *bed) close() {
	b.guest.Detach(b.dev)
	b.guest.Close()
	_ = b.worker.Close()
}

// attach starts both rings anew, empty.
func (b *bed) attach(features uint64) {
	b.Helper()
	b.features = features
	driver := func(q int) *virtq.Driver {
		d, err := virtq.NewDriver(virtq.DriverOptions{
			Layout: b.guest.Layout(q), Size: bedQueue, EventIdx: features&vnet.FeatureEventIdx != 0,
			Packed: features&vnet.FeaturePacked != 0, InOrder: features&vnet.FeatureInOrder != 0,
		})
		if err != nil {
			b.Fatal(err)
		}
		return d
	}
	b.rx, b.tx = driver(0), driver(1)
	if features != 0 { // a front-end may forget to say that there are none
		if err := b.dev.SetFeatures(features); err != nil {
			b.Fatal(err)
		}
	}
	if err := b.dev.SetMemory(regions(b.guest)); err != nil {
		b.Fatal(err)
	}
	for q := range 2 {
		if err := b.dev.StartVring(b.vring(q)); err != nil {
			b.Fatal(err)
		}
	}
}

// anew begins anew with another device, by the options but for the pair.
func (b *bed) anew(o vnet.Options) {
	b.Helper()
	features := b.features
	b.guest.Detach(b.dev)
	o.Pairs = []vnet.PairOptions{{Worker: b.worker, Link: b.link}}
	o.Failed = func(err error) { b.failed = append(b.failed, err) }
	var err error
	if b.dev, err = vnet.New(o); err != nil {
		b.Fatal(err)
	}
	b.port = b.link.Port.(*vnet.Pair)
	b.attach(features)
}

// vring is a ring from its beginning.
func (b *bed) vring(q int) vhostuser.VringConfig {
	c := b.guest.Vring(q)
	if b.features&vnet.FeaturePacked != 0 {
		c.Base = virtq.PackedStart | virtq.PackedStart<<16
	}
	return c
}

// scratch is the part of the guest's memory that chains are made in, and its guest address.
func (b *bed) scratch() ([]byte, uint64) {
	half := len(b.guest.Memory) / 2
	return b.guest.Memory[half:], vnettest.GuestBase + uint64(half)
}

// pieces lays the given bytes out as buffers of these lengths, with gaps between them; the last one takes the rest.
func (b *bed) pieces(data []byte, lengths ...int) (buffers []virtq.Buffer) {
	memory, base := b.scratch()
	at := 0
	place := func(part []byte) {
		copy(memory[at:], part)
		buffers = append(buffers, virtq.Buffer{Addr: base + uint64(at), Len: uint32(len(part))})
		at += len(part) + 3
	}
	for _, n := range lengths {
		place(data[:n])
		data = data[n:]
	}
	if len(data) > 0 || len(buffers) == 0 {
		place(data)
	}
	return buffers
}

// send makes one chain on the transmitq, has the port receive it, and returns what came in. The frame goes back to the pool.
func (b *bed) send(buffers []virtq.Buffer) (data []byte, checksum frame.Checksum, ok bool) {
	b.Helper()
	data, f, ok := b.sendFrame(buffers)
	return data, f.Checksum, ok
}

// sendFrame is send that also returns the frame's metadata.
func (b *bed) sendFrame(buffers []virtq.Buffer) (data []byte, meta frame.Frame, ok bool) {
	b.Helper()
	head, added := b.tx.Add(buffers, nil)
	if !added {
		b.Fatalf("no room for a chain of %d", len(buffers))
	}
	b.tx.Publish()
	n := b.port.Receive(b.vector[:], b.pool)
	if n > 1 {
		b.Fatalf("%d frames came of one chain", n)
	}
	if n == 1 {
		f := b.vector[0]
		if f.HeadLen() != min(f.Len(), frame.HeadLen) {
			b.Errorf("head of %d bytes, of a frame of %d", f.HeadLen(), f.Len())
		}
		data, ok = whole(f), true
		meta.Checksum, meta.GSO = f.Checksum, f.GSO
		b.pool.PutAll(b.vector[:1])
	}
	b.port.Release()
	if got, written, back, err := b.tx.Used(); !back || got != head || written != 0 || err != nil {
		b.Fatalf("the chain did not come back: %d, %d bytes, %v, %v", got, written, back, err)
	}
	b.checkPool()
	return data, meta, ok
}

func whole(f *frame.Frame) []byte {
	data := append([]byte{}, f.Head()...)
	for _, piece := range f.Body() {
		data = append(data, piece...)
	}
	return data
}

// checkPool sees that no frame is lost or there twice.
func (b *bed) checkPool() {
	b.Helper()
	checkPool(b, b.pool, b.frames)
	for i, f := range b.vector {
		if f != nil {
			b.Fatalf("slot %d still holds a frame", i)
		}
	}
}

func checkPool(tb testing.TB, pool *frame.Pool, want int) {
	tb.Helper()
	if pool.Len() != want {
		tb.Fatalf("%d frames in the pool, want %d", pool.Len(), want)
	}
	seen := map[*frame.Frame]bool{}
	var all []*frame.Frame
	for f := pool.Get(); f != nil; f = pool.Get() {
		if seen[f] {
			tb.Fatal("a frame is in the pool twice")
		}
		seen[f] = true
		all = append(all, f)
	}
	pool.PutAll(all)
}

// drops are all drops of the port, by reason.
func (b *bed) drops() map[dataplane.Reason]uint64 { return dropsOf(b.counters) }

func dropsOf(c *dataplane.Counters) map[dataplane.Reason]uint64 {
	all := map[dataplane.Reason]uint64{}
	for _, r := range dataplane.Reasons() {
		if n := c.Drops(r); n > 0 {
			all[r] = n
		}
	}
	return all
}

// wantDrop sees that what just happened was one drop for a reason.
func (b *bed) wantDrop(before map[dataplane.Reason]uint64, why dataplane.Reason) {
	b.Helper()
	for r, n := range b.drops() {
		if d := n - before[r]; r == why && d != 1 || r != why && d != 0 {
			b.Errorf("%d dropped as %v, want one as %v", d, r, why)
		}
	}
	if b.drops()[why] == before[why] {
		b.Errorf("nothing dropped as %v", why)
	}
}

// frameOf makes a frame that holds data, its head as long as a received one's.
func (b *bed) frameOf(data []byte) *frame.Frame {
	f := b.pool.Get()
	n := min(len(data), frame.HeadLen)
	copy(f.Append(n), data)
	if n < len(data) {
		rest := data[n:]
		if len(rest) > 10 { // in two pieces, where that can be
			f.Borrow([][]byte{rest[:7], rest[7:]}, len(rest))
		} else {
			f.Borrow([][]byte{rest}, len(rest))
		}
	}
	return f
}

// transmit hands frames to the port and recycles them.
func (b *bed) transmit(frames ...[]byte) {
	b.Helper()
	for i, data := range frames {
		b.vector[i] = b.frameOf(data)
	}
	b.port.Transmit(b.vector[:len(frames)], b.pool)
	b.pool.PutAll(b.vector[:len(frames)])
	b.checkPool()
}

// offer makes a chain of receive buffers of these lengths in the scratch memory, from an offset on.
func (b *bed) offer(at int, lengths ...int) (head uint16, chain [][]byte) {
	b.Helper()
	memory, base := b.scratch()
	var buffers []virtq.Buffer
	for _, n := range lengths {
		buffers = append(buffers, virtq.Buffer{Addr: base + uint64(at), Len: uint32(n)})
		chain = append(chain, memory[at:at+n])
		at += n
	}
	head, ok := b.rx.Add(nil, buffers)
	if !ok {
		b.Fatal("no descriptor free")
	}
	b.rx.Publish()
	return head, chain
}

// used takes one chain back from the receiveq.
func (b *bed) used() (head uint16, n uint32, ok bool) {
	b.Helper()
	head, n, ok, err := b.rx.Used()
	if err != nil {
		b.Fatal(err)
	}
	return head, n, ok
}

func counting(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*31 + i>>8)
	}
	return data
}

// header is a virtio-net header of 12 bytes.
func header(flags, gso byte, start, offset uint16) []byte {
	h := []byte{flags, gso, 0, 0, 0, 0}
	h = binary.LittleEndian.AppendUint16(h, start)
	h = binary.LittleEndian.AppendUint16(h, offset)
	return append(h, 0, 0)
}

func same(a, b []byte) bool { return bytes.Equal(a, b) }
