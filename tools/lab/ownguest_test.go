package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/lab/daemon"
)

// ownGuest is a guest of ours behind a front-end of ours, of which a test can ask what no hypervisor lets it: to lose its back-end and go on, to read its
// dirty log, to plug memory. The rings are one goroutine's, the front-end is the test's.
type ownGuest struct {
	*vnettest.Guest
	front  *vhostuser.Frontend
	socket string
	mac    [6]byte
}

// splitRing and packedRing are what a guest of ours negotiates.
const (
	splitRing  = vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | vnet.FeatureEventIdx
	packedRing = splitRing | vnet.FeaturePacked
)

// newOwnGuest makes a guest, which is not connected yet.
func newOwnGuest(t *testing.T, socket, mac string, o vnettest.Options) *ownGuest {
	t.Helper()
	g, err := vnettest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	own := &ownGuest{Guest: g, socket: socket, mac: [6]byte(hw)}
	t.Cleanup(func() { own.hangUp(); g.Close() })
	return own
}

// attach connects as soon as the back-end listens, and hands over rings that may have been in use. It is told their first places, which are stale then:
// a front-end whose back-end was killed knows no others.
func (o *ownGuest) attach(ctx context.Context) error {
	o.hangUp()
	front, err := vhostuser.DialWait(ctx, o.socket)
	if err != nil {
		return err
	}
	o.front, front.Timeout = front, 20*time.Second
	if err := front.Negotiate(o.Features()|vhostuser.FeatureProtocol, vhostuser.DefaultProtocolFeatures); err != nil {
		return err
	}
	if err := front.SetMemory(o.Region()); err != nil {
		return err
	}
	return o.startRings()
}

func (o *ownGuest) startRings() error {
	for q := range 2 * len(o.Pairs) {
		if err := o.front.StartVring(o.Vring(q)); err != nil {
			return err
		}
	}
	return nil
}

// hangUp ends the connection, if there is one.
func (o *ownGuest) hangUp() {
	if o.front != nil {
		_ = o.front.Close()
		o.front = nil
	}
}

// numbered is a frame that shows whether it arrives whole: behind the Ethernet header its flow, its number, a filling that depends on both, and a sum of all that.
const (
	numberedType = 0x88b5 // for experiments (IEEE 802)
	numberedHead = 14 + 1 + 8
)

func putNumbered(b []byte, to, from [6]byte, flow byte, number uint64) {
	copy(b, to[:])
	copy(b[6:], from[:])
	binary.BigEndian.PutUint16(b[12:], numberedType)
	b[14] = flow
	binary.BigEndian.PutUint64(b[15:], number)
	end := len(b) - 4
	for i := numberedHead; i < end; i++ {
		b[i] = byte(number)*7 + byte(i) + flow
	}
	binary.BigEndian.PutUint32(b[end:], crc32.ChecksumIEEE(b[14:end]))
}

// readNumbered is false for frames of other kinds.
func readNumbered(b []byte) (flow byte, number uint64, ok bool, err error) {
	if len(b) < numberedHead+4 || binary.BigEndian.Uint16(b[12:]) != numberedType {
		return 0, 0, false, nil
	}
	end := len(b) - 4
	if crc32.ChecksumIEEE(b[14:end]) != binary.BigEndian.Uint32(b[end:]) {
		return 0, 0, false, fmt.Errorf("a frame of %d bytes arrived with a wrong checksum: % x...", len(b), b[:numberedHead])
	}
	return b[14], binary.BigEndian.Uint64(b[15:]), true, nil
}

// echoes has a guest send numbered frames to others, who send them back, and counts what comes back. It goes on whatever happens to
// the back-end.
type echoes struct {
	guest  *ownGuest
	to     [][6]byte // by flow
	size   int
	back   []atomic.Uint64 // by flow
	sent   []uint64
	drain  atomic.Bool // at the end, wait for what is under way
	stop   chan struct{}
	ended  chan error
	ending sync.Once
}

// echo begins, until the end of the test or of echoes.
func echo(t *testing.T, g *ownGuest, size int, to ...[6]byte) *echoes {
	e := &echoes{guest: g, to: to, size: size, back: make([]atomic.Uint64, len(to)), sent: make([]uint64, len(to)), stop: make(chan struct{}), ended: make(chan error, 1)}
	go func() { e.ended <- e.run() }()
	t.Cleanup(func() { e.end(t) })
	return e
}

func (e *echoes) end(t *testing.T) {
	e.ending.Do(func() {
		close(e.stop)
		if err := <-e.ended; err != nil {
			t.Error(err)
		}
	})
}

// complete ends echoes that nothing may be lost of.
func (e *echoes) complete(t *testing.T) {
	t.Helper()
	e.drain.Store(true)
	e.end(t)
	for flow, sent := range e.sent {
		if came := e.back[flow].Load(); came != sent {
			t.Errorf("of %d frames of a neighbour %d came back", sent, came)
		}
	}
}

