package main

import (
	"fmt"
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
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
	s := control.EngineStatus{HugePages: e.memory.Huge()}
	for i, w := range e.workers {
		stats := w.Stats()
		s.Workers = append(s.Workers, control.WorkerStatus{
			ID: i, CPU: w.cpu, Idle: e.idle, Busy: w.load.busy(), Rounds: stats.Rounds.Load(), Sleeps: stats.Sleeps.Load(), Packets: stats.Work.Load(),
			Frames: w.frames, FreeFrames: int(stats.Free.Load()), IOUring: e.uringModes(w),
		})
	}
	for _, u := range e.uplinks {
		s.Uplinks = append(s.Uplinks, u.status())
	}
	members, learned := map[string]int{}, map[string]int{} // by network
	for _, p := range e.ports {
		s.Ports = append(s.Ports, p.status())
		members[p.config.Network]++
	}
	for _, entry := range e.fabric.FDB() {
		if entry.Kind == vxlan.KindLearned {
			learned[entry.Network]++
		}
	}
	for name, n := range e.networks {
		status := e.networkStatus(name, n)
		status.Ports, status.Learned = members[name], learned[name]
		s.Networks = append(s.Networks, status)
	}
	for _, v := range e.volumes {
		s.Volumes = append(s.Volumes, v.status())
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
	if len(u.queues) == 0 || u.queues[0].socket == nil {
		return s
	}
	now := u.queues[0].socket.InForce()
	if now.ZeroCopy {
		s.Bind = "zerocopy"
	}
	s.MultiBuffer, s.TransmitBudget, s.BusyPoll = now.MultiBuffer, now.Budget, now.BusyPoll
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
	return s
}

func (p *port) status() control.PortStatus {
	s := control.PortStatus{
		Name: p.config.Name, Network: p.config.Network, Socket: p.config.Socket, State: control.StateDisconnected, MAC: p.config.MAC,
	}
	for _, pair := range p.pairs {
		s.Workers = append(s.Workers, pair.worker.Index())
	}
	p.device.status(&s)
	return s
}

// Stats implements control.Engine.
func (e *engine) Stats() control.Stats {
	s := e.countersOfAll()
	s.Objects = append(s.Objects, e.volumeStats()...)
	return s
}

// countersOfAll are those that anybody may read at any time.
func (e *engine) countersOfAll() control.Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := control.Stats{At: time.Now(), Reasons: map[string]string{}}
	for _, r := range dataplane.Reasons() {
		s.Reasons[r.String()] = r.Help()
	}
	for i, w := range e.workers {
		c := workerCounters(w.Stats())
		e.countRing(w, c.More)
		c.More["tso-cut"], c.More["tso-segments"] = e.fabric.Cut(i)
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindWorker, Name: strconv.Itoa(i), Counters: c})
	}
	for name, u := range e.uplinks {
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindUplink, Name: name, Counters: u.counters(), Queues: u.queueStats()})
	}
	for name, p := range e.ports {
		s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindPort, Name: name, Counters: p.counters(), Queues: p.queueStats()})
	}
	return s
}

func workerCounters(w *dataplane.WorkerStats) control.Counters {
	return control.Counters{More: map[string]uint64{
		"rounds": w.Rounds.Load(), "busy-rounds": w.Busy.Load(), "busy-ns": w.BusyNanos.Load(), "sleeps": w.Sleeps.Load(),
		"timeouts": w.Timeouts.Load(), "late": w.Late.Load(), "faults": w.Faults.Load(), "packets": w.Work.Load(),
		"crossed": w.Crossed.Load(), "copied": w.Copied.Load(),
	}}
}

// counters of a port are the sums of its queues', with what the device counts for all of them.
func (p *port) counters() control.Counters {
	sum := newCounters()
	for _, pair := range p.pairs {
		add(&sum, counters(pair.link.Counters))
	}
	p.device.count(&sum)
	return sum
}

func newCounters() control.Counters {
	return control.Counters{Drops: map[string]uint64{}, More: map[string]uint64{}}
}

