package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// bystanders are two guests who mind their own business while others misbehave: each sends the other frames with numbers, and looks that none
// is missing, doubled or out of order. One in sixteen goes to everybody, so that guests with broken rings are among those that the worker has to
// serve in the same round.
type bystanders struct {
	sides [2]*minder
	stop  chan struct{}
	ended chan struct{}
	pause sync.Mutex // held by those who want silence

	exchanged atomic.Uint64 // frames that arrived
	stall     atomic.Int64  // the longest time without one, in nanoseconds
	err       atomic.Pointer[error]
}

// minder is one of them.
type minder struct {
	guest    *vnettest.Guest
	front    *vhostuser.Frontend
	unicast  []byte
	all      []byte
	sent     uint64
	received uint64
	own      net.HardwareAddr
}

const (
	// outstanding frames fit a receiveq of 256 buffers, so nothing may be lost.
	outstanding = 64
	// numbered frames have an EtherType for experiments (IEEE 802).
	numbered = 0x88b5
)

// frontEnd connects a guest to a port and starts its rings.
func frontEnd(ctx context.Context, socket string, g *vnettest.Guest, protocol uint64) (*vhostuser.Frontend, error) {
	f, err := vhostuser.DialWait(ctx, socket)
	if err != nil {
		return nil, err
	}
	f.Timeout = 20 * time.Second
	err = f.Negotiate(g.Features()|vhostuser.FeatureProtocol|vhostuser.FeatureLogAll, protocol)
	if err == nil {
		err = f.SetMemory(g.Region())
	}
	for q := 0; q < 2*len(g.Pairs) && err == nil; q++ {
		err = f.StartVring(g.Vring(q))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// etherFrame is a frame of 64 bytes with a number.
func etherFrame(to, from net.HardwareAddr, n uint64) []byte {
	b := binary.BigEndian.AppendUint16(append(append([]byte(nil), to...), from...), numbered)
	return append(binary.BigEndian.AppendUint64(b, n), make([]byte, 64-22)...)
}

func hardware(mac string) net.HardwareAddr {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	return hw
}

var everybody = hardware("ff:ff:ff:ff:ff:ff")

// startBystanders has two guests exchange frames until the end of the test, which fails if one is lost. The first has split rings, the second
// packed ones.
func startBystanders(t *testing.T, sockets, macs [2]string) *bystanders {
	t.Helper()
	n := &bystanders{stop: make(chan struct{}), ended: make(chan struct{})}
	for i := range n.sides {
		features := uint64(vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | vnet.FeatureEventIdx)
		if i == 1 {
			features |= vnet.FeaturePacked
		}
		s := &minder{own: hardware(macs[i]), unicast: etherFrame(hardware(macs[1-i]), hardware(macs[i]), 0), all: etherFrame(everybody, hardware(macs[i]), 0)}
		n.sides[i] = s
		var err error
		if s.guest, err = vnettest.New(vnettest.Options{Features: features}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.guest.Close)
		if s.front, err = frontEnd(within(t, 20*time.Second), sockets[i], s.guest, vhostuser.DefaultProtocolFeatures); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.front.Close() })
	}
	go n.run()
	t.Cleanup(func() {
		close(n.stop)
		<-n.ended
		n.whole(t)
	})
	return n
}

// whole reports what was lost so far.
func (n *bystanders) whole(t *testing.T) {
	t.Helper()
	if err := n.err.Load(); err != nil {
		t.Fatalf("the neighbours lost something after %d frames: %v", n.exchanged.Load(), *err)
	}
}

// silence waits until all frames under way have arrived, and none is sent until speak is called.
func (n *bystanders) silence() (speak func()) {
	n.pause.Lock()
	return n.pause.Unlock
}

func (n *bystanders) run() {
	defer close(n.ended)
	for {
		select {
		case <-n.stop:
			return
		default:
		}
		n.pause.Lock()
		err := n.burst()
		if err == nil {
			err = n.await()
		}
		n.pause.Unlock() // silence is between two bursts, when all have arrived
		if err != nil {
			n.err.Store(&err)
			return
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// await takes frames until all that were sent have arrived.
func (n *bystanders) await() error {
	const patience = 20 * time.Second
	for last := time.Now(); ; time.Sleep(20 * time.Microsecond) {
		before := n.exchanged.Load()
		for i, s := range n.sides {
			if err := s.take(n, n.sides[1-i]); err != nil {
				return err
			}
		}
		now := time.Now()
		if n.exchanged.Load() > before {
			n.stall.Store(max(n.stall.Load(), int64(now.Sub(last))))
			last = now
		}
		one, two := n.sides[0], n.sides[1]
		switch {
		case one.received == two.sent && two.received == one.sent:
			return nil
		case now.Sub(last) > patience:
			return fmt.Errorf("%d of %d and %d of %d frames arrived, and for %v no more", two.received, one.sent, one.received, two.sent, patience)
		}
	}
}

// burst sends what may be outstanding.
func (n *bystanders) burst() error {
	for range outstanding / 2 {
		for _, s := range n.sides {
			frame := s.unicast
			if s.sent%16 == 15 {
				frame = s.all
			}
			binary.BigEndian.PutUint64(frame[14:], s.sent)
			if err := s.guest.Send(frame); err != nil {
				return fmt.Errorf("send frame %d: %w", s.sent, err)
			}
			s.sent++
		}
	}
	return nil
}

// take takes what arrived from the other. What others send to everybody is of no interest.
func (s *minder) take(n *bystanders, from *minder) error {
	for {
		frame, err := s.guest.Recv()
		if err != nil || frame == nil {
			return err
		}
		if len(frame) < 22 || string(frame[6:12]) != string(from.own) || binary.BigEndian.Uint16(frame[12:]) != numbered {
			continue
		}
		if got := binary.BigEndian.Uint64(frame[14:]); got != s.received {
			return fmt.Errorf("frame %d came instead of %d", got, s.received)
		}
		if len(frame) != 64 || string(frame[:6]) != string(s.own) && string(frame[:6]) != string(everybody) {
			return errors.New("a frame came that was not sent so")
		}
		s.received++
		n.exchanged.Add(1)
	}
}

// heard is how many frames arrived and the longest wait for one since the last call.
func (n *bystanders) heard() (frames uint64, stall time.Duration) {
	return n.exchanged.Load(), time.Duration(n.stall.Swap(0))
}
