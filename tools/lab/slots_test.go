package lab

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// Where plugged memory lies, one piece each, with gaps so that none touches the next.
const (
	slotSize   = 64 << 10
	slotStride = 128 << 10
	slotGuest  = 0x10_0000_0000
	slotUser   = 0x7e00_0000_0000
)

// plugging is a guest whose memory grows piece by piece while it runs; it sends from and receives into the piece that was plugged last.
type plugging struct {
	*ownGuest
	tx, rx *virtq.Driver
	more   []byte // all pieces, one behind the other
	fd     int
}

func newPlugging(t *testing.T, g *ownGuest, pieces int) *plugging {
	t.Helper()
	p := &plugging{ownGuest: g}
	var err error
	if p.fd, err = shm.NewMemFD("dimms", int64(pieces*slotSize)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p.fd) })
	m, err := shm.Map(shm.MapOptions{FD: p.fd, Length: pieces * slotSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Free() })
	p.more = m.Bytes()
	for q, driver := range []**virtq.Driver{&p.rx, &p.tx} {
		*driver, err = virtq.NewDriver(virtq.DriverOptions{Layout: g.Layout(q), Size: g.QueueSize(), EventIdx: true})
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *plugging) region(i int) vhostuser.Region {
	return vhostuser.Region{
		GuestAddr: slotGuest + uint64(i)*slotStride, UserAddr: slotUser + uint64(i)*slotStride, Size: slotSize, MmapOffset: uint64(i) * slotSize, FD: p.fd,
	}
}

// use sends a numbered frame out of piece i to a peer, who must get it, and has the peer send one into it.
func (p *plugging) use(t *testing.T, i int, to *ownGuest) {
	t.Helper()
	const length, into = 900, slotSize / 2
	piece, address := p.more[i*slotSize:][:slotSize], slotGuest+uint64(i)*slotStride
	clear(piece[:vnettest.HeaderLen])
	putNumbered(piece[vnettest.HeaderLen:][:length], to.mac, p.mac, 1, uint64(i))
	clear(piece[into:])
	_, sent := p.tx.Add([]virtq.Buffer{{Addr: address, Len: vnettest.HeaderLen + length}}, nil)
	_, offered := p.rx.Add(nil, []virtq.Buffer{{Addr: address + into, Len: 2048}})
	if !sent || !offered {
		t.Fatalf("piece %d: the rings are full", i)
	}
	for q, driver := range []*virtq.Driver{p.rx, p.tx} {
		if driver.Publish() {
			shm.Signal(p.KickFD(q))
		}
	}
	back := make([]byte, length)
	putNumbered(back, p.mac, to.mac, 2, uint64(i))
	if err := to.Send(back); err != nil {
		t.Fatal(err)
	}
	var came, left, arrived bool
	for begin := time.Now(); !came || !left || !arrived; time.Sleep(20 * time.Microsecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("piece %d: sent %v, arrived %v, received %v", i, left, arrived, came)
		}
		if _, _, ok, err := p.tx.Used(); err != nil {
			t.Fatal(err)
		} else if ok {
			left = true
		}
		if _, n, ok, err := p.rx.Used(); err != nil {
			t.Fatal(err)
		} else if ok {
			flow, number, numbered, err := readNumbered(piece[into+vnettest.HeaderLen : into+int(n)])
			if err != nil || !numbered || flow != 2 || number != uint64(i) {
				t.Fatalf("piece %d: frame %d of flow %d came, %v", i, number, flow, err)
			}
			came = true
		}
		b, err := to.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if b == nil {
			continue
		}
		if flow, number, numbered, err := readNumbered(b); err != nil || !numbered || flow != 1 || number != uint64(i) {
			t.Fatalf("piece %d: frame %d of flow %d arrived, %v", i, number, flow, err)
		}
		arrived = true
	}
}

// A guest has all 509 pieces of memory that there may be, plugged and unplugged while it sends and receives in them, and two neighbours
// lose nothing meanwhile.
func TestMemorySlotsUnderTraffic(t *testing.T) {
	ctx := within(t, 2*time.Minute)
	d, socket, mac := neighbours(t, "grows", "peer", "left", "right")
	guests := map[string]*ownGuest{}
	for _, name := range []string{"grows", "peer", "left", "right"} {
		guests[name] = newOwnGuest(t, socket(name), mac(name), vnettest.Options{Features: splitRing})
	}
	absent := belongingsOf(t, ctx, d)
	const pieces = vhostuser.MaxMemSlots - 1 // the first holds rings
	p := newPlugging(t, guests["grows"], pieces+1)
	for _, g := range guests {
		if err := g.attach(ctx); err != nil {
			t.Fatal(err)
		}
	}
	reflects(t, guests["right"])
	beside := echo(t, guests["left"], 200, guests["right"].mac)

	if n, err := p.front.MaxMemSlots(); err != nil || n != vhostuser.MaxMemSlots {
		t.Fatalf("the daemon takes %d pieces of memory, %v", n, err)
	}
	for i := range pieces {
		if err := p.front.AddMemory(p.region(i)); err != nil {
			t.Fatalf("piece %d: %v", i, err)
		}
		p.use(t, i, guests["peer"])
	}
	if err := p.front.AddMemory(p.region(pieces)); !errors.Is(err, vhostuser.ErrRefused) {
		t.Errorf("one piece more than there may be: %v", err)
	}
	order := func(i int) int { return i * 101 % pieces } // 508 and 101 have no divisor in common
	for i := range pieces {
		p.use(t, order((i+pieces/2)%pieces), guests["peer"]) // another one, which is there still
		if err := p.front.RemoveMemory(p.region(order(i))); err != nil {
			t.Fatalf("piece %d: %v", order(i), err)
		}
		if i >= pieces/2 { // the first half comes back, the second stays away
			continue
		}
		if err := p.front.AddMemory(p.region(order(i))); err != nil {
			t.Fatalf("piece %d again: %v", order(i), err)
		}
		p.use(t, order(i), guests["peer"])
	}
	beside.complete(t)
	for _, g := range guests {
		g.hangUp()
	}
	back(t, ctx, d, absent)
	t.Logf("%d times memory was plugged, %d times unplugged; a neighbour sent %d frames, %d came back", pieces+pieces/2, pieces, beside.sent[0], beside.back[0].Load())
}
