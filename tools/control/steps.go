package control

import (
	"cmp"
	"context"
	"fmt"
	"reflect"

	"github.com/shuntio/shunt/tools/control/config"
)

// segment is a network's place on an uplink, which no other network may have.
type segment struct {
	uplink string
	vni    uint32
}

func segmentOf(n config.Network) segment { return segment{n.Uplink, n.VNI} }

// 1

func (r *reconciler) removePorts() {
	served := map[string]bool{"": false} // sockets
	for _, p := range r.ports.want {
		served[p.Socket] = p.Socket != ""
	}
	var names []string
	var again []bool
	for _, name := range r.ports.order {
		was, there := r.ports.was[name]
		want, stays := r.ports.want[name]
		if there && (!stays || Replaces(was, want) || r.addressTaken(was, want)) {
			names, again = append(names, name), append(again, served[was.Socket])
		}
	}
	r.removeTogether(KindPort, names, func(ctx context.Context) []error { return r.engine.RemovePorts(ctx, names, again) },
		func(name string) { delete(r.ports.now, name) })
}

// removeTogether removes objects by one call of the engine, which has an error for each.
func (r *reconciler) removeTogether(kind Kind, names []string, remove func(context.Context) []error, removed func(name string)) {
	if len(names) == 0 {
		return
	}
	errs := make([]error, len(names))
	closed := r.call(func(ctx context.Context) error {
		errs = remove(ctx)
		return nil
	})
	for i, name := range names {
		if err := cmp.Or(closed, errs[i]); err != nil {
			r.fail(kind, name, err)
			continue
		}
		r.advanced = true
		removed(name)
		r.note(kind, name, Removed)
	}
}

// addressTaken reports whether a port moves to an address that another one has and is to leave. Ports that trade places
// so cannot be updated one by one.
func (r *reconciler) addressTaken(was, want config.Port) bool {
	if want.MAC.IsZero() || was.MAC == want.MAC && was.Network == want.Network {
		return false
	}
	for _, o := range r.ports.was {
		if _, stays := r.ports.want[o.Name]; stays && o.Name != want.Name && o.MAC == want.MAC && o.Network == want.Network {
			return true
		}
	}
	return false
}

// 2

func (r *reconciler) freeNetworks() {
	inUse, taken := map[string]bool{}, map[segment]string{}
	for _, p := range r.ports.now {
		inUse[p.Network] = true
	}
	for _, n := range r.networks.want {
		taken[segmentOf(n)] = n.Name
	}
	for _, name := range r.networks.order {
		was, there := r.networks.was[name]
		_, stays := r.networks.want[name]
		switch {
		case !there:
		case !stays && !inUse[name]:
			if err := r.removeNetwork(name); err != nil {
				r.fail(KindNetwork, name, err)
				continue
			}
			r.note(KindNetwork, name, Removed)
		case was.Uplink != "" && (r.uplinkGoes(was.Uplink) || taken[segmentOf(was)] != "" && taken[segmentOf(was)] != name):
			if err := r.setNetwork(parked(was)); err != nil {
				r.fail(KindNetwork, name, err)
			}
		}
	}
}

func (r *reconciler) uplinkGoes(name string) bool {
	want, stays := r.uplinks.want[name]
	return !stays || !reflect.DeepEqual(r.uplinks.now[name], want)
}

// parked is a network without its way to other hosts.
func parked(n config.Network) config.Network {
	n.VNI, n.Uplink, n.Flood, n.Entries = 0, "", nil, nil
	return n
}

// 3

func (r *reconciler) removeUplinks() {
	users := map[string]string{}
	for _, n := range r.networks.now {
		users[n.Uplink] = n.Name
	}
	for _, name := range r.uplinks.order {
		if _, there := r.uplinks.was[name]; !there || !r.uplinkGoes(name) {
			continue
		}
		if user, used := users[name]; used {
			r.fail(KindUplink, name, because(errFollows, "network %s still uses it", user))
			continue
		}
		if err := r.removeUplink(name); err != nil {
			r.fail(KindUplink, name, err)
			continue
		}
		r.note(KindUplink, name, Removed)
	}
}

