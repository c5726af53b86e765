package control

import (
	"context"
	"maps"
	"time"

	"github.com/shuntio/shunt/tools/control/config"
)

// callTime bounds one call of the engine. Removing a port waits for its worker, which may be in a page fault.
const callTime = 10 * time.Second

// reconciler brings the engine from one configuration to another, in these steps:
//
//	1 ports     that go or must reconnect                  removed
//	  volumes   that go or must reconnect                  removed
//	2 networks  that go and have no ports left             removed
//	            whose uplink goes, or whose VNI another    parked: local switching only
//	            network takes
//	3 uplinks   that go or changed                         removed
//	4 uplinks   new or changed                             added
//	5 networks  changed or parked                          updated, then the new ones added
//	6 ports     changed                                    updated, then the new ones added
//	7 networks  that go, now that their ports have moved   removed
//	8 groups    of volumes, changed or new                 updated, added
//	  volumes   changed                                    updated, then the new ones added
//	  groups    that go, now that their volumes left       removed
//
// So no guest loses its connection because its network got another name or another uplink, and whatever must be unique
// is given up by one object before another takes it. A step that fails is undone as far as it was begun, noted, and
// what depends on it is not tried.
type reconciler struct {
	ctx     context.Context
	engine  Engine
	publish func(*config.Config)
	fixed   config.Config // the parts that are the same before and after

	uplinks  table[config.Uplink]
	networks table[config.Network]
	ports    table[config.Port]
	groups   table[config.VolumeGroup]
	volumes  table[config.Volume]

	advanced bool // what the engine holds has changed since it was published
	noted    map[object]Change
	errs     map[object]error
}

type object struct {
	kind Kind
	name string
}

// table is what the reconciler knows of one kind of object, by name.
type table[T any] struct {
	was, want map[string]T
	now       map[string]T // what the engine holds; changed only when a call succeeded, and reconciler.advanced with it
	order     []string     // all names, those wanted first, each group as its configuration has them
}

func newTable[T named](was, want []T) table[T] {
	t := table[T]{was: byName(was), want: byName(want)}
	for _, v := range want {
		t.order = append(t.order, v.ObjectName())
	}
	for _, v := range was {
		if _, both := t.want[v.ObjectName()]; !both {
			t.order = append(t.order, v.ObjectName())
		}
	}
	t.now = maps.Clone(t.was)
	return t
}

// held lists what the engine holds.
func (t *table[T]) held() []T {
	var list []T
	for _, name := range t.order {
		if v, ok := t.now[name]; ok {
			list = append(list, v)
		}
	}
	return list
}

func newReconciler(ctx context.Context, engine Engine, was, want *config.Config, publish func(*config.Config)) *reconciler {
	return &reconciler{
		ctx: ctx, engine: engine, publish: publish,
		fixed:    config.Config{Workers: was.Workers, Control: was.Control},
		uplinks:  newTable(was.Uplinks, want.Uplinks),
		networks: newTable(was.Networks, want.Networks),
		ports:    newTable(was.Ports, want.Ports),
		groups:   newTable(was.VolumeGroups, want.VolumeGroups),
		volumes:  newTable(was.Volumes, want.Volumes),
		noted:    map[object]Change{}, errs: map[object]error{},
	}
}

// run makes all steps.
func (r *reconciler) run() []Change {
	return r.make(
		r.removePorts, r.removeVolumes, r.freeNetworks, r.removeUplinks, r.addUplinks,
		r.engine.Begin, r.setNetworks, r.setPorts, r.engine.End, r.removeNetworks,
		r.setGroups, r.setVolumes, r.removeGroups)
}

// add makes those that take nothing from anybody.
func (r *reconciler) add() []Change {
	return r.make(r.addUplinks, r.engine.Begin, r.setNetworks, r.setPorts, r.engine.End, r.setGroups, r.setVolumes)
}

// make makes steps and returns what became of each object: by kind, those wanted first.
func (r *reconciler) make(steps ...func()) []Change {
	for _, step := range steps {
		if step(); r.advanced {
			r.tell()
		}
	}
	r.tell() // in the order that is wanted, at least
	var all []Change
	for _, kind := range []struct {
		kind  Kind
		order []string
	}{
		{KindUplink, r.uplinks.order}, {KindNetwork, r.networks.order}, {KindPort, r.ports.order},
		{KindVolumeGroup, r.groups.order}, {KindVolume, r.volumes.order},
	} {
		for _, name := range kind.order {
			change, touched := r.noted[object{kind.kind, name}]
			if !touched {
				change = Change{Kind: kind.kind, Name: name, Action: Unchanged}
			}
			all = append(all, change)
		}
	}
	return all
}

// tell publishes what the engine holds.
func (r *reconciler) tell() {
	r.advanced = false
	held := r.fixed
	held.Uplinks, held.Networks, held.Ports = r.uplinks.held(), r.networks.held(), r.ports.held()
	held.VolumeGroups, held.Volumes = r.groups.held(), r.volumes.held()
	r.publish(&held)
}

// err returns a *FailedError of all that failed, in the order of changes, or nil.
func (r *reconciler) err(changes []Change) error {
	var failed FailedError
	for _, c := range changes {
		if c.Action == Failed {
			failed.Changes = append(failed.Changes, c)
			failed.errs = append(failed.errs, r.errs[object{c.Kind, c.Name}])
		}
	}
	if len(failed.Changes) == 0 {
		return nil
	}
	return &failed
}

