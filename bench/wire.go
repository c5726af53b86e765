package bench

import (
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/pinning"
	"github.com/shuntio/shunt/vxlan"
	"golang.org/x/sys/unix"
)

// GuestToWireOptions configure NewGuestToWire. Interface must be set.
type GuestToWireOptions struct {
	// Interface in the calling thread's network namespace, whose peer swallows what it gets.
	Interface string
	// Queue of it to send from.
	Queue int
	// FrameLen is the length of each of the guest's frames in bytes. Zero: 64. On the wire it has 50 more.
	FrameLen int
	// WorkerCPU and GuestCPU are where worker and load generator run.
	WorkerCPU, GuestCPU int
}

// GuestToWire is a guest that sends to another machine: virtqueue, VXLAN, AF_XDP, in one worker.
type GuestToWire struct {
	engine *engine
	fabric *vxlan.Switch
	guest  *vnettest.Guest
	port   *xsk.Port
	uplink *dataplane.Link
	on     atomic.Bool
	quit   atomic.Bool
	ended  sync.WaitGroup
	failed error
	procs  int // GOMAXPROCS before
}

// NewGuestToWire builds it. The guest is silent until On.
func NewGuestToWire(o GuestToWireOptions) (_ *GuestToWire, err error) {
	o.FrameLen = defaulted(o.FrameLen, 64)
	g := &GuestToWire{}
	if g.engine, err = newEngine(o.WorkerCPU, dataplane.Adaptive); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	g.fabric = vxlan.NewSwitch([]*dataplane.Worker{g.engine.worker}, vxlan.Options{})
	if err = g.openUplink(o); err != nil {
		return nil, err
	}
	if err = g.openGuest(o); err != nil {
		return nil, err
	}
	g.procs = runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0))) // as for two guests, until Close
	g.engine.start()
	g.ended.Add(1)
	go func() {
		defer g.ended.Done()
		g.failed = g.generate(o)
	}()
	return g, nil
}

// Addresses of the scenario: this machine, the other one, the guests on them.
var (
	localVTEP, remoteVTEP = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	uplinkMAC, remoteMAC  = wire.MAC(0x02_00_00_00_00_01), wire.MAC(0x02_00_00_00_00_02)
	guestIP, farIP        = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	guestMAC, farMAC      = wire.MAC(0x52_54_00_00_00_01), wire.MAC(0x52_54_00_00_00_02)
)

func (g *GuestToWire) openUplink(o GuestToWireOptions) error {
	device, err := xsk.LookupDevice(o.Interface)
	if err != nil {
		return err
	}
	w := g.engine.worker
	socket, err := xsk.NewUMEM(w.Pool().Memory()).Open(socketOptions(device, o.Queue))
	if err != nil {
		return err
	}
	g.uplink = &dataplane.Link{Name: "uplink", Counters: &dataplane.Counters{}}
	if g.port, err = xsk.NewPort(xsk.PortOptions{Socket: socket, Pool: w.Pool(), Counters: g.uplink.Counters, Fill: 64}); err != nil {
		return errors.Join(err, socket.Close())
	}
	g.uplink.Port = g.port
	links := []*dataplane.Link{g.uplink}
	err = g.fabric.AddUplink(vxlan.Uplink{Name: "uplink", Resolver: &vxlan.Fixed{
		End: vxlan.Local{Address: localVTEP, MAC: uplinkMAC, MTU: device.MTU}, Gateway: remoteMAC,
	}}, links, links)
	if err != nil {
		return err
	}
	w.Do(func() {
		w.Add(g.uplink)
		w.Watch(socket.FD(), unix.POLLIN, false)
	})
	return nil
}

// socketOptions are what the daemon opens an uplink's queue with.
func socketOptions(d xsk.Device, queue int) xsk.SocketOptions {
	o := xsk.SocketOptions{Device: d, Queue: queue}
	if xsk.TxBudget.Check() == nil {
		o.Budget = dataplane.Quantum
	}
	return o
}

func (g *GuestToWire) openGuest(o GuestToWireOptions) (err error) {
	if g.guest, err = vnettest.New(vnettest.Options{QueueSize: 1024}); err != nil {
		return err
	}
	g.guest.Prepare(make([]byte, o.FrameLen), func(_ int, f []byte) { // UDP, as testpmd's txonly sends
		wire.Ethernet(f).Set(farMAC, guestMAC, wire.EtherTypeIPv4)
		wire.IPv4(f[14:]).Set(wire.IPv4Fields{
			TotalLen: uint16(o.FrameLen - 14), TTL: 64, Protocol: wire.ProtoUDP, Source: guestIP.As4(), Destination: farIP.As4(),
		})
		wire.UDP(f[34:]).Set(9, 9, uint16(o.FrameLen-34), 0)
	})
	link, err := g.engine.open(g.guest)
	if err != nil {
		return err
	}
	err = g.fabric.SetNetwork(vxlan.Network{Name: "net", VNI: 100, Uplink: "uplink", Entries: []vxlan.Entry{{MAC: farMAC, VTEP: remoteVTEP}}})
	if err != nil {
		return err
	}
	guest := vxlan.Port{Name: link.Name, Network: "net", MAC: guestMAC, IPs: []netip.Addr{guestIP}, AntiSpoof: true}
	if err := g.fabric.AttachPort(guest, []*dataplane.Link{link}); err != nil {
		return err
	}
	g.engine.add(link)
	return nil
}

// On lets the guest send as fast as it goes, or be silent.
func (g *GuestToWire) On(on bool) { g.on.Store(on) }

// Uplink are the counters of what left, and Guest of what came from the guest.
func (g *GuestToWire) Uplink() *dataplane.Counters { return g.uplink.Counters }

// Guest are the counters of the guest's port.
func (g *GuestToWire) Guest() *dataplane.Counters { return g.engine.links[0].Counters }

// BusyNanos is the time the worker spent in rounds that found work, so far.
func (g *GuestToWire) BusyNanos() uint64 { return g.engine.worker.Stats().BusyNanos.Load() }

// Thread is the worker's, by the kernel's number.
func (g *GuestToWire) Thread() int { return int(g.engine.thread.Load()) }

// generate is the guest's driver, until Close.
func (g *GuestToWire) generate(o GuestToWireOptions) error {
	runtime.LockOSThread() // never unlocked: it is pinned
	if err := pinning.Apply(o.GuestCPU); err != nil {
		return err
	}
	for !g.quit.Load() {
		if !g.on.Load() {
			time.Sleep(100 * time.Microsecond)
			continue
		}
		if _, err := g.guest.Blast(64, o.FrameLen); err != nil {
			return err
		}
	}
	return nil
}

// Close ends everything, and tells what went wrong meanwhile.
func (g *GuestToWire) Close() error {
	if g.procs > 0 {
		defer runtime.GOMAXPROCS(g.procs)
	}
	g.quit.Store(true)
	g.ended.Wait()
	errs := []error{g.failed}
	g.engine.worker.Stop()
	g.engine.done.Wait()
	if g.port != nil {
		errs = append(errs, g.port.Close())
	}
	if g.fabric != nil {
		g.fabric.Close()
	}
	if g.guest != nil {
		g.guest.Close()
	}
	g.engine.close()
	return errors.Join(errs...)
}