// 4

func (r *reconciler) addUplinks() {
	for _, name := range r.uplinks.order {
		want, wanted := r.uplinks.want[name]
		if _, there := r.uplinks.now[name]; !wanted || there {
			continue
		}
		was, replace := r.uplinks.was[name]
		err := r.uplinkObstacle(want)
		if err == nil {
			err = r.addUplink(want)
		}
		switch {
		case err == nil && replace:
			r.note(KindUplink, name, Replaced)
		case err == nil:
			r.note(KindUplink, name, Created)
		default:
			r.fail(KindUplink, name, r.restore(err, replace, r.uplinkObstacle(was), func() error { return r.addUplink(was) }))
		}
	}
}

// restore brings back what had to go before a step that failed with err, unless an obstacle forbids it, and returns err
// with what came of that.
func (r *reconciler) restore(err error, was bool, obstacle error, add func() error) error {
	if !was {
		return err
	}
	again := obstacle
	if again == nil {
		again = add()
	}
	if again != nil {
		return fmt.Errorf("%w (and what it was before could not be restored: %v)", err, again)
	}
	return fmt.Errorf("%w (it is as it was before)", err)
}

// 5

func (r *reconciler) setNetworks() {
	for _, adding := range []bool{false, true} {
		for _, name := range r.networks.order {
			want, wanted := r.networks.want[name]
			now, there := r.networks.now[name]
			if !wanted || there == adding || there && reflect.DeepEqual(now, want) {
				continue
			}
			was := r.networks.was[name]
			err := r.networkObstacle(want)
			if err == nil {
				err = r.setNetwork(want)
			}
			switch {
			case err == nil && there:
				r.note(KindNetwork, name, Updated)
			case err == nil:
				r.note(KindNetwork, name, Created)
			default:
				wasParked := there && !reflect.DeepEqual(now, was)
				r.fail(KindNetwork, name, r.restore(err, wasParked, r.networkObstacle(was), func() error { return r.setNetwork(was) }))
			}
		}
	}
}

// 6

func (r *reconciler) setPorts() {
	for _, adding := range []bool{false, true} {
		for _, name := range r.ports.order {
			want, wanted := r.ports.want[name]
			now, there := r.ports.now[name]
			if !wanted || there == adding || there && reflect.DeepEqual(now, want) || r.hasFailed(KindPort, name) {
				continue
			}
			was, replace := r.ports.was[name]
			err := r.portObstacle(want)
			if err == nil {
				err = r.setPort(want)
			}
			switch {
			case err == nil && there:
				r.note(KindPort, name, Updated)
			case err == nil && replace:
				r.note(KindPort, name, Replaced)
			case err == nil:
				r.note(KindPort, name, Created)
			default:
				r.fail(KindPort, name, r.restore(err, replace && !there, r.portObstacle(was), func() error { return r.setPort(was) }))
			}
		}
	}
}

// 7

func (r *reconciler) removeNetworks() {
	users := map[string]string{}
	for _, p := range r.ports.now {
		users[p.Network] = p.Name
	}
	for _, name := range r.networks.order {
		_, there := r.networks.now[name]
		if _, stays := r.networks.want[name]; !there || stays || r.hasFailed(KindNetwork, name) {
			continue
		}
		var err error
		if user, used := users[name]; used {
			err = because(errFollows, "port %s is still in it", user)
		} else {
			err = r.removeNetwork(name)
		}
		if err == nil {
			r.note(KindNetwork, name, Removed)
			continue
		}
		was := r.networks.was[name]
		wasParked := !reflect.DeepEqual(r.networks.now[name], was)
		r.fail(KindNetwork, name, r.restore(err, wasParked, r.networkObstacle(was), func() error { return r.setNetwork(was) }))
	}
}
