package lab

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/control"
)

// Flags of descriptors (virtio 1.2, 2.7.5 and 2.8.6).
const (
	next     = 1
	writable = 2
	indirect = 4
	avail    = 1 << 7  // of a packed ring: equal to the driver's wrap counter, which begins as 1
	used     = 1 << 15 // and not equal
)

// forger writes tables as no driver does.
type forger struct {
	virtq.Layout
	packed bool
	size   int
	queue  int
	memory []byte
	given  uint16 // heads in the avail ring
}

// rewrite gives the forger a guest's queue as it is before the device has it.
func rewrite(g *vnettest.Guest, queue int) *forger {
	return &forger{Layout: g.Layout(queue), packed: g.Features()&vnet.FeaturePacked != 0, size: g.QueueSize(), queue: queue, memory: g.Memory}
}

// put writes a descriptor. That of a packed ring becomes available, with the buffer id that is said to be next.
func (r *forger) put(i int, addr uint64, n uint32, flags, nextOrID uint16) {
	r.write(r.Desc[16*i:], addr, n, flags, nextOrID)
}

func (r *forger) write(b []byte, addr uint64, n uint32, flags, nextOrID uint16) {
	le := binary.LittleEndian
	le.PutUint64(b, addr)
	le.PutUint32(b[8:], n)
	if r.packed {
		le.PutUint16(b[12:], nextOrID)
		le.PutUint16(b[14:], flags|avail)
		return
	}
	le.PutUint16(b[12:], flags)
	le.PutUint16(b[14:], nextOrID)
}

// offer makes chains available by their heads; in a packed ring they are.
func (r *forger) offer(heads ...uint16) {
	if r.packed {
		return
	}
	for _, head := range heads {
		binary.LittleEndian.PutUint16(r.Avail[4+2*(int(r.given)%r.size):], head)
		r.given++
	}
	binary.LittleEndian.PutUint16(r.Avail[2:], r.given)
}

// The guest's last pages belong to no ring and no buffer: tables are put there.
func (r *forger) scratch() (b []byte, addr uint64) {
	at := len(r.memory) - 64<<10
	return r.memory[at:], vnettest.GuestBase + uint64(at)
}

const here = vnettest.GuestBase

var ringAttacks = []struct {
	name   string
	split  bool
	packed bool
	forge  func(r *forger)
	reason string
}{
	{"a chain that is a loop", true, false, func(r *forger) {
		r.put(0, here, 64, next, 1)
		r.put(1, here, 64, next, 0)
		r.offer(0)
	}, "malformed descriptor chain"},
	{"a chain that is its own next", true, false, func(r *forger) {
		r.put(7, here, 64, next, 7)
		r.offer(7)
	}, "malformed descriptor chain"},
	{"a chain without end", false, true, func(r *forger) {
		for i := range r.size {
			r.put(i, here, 64, next, uint16(i))
		}
	}, "malformed descriptor chain"},
	{"an overlong chain", true, true, func(r *forger) {
		for i := range r.size {
			flags := uint16(next)
			if i == r.size-1 {
				flags = 0
			}
			id := uint16(i + 1)
			if r.packed {
				id = 0
			}
			r.put(i, here, 0, flags, id)
		}
		r.offer(0)
	}, "malformed descriptor chain"},
	{"an indirect table of no length", true, true, func(r *forger) {
		r.put(0, here, 0, indirect, 0)
		r.offer(0)
	}, "malformed indirect table"},
	{"an indirect table of 17 bytes", true, true, func(r *forger) {
		r.put(0, here, 17, indirect, 0)
		r.offer(0)
	}, "malformed indirect table"},
	{"an indirect table of 4 GiB", true, true, func(r *forger) {
		r.put(0, here, 0xfffffff0, indirect, 0)
		r.offer(0)
	}, ""},
	{"an indirect table within an indirect table", true, false, func(r *forger) {
		b, addr := r.scratch()
		r.write(b, addr, 16, indirect, 0)
		r.put(0, addr, 16, indirect, 0)
		r.offer(0)
	}, "malformed indirect table"},
	{"an indirect table and a next", true, true, func(r *forger) {
		b, addr := r.scratch()
		r.write(b, here, 64, 0, 0)
		r.put(0, addr, 16, indirect|next, 1)
		r.put(1, here, 64, 0, 0)
		r.offer(0)
	}, "malformed"},
	{"an indirect loop", true, false, func(r *forger) {
		b, addr := r.scratch()
		r.write(b, here, 64, next, 1)
		r.write(b[16:], here, 64, next, 0)
		r.put(0, addr, 32, indirect, 0)
		r.offer(0)
	}, "malformed descriptor chain"},
	{"an indirect table outside memory", true, true, func(r *forger) {
		r.put(0, 1<<40, 64, indirect, 0)
		r.offer(0)
	}, ""},
	{"a crooked indirect table", true, true, func(r *forger) {
		r.put(0, here+1, 64, indirect, 0)
		r.offer(0)
	}, ""},
	{"a buffer outside memory", true, true, func(r *forger) {
		r.put(0, 1<<40, 64, 0, 0)
		r.offer(0)
	}, "buffer outside guest memory"},
	{"a buffer that leaves memory", true, true, func(r *forger) {
		r.put(0, here+uint64(len(r.memory))-8, 64, 0, 0)
		r.offer(0)
	}, "buffer outside guest memory"},
	{"a buffer of 4 GiB", true, true, func(r *forger) {
		r.put(0, here, 0xffffffff, 0, 0)
		r.offer(0)
	}, "buffer outside guest memory"},
	{"addresses that wrap", true, true, func(r *forger) {
		r.put(0, ^uint64(7), 64, 0, 0)
		r.offer(0)
	}, "buffer outside guest memory"},
	{"readable after writable", true, true, func(r *forger) {
		r.put(0, here, 64, next|writable, 1)
		r.put(1, here, 64, 0, 0)
		r.offer(0)
	}, "malformed descriptor chain"},
	{"an index that jumps", true, false, func(r *forger) {
		binary.LittleEndian.PutUint16(r.Avail[2:], uint16(r.size+1))
	}, "avail index jumped"},
	{"an index that goes back", true, false, func(r *forger) {
		binary.LittleEndian.PutUint16(r.Avail[2:], 0xffff)
	}, "avail index jumped"},
	{"a head that is no descriptor", true, false, func(r *forger) { r.offer(uint16(r.size)) }, "descriptor number out of range"},
	{"a next that is no descriptor", true, false, func(r *forger) {
		r.put(0, here, 64, next, 0xffff)
		r.offer(0)
	}, "descriptor number out of range"},
	{"a buffer id beyond the ring", false, true, func(r *forger) { r.put(0, here, 64, 0, 0xffff) }, "descriptor number out of range"},
}