// call makes one call of the engine.
func (r *reconciler) call(f func(ctx context.Context) error) error {
	if r.ctx.Err() != nil {
		return ErrClosed
	}
	ctx, cancel := context.WithTimeout(r.ctx, callTime)
	defer cancel()
	return f(ctx)
}

// fail notes the first thing that went wrong with an object.
func (r *reconciler) fail(kind Kind, name string, err error) {
	o := object{kind, name}
	if r.errs[o] == nil {
		r.errs[o] = err
		r.noted[o] = Change{Kind: kind, Name: name, Action: Failed, Error: err.Error()}
	}
}

func (r *reconciler) note(kind Kind, name string, action Action) {
	if o := (object{kind, name}); r.errs[o] == nil {
		r.noted[o] = Change{Kind: kind, Name: name, Action: action}
	}
}

func (r *reconciler) hasFailed(kind Kind, name string) bool { return r.errs[object{kind, name}] != nil }

// The calls that change the engine. Each one advances what it holds.

func (r *reconciler) addUplink(u config.Uplink) error {
	err := r.call(func(ctx context.Context) error { return r.engine.AddUplink(ctx, u) })
	if err == nil {
		r.uplinks.now[u.Name], r.advanced = u, true
	}
	return err
}

func (r *reconciler) removeUplink(name string) error {
	err := r.call(func(ctx context.Context) error { return r.engine.RemoveUplink(ctx, name) })
	if err == nil {
		r.advanced = true
		delete(r.uplinks.now, name)
	}
	return err
}

func (r *reconciler) setNetwork(n config.Network) error {
	set := r.engine.AddNetwork
	if _, there := r.networks.now[n.Name]; there {
		set = r.engine.UpdateNetwork
	}
	err := r.call(func(ctx context.Context) error { return set(ctx, n) })
	if err == nil {
		r.networks.now[n.Name], r.advanced = n, true
	}
	return err
}

func (r *reconciler) removeNetwork(name string) error {
	err := r.call(func(ctx context.Context) error { return r.engine.RemoveNetwork(ctx, name) })
	if err == nil {
		r.advanced = true
		delete(r.networks.now, name)
	}
	return err
}

func (r *reconciler) setPort(p config.Port) error {
	set := r.engine.AddPort
	if _, there := r.ports.now[p.Name]; there {
		set = r.engine.UpdatePort
	}
	err := r.call(func(ctx context.Context) error { return set(ctx, p) })
	if err == nil {
		r.ports.now[p.Name], r.advanced = p, true
	}
	return err
}

// The obstacles: why an object cannot be as wanted beside what the engine holds now. After a configuration that passed
// its rules there is one only where an earlier step failed, or where it is tried again and something else has come meanwhile.

func (r *reconciler) uplinkObstacle(u config.Uplink) error {
	for _, o := range r.uplinks.now {
		if o.Name != u.Name && (o.Interface != "" && o.Interface == u.Interface || o.VhostUser != "" && o.VhostUser == u.VhostUser) {
			return because(errFollows, "uplink %s still holds what it needs", o.Name)
		}
	}
	return r.attachObstacle(u.VhostUser, u.Interface, object{KindUplink, u.Name})
}

func (r *reconciler) networkObstacle(n config.Network) error {
	if _, there := r.uplinks.now[n.Uplink]; n.Uplink != "" && !there {
		return because(errFollows, "its uplink %s is not there", n.Uplink)
	}
	for _, o := range r.networks.now {
		if o.Name != n.Name && n.Uplink != "" && segmentOf(o) == segmentOf(n) {
			return because(errFollows, "network %s still has its place on uplink %s", o.Name, n.Uplink)
		}
	}
	return nil
}

func (r *reconciler) portObstacle(p config.Port) error {
	if _, there := r.networks.now[p.Network]; !there {
		return because(errFollows, "its network %s is not there", p.Network)
	}
	for _, o := range r.ports.now {
		if o.Name != p.Name && !p.MAC.IsZero() && o.MAC == p.MAC && o.Network == p.Network {
			return because(errFollows, "port %s still has its MAC address %s", o.Name, p.MAC)
		}
	}
	return r.attachObstacle(p.Socket, p.Interface, object{KindPort, p.Name})
}

// attachObstacle says who still holds the socket or the interface that an object needs.
func (r *reconciler) attachObstacle(socket, device string, of object) error {
	holds := func(o object, itsSocket, itsDevice string) error {
		switch {
		case o == of:
		case socket != "" && itsSocket == socket:
			return because(errFollows, "%s %s still has its socket %s", o.kind, o.name, socket)
		case device != "" && itsDevice == device:
			return because(errFollows, "%s %s still has its interface %s", o.kind, o.name, device)
		}
		return nil
	}
	for _, o := range r.uplinks.now {
		if err := holds(object{KindUplink, o.Name}, o.VhostUser, o.Interface); err != nil {
			return err
		}
	}
	for _, o := range r.ports.now {
		if err := holds(object{KindPort, o.Name}, o.Socket, o.Interface); err != nil {
			return err
		}
	}
	for _, o := range r.volumes.now {
		if err := holds(object{KindVolume, o.Name}, o.Socket, ""); err != nil {
			return err
		}
	}
	return nil
}
