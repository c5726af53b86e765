package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/packet"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/wire"
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
		Name: u.config.Name, Interface: u.config.Interface, State: control.StateUp, XDP: u.program.Mode().String(), Bind: "copy",
		Queues: len(u.queues), Address: local.Address, MTU: local.MTU, Neighbours: u.neighbours(),
	}
	if u.zeroCopy() {
		s.Bind = "zerocopy"
	}
	if !u.resolve.Up() {
		s.State = control.StateDown
	}
	return s
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
		Name: name, VNI: n.config.VNI, Uplink: n.config.Uplink, Learning: n.config.Learning, Static: len(n.config.Entries),
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
		{vnet.FeatureCsum, "CSUM"}, {vnet.FeatureMrgRxbuf, "MRG_RXBUF"}, {vnet.FeatureIndirect, "INDIRECT_DESC"},
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
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindUplink, Name: name, Counters: u.counters()})
	}
	for name, p := range e.ports {
		c := counters(p.link.Counters)
		c.More = map[string]uint64{"calls": p.device.Calls()}
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindPort, Name: name, Counters: c})
	}
	return s
}

// counters of an uplink are the sums of its queues', with what the XDP program and the kernel count for it.
func (u *uplink) counters() control.Counters {
	sum := control.Counters{Drops: map[string]uint64{}, More: map[string]uint64{}}
	add := func(l *dataplane.Link) {
		c := counters(l.Counters)
		sum.RxPackets += c.RxPackets
		sum.RxBytes += c.RxBytes
		sum.TxPackets += c.TxPackets
		sum.TxBytes += c.TxBytes
		for why, n := range c.Drops {
			sum.Drops[why] += n
		}
	}
	for _, q := range u.queues {
		add(q.link)
		stats := q.port.Stats()
		sum.More["kicks"] += stats.Kicks.Load()
		sum.More["rx-kicks"] += stats.RxKicks.Load()
		if k, err := q.socket.Statistics(); err == nil {
			sum.More["kernel-rx-dropped"] += k.RxDropped
			sum.More["kernel-rx-ring-full"] += k.RxRingFull
			sum.More["kernel-fill-ring-empty"] += k.FillRingEmpty
		}
	}
	if u.multicast != nil {
		if _, ok := u.multicast.Port.(*packet.Port); ok {
			add(u.multicast)
		}
	}
	if verdicts, err := u.program.Counters(); err == nil {
		for _, v := range verdicts {
			sum.More["xdp-"+v.Verdict] = v.Packets
		}
	}
	return sum
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
