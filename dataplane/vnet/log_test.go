package vnet_test

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// bitmap is a dirty log as a front-end has it.
type bitmap struct {
	log  *guestmem.Log
	bits []byte
	fd   int
}

func newBitmap(t testing.TB, guest *vnettest.Guest) *bitmap {
	t.Helper()
	pages := (vnettest.GuestBase + len(guest.Memory)) / guestmem.LogPage
	size := (pages/8 + 4095) &^ 4095
	b := &bitmap{}
	var err error
	if b.fd, err = shm.NewMemFD("log", int64(size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(b.fd) })
	m, err := shm.Map(shm.MapOptions{FD: b.fd, Length: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Free() })
	b.bits = m.Bytes()
	if b.log, err = guestmem.OpenLog(guestmem.LogOptions{FD: b.fd, Size: uint64(size)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.log.Free() })
	return b
}

func (b *bitmap) marked(page int) bool {
	page += vnettest.GuestBase / guestmem.LogPage
	return b.bits[page/8]>>(page%8)&1 != 0
}

func (b *bitmap) count() (n int) {
	for _, c := range b.bits {
		for ; c != 0; c &= c - 1 {
			n++
		}
	}
	return n
}

// While there is a log, every page that the device writes is marked in it: buffers, rings, what it tells about kicks. It is switched on and
// off under running rings.
func TestDirtyLog(t *testing.T) {
	for name, features := range formats {
		for _, eventIdx := range []uint64{0, vnet.FeatureEventIdx} {
			t.Run(name, func(t *testing.T) {
				f := vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | features | eventIdx
				h := newHouse(t, 1, 2, 0, vnettest.Options{QueueSize: 32, BufferSize: 4096, Features: f})
				if err := h.guest.Attach(h.dev); err != nil {
					t.Fatal(err)
				}
				log := newBitmap(t, h.guest)
				features := func(on bool) {
					all := f
					if on {
						all |= vhostuser.FeatureLogAll
					}
					if err := h.dev.SetFeatures(all); err != nil {
						t.Fatal(err)
					}
				}
				// turn moves frames about and sees which pages it changed. The guest's own stores are made before.
				turn := func() (changed, unmarked int) {
					t.Helper()
					for _, p := range h.guest.Pairs {
						for i := range 7 {
							if err := p.Send(make([]byte, 60+i*700)); err != nil {
								t.Fatal(err)
							}
						}
					}
					before := bytes.Clone(h.guest.Memory)
					for range 3 {
						h.workers[0].Round()
					}
					for _, l := range h.links {
						l.Port.Arm()
						l.Port.Disarm()
						l.Port.Arm()
					}
					for at := 0; at < len(before); at += guestmem.LogPage {
						if bytes.Equal(before[at:at+guestmem.LogPage], h.guest.Memory[at:at+guestmem.LogPage]) {
							continue
						}
						changed++
						if !log.marked(at / guestmem.LogPage) {
							unmarked++
						}
					}
					for _, p := range h.guest.Pairs {
						for i := range 7 {
							if b, err := p.Recv(); err != nil || len(b) != 60+i*700 {
								t.Fatalf("%d bytes came back, %v", len(b), err)
							}
						}
					}
					return changed, unmarked
				}
				if turn(); log.count() != 0 {
					t.Fatal("marks of a log that nobody gave")
				}
				if err := h.dev.SetLog(log.log); err != nil {
					t.Fatal(err)
				}
				if turn(); log.count() != 0 {
					t.Fatal("marks before the front-end asked for them")
				}
				for range 3 {
					features(true)
					clear(log.bits)
					for range 9 {
						if changed, unmarked := turn(); changed == 0 || unmarked != 0 {
							t.Fatalf("%d pages changed, %d of them unmarked", changed, unmarked)
						}
					}
					if n := log.count(); n > 200 {
						t.Errorf("%d pages are marked", n)
					}
					features(false)
					clear(log.bits)
					if turn(); log.count() != 0 {
						t.Fatal("marks after the front-end wanted no more")
					}
				}
				// Rings that start meanwhile are logged from their first store on.
				features(true)
				for q := range 4 {
					base, err := h.dev.StopVring(q)
					if err != nil {
						t.Fatal(err)
					}
					c := h.guest.Vring(q)
					c.Base = base
					if err := h.dev.StartVring(c); err != nil {
						t.Fatal(err)
					}
				}
				clear(log.bits)
				if _, unmarked := turn(); unmarked != 0 {
					t.Fatalf("%d unmarked pages of rings that were started again", unmarked)
				}
				// The log is a file like the guest's memory: taken away, it takes the port out of service.
				if err := unix.Ftruncate(log.fd, 0); err == nil {
					for _, p := range h.guest.Pairs {
						if err := p.Send(make([]byte, 60)); err != nil {
							t.Fatal(err)
						}
					}
					h.run(t)
					wait(t, "a log that is gone is not noticed", func() bool { return h.dev.State().Failed != nil })
				}
				if err := h.dev.SetLog(nil); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
