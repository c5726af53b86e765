package main

import (
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan"
)

// Status implements control.Engine.
func (e *engine) Status() control.EngineStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.worker.Stats()
	s := control.EngineStatus{Workers: []control.WorkerStatus{{
		CPU: e.cpu, Idle: e.idle, Busy: e.load.busy(), Rounds: w.Rounds.Load(), Sleeps: w.Sleeps.Load(), Packets: w.Work.Load(),
		Frames: e.umem.Memory().Len(), FreeFrames: int(w.Free.Load()),
	}}}
	for _, u := range e.uplinks {
		s.Uplinks = append(s.Uplinks, u.status())
	}
	for name, n := range e.networks {
		s.Networks = append(s.Networks, e.networkStatus(name, n))
	}
	for _, p := range e.ports {
		s.Ports = append(s.Ports, p.status())
	}
	return s
}

func (u *uplink) status() control.UplinkStatus {
	local := u.resolve.Local()
	s := control.UplinkStatus{
		Name: u.config.Name, Interface: u.config.Interface, Queues: len(u.queues), Address: local.Address, MTU: local.MTU,
		Neighbours: u.neighbours(),
	}
	s.State, s.Reason = u.state()
	if u.program == nil {
		return s
	}
	s.XDP, s.Bind = u.program.Mode().String(), "copy"
	if u.zeroCopy() {
		s.Bind = "zerocopy"
	}
	return s
}

// state is that of the uplink, with the reason if it is not up.
func (u *uplink) state() (control.State, string) {
	switch {
	case u.resolve.Presence().Index == 0:
		return control.StateDown, "the interface is gone; when it is back it is taken into service again"
	case u.failed != nil:
		return control.StateFailed, u.failed.Error()
	case !u.resolve.Up():
		return control.StateDown, "the interface is set down or has no carrier"
	case u.program == nil:
		return control.StateDown, "the interface is just being taken into service again"
	}
	return control.StateUp, ""
}

// neighbours is how many next hops are resolved.
func (u *uplink) neighbours() (n int) {
	for _, hop := range u.resolve.Hops() {
		if hop.Problem == "" && hop.Next.Destination != 0 {
			n++
		}
	}
	return n
}

func (e *engine) networkStatus(name string, n *network) control.NetworkStatus {
	s := control.NetworkStatus{
		Name: name, VNI: n.config.VNI, Uplink: n.config.Uplink, Learning: n.config.Learning, Static: len(n.config.Entries), Problem: n.problem,
	}
	s.MTU, _ = e.fabric.MTU(name)
	for _, entry := range e.fabric.FDB() {
		if entry.Network == name && entry.Kind == vxlan.KindLearned {
			s.Learned++
		}
	}
	for _, p := range e.ports {
		if p.config.Network == name {
			s.Ports++
		}
	}
	return s
}

func (p *port) status() control.PortStatus {
	state := p.device.State()
	s := control.PortStatus{
		Name: p.config.Name, Network: p.config.Network, Socket: p.config.Socket, State: control.StateDisconnected, MAC: p.config.MAC,
	}
	switch {
	case state.Failed != nil:
		s.State, s.Reason = control.StateFailed, state.Failed.Error()
	case state.Running:
		s.State, s.Queues, s.Ring = control.StateConnected, 1, "split"
		s.Features = featureNames(state.Features)
	}
	return s
}

// featureNames are the specification's (virtio 1.2, 5.1.3 and 6), less VIRTIO_ and VIRTIO_NET_.
func featureNames(features uint64) (names []string) {
	for _, f := range []struct {
		bit  uint64
		name string
	}{
		{vnet.FeatureCsum, "CSUM"}, {vnet.FeatureMTU, "MTU"}, {vnet.FeatureMrgRxbuf, "MRG_RXBUF"}, {vnet.FeatureIndirect, "INDIRECT_DESC"},
		{vnet.FeatureEventIdx, "EVENT_IDX"}, {vnet.FeatureVersion1, "VERSION_1"},
	} {
		if features&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return names
}

// Stats implements control.Engine.
func (e *engine) Stats() control.Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := control.Stats{At: time.Now(), Reasons: map[string]string{}}
	for _, r := range dataplane.Reasons() {
		s.Reasons[r.String()] = r.Help()
	}
	w := e.worker.Stats()
	s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindWorker, Name: "0", Counters: control.Counters{
		More: map[string]uint64{
			"rounds": w.Rounds.Load(), "busy-rounds": w.Busy.Load(), "busy-ns": w.BusyNanos.Load(), "sleeps": w.Sleeps.Load(),
			"timeouts": w.Timeouts.Load(), "late": w.Late.Load(), "faults": w.Faults.Load(), "packets": w.Work.Load(),
		},
	}})
	for name, u := range e.uplinks {
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindUplink, Name: name, Counters: u.counters(), Queues: queues(u.links...)})
	}
	for name, p := range e.ports {
		c := counters(p.link.Counters)
		c.More = map[string]uint64{"calls": p.device.Calls()}
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindPort, Name: name, Counters: c, Queues: queues(p.link)})
	}
	return s
}

