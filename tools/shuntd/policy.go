package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// volumeGroup is a limit that volumes share.
type volumeGroup struct {
	config config.VolumeGroup
	limit  *blk.Limit // nil: none
}

// AddVolumeGroup implements control.Engine.
func (e *engine) AddVolumeGroup(_ context.Context, c config.VolumeGroup) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.groups[c.Name] = &volumeGroup{config: c, limit: blk.NewLimit(volumeLimit(c.Limits))}
	return nil
}

// UpdateVolumeGroup implements control.Engine.
func (e *engine) UpdateVolumeGroup(_ context.Context, c config.VolumeGroup) error {
	e.mu.Lock()
	g := e.groups[c.Name]
	if g == nil {
		e.mu.Unlock()
		return fmt.Errorf("volume group %s: %w", c.Name, control.ErrNotFound)
	}
	g.config, g.limit = c, blk.NewLimit(volumeLimit(c.Limits))
	var changed []*volume
	for _, v := range e.volumes {
		if v.regroup(c.Name, g.limit) {
			changed = append(changed, v)
		}
	}
	e.mu.Unlock()
	for _, v := range changed {
		v.setPolicy()
	}
	return nil
}

// RemoveVolumeGroup implements control.Engine.
func (e *engine) RemoveVolumeGroup(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.groups[name] == nil {
		return fmt.Errorf("volume group %s: %w", name, control.ErrNotFound)
	}
	delete(e.groups, name)
	return nil
}

// regroup gives a volume of a group its limit, and tells whether it is one.
func (v *volume) regroup(group string, limit *blk.Limit) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.config.VolumeGroup != group {
		return false
	}
	v.policy.Group = limit
	return true
}

// setPolicy puts the volume's policy in force. Of two who do so the one that comes last has the newest.
func (v *volume) setPolicy() {
	v.enacting.Lock()
	defer v.enacting.Unlock()
	v.mu.Lock()
	s, policy := v.served, v.policy
	v.mu.Unlock()
	if s != nil {
		s.volume.SetPolicy(policy)
	}
}

// policyOf is what a configuration says of requests. With mu held.
func (e *engine) policyOf(c config.Volume) blk.Policy {
	p := blk.Policy{Timeout: time.Duration(c.Timeout), Limits: volumeLimit(c.Limits)}
	if c.OnError == config.OnErrorFail {
		p.OnError = blk.Fail
	}
	if c.Durability == config.DurabilityFUA {
		p.Durability = blk.DurabilityFUA
	}
	if g := e.groups[c.VolumeGroup]; g != nil {
		p.Group = g.limit
	}
	return p
}

func volumeLimit(l config.VolumeLimits) blk.LimitOptions {
	return blk.LimitOptions{IOPS: l.IOPS, BPS: l.BPS, Burst: time.Duration(l.Burst)}
}

// placeVolume chooses the workers of a volume's queues: those the configuration names, one after the other, or for all queues the one that has fewest: not
// every store can be used by several. With mu held.
func (e *engine) placeVolume(queues int, wish []int) ([]*worker, error) {
	if len(wish) == 0 {
		load := e.load()
		wish = []int{slices.Index(load, slices.Min(load))}
	}
	return e.place(queues, wish)
}

func distinct(places []*worker) []*worker {
	list := slices.Clone(places)
	slices.SortFunc(list, func(a, b *worker) int { return a.Index() - b.Index() })
	return slices.Compact(list)
}
