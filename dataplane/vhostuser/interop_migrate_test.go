package vhostuser

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/tools/need"
)

// TestQEMUListens: QEMU waits for its back-end, loses it, and gets it back.
func TestQEMUListens(t *testing.T) {
	need.Program(t, "qemu-system-x86_64")
	d := newFake(t)
	d.offer = Offer{Features: netFeatures, Vrings: 2, QueueNum: 1, ProtocolFeatures: DefaultProtocolFeatures | ProtocolNetMTU}
	path := filepath.Join(t.TempDir(), "s")
	b := connectFake(t, d, Options{Path: path})
	p := qemu(t, path+",server=on", "", "")
	pairRuns(t, d)
	b.Disconnect()
	eventually(t, "disconnected", func() bool { return d.disconnects() == 1 })
	pairRuns(t, d)
	if s := b.Status(); s.State != Connected || s.Session.Refused != 0 || s.LastEnd != "" {
		t.Errorf("%+v, %+v", s, s.Session)
	}
	p.ask("quit")
	p.left()
	eventually(t, "QEMU is gone", func() bool { return b.Status().State == Connecting && d.disconnects() == 2 })
}

// TestVirtioUserListens: DPDK's front-end as the server.
func TestVirtioUserListens(t *testing.T) {
	need.Program(t, "dpdk-testpmd")
	d := newFake(t)
	d.offer = Offer{Features: netFeatures, Vrings: 2, QueueNum: 1, ProtocolFeatures: DefaultProtocolFeatures | ProtocolNetMTU}
	path := filepath.Join(t.TempDir(), "s")
	b := connectFake(t, d, Options{Path: path})
	p := testpmd(t, "net_virtio_user0,path="+path+",server=1,queues=1,queue_size=256,mac=52:54:00:00:00:01", "--forward-mode=rxonly")
	pairRuns(t, d)
	b.Disconnect()
	eventually(t, "disconnected", func() bool { return d.disconnects() == 1 })
	pairRuns(t, d)
	if s := b.Status(); s.Session.Refused != 0 || s.LastEnd != "" {
		t.Errorf("%+v, %+v", s, s.Session)
	}
	p.end()
}

// movingDevice writes to its guest's memory all the time while its rings run, and marks what it wrote.
type movingDevice struct {
	*fakeDevice
	memory  *guestmem.Map
	written [movingPages]uint64 // what it wrote last to each page
	writes  int
}

// Where it writes: in a machine of 128 MiB nobody else does.
const (
	movingFirst = 100 << 20
	movingPages = 64
)

func newMoving(t *testing.T) *movingDevice {
	d := &movingDevice{fakeDevice: newFake(t)}
	d.offer = Offer{Features: netFeatures, Vrings: 2, QueueNum: 1, ProtocolFeatures: DefaultProtocolFeatures}
	return d
}

// write is one round of the device.
func (d *movingDevice) write() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.rings) < 2 || d.memory == nil {
		return
	}
	for range 8 {
		d.writes++
		page := d.writes * 37 % movingPages
		at := uint64(movingFirst + page*pageSize + 8)
		b := d.memory.View(at, 8)
		if b == nil {
			return
		}
		binary.LittleEndian.PutUint64(b, uint64(d.writes))
		d.written[page] = uint64(d.writes)
		if d.features&FeatureLogAll != 0 {
			d.log.Mark(at, 8)
		}
	}
}

func (d *movingDevice) SetMemory(regions []Region) error {
	for _, r := range regions {
		if err := d.AddMemory(r); err != nil {
			return err
		}
	}
	return nil
}

func (d *movingDevice) AddMemory(r Region) error {
	d.set(func() {
		m, err := d.memory.With(mapped(r))
		if err != nil {
			d.complain("%v", err)
			return
		}
		d.memory = m
	})
	return d.fakeDevice.AddMemory(r)
}

func (d *movingDevice) Disconnected() {
	d.set(func() {
		if d.memory != nil {
			_ = d.memory.Free()
		}
		d.memory = nil
	})
	d.fakeDevice.Disconnected()
}

// TestQEMUMigrates: a machine moves from one QEMU to another while a device writes to its memory and the firmware uses the rings. What the device wrote until the
// rings were stopped is on the other side, and the guest's arrival is announced.
func TestQEMUMigrates(t *testing.T) {
	need.Program(t, "qemu-system-x86_64")
	dir := t.TempDir()
	source, target := newMoving(t), newMoving(t)
	rec := &recorder{}
	from := listenDevice(t, source, Options{tap: rec.tap})
	p := qemu(t, from.path, "", "")
	pairRuns(t, source.fakeDevice)
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				source.write()
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	eventually(t, "writes", func() bool { n := 0; source.set(func() { n = source.writes }); return n > 1000 })
	image := filepath.Join(dir, "image")
	p.ask(fmt.Sprintf("migrate \"exec:cat > %s && mv %s %s.whole\"", image, image, image))
	eventually(t, "rings stop", func() bool { _, running := source.running(1); return !running })
	if s := from.Status().Session; s.Refused != 0 || s.LogMissed != 0 {
		t.Errorf("%+v", s)
	}
	if !slices.Contains(source.seen(), "log true") || !slices.Contains(source.seen(), "update 0") {
		t.Errorf("nothing was logged: %v", source.seen())
	}
	eventually(t, "image", func() bool { names, _ := filepath.Glob(image + ".whole"); return len(names) == 1 })

	to := listenDevice(t, target, Options{})
	q := qemu(t, to.path, "", "", "-incoming", "exec:cat "+image+".whole")
	pairRuns(t, target.fakeDevice)
	target.set(func() {
		for page, want := range source.written {
			b := target.memory.View(uint64(movingFirst+page*pageSize+8), 8)
			if have := binary.LittleEndian.Uint64(b); have != want {
				t.Errorf("page %d arrived as of write %d, the last was %d", page, have, want)
			}
		}
	})
	eventually(t, "the announcement", func() bool {
		var mac [6]byte
		target.set(func() { mac = target.rarp })
		return mac == [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56} // QEMU's first
	})
	for _, qemu := range []*process{p, q} {
		qemu.ask("quit")
		qemu.left()
	}
	eventually(t, "QEMU is gone", func() bool { return from.Status().Session == nil })
	rec.save(t, "qemu-7.2-migrate", "QEMU 7.2, q35: the source of a live migration, log and all, until it quits")
}
