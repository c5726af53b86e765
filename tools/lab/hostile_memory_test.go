package lab

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/control"
)

// attackTruncation cuts a guest's memory off at many places while frames go both ways: in its buffers, in its tables, at its beginning.
func attackTruncation(t *testing.T, a *arena) {
	for _, form := range kinds() {
		t.Run(form.name, func(t *testing.T) {
			port, i := a.next(t)
			cuts := times(8, 64)
			for cut := range cuts {
				g := a.guest(t, vnettest.Options{Features: form.features})
				f := a.join(t, port, g)
				g.Prepare(etherFrame(hardware(macWitness), hardware(villainMAC(i)), 0), nil)
				if _, err := g.Blast(256, 64); err != nil {
					t.Fatal(err)
				}
				// Tables lie at the beginning, and a mebibyte of buffers behind them.
				const tables, buffers = 64 << 10, 1 << 20
				seen, end := len(a.d.Log()), buffers/cuts*cut/4096*4096
				if err := unix.Ftruncate(g.FD, int64(end)); err != nil {
					t.Fatal(err)
				}
				a.gone(t, port, seen, func() {
					if shm.Signal(g.KickFD(1)); end >= tables { // we still have ours, too
						_, _ = g.Blast(256, 64)
						_, _ = g.Sink(256)
					}
				})
				f.Close()
				g.Close()
			}
			a.serves(t, port, i)
		})
	}
}

// gone waits until the daemon has noticed that memory went away. The neighbours' frames to everybody make it touch the receiveq, poke the other.
func (a *arena) gone(t *testing.T, port string, seen int, poke func()) {
	t.Helper()
	for ctx := within(t, 20*time.Second); !said(a.d.Log()[seen:], port, "out of service", "went away"); time.Sleep(time.Millisecond) {
		poke()
		if ctx.Err() != nil {
			t.Fatalf("shuntd did not notice that the memory of port %s is gone:\n%s", port, a.of(port))
		}
	}
}

// attackMixedBatch has the memory of a single frame go away, at every place of a batch whose others are good: of its head, which is copied as the batch is taken, and of its body, which is
// read when it is put into the witness's buffers.
func attackMixedBatch(t *testing.T, a *arena) {
	for _, form := range kinds() {
		t.Run(form.name, func(t *testing.T) {
			port, i := a.next(t)
			places := []int{0, 1, 31, 62, 63}
			if times(0, 1) == 1 {
				places = nil
				for place := range 64 {
					places = append(places, place)
				}
			}
			for _, place := range places {
				for _, body := range []bool{false, true} {
					g := a.guest(t, vnettest.Options{Features: form.features})
					r := rewrite(g, 1)
					good, bad := len(g.Memory)-128<<10, len(g.Memory)-64<<10
					frame := append(etherFrame(hardware(macWitness), hardware(villainMAC(i)), 0), make([]byte, 1000)...)
					copy(g.Memory[good+vnettest.HeaderLen:], frame)
					head := bad - 512 // a head that is there and a body that is not
					copy(g.Memory[head+vnettest.HeaderLen:], frame)
					for k := range 64 {
						at := good
						if k == place {
							if at = bad; body {
								at = head
							}
						}
						r.put(k, here+uint64(at), uint32(vnettest.HeaderLen+len(frame)), 0, uint16(k))
						r.offer(uint16(k))
					}
					a.halfGone(t, port, g, bad)
					g.Close()
				}
			}
			a.serves(t, port, i)
		})
	}
}

// halfGone joins, and cuts the memory off before the rings start.
func (a *arena) halfGone(t *testing.T, port string, g *vnettest.Guest, end int) {
	t.Helper()
	seen := len(a.d.Log())
	f := a.dial(t, port)
	defer f.Close()
	err := errors.Join(
		f.Negotiate(g.Features()|vhostuser.FeatureProtocol, vhostuser.DefaultProtocolFeatures),
		f.SetMemory(g.Region()),
		unix.Ftruncate(g.FD, int64(end)),
		f.StartVring(g.Vring(0)))
	must(t, err)
	_ = f.StartVring(g.Vring(1)) // before the answer to its last message the port may have failed
	a.gone(t, port, seen, func() { shm.Signal(g.KickFD(1)) })
}

