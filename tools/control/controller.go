package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/tools/control/config"
)

// Controller keeps an engine as its configuration says. Its methods may be called by many goroutines; changes are made
// one after the other.
type Controller struct {
	engine  Engine
	log     *slog.Logger
	started time.Time

	// alive ends with the first Close, so that a change under way gives up.
	alive context.Context
	end   context.CancelFunc

	// turn holds one token. Whoever has it may call the engine's changing methods and replace running and failed.
	turn    chan struct{}
	closed  bool          // guarded by turn
	missing config.Config // guarded by turn: what is tried again, when backoff says so
	backoff backoff

	// What the engine holds, and what it should hold and does not. Read at any time; what they point to never changes.
	running atomic.Pointer[config.Config]
	failed  atomic.Pointer[[]Failure]
	changed chan struct{} // has a token when failed was replaced

	captures captures
}

// New returns a controller of an engine that holds nothing yet and was made from the workers and control sections of
// start, which passed its rules. Start brings up the rest.
func New(engine Engine, start *config.Config, log *slog.Logger) *Controller {
	c := &Controller{engine: engine, log: log, started: time.Now(), turn: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
	c.alive, c.end = context.WithCancel(context.Background())
	c.turn <- struct{}{}
	c.running.Store(&config.Config{Workers: start.Workers, Control: start.Control})
	c.failed.Store(&[]Failure{})
	return c
}

// Config returns the running configuration: what the engine holds. It must not be changed.
func (c *Controller) Config() *config.Config { return c.running.Load() }

// Failed lists what is not as it should be.
func (c *Controller) Failed() []Failure {
	list := slices.Clone(*c.failed.Load())
	for i, f := range list {
		if f.Retry != nil {
			retry := *f.Retry
			retry.Next = c.backoff.at()
			list[i].Retry = &retry
		}
	}
	return list
}

// Changed yields when what Failed lists may be something else.
func (c *Controller) Changed() <-chan struct{} { return c.changed }

// Status returns the state of the daemon, each list by name.
func (c *Controller) Status() Status {
	s := Status{Version: Version(), PID: os.Getpid(), Started: c.started, Failed: c.Failed(), EngineStatus: c.engine.Status()}
	s.Workers, s.Uplinks, s.Networks, s.Ports = notNil(s.Workers), notNil(s.Uplinks), notNil(s.Networks), notNil(s.Ports)
	s.Volumes = notNil(s.Volumes)
	slices.SortFunc(s.Workers, func(a, b WorkerStatus) int { return a.ID - b.ID })
	slices.SortFunc(s.Uplinks, func(a, b UplinkStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Networks, func(a, b NetworkStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Ports, func(a, b PortStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Volumes, func(a, b VolumeStatus) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Stats returns all counters, workers first, then by kind as packets meet them, then by name.
func (c *Controller) Stats() Stats {
	s := c.engine.Stats()
	s.Objects = notNil(s.Objects)
	kinds := []Kind{KindWorker, KindUplink, KindNetwork, KindPort, KindVolume}
	slices.SortFunc(s.Objects, func(a, b ObjectStats) int {
		if a.Kind != b.Kind {
			return slices.Index(kinds, a.Kind) - slices.Index(kinds, b.Kind)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return s
}

// FDB returns a network's forwarding table by MAC address, or an error that wraps ErrNotFound.
func (c *Controller) FDB(network string) ([]FDBEntry, error) {
	if !slices.ContainsFunc(c.Config().Networks, func(n config.Network) bool { return n.Name == network }) {
		return nil, because(ErrNotFound, "there is no network %q", network)
	}
	entries, err := c.engine.FDB(network)
	slices.SortFunc(entries, func(a, b FDBEntry) int { return strings.Compare(a.MAC.String(), b.MAC.String()) })
	return notNil(entries), err
}

// notNil lets JSON say [] and not null, for the programs that walk lists.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Start brings up the rest of the configuration that New was given, until ctx ends. What fails is logged, and tried again until it does not: an error means that
// nothing can come of it all.
func (c *Controller) Start(ctx context.Context, start *config.Config) error {
	_, err := c.change(ctx, first, func(*config.Config) (*config.Config, error) { return start, nil })
	if failed := (*FailedError)(nil); errors.As(err, &failed) {
		return ctx.Err()
	}
	return err
}

// Apply makes want the running configuration, and tells what became of every object that is or was in it. An object
// that fails is left as it was, or absent when it is new, and the others go on: the error is then a *FailedError. What is absent is tried again, as after
// Start. Any other error means that nothing was changed.
func (c *Controller) Apply(ctx context.Context, want *config.Config) ([]Change, error) {
	return c.change(ctx, whole, func(*config.Config) (*config.Config, error) { return want, nil })
}

// Edit is Apply for a configuration that is made from the running one, which edit gets and must not change. Nothing of it is tried again.
func (c *Controller) Edit(ctx context.Context, edit func(*config.Config) (*config.Config, error)) ([]Change, error) {
	return c.change(ctx, part, edit)
}

// extent is how much of the configuration a change speaks of.
type extent uint8

const (
	part extent = iota
	whole
	first // whole, and nothing was there before
	again // what is missing of the last whole one
)

func (c *Controller) change(ctx context.Context, of extent, edit func(*config.Config) (*config.Config, error)) ([]Change, error) {
	if err := c.take(ctx); err != nil {
		return nil, err
	}
	defer c.give()
	running := c.Config()
	edited, err := edit(running)
	if err != nil {
		return nil, err
	}
	want := *edited
	if err := config.Check(&want); err != nil {
		return nil, err
	}
	if err := sameFixedParts(running, &want); err != nil {
		return nil, err
	}
	alive := c.alive // not ctx: a caller that goes away does not leave half a change behind
	if of == first {
		var cancel context.CancelFunc
		alive, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(c.alive, cancel)()
	}
	r := newReconciler(alive, c.engine, running, &want, c.running.Store)
	changes := r.run()
	c.remember(of, r, changes, &want)
	return changes, r.err(changes)
}

// Delete removes one object from the running configuration, or from the list of those that failed.
func (c *Controller) Delete(ctx context.Context, kind Kind, name string) ([]Change, error) {
	changes, err := c.Edit(ctx, func(running *config.Config) (*config.Config, error) { return without(running, kind, name) })
	if errors.Is(err, ErrNotFound) {
		return c.forget(ctx, object{kind, name}, err)
	}
	return changes, err
}

// Close ends the controller and the engine with all it holds. A change under way gives up, later ones get ErrClosed.
func (c *Controller) Close(ctx context.Context) error {
	c.end()
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.give()
	c.closed = true
	c.backoff.stop()
	return c.engine.Close(ctx)
}

func (c *Controller) take(ctx context.Context) error {
	select {
	case <-c.turn:
	case <-ctx.Done():
		return fmt.Errorf("another change is still being made: %w", ctx.Err())
	}
	if c.closed {
		c.give()
		return ErrClosed
	}
	return nil
}

func (c *Controller) give() { c.turn <- struct{}{} }

// forget takes an object from the list of those that failed, or returns the error that there is none.
func (c *Controller) forget(ctx context.Context, o object, none error) ([]Change, error) {
	if err := c.take(ctx); err != nil {
		return nil, err
	}
	defer c.give()
	was := *c.failed.Load()
	left := slices.DeleteFunc(slices.Clone(was), func(f Failure) bool { return f.object() == o })
	if len(left) == len(was) {
		return nil, none
	}
	if _, err := without(&c.missing, o.kind, o.name); errors.Is(err, ErrConflict) {
		return nil, err // the same as if it were running
	}
	c.missing = only(c.missing, func(m object) bool { return m != o })
	c.conclude(left)
	gone := Change{Kind: o.kind, Name: o.name, Action: Removed}
	c.report(gone, nil)
	return []Change{gone}, nil
}

// remember logs what happened and keeps what failed: of a change to what is wanted, all or a part of it, or of an attempt at what is missing of it. A failure of before
// stays known until its object is changed, or a whole configuration is applied.
func (c *Controller) remember(of extent, r *reconciler, changes []Change, want *config.Config) {
	before, touched, came := map[object]Failure{}, map[object]bool{}, false
	for _, f := range *c.failed.Load() {
		before[f.object()] = f
	}
	failed := []Failure{}
	for _, change := range changes {
		o := change.object()
		switch was := before[o]; change.Action {
		case Unchanged:
			continue
		case Failed:
			f := Failure{Change: change}
			if of == again && was.Retry != nil {
				f.Retry = &Retry{Since: was.Retry.Since, Tries: was.Retry.Tries + 1}
			}
			failed = append(failed, f)
			if r.ctx.Err() == nil && !(of == again && was.Error == change.Error) { // it is neither the end nor known
				c.report(change, r.errs[o])
			}
		default:
			came = true
			c.report(change, nil)
		}
		touched[o] = true
	}
	if of == part || of == again {
		for _, f := range *c.failed.Load() {
			if !touched[f.object()] {
				failed = append(failed, f)
			}
		}
	}
	if of == part {
		remains := only(c.missing, func(o object) bool { return !touched[o] })
		want = &remains
	}
	c.missing = missing(want, c.Config())
	if r.ctx.Err() != nil {
		return // with the daemon, which leaves to the next one what it found
	}
	switch {
	case of != part:
		c.backoff.plan(c.retry, of != again || came)
	case came:
		c.backoff.soon()
	}
	c.conclude(failed)
}

// conclude ends a change with what failed.
func (c *Controller) conclude(failed []Failure) {
	is := map[object]bool{}
	only(c.missing, func(o object) bool { is[o] = true; return true })
	for i, f := range failed {
		switch {
		case !is[f.object()]:
			failed[i].Retry = nil
		case f.Retry == nil:
			failed[i].Retry = &Retry{Since: time.Now(), Tries: 1}
		}
	}
	c.failed.Store(&failed)
	if len(is) == 0 {
		c.backoff.stop()
	}
	c.engine.Settle(&c.missing)
	select {
	case c.changed <- struct{}{}:
	default: // there is one already
	}
}

// report logs what became of an object; why says of one that failed if it did so with another.
func (c *Controller) report(change Change, why error) {
	switch {
	case change.Action == Unchanged:
	case errors.Is(why, errFollows):
		c.log.Warn("configuration not applied", "kind", change.Kind, "name", change.Name, "error", change.Error)
	case change.Action == Failed:
		c.log.Error("configuration not applied", "kind", change.Kind, "name", change.Name, "error", change.Error)
	default:
		c.log.Info("configuration applied", "kind", change.Kind, "name", change.Name, "action", change.Action)
	}
}

// sameFixedParts refuses to change what is read at start only.
func sameFixedParts(running, want *config.Config) error {
	for _, part := range []struct {
		key       string
		was, will any
	}{
		{"workers.cpus", running.Workers.CPUs, want.Workers.CPUs},
		{"workers.idle", running.Workers.Idle, want.Workers.Idle},
		{"workers.huge-pages", running.Workers.HugePages, want.Workers.HugePages},
		{"control.socket", running.Control.Socket, want.Control.Socket},
		{"control.group", running.Control.Group, want.Control.Group},
		{"control.metrics", running.Control.Metrics, want.Control.Metrics},
	} {
		if !reflect.DeepEqual(part.was, part.will) {
			return because(ErrRestart, "%s is %v in the running daemon and %v in the new configuration: restart shuntd to change it",
				part.key, show(part.was), show(part.will))
		}
	}
	return nil
}

func show(v any) string {
	if cpus, ok := v.(config.CPUs); ok && len(cpus) == 0 {
		return "auto"
	}
	if s := fmt.Sprint(v); s != "" {
		return s
	}
	return "absent"
}

// without returns running without one object, or says who still needs it.
func without(running *config.Config, kind Kind, name string) (*config.Config, error) {
	c := *running
	found := false
	switch kind {
	case KindUplink:
		for _, n := range c.Networks {
			if n.Uplink == name {
				return nil, because(ErrConflict, "uplink %s is in use by network %s, delete that first", name, n.Name)
			}
		}
		c.Uplinks, found = drop(c.Uplinks, func(u config.Uplink) bool { return u.Name == name })
	case KindNetwork:
		for _, p := range c.Ports {
			if p.Network == name {
				return nil, because(ErrConflict, "network %s is in use by port %s, delete that first", name, p.Name)
			}
		}
		c.Networks, found = drop(c.Networks, func(n config.Network) bool { return n.Name == name })
	case KindPort:
		c.Ports, found = drop(c.Ports, func(p config.Port) bool { return p.Name == name })
	case KindVolumeGroup:
		for _, v := range c.Volumes {
			if v.VolumeGroup == name {
				return nil, because(ErrConflict, "volume group %s is in use by volume %s, delete that first", name, v.Name)
			}
		}
		c.VolumeGroups, found = drop(c.VolumeGroups, func(g config.VolumeGroup) bool { return g.Name == name })
	case KindVolume:
		c.Volumes, found = drop(c.Volumes, func(v config.Volume) bool { return v.Name == name })
	}
	if !found {
		return nil, because(ErrNotFound, "there is no %s %q", kind, name)
	}
	return &c, nil
}

func drop[T any](list []T, is func(T) bool) ([]T, bool) {
	left := slices.DeleteFunc(slices.Clone(list), is)
	return left, len(left) < len(list)
}
