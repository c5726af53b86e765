package vxlan

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
)

// storm is a port whose guest never stops sending: broadcasts, to neighbours, to strangers, from invented sources.
type storm struct {
	dataplanetest.Port
	frames [][]byte
	next   int
	gone   atomic.Bool // it was detached: whoever sends to it now uses a link that may be freed
	after  atomic.Int32
}

func (s *storm) Receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	for n < 8 {
		f := pool.Get()
		if f == nil {
			break
		}
		b := s.frames[s.next%len(s.frames)]
		s.next++
		copy(f.Append(len(b)), b)
		into[n] = f
		n++
	}
	s.Counters.RxPackets.Add(uint64(n))
	return n
}

func (s *storm) Transmit(frames []*frame.Frame, pool *frame.Pool) {
	if s.gone.Load() {
		s.after.Add(1)
	}
	s.Port.Transmit(frames, pool)
}

// TestChangesUnderTraffic changes everything there is while two workers run: nothing reaches a link after DetachPorts returned, and at the end all
// frames are there.
func TestChangesUnderTraffic(t *testing.T) {
	l := newLabWith(t, 2, 1024, Options{Seed: 7, MaxVTEPs: 64})
	up := l.uplink("up0", host4)
	up.Discard = true
	for i, name := range []string{"blue", "red"} {
		l.network(Network{Name: name, VNI: uint32(100 + i), Uplink: "up0", Learning: true, LearnLimit: 16, Flood: []netip.Addr{peer4}})
	}
	attach := func(i int) (*storm, *dataplane.Link, Port) {
		s := &storm{Port: dataplanetest.Port{Discard: true, Counters: new(dataplane.Counters)}}
		mac := wire.MAC(0x5254_0000_0000 + i)
		for k := range wire.MAC(32) {
			from := mac
			if i%2 == 1 {
				from += k << 16 // invents sources
			}
			for _, to := range []wire.MAC{wire.Broadcast, 0x5254_0000_0000 + k%8, 0x5254_0000_0000 + k<<16} {
				s.frames = append(s.frames, ethernetFrame(to, from), udpFrame(t, to, from, "10.0.0.1", "10.0.0.2", nil),
					tcpFrame(t, to, from, "10.0.0.2", "10.0.0.1", uint16(k), 80, wire.TCPSyn, nil))
			}
		}
		link := &dataplane.Link{Name: fmt.Sprintf("p%d", i), Port: s, Counters: s.Counters}
		p := Port{Name: link.Name, Network: []string{"blue", "red"}[i/4%2], MAC: mac, AntiSpoof: i%2 == 0, LearnLimit: 8, FlowLimit: 16, ACL: policies[i%len(policies)]}
		l.must(l.sw.AttachPort(p, []*dataplane.Link{link}))
		w := l.workers[i%2]
		w.Do(func() { w.Add(link) })
		return s, link, p
	}
	ran := make(chan error, len(l.workers))
	for _, w := range l.workers {
		go func() { ran <- w.Run() }()
	}
	var group sync.WaitGroup
	end := time.Now().Add(time.Second)
	for i := range 8 {
		group.Go(func() {
			for time.Now().Before(end) {
				s, link, p := attach(i)
				p.LearnLimit, p.ACL = 4, policies[(i+1)%len(policies)]
				l.must(l.sw.SetPort(p))
				p.Network = "red"
				l.must(l.sw.SetPort(p))
				l.must(l.sw.DetachPorts(p.Name))
				w := l.workers[i%2]
				w.Do(func() { w.Remove(link) }) // what the other worker had sent here is still on its way
				s.gone.Store(true)
				w.Do(func() {}) // a round in which it must be sent nothing
				if n := s.after.Load(); n > 0 {
					t.Errorf("%d vectors were sent to a port that is gone", n)
				}
			}
		})
	}
	group.Go(func() {
		for i := byte(3); time.Now().Before(end); i++ {
			vtep := netip.AddrFrom4([4]byte{192, 0, 2, 3 + i%40})
			l.must(l.sw.SetNetwork(Network{Name: "blue", VNI: 100, Uplink: "up0", Learning: i%8 != 0, LearnLimit: 16, Flood: []netip.Addr{peer4, vtep}}))
			l.sw.FDB()
			l.sw.VTEPs()
			l.sw.sweep()
			l.sw.Refresh()
			_, _ = l.sw.ACLHits("p2")
			l.sw.Cut(0)
		}
	})
	group.Wait()
	for _, w := range l.workers {
		w.Stop()
	}
	for range l.workers {
		if err := <-ran; err != nil {
			t.Fatal(err)
		}
	}
	l.balanced()
}