// attackRegions gives memory that cannot be, and memory at the ends of the address space, which can.
func attackRegions(t *testing.T, a *arena) {
	fd, err := shm.NewMemFD("shunt-test-extremes", 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	sparse, err := shm.NewMemFD("shunt-test-sparse", 8<<40)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sparse)
	const page = 4096
	top := uint64(math.MaxUint64 - page + 1) // the last page, whose end is 2^64
	for _, bad := range []struct {
		name   string
		region vhostuser.Region
	}{
		{"the last page", vhostuser.Region{GuestAddr: top, UserAddr: 1 << 40, Size: page, FD: fd}},
		{"the last page of the front-end", vhostuser.Region{GuestAddr: 0, UserAddr: top, Size: page, FD: fd}},
		{"an end that wraps", vhostuser.Region{GuestAddr: top, UserAddr: 1 << 40, Size: 1 << 30, FD: fd}},
		{"nothing", vhostuser.Region{GuestAddr: 0, UserAddr: 0, Size: 0, FD: fd}},
		{"everything", vhostuser.Region{GuestAddr: 0, UserAddr: 0, Size: top, FD: fd}},
		{"an offset beyond the file", vhostuser.Region{GuestAddr: 0, UserAddr: 0, Size: page, MmapOffset: 1 << 62, FD: fd}},
		{"an offset that wraps", vhostuser.Region{GuestAddr: 0, UserAddr: 0, Size: 2 * page, MmapOffset: top, FD: fd}},
		{"more than may be mapped", vhostuser.Region{GuestAddr: 0, UserAddr: 0, Size: 8 << 40, FD: sparse}},
	} {
		port, _ := a.next(t)
		f := a.dial(t, port)
		must(t, f.Negotiate(vhostuser.FeatureProtocol|usual, vhostuser.DefaultProtocolFeatures))
		if err := f.SetMemory(bad.region); !errors.Is(err, vhostuser.ErrRefused) {
			t.Errorf("%s: %v", bad.name, err)
		}
		a.names(t, port, "SET_MEM_TABLE: bad memory region")
		f.Close()
	}
	// What is at the ends and right is served.
	port, i := a.next(t)
	g := a.guest(t, vnettest.Options{})
	f := a.dial(t, port)
	must(t, f.Negotiate(g.Features()|vhostuser.FeatureProtocol, vhostuser.DefaultProtocolFeatures))
	high := vhostuser.Region{GuestAddr: top - page, UserAddr: top - page, Size: page, FD: fd}
	low := vhostuser.Region{GuestAddr: 0, UserAddr: 0, Size: page, FD: fd}
	must(t, f.SetMemory(low, g.Region(), high))
	for q := range 2 {
		must(t, f.StartVring(g.Vring(q)))
	}
	must(t, g.Send(etherFrame(hardware(macWitness), hardware(villainMAC(i)), 0)))
	for ctx := within(t, 20*time.Second); counters(t, a.d, control.KindPort, port).RxPackets == 0; time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("memory at both ends of the addresses is not served")
		}
	}
	f.Close()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// attackLog gives dirty logs of odd sizes and places, also in the guest's own memory and under its rings, and takes them away under traffic.