// dropNoSocket is for what the XDP program drops by itself.
var dropNoSocket = dataplane.NewReason("uplink-no-socket",
	"the packet is one of ours and arrived on a queue of the uplink that no socket serves; raise the uplink's queues or remove the key")

// counters of an uplink are the sums of its queues', with what the XDP program and the kernel count for it.
func (u *uplink) counters() control.Counters {
	sum := u.hardware()
	add := func(count *dataplane.Counters) {
		c := counters(count)
		sum.RxPackets += c.RxPackets
		sum.RxBytes += c.RxBytes
		sum.TxPackets += c.TxPackets
		sum.TxBytes += c.TxBytes
		for why, n := range c.Drops {
			sum.Drops[why] += n
		}
	}
	for _, l := range u.links {
		add(l.Counters)
	}
	add(u.heard)
	return sum
}

// hardware is what programs and sockets count and have counted. Packets that they drop have come in as well: they count as
// received, though nobody knows their bytes.
func (u *uplink) hardware() control.Counters {
	sum := control.Counters{RxPackets: u.past.RxPackets, Drops: map[string]uint64{}, More: map[string]uint64{}}
	maps.Copy(sum.Drops, u.past.Drops)
	maps.Copy(sum.More, u.past.More)
	lost := func(why dataplane.Reason, n uint64) {
		if n > 0 {
			sum.RxPackets += n
			sum.Drops[why.String()] += n
		}
	}
	for _, q := range u.queues {
		stats := q.port.Stats()
		sum.More["kicks"] += stats.Kicks.Load()
		sum.More["rx-kicks"] += stats.RxKicks.Load()
		sum.More["kept"] += stats.Kept.Load()
		sum.More["unknown-frames"] += stats.Unknown.Load()
		if k, err := q.socket.Statistics(); err == nil {
			lost(xsk.DropNoFrame, k.RxDropped)
			lost(xsk.DropReceiveFull, k.RxRingFull)
			sum.More["fill-ring-empty"] += k.FillRingEmpty
			sum.More["rx-invalid"] += k.RxInvalid
			sum.More["tx-invalid"] += k.TxInvalid
		}
	}
	if u.program == nil {
		return sum
	}
	if verdicts, err := u.program.Counters(); err == nil {
		for _, v := range verdicts {
			sum.More["xdp-"+v.Verdict] += v.Packets
			if v.Verdict == "drop-no-socket" {
				lost(dropNoSocket, v.Packets)
			}
		}
	}
	return sum
}

// queues are the counters of an object's links.
func queues(links ...*dataplane.Link) (list []control.QueueStats) {
	for i, l := range links {
		q := control.QueueStats{Queue: i, Worker: -1, Counters: counters(l.Counters)}
		if owner := l.Owner(); owner != nil {
			q.Worker = owner.Index()
		}
		list = append(list, q)
	}
	return list
}

func counters(c *dataplane.Counters) control.Counters {
	s := control.Counters{
		RxPackets: c.RxPackets.Load(), RxBytes: c.RxBytes.Load(), TxPackets: c.TxPackets.Load(), TxBytes: c.TxBytes.Load(),
		Drops: map[string]uint64{},
	}
	for _, r := range dataplane.Reasons() {
		if n := c.Drops(r); n > 0 {
			s.Drops[r.String()] = n
		}
	}
	return s
}

// FDB implements control.Engine.
func (e *engine) FDB(name string) ([]control.FDBEntry, error) {
	e.mu.Lock()
	_, known := e.networks[name]
	e.mu.Unlock()
	if !known {
		return nil, fmt.Errorf("network %s: %w", name, control.ErrNotFound)
	}
	list := []control.FDBEntry{}
	for _, entry := range e.fabric.FDB() {
		if entry.Network == name {
			list = append(list, control.FDBEntry{
				MAC: macOf(entry.MAC), Origin: origin(entry.Kind), Port: entry.Port, VTEP: entry.VTEP, IP: entry.IP, Age: entry.Age,
			})
		}
	}
	return list, nil
}

func origin(kind string) control.FDBOrigin {
	switch kind {
	case vxlan.KindLocal:
		return control.FDBPort
	case vxlan.KindStatic:
		return control.FDBStatic
	}
	return control.FDBLearned
}

func macOf(m wire.MAC) config.MAC { return config.MAC(m.Bytes()) }

// loadMeter tells what share of the last second or so a worker was busy.
type loadMeter struct {
	quit  chan struct{}
	share atomic.Uint64 // in millionths
}

func (m *loadMeter) start(w *dataplane.Worker) {
	m.quit = make(chan struct{})
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		last, at := w.Stats().BusyNanos.Load(), time.Now()
		for {
			select {
			case <-m.quit:
				return
			case now := <-tick.C:
				busy := w.Stats().BusyNanos.Load()
				m.share.Store(min((busy-last)*1e6/uint64(max(now.Sub(at), 1)), 1e6))
				last, at = busy, now
			}
		}
	}()
}

func (m *loadMeter) busy() float64 { return float64(m.share.Load()) / 1e6 }

func (m *loadMeter) stop() { close(m.quit) }
