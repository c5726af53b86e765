package main

import (
	"maps"
	"sync"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/tools/control"
)

func (v *volume) status() control.VolumeStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := control.VolumeStatus{Name: v.config.Name, Socket: v.config.Socket, Source: v.config.Source, Serial: v.config.Serial, Since: v.since}
	for _, w := range v.places {
		s.Workers = append(s.Workers, w.Index())
	}
	if v.served == nil {
		s.State, s.Reason = control.StateWaiting, reasonOf(v.why)
		return s
	}
	store, device := v.served.volume.State(), v.served.device.State()
	s.Store, s.Since = storeStatus(store.Info), store.Since
	s.Guest, s.Queues, s.WriteThrough = device.Connected, device.Queues, device.WriteThrough
	s.Features = diskFeatures(device.Features)
	for _, w := range device.Waits {
		s.Waits = append(s.Waits, control.VolumeWait{Reason: w.Why, Until: w.Until})
	}
	if store.Why != nil {
		s.Reason = reasonOf(store.Why)
	}
	switch {
	case device.Failed != nil:
		s.State, s.Reason = control.StateFailed, reasonOf(device.Failed)
	case !store.Up:
		s.State = control.StateWaiting
	case device.Queues > 0:
		s.State = control.StateConnected
	default:
		s.State = control.StateDisconnected
	}
	return s
}

// volumeStats asks for the counters of all volumes at once: their workers take a moment, together no longer than one alone, and nothing waits for that.
func (e *engine) volumeStats() []control.ObjectStats {
	e.mu.Lock()
	volumes := maps.Clone(e.volumes)
	e.mu.Unlock()
	var asking sync.WaitGroup
	objects, n := make([]control.ObjectStats, len(volumes)), 0
	for name, v := range volumes {
		o := &objects[n]
		n++
		asking.Go(func() {
			stats, more := v.stats()
			*o = control.ObjectStats{Kind: control.KindVolume, Name: name, Counters: control.Counters{More: more}, Volume: stats}
		})
	}
	asking.Wait()
	return objects
}

// stats are a volume's counters, with what only some count.
func (v *volume) stats() (*control.VolumeStats, map[string]uint64) {
	v.mu.Lock()
	s := v.served
	v.mu.Unlock()
	if s == nil {
		return volumeStats(&blk.VolumeStats{}), nil
	}
	stats := s.volume.Stats()
	more := map[string]uint64{
		"timeouts": stats.Timeouts, "withdrawn": stats.Withdrawn, "limited": stats.Limited, "barriers": stats.Barriers,
		"disconnects": stats.Disconnects, "losses": stats.Losses,
	}
	for _, q := range s.device.Queues() {
		c := q.Stats()
		more["chains"] += c.Chains.Load()
		more["answered"] += c.Answered.Load()
		more["refused"] += c.Refused.Load()
		more["unsupported"] += c.Unsupported.Load()
		more["resumed"] += c.Resumed.Load()
		more["given-back"] += c.GivenBack.Load()
		more["calls"] += c.Calls.Load()
	}
	return volumeStats(stats), more
}

func volumeStats(s *blk.VolumeStats) *control.VolumeStats {
	v := &control.VolumeStats{
		InFlight: uint64(max(s.InFlight, 0) + max(s.Waiting, 0)), Retries: s.Retries, Reconnects: s.Reconnects,
		Unflushed: s.Unflushed, LostFlushes: s.LossesTold,
	}
	for op := range blk.Op(blk.Ops) {
		o := &s.Ops[op]
		v.Operations = append(v.Operations, control.OperationStats{
			Operation: op.String(), Requests: o.Done + o.Failed, Bytes: o.Bytes, Errors: o.Failed,
			Queue: histogram(&o.Queue), Store: histogram(&o.Store), Total: histogram(&o.Total),
		})
	}
	return v
}

// histogram keeps the buckets that hold any.
func histogram(h *blk.Histogram) control.Histogram {
	c := control.Histogram{Count: h.Count(), Sum: h.Sum.Seconds()}
	for i, n := range h.Counts {
		if n > 0 {
			c.Buckets = append(c.Buckets, control.Bucket{Bound: blk.Bound(i).Seconds(), Count: n})
		}
	}
	return c
}

// diskFeatures are the specification's names (virtio 1.2, 5.2.3 and 6), less VIRTIO_ and VIRTIO_BLK_.
func diskFeatures(features uint64) (names []string) {
	for _, f := range []struct {
		bit  uint
		name string
	}{
		{1, "SIZE_MAX"}, {2, "SEG_MAX"}, {5, "RO"}, {6, "BLK_SIZE"}, {9, "FLUSH"}, {10, "TOPOLOGY"}, {11, "CONFIG_WCE"}, {12, "MQ"},
		{13, "DISCARD"}, {14, "WRITE_ZEROES"}, {15, "LIFETIME"}, {28, "INDIRECT_DESC"}, {29, "EVENT_IDX"}, {32, "VERSION_1"}, {34, "RING_PACKED"},
	} {
		if features&(1<<f.bit) != 0 {
			names = append(names, f.name)
		}
	}
	return names
}