func attackLog(t *testing.T, a *arena) {
	port, i := a.next(t)
	for _, form := range kinds() {
		g := a.guest(t, vnettest.Options{Features: form.features})
		f := a.join(t, port, g)
		stop := a.traffic(t, g, i)
		fd, err := shm.NewMemFD("shunt-test-log", 1<<20)
		must(t, err)
		refused := 0
		for _, log := range []struct {
			fd           int
			size, offset uint64
			bad          bool
		}{
			{fd, 0, 0, true}, {fd, 1, 0, false}, {fd, 7, 8, false}, {fd, 4097, 4096 - 8, false}, {fd, 1 << 20, 0, false}, {fd, 1<<20 + 1, 0, true},
			{fd, 8, 1, true}, {fd, math.MaxUint64, 8, true}, {fd, 8, math.MaxUint64 - 7, true}, {fd, 1 << 63, 0, true}, {g.CallFD(0), 8, 0, true},
			{g.FD, 1 << 16, uint64(len(g.Memory) - 1<<16), false}, {g.FD, uint64(len(g.Memory)), 0, false}, // the last: over the rings themselves
		} {
			err := f.SetLog(log.fd, log.size, log.offset)
			if log.bad != (err != nil) {
				t.Errorf("log of %d bytes at %d: %v", log.size, log.offset, err)
			}
			if err != nil {
				refused++
				continue
			}
			for _, on := range []bool{true, false, true} {
				rings := []vhostuser.VringConfig{g.Vring(0), g.Vring(1)}
				for q := range rings {
					rings[q].LogAddr = []uint64{0, 1, math.MaxUint64, here}[(q+refused)%4]
				}
				if err := f.LogAll(on, rings...); err != nil {
					break // a log over the rings may have broken them by now
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
		stop()
		unix.Close(fd)
		f.Close()
		g.Close()
		a.names(t, port, "dirty log")
	}
	// A log that is cut off where it cannot be sealed, and one where it can.
	for _, sealed := range []bool{false, true} {
		g := a.guest(t, vnettest.Options{})
		f := a.join(t, port, g)
		stop := a.traffic(t, g, i)
		flags := unix.MFD_CLOEXEC
		if sealed {
			flags |= unix.MFD_ALLOW_SEALING
		}
		fd, err := unix.MemfdCreate("shunt-test-log", flags)
		must(t, err)
		must(t, unix.Ftruncate(fd, 1<<16))
		must(t, f.SetLog(fd, 1<<16, 0))
		must(t, f.LogAll(true, g.Vring(0), g.Vring(1)))
		seen := len(a.d.Log())
		err = unix.Ftruncate(fd, 0)
		if sealed && err == nil {
			t.Error("a log that could be sealed was not")
		}
		if !sealed {
			must(t, err)
			for ctx := within(t, 20*time.Second); !said(a.d.Log()[seen:], port, "out of service", "dirty log"); time.Sleep(time.Millisecond) {
				if ctx.Err() != nil {
					t.Fatalf("shuntd did not notice that the log is gone:\n%s", a.of(port))
				}
			}
		}
		stop()
		unix.Close(fd)
		f.Close()
		g.Close()
	}
	a.serves(t, port, i)
}

// traffic has a guest send to the witness and take what comes until stop is called. What it finds in its rings may be nonsense.
func (a *arena) traffic(t *testing.T, g *vnettest.Guest, i int) (stop func()) {
	t.Helper()
	for _, p := range g.Pairs {
		p.Prepare(etherFrame(hardware(macWitness), hardware(villainMAC(i)), 0), nil)
	}
	stopping, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stopping:
				return
			default:
			}
			for _, p := range g.Pairs {
				_, _ = p.Blast(64, 64)
				_, _ = p.Sink(64)
			}
			time.Sleep(100 * time.Microsecond)
		}
	}()
	return func() { close(stopping); <-ended }
}

// attackPlaces has rings lie over each other, over their own buffers, and in turn over everything.
func attackPlaces(t *testing.T, a *arena) {
	port, i := a.next(t)
	for _, form := range kinds() {
		base := func(g *vnettest.Guest) (rx, tx vhostuser.VringConfig) { return g.Vring(0), g.Vring(1) }
		for name, overlay := range map[string]func(rx, tx *vhostuser.VringConfig){
			"both rings in one place": func(rx, tx *vhostuser.VringConfig) {
				rx.DescAddr, rx.AvailAddr, rx.UsedAddr = tx.DescAddr, tx.AvailAddr, tx.UsedAddr
			},
			"the used ring over the descriptors": func(_, tx *vhostuser.VringConfig) { tx.UsedAddr = tx.DescAddr },
			"the used ring over the avail ring":  func(_, tx *vhostuser.VringConfig) { tx.UsedAddr = tx.AvailAddr },
			"all three in one place": func(rx, _ *vhostuser.VringConfig) {
				rx.AvailAddr, rx.UsedAddr = rx.DescAddr, rx.DescAddr
			},
			"one's used ring over the other's avail ring": func(rx, tx *vhostuser.VringConfig) { rx.UsedAddr = tx.AvailAddr },
			"in the buffers": func(rx, tx *vhostuser.VringConfig) {
				rx.DescAddr += 1 << 16
				tx.AvailAddr += 1 << 16
			},
			"at the very end": func(_, tx *vhostuser.VringConfig) { tx.UsedAddr = vnettest.UserBase + 2<<20 - 8 },
		} {
			g := a.guest(t, vnettest.Options{Features: form.features | vnet.FeatureEventIdx})
			rx, tx := base(g)
			overlay(&rx, &tx)
			f := a.dial(t, port)
			must(t, f.Negotiate(g.Features()|vhostuser.FeatureProtocol, vhostuser.DefaultProtocolFeatures))
			must(t, f.SetMemory(g.Region()))
			err := f.StartVring(rx)
			if err == nil {
				err = f.StartVring(tx)
			}
			stop := a.traffic(t, g, i)
			time.Sleep(10 * time.Millisecond)
			stop()
			if err != nil {
				t.Logf("%s, %s: %v", form.name, name, err)
			}
			f.Close()
			g.Close()
		}
	}
	a.serves(t, port, i)
}

