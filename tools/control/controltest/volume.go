package controltest

import (
	"context"
	"fmt"
	"maps"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// HeldVolumes returns what the engine holds of volumes, by name.
func (e *Engine) HeldVolumes() (map[string]config.VolumeGroup, map[string]config.Volume) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.groups), maps.Clone(e.volumes)
}

// AddVolumeGroup implements control.Engine.
func (e *Engine) AddVolumeGroup(ctx context.Context, g config.VolumeGroup) error {
	return e.change(ctx, "AddVolumeGroup", g.Name, func() string { return exists(e.groups, g.Name, false) }, func() { e.groups[g.Name] = g })
}

// UpdateVolumeGroup implements control.Engine.
func (e *Engine) UpdateVolumeGroup(ctx context.Context, g config.VolumeGroup) error {
	return e.change(ctx, "UpdateVolumeGroup", g.Name, func() string { return exists(e.groups, g.Name, true) }, func() { e.groups[g.Name] = g })
}

// RemoveVolumeGroup implements control.Engine.
func (e *Engine) RemoveVolumeGroup(ctx context.Context, name string) error {
	return e.change(ctx, "RemoveVolumeGroup", name, func() string {
		for _, v := range e.volumes {
			if v.VolumeGroup == name {
				return "still used by volume " + v.Name
			}
		}
		return exists(e.groups, name, true)
	}, func() { delete(e.groups, name) })
}

// AddVolume implements control.Engine.
func (e *Engine) AddVolume(ctx context.Context, v config.Volume) error {
	return e.setVolume(ctx, "AddVolume", v, false)
}

// UpdateVolume implements control.Engine.
func (e *Engine) UpdateVolume(ctx context.Context, v config.Volume) error {
	return e.setVolume(ctx, "UpdateVolume", v, true)
}

func (e *Engine) setVolume(ctx context.Context, method string, v config.Volume, there bool) error {
	return e.change(ctx, method, v.Name, func() string {
		was := e.volumes[v.Name]
		if there && control.ReplacesVolume(was, v) {
			return "cannot be updated"
		}
		if !there {
			if why := e.holder(v.Socket, "", ""); why != "" {
				return why
			}
		}
		if v.VolumeGroup != "" && exists(e.groups, v.VolumeGroup, true) != "" {
			return "no volume group " + v.VolumeGroup
		}
		return exists(e.volumes, v.Name, there)
	}, func() { e.volumes[v.Name] = v })
}

// RemoveVolumes implements control.Engine. It is called for each of them.
func (e *Engine) RemoveVolumes(ctx context.Context, names []string) []error {
	errs := make([]error, len(names))
	for i, name := range names {
		errs[i] = e.change(ctx, "RemoveVolume", name, func() string { return exists(e.volumes, name, true) }, func() { delete(e.volumes, name) })
	}
	return errs
}

// ResizeVolume implements control.Engine.
func (e *Engine) ResizeVolume(_ context.Context, name string) error {
	e.mu.Lock()
	v, there := e.volumes[name]
	e.mu.Unlock()
	if !there {
		return fmt.Errorf("volume %s: %w", name, control.ErrNotFound)
	}
	_, err := e.store(v.From())
	return err
}

// CheckVolume implements control.Engine.
func (e *Engine) CheckVolume(_ context.Context, s config.VolumeSource) (r control.VolumeReport, err error) {
	r.Store, err = e.store(s)
	return r, err
}

// VolumeExports implements control.Engine.
func (e *Engine) VolumeExports(context.Context, config.VolumeSource) ([]control.VolumeExport, error) {
	return e.Exports, nil
}

func (e *Engine) store(s config.VolumeSource) (control.StoreStatus, error) {
	if e.Store == nil {
		return control.StoreStatus{Description: s.Source, Size: 1 << 30, BlockSize: 512, Flush: true, ReadOnly: s.ReadOnly}, nil
	}
	return e.Store(s)
}

func volumeStatus(v config.Volume) control.VolumeStatus {
	return control.VolumeStatus{Name: v.Name, Socket: v.Socket, Source: v.Source, Serial: v.Serial, State: control.StateDisconnected, Workers: v.Workers}
}
