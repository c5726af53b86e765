package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/xsk"
)

// crew is two workers, driven by hand, that share every queue of up0: the queues are owned by turns, and who does not own one has a receiver there.
type crew struct {
	workers [2]*dataplane.Worker
	umem    *xsk.UMEM
	tallies [2]tally
	owners  []*xsk.Port
	others  []*xsk.Receiver
}

// tally is a forwarder that notes which datagrams came to its worker.
type tally struct {
	next    map[uint16]uint32 // by source port: the number of the next datagram
	got     map[uint16]int
	other   int
	queues  map[string]int // packets by link
	trouble []string
}

// Forward implements dataplane.Forwarder.
func (y *tally) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		b := f.Head()
		// Ethernet, IPv4, UDP, VXLAN, the inner frame's addresses and type, a number.
		if len(b) >= 50+14+4 && bytes.HasPrefix(b[50:], stationMAC[:]) {
			port, number := binary.BigEndian.Uint16(b[34:]), binary.BigEndian.Uint32(b[64:])
			if number < y.next[port] {
				y.trouble = append(y.trouble, fmt.Sprintf("datagram %d from port %d after %d", number, port, y.next[port]-1))
			}
			y.next[port] = number + 1
			y.got[port]++
			y.queues[from.Name]++
		} else {
			y.other++
		}
		frames[i] = nil
		w.Pool().Put(f)
	}
}