// attackSlots adds and removes memory in a loop while frames lie in it: what is under way is lost, nothing else.
func attackSlots(t *testing.T, a *arena) {
	port, i := a.next(t)
	g := a.guest(t, vnettest.Options{QueueSize: 256})
	f := a.join(t, port, g)
	fd, err := shm.NewMemFD("shunt-test-slots", 509*4096)
	must(t, err)
	defer unix.Close(fd)
	stop := a.traffic(t, g, i)
	slot := func(n int) vhostuser.Region {
		return vhostuser.Region{GuestAddr: 1<<36 + uint64(n)*8192, UserAddr: 1<<36 + uint64(n)*8192, Size: 4096, MmapOffset: uint64(n) * 4096, FD: fd}
	}
	for range times(2, 40) {
		for n := range 508 {
			must(t, f.AddMemory(slot(n)))
		}
		if err := f.AddMemory(slot(508)); !errors.Is(err, vhostuser.ErrRefused) {
			t.Errorf("a 510th slot: %v", err)
		}
		for n := range 508 {
			must(t, f.RemoveMemory(slot((n*7)%508)))
		}
	}
	stop()
	if status, err := a.d.API().Port(t.Context(), port); err != nil || status.Status == nil || status.Status.State != control.StateConnected {
		t.Errorf("%+v, %v", status, err)
	}
	f.Close()
	g.Close()
	// The slot that has the buffers goes, again and again, while they are in the ring: the port fails, with a reason.
	for range times(5, 200) {
		g := a.guest(t, vnettest.Options{})
		buffers, err := shm.NewMemFD("shunt-test-buffers", 1<<20)
		must(t, err)
		moved := vhostuser.Region{GuestAddr: 1 << 36, UserAddr: 1 << 36, Size: 1 << 20, FD: buffers}
		r := rewrite(g, 1)
		for k := range 256 {
			r.put(k, 1<<36+uint64(k)*4096, 1000, 0, uint16(k))
			r.offer(uint16(k))
		}
		binary.LittleEndian.PutUint16(r.Avail[2:], 0)
		f := a.join(t, port, g)
		seen := len(a.d.Log())
		must(t, f.AddMemory(moved))
		binary.LittleEndian.PutUint16(r.Avail[2:], 256)
		_ = f.RemoveMemory(moved)
		binary.LittleEndian.PutUint16(r.Avail[2:], 512) // the same heads once more
		for ctx := within(t, 20*time.Second); !said(a.d.Log()[seen:], port, "out of service"); time.Sleep(time.Millisecond) {
			shm.Signal(g.KickFD(1))
			if ctx.Err() != nil {
				t.Fatalf("buffers in a slot that is gone are no reason:\n%s", a.of(port))
			}
		}
		unix.Close(buffers)
		f.Close()
		g.Close()
	}
	a.serves(t, port, i)
}

// attackRestarts stops and starts the rings of two pairs that two workers own, while frames go both ways and the pairs change their workers.
func attackRestarts(t *testing.T, a *arena) {
	port, i := a.next(t)
	for _, form := range kinds() {
		g := a.guest(t, vnettest.Options{Features: form.features | vnet.FeatureMQ, Pairs: 2})
		f := a.join(t, port, g)
		c, err := a.d.API().Port(t.Context(), port)
		must(t, err)
		moving, moved := make(chan struct{}), make(chan error, 1)
		go func() {
			var failed error
			moves := 0
			for at := 0; ; at++ {
				select {
				case <-moving:
					t.Logf("the pairs changed their workers %d times", moves)
					moved <- failed
					return
				default:
				}
				p := c.Config
				p.Workers = [][]int{{0, 1}, {1, 0}, {0}, {1}}[at%4]
				if _, err := a.d.API().PutPort(t.Context(), p); err != nil {
					failed = err
				}
				moves++
			}
		}()
		for round := range times(60, 5000) {
			// Frames on the way when a ring stops are in its ring, or were taken and given back: the driver goes on with the same ring.
			for _, p := range g.Pairs {
				p.Prepare(etherFrame(hardware(macWitness), hardware(villainMAC(i)), 0), nil)
				if _, err := p.Blast(100, 64); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if _, err := p.Sink(100); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
			for q := range 4 {
				if (round+q)%3 == 0 {
					continue
				}
				base, err := f.StopVring(q)
				must(t, err)
				v := g.Vring(q)
				v.Base = base
				must(t, f.StartVring(v))
			}
		}
		close(moving)
		must(t, <-moved)
		f.Close()
		g.Close()
	}
	a.serves(t, port, i)
}