// window is how many frames of a flow are under way at once; a flow whose frames are lost goes on after lostAfter.
const (
	window    = 16
	lostAfter = 20 * time.Millisecond
	drainTime = 5 * time.Second
)

// whole tells whether everything came back.
func (e *echoes) whole() bool {
	for flow, sent := range e.sent {
		if e.back[flow].Load() != sent {
			return false
		}
	}
	return true
}

func (e *echoes) run() error {
	frame := make([]byte, e.size)
	progress := make([]time.Time, len(e.to)) // when the flow last went on
	answered := make([]uint64, len(e.to))    // what had come back or was given up then
	for {
		stopped := false
		select {
		case <-e.stop:
			if !e.drain.Load() || e.whole() || time.Since(progress[0]) > drainTime {
				return nil
			}
			stopped = true
		default:
		}
		idle := true
		for {
			b, err := e.guest.Recv()
			if err != nil {
				return err
			}
			if b == nil {
				break
			}
			idle = false
			flow, _, ok, err := readNumbered(b)
			if err != nil {
				return err
			}
			if ok && int(flow) < len(e.back) {
				e.back[flow].Add(1)
				answered[flow]++
				progress[flow] = time.Now()
			}
		}
		for flow := range e.to {
			if stopped {
				break
			}
			if e.sent[flow]-answered[flow] >= window { // more than that may come back, after a kill
				if answered[flow] > e.sent[flow] || time.Since(progress[flow]) > lostAfter {
					answered[flow], progress[flow] = e.sent[flow], time.Now()
				}
				continue
			}
			if _, err := e.guest.Blast(0, 0); err != nil { // takes back what was sent
				return err
			}
			if e.guest.Tx.Free() == 0 {
				continue
			}
			putNumbered(frame, e.to[flow], e.guest.mac, byte(flow), e.sent[flow])
			if err := e.guest.Send(frame); err != nil {
				return err
			}
			e.sent[flow]++
			idle = false
		}
		if idle {
			e.guest.wait(2 * time.Millisecond)
		}
	}
}

// wait waits until a receiveq's call, or for a time.
func (o *ownGuest) wait(limit time.Duration) {
	o.Rx.Arm()
	poll := []unix.PollFd{{Fd: int32(o.CallFD(0)), Events: unix.POLLIN}}
	if n, _ := unix.Poll(poll, int(limit.Milliseconds())); n > 0 {
		var count [8]byte
		_, _ = unix.Read(o.CallFD(0), count[:])
	}
}

// reflects has a guest send back what it gets, until the end of the test.
func reflects(t *testing.T, g *ownGuest) {
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.reflect(stop) }()
	t.Cleanup(func() {
		close(stop)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func (o *ownGuest) reflect(stop chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		b, err := o.Recv()
		if err != nil {
			return err
		}
		if b == nil {
			o.wait(2 * time.Millisecond)
			continue
		}
		to := [6]byte(b[6:])
		copy(b, to[:])
		copy(b[6:], o.mac[:])
		if err := o.Send(b); err != nil {
			return err
		}
	}
}

// flood has a guest send frames of 64 bytes to another as fast as it can, and take what comes, until the end of the test or of flood.
type flood struct {
	sent, received atomic.Uint64
	stop           func()
}

func floods(t *testing.T, g *ownGuest, to [6]byte) *flood {
	const length = 60 // without its check sequence
	frame := make([]byte, length)
	putNumbered(frame, to, g.mac, 0, 0)
	g.Prepare(frame, nil)
	f, stop, ended := &flood{}, make(chan struct{}), make(chan error, 1)
	go func() { ended <- f.run(g, length, stop) }()
	f.stop = sync.OnceFunc(func() {
		close(stop)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

func (f *flood) run(g *ownGuest, length int, stop chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		sent, err := g.Blast(64, length)
		if err != nil {
			return err
		}
		came, err := g.Sink(64)
		if err != nil {
			return err
		}
		f.sent.Add(uint64(sent))
		f.received.Add(uint64(came))
		if sent+came == 0 {
			time.Sleep(20 * time.Microsecond)
		}
	}
}

// neighbours is a daemon on which guests of ours meet in a network that leads nowhere else.
func neighbours(t *testing.T, names ...string) (d *daemon.Daemon, socket func(name string) string, mac func(name string) string) {
	t.Helper()
	host := namespace(t, "host")
	dir, err := os.MkdirTemp("", "own") // t.TempDir's path is too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = func(name string) string { return filepath.Join(dir, name+".sock") }
	mac = func(name string) string { return fmt.Sprintf("52:54:00:00:05:%02x", slices.Index(names, name)) }
	config := "workers: {cpus: [1]}\nnetworks: [{name: blue}]\nports:\n"
	for _, name := range names {
		config += fmt.Sprintf("  - {name: %s, network: blue, socket: %q, mac: %q}\n", name, socket(name), mac(name))
	}
	return start(t, host, "shuntd", config), socket, mac
}
