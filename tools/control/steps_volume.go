package control

import (
	"context"
	"reflect"
	"slices"

	"github.com/shuntio/shunt/tools/control/config"
)

// ReplacesVolume reports whether a volume changes so that its guest has to connect anew: the controller then removes and adds it, and does not
// update it. What is left are the socket's mode and owner, the policy, and the limits.
func ReplacesVolume(was, will config.Volume) bool {
	was.Mode, was.Owner, was.Group = will.Mode, will.Owner, will.Group
	was.OnError, was.Timeout, was.Durability = will.OnError, will.Timeout, will.Durability
	was.Limits, was.VolumeGroup = will.Limits, will.VolumeGroup
	return !reflect.DeepEqual(was, will)
}

// 1

func (r *reconciler) removeVolumes() {
	var names []string
	for _, name := range r.volumes.order {
		was, there := r.volumes.was[name]
		if want, stays := r.volumes.want[name]; there && (!stays || ReplacesVolume(was, want)) {
			names = append(names, name)
		}
	}
	r.removeTogether(KindVolume, names, func(ctx context.Context) []error { return r.engine.RemoveVolumes(ctx, names) },
		func(name string) { delete(r.volumes.now, name) })
}

// 8

func (r *reconciler) setGroups() {
	for _, name := range r.groups.order {
		want, wanted := r.groups.want[name]
		now, there := r.groups.now[name]
		if !wanted || there && now == want {
			continue
		}
		set, action := r.engine.AddVolumeGroup, Created
		if there {
			set, action = r.engine.UpdateVolumeGroup, Updated
		}
		if err := r.call(func(ctx context.Context) error { return set(ctx, want) }); err != nil {
			r.fail(KindVolumeGroup, name, err)
			continue
		}
		r.groups.now[name], r.advanced = want, true
		r.note(KindVolumeGroup, name, action)
	}
}

func (r *reconciler) setVolumes() {
	for _, adding := range []bool{false, true} {
		for _, name := range r.volumes.order {
			want, wanted := r.volumes.want[name]
			now, there := r.volumes.now[name]
			if !wanted || there == adding || there && reflect.DeepEqual(now, want) || r.hasFailed(KindVolume, name) {
				continue
			}
			was, replace := r.volumes.was[name]
			err := r.volumeObstacle(want)
			if err == nil {
				err = r.setVolume(want)
			}
			switch {
			case err == nil && there:
				r.note(KindVolume, name, Updated)
			case err == nil && replace:
				r.note(KindVolume, name, Replaced)
			case err == nil:
				r.note(KindVolume, name, Created)
			default:
				r.fail(KindVolume, name, r.restore(err, replace && !there, r.volumeObstacle(was), func() error { return r.setVolume(was) }))
			}
		}
	}
}

func (r *reconciler) removeGroups() {
	for _, name := range r.groups.order {
		_, there := r.groups.now[name]
		if _, stays := r.groups.want[name]; !there || stays {
			continue
		}
		var err error
		if i := slices.IndexFunc(r.volumes.held(), func(v config.Volume) bool { return v.VolumeGroup == name }); i >= 0 {
			err = because(errFollows, "volume %s is still in it", r.volumes.held()[i].Name)
		} else {
			err = r.call(func(ctx context.Context) error { return r.engine.RemoveVolumeGroup(ctx, name) })
		}
		if err != nil {
			r.fail(KindVolumeGroup, name, err)
			continue
		}
		r.advanced = true
		delete(r.groups.now, name)
		r.note(KindVolumeGroup, name, Removed)
	}
}

func (r *reconciler) setVolume(v config.Volume) error {
	set := r.engine.AddVolume
	if _, there := r.volumes.now[v.Name]; there {
		set = r.engine.UpdateVolume
	}
	err := r.call(func(ctx context.Context) error { return set(ctx, v) })
	if err == nil {
		r.volumes.now[v.Name], r.advanced = v, true
	}
	return err
}

// volumeObstacle is why a volume cannot be as wanted beside what the engine holds now.
func (r *reconciler) volumeObstacle(v config.Volume) error {
	if _, there := r.groups.now[v.VolumeGroup]; v.VolumeGroup != "" && !there {
		return because(errFollows, "its volume group %s is not there", v.VolumeGroup)
	}
	for _, o := range r.volumes.now {
		if o.Name != v.Name && o.Source == v.Source && config.Scheme(v.Source) == config.SchemeFile && !(o.ReadOnly && v.ReadOnly) {
			return because(errFollows, "volume %s still has its file", o.Name)
		}
	}
	return r.attachObstacle(v.Socket, "", object{KindVolume, v.Name})
}