// crew puts two workers to work on up0.
func (l *lab) crew(t *testing.T, p *Program) *crew {
	t.Helper()
	const own, ring = 2048, 128
	chunks, err := unix.Mmap(-1, 0, 2*own*frame.ChunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(chunks) })
	memory, err := frame.NewMemory(chunks)
	if err != nil {
		t.Fatal(err)
	}
	c := &crew{umem: xsk.NewUMEM(memory)}
	for i := range c.workers {
		pool, err := memory.NewPool(i*own, own)
		if err != nil {
			t.Fatal(err)
		}
		if c.workers[i], err = dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool, Index: i}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.workers[i].Close() })
		c.tallies[i] = tally{next: map[uint16]uint32{}, got: map[uint16]int{}, queues: map[string]int{}}
	}
	if err := dataplane.Connect(c.workers[:]); err != nil {
		t.Fatal(err)
	}
	var device xsk.Device
	open := func(o xsk.SocketOptions) (s *xsk.Socket) {
		t.Helper()
		o.Device, o.Rx, o.Fill, o.Completion = device, ring, ring, ring
		err := l.host.Do(func() (err error) { s, err = c.umem.Open(o); return err })
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := l.host.Do(func() (err error) { device, err = xsk.LookupDevice("up0"); return err }); err != nil {
		t.Fatal(err)
	}
	for q := range device.Queues {
		who := q % 2
		owner, err := xsk.NewPort(xsk.PortOptions{Socket: open(xsk.SocketOptions{Queue: q, Tx: ring}), Pool: c.workers[who].Pool(), Counters: &dataplane.Counters{}})
		if err != nil {
			t.Fatal(err)
		}
		c.owners = append(c.owners, owner)
		other, err := xsk.NewReceiver(xsk.ReceiverOptions{
			Owner: owner, Socket: open(xsk.SocketOptions{Queue: q, Tx: -1, Owner: owner.Socket()}), Counters: &dataplane.Counters{},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.others = append(c.others, other)
		c.add(who, fmt.Sprint("queue ", q), owner)
		c.add(1-who, fmt.Sprint("queue ", q), other)
		if err := errors.Join(p.AddSocket(q, who, owner.Socket().FD()), p.AddSocket(q, 1-who, other.Socket().FD())); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { c.close(t, 2*own) })
	return c
}

func (c *crew) add(worker int, name string, port dataplane.Port) {
	c.workers[worker].Add(&dataplane.Link{Name: name, Port: port, Forwarder: &c.tallies[worker], Counters: &dataplane.Counters{}})
}

// close ends everything, and finds all frames at home.
func (c *crew) close(t *testing.T, frames int) {
	for i, r := range c.others {
		err := r.Close()
		r.Reclaim(c.workers[i%2].Pool())
		owner := c.owners[i]
		if err := errors.Join(err, owner.Close()); err != nil {
			t.Error(err)
		}
		owner.Reclaim(c.workers[i%2].Pool())
	}
	free := 0
	for range 2 {
		free = 0
		for _, w := range c.workers {
			w.Pool().Exchange()
			free += w.Pool().Len()
		}
	}
	if free != frames {
		t.Errorf("%d of %d frames are free at the end", free, frames)
	}
}

// lost is what the kernel steered to the sockets and dropped.
func (c *crew) lost(t *testing.T) (n uint64) {
	t.Helper()
	for i := range c.owners {
		for _, s := range []*xsk.Socket{c.owners[i].Socket(), c.others[i].Socket()} {
			k, err := s.Statistics()
			if err != nil {
				t.Fatal(err)
			}
			n += k.RxDropped + k.RxRingFull + k.RxInvalid
		}
		if n := c.owners[i].Stats().Unknown.Load() + c.others[i].Unknown(); n != 0 {
			t.Errorf("queue %d: %d unknown addresses", i, n)
		}
	}
	return n
}

// received is how many datagrams each worker has.
func (c *crew) received() (n [2]int) {
	for i := range c.tallies {
		for _, k := range c.tallies[i].got {
			n[i] += k
		}
	}
	return n
}

// On a device of one queue or several, each flow of a station goes to the worker that its source port says, whichever queue it came by, in order; who
// else is given a share of the station gets its flows from the next frame on, and nothing is lost on the way.
func TestFlowsOnTheirWorkers(t *testing.T) {
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprint(queues, " queues"), func(t *testing.T) {
			l := newWideLab(t, 1500, queues)
			p := l.attach(t, Options{})
			c := l.crew(t, p)
			const flows, each = 24, 200
			var senders []*net.UDPConn
			var ports []uint16
			for i := range flows {
				port := uint16(50000 + 37*i)
				ports = append(ports, port)
				senders = append(senders, udpSocket(t, l.peer, fmt.Sprint("192.0.2.2:", port)))
			}
			to := udpAddr("192.0.2.1:4789")
			payload := append([]byte{8, 0, 0, 0, 0, 0, knownVNI, 0}, toStation[:14]...)
			number, sent := uint32(0), 0
			fire := func(n int) {
				t.Helper()
				for range n {
					for _, s := range senders {
						if _, err := s.WriteToUDP(binary.BigEndian.AppendUint32(payload[:len(payload):len(payload)], number), to); err != nil {
							t.Fatal(err)
						}
						sent++
					}
					number++
					for deadline := time.Now().Add(10 * time.Second); ; {
						for _, w := range c.workers {
							w.Round()
						}
						got := c.received()
						if got[0]+got[1] == sent {
							break
						}
						if time.Now().After(deadline) {
							t.Fatalf("%d sent, %v received, %d lost: %v", sent, got, c.lost(t), verdicts(t, p))
						}
					}
				}
			}
			if err := errors.Join(p.AddVTEP(vtep4), p.AddVNI(knownVNI, 0), p.AddStation(knownVNI, stationMAC, []int{0, 1})); err != nil {
				t.Fatal(err)
			}
			fire(each)
			shared := c.received()
			for _, port := range ports {
				who := chosen([]int{0, 1}, uint32(port))
				if got, other := c.tallies[who].got[port], c.tallies[1-who].got[port]; got != each || other != 0 {
					t.Errorf("port %d: worker %d has %d datagrams, the other %d", port, who, got, other)
				}
			}
			if err := p.AddStation(knownVNI, stationMAC, []int{1}); err != nil {
				t.Fatal(err)
			}
			fire(20)
			if got := c.received(); got[0] != shared[0] || got[1] != shared[1]+20*flows {
				t.Errorf("all for worker 1: %v, before %v", got, shared)
			}
			if err := p.RemoveStation(knownVNI, stationMAC); err != nil {
				t.Fatal(err)
			}
			fire(20)
			if got := c.received(); got[0] != shared[0]+20*flows {
				t.Errorf("none: %v, before %v", got, shared)
			}
			used := map[string]bool{}
			for i := range c.tallies {
				for _, trouble := range c.tallies[i].trouble {
					t.Errorf("worker %d: %s", i, trouble)
				}
				for name := range c.tallies[i].queues {
					used[name] = true
				}
			}
			got := verdicts(t, p)
			if got["redirect-station"] != uint64((each+20)*flows) || got["redirect"] != 20*flows || c.lost(t) != 0 {
				t.Errorf("verdicts %v, %d lost", got, c.lost(t))
			}
			if queues > 1 && len(used) < 2 {
				t.Errorf("all came by %v", used)
			}
			t.Logf("%v datagrams of a shared station, by %d queues", shared, len(used))
		})
	}
}