// attackRings breaks the rules of virtio, in either form, with the transmitq and, where the receiveq would notice, with that: there the
// neighbours' frames to everybody make the worker look.
func attackRings(t *testing.T, a *arena) {
	for _, form := range kinds() {
		packed := form.features&vnet.FeaturePacked != 0
		t.Run(form.name, func(t *testing.T) {
			port, i := a.next(t)
			for n, attack := range ringAttacks {
				if packed && !attack.packed || !packed && !attack.split {
					continue
				}
				queues := 1
				if n%4 == 0 { // the receiveq's part of the walk is the same code
					queues = 2
				}
				for queue := 1; queue >= 2-queues; queue-- {
					a.forge(t, port, form, queue, attack.name, attack.forge, attack.reason)
				}
			}
			a.serves(t, port, i)
		})
	}
}

// forge runs one such attack until the daemon gives up on it.
func (a *arena) forge(t *testing.T, port string, form kind, queue int, name string, forge func(*forger), reason string) {
	t.Helper()
	g := a.guest(t, vnettest.Options{Features: form.features, QueueSize: 512})
	defer g.Close()
	forge(rewrite(g, queue))
	seen := len(a.d.Log())
	f, err := frontEnd(within(t, 20*time.Second), a.socket(port), g, vhostuser.DefaultProtocolFeatures)
	if err == nil {
		defer f.Close()
		shm.Signal(g.KickFD(queue))
	}
	ctx := within(t, 20*time.Second)
	for !said(a.d.Log()[seen:], port, "out of service", reason) {
		if ctx.Err() != nil {
			t.Fatalf("%s in queue %d: shuntd did not notice (%v):\n%s", name, queue, err, a.of(port))
		}
		time.Sleep(time.Millisecond)
	}
}