// add adds what c counts.
func add(to *control.Counters, c control.Counters) {
	to.RxPackets += c.RxPackets
	to.RxBytes += c.RxBytes
	to.TxPackets += c.TxPackets
	to.TxBytes += c.TxBytes
	for why, n := range c.Drops {
		to.Drops[why] += n
	}
	for name, n := range c.More {
		to.More[name] += n
	}
}

// lost counts packets that were dropped before a worker saw them. They have come in as well, though nobody knows their bytes.
func lost(c *control.Counters, why dataplane.Reason, n uint64) {
	if n > 0 {
		c.RxPackets += n
		c.Drops[why.String()] += n
	}
}

// dropUnsegmented is for what the XDP program of a port drops by itself.
var dropUnsegmented = dataplane.NewReason("port-unsegmented",
	"the other end of the port's interface sent a packet that is longer than its MTU allows, for the device to cut; turn that off there: ethtool -K DEV tso off gso off")

// dropNoSocket is for what the XDP program drops by itself.
var dropNoSocket = dataplane.NewReason("uplink-no-socket",
	"the packet is one of ours and arrived on a queue of the uplink that no socket serves; raise the uplink's queues or remove the key")

// counters of an uplink are the sums of its queues', with what the XDP program and the kernel count for it.
func (u *uplink) counters() control.Counters {
	sum := u.hardware()
	for _, links := range u.links {
		for _, l := range links {
			add(&sum, counters(l.Counters))
		}
	}
	add(&sum, counters(u.heard))
	return sum
}

// hardware is what programs and sockets count and have counted.
func (u *uplink) hardware() control.Counters {
	sum := newCounters()
	sum.RxPackets = u.past.RxPackets
	maps.Copy(sum.Drops, u.past.Drops)
	maps.Copy(sum.More, u.past.More)
	for _, q := range u.queues {
		q.count(&sum)
	}
	if u.program == nil {
		return sum
	}
	if verdicts, err := u.program.Counters(); err == nil {
		for _, v := range verdicts {
			sum.More["xdp-"+v.Verdict] += v.Packets
			if v.Verdict == "drop-no-socket" {
				lost(&sum, dropNoSocket, v.Packets)
			}
		}
	}
	return sum
}

// count adds what a queue's sockets count.
func (q *uplinkQueue) count(sum *control.Counters) {
	if q.port == nil {
		return // just being opened
	}
	stats := q.port.Stats()
	for name, n := range map[string]*atomic.Uint64{
		"kicks": &stats.Kicks, "rx-kicks": &stats.RxKicks, "kept": &stats.Kept, "unknown-frames": &stats.Unknown, "chained": &stats.Chained, "polls": &stats.Polls,
	} {
		sum.More[name] += n.Load()
	}
	sockets := []*xsk.Socket{q.socket}
	for _, r := range q.receivers {
		sockets = append(sockets, r.socket)
	}
	for _, s := range sockets {
		if k, err := s.Statistics(); err == nil {
			lost(sum, xsk.DropNoFrame, k.RxDropped)
			lost(sum, xsk.DropReceiveFull, k.RxRingFull)
			sum.More["fill-ring-empty"] += k.FillRingEmpty
			sum.More["rx-invalid"] += k.RxInvalid
			sum.More["tx-invalid"] += k.TxInvalid
		}
	}
}

// queueStats has an entry for each worker that receives from a queue.
func (u *uplink) queueStats() (list []control.QueueStats) {
	for queue, links := range u.links {
		for worker, l := range links {
			list = append(list, control.QueueStats{Queue: queue, Worker: worker, Counters: counters(l.Counters)})
		}
	}
	return list
}

// queueStats has an entry for each queue pair.
func (p *port) queueStats() (list []control.QueueStats) {
	for queue, pair := range p.pairs {
		list = append(list, control.QueueStats{Queue: queue, Worker: pair.worker.Index(), Counters: counters(pair.link.Counters)})
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
	for _, entry := range e.fabric.FDB(name) {
		list = append(list, control.FDBEntry{
			MAC: macOf(entry.MAC), Origin: origin(entry.Kind), Port: entry.Port, VTEP: entry.VTEP, IP: entry.IP, Age: entry.Age,
		})
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
