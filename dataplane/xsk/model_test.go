package xsk

import (
	"fmt"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// model is a kernel: the other end of a socket's four rings, over plain memory.
//
//	fill ──take──▶ chunks ──deliver──▶ rx          tx ──consume──▶ flying ──complete──▶ completion
//
// It keeps to the rules; tests that want one that does not write into its rings.
type model struct {
	umem                 *UMEM
	fill, tx             far
	rx, completion       far
	chunks               []uint64 // taken from fill, not yet delivered
	flying               []uint64 // taken from tx, not yet completed
	send                 func() unix.Errno
	sends, fillKicks     int
	invalid, transmitted int
}

// far is the kernel's end of a ring.
type far struct {
	producer, consumer, flags *uint32
	mask                      uint32
	bytes                     []byte
}

// layout of the model's rings; the real ones keep indices in cache lines of their own as well.
var layout = unix.XDPRingOffset{Producer: 0, Consumer: 64, Flags: 128, Desc: 192}

func ringBytes(size, entry int, start uint32) []byte {
	b := alignedBytes(192 + size*entry)
	producer, consumer, _, _ := cells(b, layout)
	*producer, *consumer = start, start
	return b
}

// alignedBytes is memory whose start suits any entry.
func alignedBytes(n int) []byte { return bytesOf(make([]uint64, (n+7)/8))[:n] }

// newModel makes a kernel and a socket on it, with rings of size entries whose indices begin at start.
func newModel(tb testing.TB, frames, size int, start uint32) (*model, *Socket) {
	tb.Helper()
	memory, err := frame.NewMemory(make([]byte, frames*frame.ChunkSize))
	if err != nil {
		tb.Fatal(err)
	}
	m := &model{umem: NewUMEM(memory)}
	m.fill.attach(ringBytes(size, 8, start), size)
	m.completion.attach(ringBytes(size, 8, start), size)
	m.rx.attach(ringBytes(size, 16, start), size)
	m.tx.attach(ringBytes(size, 16, start), size)
	s := &Socket{umem: m.umem, fd: -1, o: SocketOptions{Device: Device{Name: "model", MTU: 1500, Queues: 1}}}
	var errs [4]error
	s.Fill, errs[0] = newProducer[uint64](m.fill.bytes, layout, size)
	s.Completion, errs[1] = newConsumer[uint64](m.completion.bytes, layout, size)
	s.Rx, errs[2] = newConsumer[Desc](m.rx.bytes, layout, size)
	s.Tx, errs[3] = newProducer[Desc](m.tx.bytes, layout, size)
	for _, err := range errs {
		if err != nil {
			tb.Fatal(err)
		}
	}
	*m.tx.flags = unix.XDP_RING_NEED_WAKEUP // as in copy mode, for ever
	m.send = func() unix.Errno { m.consume(kernelBudget); return 0 }
	s.send = func(int) unix.Errno { m.sends++; return m.send() }
	s.receive = func(int) unix.Errno { m.fillKicks++; return 0 }
	return m, s
}

func (f *far) attach(b []byte, size int) {
	f.producer, f.consumer, f.flags, _ = cells(b, layout)
	f.mask, f.bytes = uint32(size-1), b
}

func (f *far) full() bool { return *f.producer-*f.consumer > f.mask }

// take moves up to n chunks out of the fill ring.
func (m *model) take(n int) {
	fill, _ := entries[uint64](m.fill.bytes, layout, int(m.fill.mask)+1)
	for ; n > 0 && *m.fill.consumer != *m.fill.producer; n-- {
		m.chunks = append(m.chunks, fill[*m.fill.consumer&m.fill.mask])
		*m.fill.consumer++
	}
}

// deliver puts a packet of length bytes, filled with its number, into the next chunk and the owner's rx ring; false if there is none or no room.
func (m *model) deliver(length uint32, number byte) bool { return m.deliverTo(&m.rx, number, length) }

// deliverTo puts a packet of one or more pieces into a socket's rx ring.
func (m *model) deliverTo(rx *far, number byte, pieces ...uint32) bool {
	if len(m.chunks) < len(pieces) || *rx.producer-*rx.consumer+uint32(len(pieces)) > rx.mask+1 {
		return false
	}
	for i, length := range pieces {
		at := m.chunks[0] + unix.XDP_PACKET_HEADROOM
		m.chunks = m.chunks[1:]
		b := m.umem.memory.Bytes()[at : at+uint64(length)]
		for i := range b {
			b[i] = number
		}
		d := Desc{Addr: at, Len: length}
		if i < len(pieces)-1 {
			d.Options = unix.XDP_PKT_CONTD
		}
		rx.push(d)
	}
	return true
}

// push writes a descriptor into the rx ring, whatever it says.
func (m *model) push(d Desc) { m.rx.push(d) }

func (f *far) push(d Desc) {
	rx, _ := entries[Desc](f.bytes, layout, int(f.mask)+1)
	rx[*f.producer&f.mask] = d
	*f.producer++
}

// consume takes up to n descriptors from the tx ring.
func (m *model) consume(n int) {
	tx, _ := entries[Desc](m.tx.bytes, layout, int(m.tx.mask)+1)
	for ; n > 0 && *m.tx.consumer != *m.tx.producer; n-- {
		d := tx[*m.tx.consumer&m.tx.mask]
		*m.tx.consumer++
		m.transmitted++
		if d.Len == 0 || d.Addr%frame.ChunkSize+uint64(d.Len) > frame.ChunkSize || d.Addr >= uint64(len(m.umem.memory.Bytes())) {
			m.invalid++
		}
		m.flying = append(m.flying, d.Addr)
	}
}

// complete gives up to n transmitted frames back.
func (m *model) complete(n int) {
	for ; n > 0 && len(m.flying) > 0 && !m.completion.full(); n-- {
		m.finish(m.flying[0])
		m.flying = m.flying[1:]
	}
}

// finish writes an address into the completion ring, whatever it is.
func (m *model) finish(address uint64) {
	completion, _ := entries[uint64](m.completion.bytes, layout, int(m.completion.mask)+1)
	completion[*m.completion.producer&m.completion.mask] = address
	*m.completion.producer++
}

// second makes another socket on the model's queue, which has an rx ring alone, of size entries.
func (m *model) second(tb testing.TB, owner *Socket, size int, start uint32) (*far, *Socket) {
	tb.Helper()
	b := ringBytes(size, 16, start)
	s := &Socket{umem: m.umem, fd: -1, o: owner.o}
	s.o.Owner = owner
	var err error
	if s.Rx, err = newConsumer[Desc](b, layout, size); err != nil {
		tb.Fatal(err)
	}
	rx := &far{}
	rx.attach(b, size)
	rx.bytes = b
	return rx, s
}

// modelPort is a port on a model kernel, with a pool of all its frames.
func modelPort(tb testing.TB, frames, size int, start uint32) (*model, *Port, *frame.Pool) {
	tb.Helper()
	m, s := newModel(tb, frames, size, start)
	pool, err := m.umem.memory.NewPool(0, frames)
	if err != nil {
		tb.Fatal(err)
	}
	p, err := NewPort(PortOptions{Socket: s, Pool: pool, Counters: new(dataplane.Counters)})
	if err != nil {
		tb.Fatal(err)
	}
	return m, p, pool
}

// makeFrame takes a frame of n bytes from the pool.
func makeFrame(pool *frame.Pool, n int) *frame.Frame {
	f := pool.Get()
	if f != nil && n > 0 && f.Append(n) == nil {
		panic(fmt.Sprint("no room for ", n))
	}
	return f
}

// transmit does with the vector what a worker does.
func transmit(p *Port, pool *frame.Pool, frames ...*frame.Frame) {
	p.Transmit(frames, pool)
	pool.PutAll(frames)
}

// drops sums what a port dropped, and returns it by reason for messages.
func drops(c *dataplane.Counters) (n uint64, why string) {
	for _, r := range dataplane.Reasons() {
		if d := c.Drops(r); d > 0 {
			n += d
			why += fmt.Sprintf(" %v=%d", r, d)
		}
	}
	return n, why
}