// attackWalks breaks no rule, and has the worker look at as many buffers as it will: every descriptor of both queues is an indirect table as
// long as a chain may be.
func attackWalks(t *testing.T, a *arena) {
	const longest = 256
	for _, form := range kinds() {
		port, _ := a.next(t)
		g := a.guest(t, vnettest.Options{Features: form.features, QueueSize: 1024})
		g.Rx, g.Tx = nil, nil // the rings are ours
		var drivers [2]*virtq.Driver
		var err error
		for q := range drivers {
			drivers[q], err = virtq.NewDriver(virtq.DriverOptions{Layout: g.Layout(q), Size: g.QueueSize(), Packed: form.features&vnet.FeaturePacked != 0})
			must(t, err)
		}
		table, addr := rewrite(g, 1).scratch()
		var out, in []virtq.Buffer
		for i := range longest {
			out = append(out, virtq.Buffer{Addr: here + 1<<20 + uint64(i)*4096, Len: 1})
			in = append(in, virtq.Buffer{Addr: here + 2<<20 + uint64(i)*4096, Len: 1})
		}
		fill := func() (added int) {
			for ok := true; ok; added++ {
				_, ok = drivers[1].AddIndirect(table, addr, out, nil)
			}
			for ok := true; ok; {
				_, ok = drivers[0].AddIndirect(table[16*longest:], addr+16*longest, nil, in)
			}
			for q, d := range drivers {
				if d.Publish() {
					shm.Signal(g.KickFD(q))
				}
			}
			return added
		}
		fill()
		f := a.join(t, port, g)
		walked := 0
		for began := time.Now(); time.Since(began) < time.Duration(times(500, 5000))*time.Millisecond; {
			for q, d := range drivers {
				for {
					_, _, ok, err := d.Used()
					must(t, err)
					if !ok {
						break
					}
					walked += q
				}
			}
			fill()
			time.Sleep(50 * time.Microsecond)
		}
		if c := counters(t, a.d, control.KindPort, port); walked < 1000 || c.Dropped() == 0 {
			t.Errorf("%d chains of %d buffers were taken, dropped: %v", walked, longest, c.Drops)
		}
		t.Logf("%s: %d chains of %d buffers", form.name, walked, longest)
		f.Close()
		g.Close()
	}
}

// attackHeaders has frames asked to be cut and summed as no stack would ask. They are no reason to give up on a guest: each is forwarded, or dropped and
// counted.
func attackHeaders(t *testing.T, a *arena) {
	for _, form := range kinds() {
		t.Run(form.name, func(t *testing.T) {
			port, i := a.next(t)
			g := a.guest(t, vnettest.Options{
				Features:  form.features | vnet.FeatureCsum | vnet.FeatureHostTSO4 | vnet.FeatureHostTSO6 | vnet.FeatureHostECN,
				QueueSize: 256, BufferSize: 4096,
			})
			f := a.join(t, port, g)
			random := rand.New(rand.NewPCG(uint64(i), 3))
			sent, n := 0, times(3000, 300_000)
			for began := time.Now(); sent < n; {
				h, frame := wildHeader(random), segmentable(random, hardware(macWitness), hardware(villainMAC(i)))
				if err := g.SendWith(h, frame); err == nil {
					sent++
					continue
				}
				time.Sleep(50 * time.Microsecond) // full
				if time.Since(began) > 2*time.Minute {
					t.Fatalf("after two minutes %d of %d frames were taken", sent, n)
				}
			}
			var c control.Counters
			for ctx := within(t, 20*time.Second); c.RxPackets < uint64(sent); time.Sleep(time.Millisecond) {
				if c = counters(t, a.d, control.KindPort, port); ctx.Err() != nil {
					t.Fatalf("%d of %d frames were counted:\n%s", c.RxPackets, sent, a.of(port))
				}
			}
			if c.Dropped() == 0 || c.Dropped() == uint64(sent) {
				t.Errorf("of %d wild frames %d were dropped: %v", sent, c.Dropped(), c.Drops)
			}
			t.Logf("%d frames, dropped: %v", sent, c.Drops)
			f.Close()
		})
	}
}

func wildHeader(r *rand.Rand) (h vnettest.Header) {
	pick := func(of ...uint16) uint16 { return of[r.IntN(len(of))] }
	h.Flags = uint8(pick(0, 1, 1, 1, 2, 3, 0xff))
	h.GSOType = uint8(pick(0, 1, 1, 1, 3, 4, 0x81, 0x84, 0x80, 0xff))
	h.HdrLen = pick(0, 1, 54, 65535)
	h.GSOSize = pick(0, 1, 7, 8, 9, 536, 1448, 65535)
	h.CsumStart = pick(0, 14, 34, 34, 34, 54, 255, 256, 65535)
	h.CsumOff = pick(0, 6, 16, 16, 16, 65534, 65535)
	h.Buffers = pick(0, 1, 65535)
	return h
}

// segmentable is TCP in IPv4 more often than not, of any length.
func segmentable(r *rand.Rand, to, from []byte) []byte {
	n := []int{0, 1, 100, 1448, 4000, 30000, 65000}[r.IntN(7)]
	b := append(append(append([]byte(nil), to...), from...), 8, 0)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(min(65535, 40+n)))
	copy(ip[12:], []byte{198, 18, 0, 1, 198, 18, 0, 2})
	tcp := make([]byte, 20)
	tcp[12] = 5 << 4
	b = append(append(append(b, ip...), tcp...), make([]byte, n)...)
	if r.IntN(4) == 0 { // a byte of the headers is another
		b[12+r.IntN(42)] = byte(r.Uint32())
	}
	return b
}
