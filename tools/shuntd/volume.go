package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// volume is a guest's disk. Its store is opened beside everything else, since a server may not answer for days; the socket is there from the moment on at
// which one knows how large the disk is.
//
//	AddVolume ─▶ open ─┬▶ try: store, device, queues on their workers, socket ─▶ in service, for good: what happens to the store then is blk's
//	                   └◀─ again, later and later: waiting, with the reason
type volume struct {
	engine *engine
	log    *slog.Logger
	places []*worker // by queue

	away bool // the opener's: a server was out of sight, so it may have been restarted since a daemon before this one used it

	stop context.CancelFunc // ends the opener
	done chan struct{}      // it has ended

	enacting sync.Mutex // held while one reads the policy and puts it in force, before mu

	mu     sync.Mutex // of what follows; nobody waits for a store or a worker with it
	config config.Volume
	policy blk.Policy
	served *served // nil: the store was not reached yet, or the volume goes
	why    error   // and this is why
	since  time.Time
	ended  bool // nobody waits for what is still being opened
}

// served is a volume whose store is open.
type served struct {
	volume  *blk.Volume
	device  *blk.Device
	backend atomic.Pointer[vhostuser.Backend] // nil: nobody is let in yet
}

// How a store is tried: each attempt has its time, and waits longer than the one before, up to a second: a server that is back is not waited for. AddVolume stays for the first one a little, so that who reads that a volume
// was added mostly finds it in service; not so long for a server where it has just waited in vain, or a hundred disks at a dead one would keep those behind them in the configuration waiting.
const (
	tryTime       = 15 * time.Second
	leastTryPause = 200 * time.Millisecond
	mostTryPause  = time.Second
	firstTry      = 300 * time.Millisecond
	nextTry       = 10 * time.Millisecond
	vainTime      = time.Second
)

// Why a volume is not served, while no attempt has said so.
var (
	errOpening = errors.New("its store is just being opened")
	errEnding  = errors.New("it is just being removed")
)

// AddVolume implements control.Engine.
func (e *engine) AddVolume(ctx context.Context, c config.Volume) (err error) {
	defer func() {
		if delete(e.lapsed, c.Source); err != nil && config.Scheme(c.Source) != config.SchemeFile {
			e.lapsed[c.Source] = true
		}
	}()
	v, err := e.newVolume(c)
	if err != nil {
		return err
	}
	opener, stop := context.WithCancel(context.Background())
	v.stop = stop
	first := make(chan error, 1)
	go v.open(opener, first)
	stay := firstTry
	if time.Since(e.vain) < vainTime && config.Scheme(c.Source) != config.SchemeFile {
		stay = nextTry
	}
	patience := time.NewTimer(stay)
	defer patience.Stop()
	select {
	case err = <-first:
	case <-patience.C:
		e.vain = time.Now()
	case <-ctx.Done():
	}
	if err != nil && v.refuses(err) {
		return errors.Join(refused(err), v.end(ctx))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.volumes[c.Name] = v
	return nil
}

// newVolume makes a volume that nothing was opened for.
func (e *engine) newVolume(c config.Volume) (*volume, error) {
	if _, _, err := accounts(config.Port{Owner: c.Owner, Group: c.Group}); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	v := &volume{
		engine: e, log: e.log.With("volume", c.Name), done: make(chan struct{}),
		config: c, policy: e.policyOf(c), why: errOpening, since: time.Now(), away: e.lapsed[c.Source],
	}
	var err error
	v.places, err = e.placeVolume(c.Queues, c.Workers)
	return v, err
}

// open tries until the volume is served or ended. How the first attempt ended is told, and in the log is what the next ones meet.
func (v *volume) open(ctx context.Context, first chan<- error) {
	defer close(v.done)
	said := ""
	for pause := leastTryPause; ; pause = min(2*pause, mostTryPause) {
		err := v.try(ctx)
		if err != nil {
			v.mu.Lock()
			v.why = err
			v.mu.Unlock()
		}
		if first != nil {
			first <- err
			first = nil
		} else if err != nil && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			v.log.Warn("volume waits for its store", "reason", reasonOf(err))
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// refuses tells whether an error of the first attempt is one of the configuration or of this host.
func (v *volume) refuses(err error) bool {
	return lasts(v.config.Source, err) || errors.Is(err, errHere)
}

// errHere is for what fails at this host, not at the store.
var errHere = errors.New("of this host")

// try opens store, device and socket, or leaves nothing open.
func (v *volume) try(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	v.mu.Lock()
	c, policy := v.config, v.policy
	v.mu.Unlock()
	s := &served{}
	s.volume, err = blk.OpenVolume(blk.VolumeOptions{
		Name: c.Name, Serial: c.Serial, ReadOnly: c.ReadOnly, Policy: policy, Restarted: v.away, Source: c.Source, Unended: unendedPath(), Log: v.engine.log,
		Open: func(w blk.Watcher) (blk.Store, error) {
			return v.engine.stores(ctx, storeOptions{VolumeSource: c.From(), quiesce: time.Duration(c.Quiesce), lanes: len(distinct(v.places)), watcher: w})
		},
	})
	if err != nil {
		v.away = config.Scheme(c.Source) != config.SchemeFile
		return err
	}
	if err = v.serve(s, c); err != nil {
		return errors.Join(v.engine.crowded(err), v.close(s))
	}
	v.mu.Lock()
	now, late := v.config, v.ended
	if !late {
		v.served, v.why = s, nil
	}
	v.mu.Unlock()
	if late {
		return v.close(s)
	}
	v.setPolicy()
	if err := v.permit(s, c, now); err != nil { // meanwhile
		v.log.Warn("the volume's socket keeps the mode and owner it was made with", "reason", err)
	}
	i := s.volume.Info()
	v.log.Info("volume in service", "source", c.Source, "socket", c.Socket, "bytes", i.Size, "readonly", i.ReadOnly, "workers", indices(v.places))
	return nil
}

// unendedPath is where the next daemon finds which disks may have writes under way, beside the states of rings. Where there is no such place it finds none: what then remains, operations.md says.
func unendedPath() string {
	dir, err := statePath()
	if err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(dir), "disks")
}

// serve makes the device, has the workers poll its queues, and lets the guest in.
func (v *volume) serve(s *served, c config.Volume) (err error) {
	o := blk.DeviceOptions{
		Volume: s.volume, Registered: c.RegisteredBuffers, Grace: v.engine.grace, Failed: func(why error) { v.hangUp(s, why) }, ConfigChanged: s.tell,
	}
	for _, w := range v.places {
		r, err := v.engine.ring(w)
		if err != nil {
			return here(err)
		}
		o.Queues = append(o.Queues, blk.Host{Worker: w.Worker, Ring: r})
	}
	if s.device, err = blk.NewDevice(o); err != nil {
		return err
	}
	s.device.Start()
	for _, w := range distinct(v.places) {
		w.ringLast()
	}
	owner, group, err := accounts(config.Port{Owner: c.Owner, Group: c.Group})
	if err != nil {
		return here(err)
	}
	options := vhostuser.Options{Path: c.Socket, Mode: fs.FileMode(c.Mode), Owner: owner, Group: group, Log: v.log}
	listen := vhostuser.Listen
	if c.Role == config.RoleClient {
		listen = vhostuser.Connect
		options.Mode, options.Owner, options.Group = 0, 0, 0 // the socket is the front-end's
	}
	backend, err := listen(options, s.device)
	if err != nil {
		return here(refused(err, vhostuser.ErrInUse))
	}
	s.backend.Store(backend)
	return nil
}

// tell has the front-end read the disk's configuration again, which is larger now.
func (s *served) tell() {
	if b := s.backend.Load(); b != nil {
		b.ConfigChanged()
	}
}

// here marks an error as one of this host.
func here(err error) error { return &refusal{err.Error(), []error{err, errHere}} }

// hangUp ends the connection of a guest that broke the rules, so that its front-end can begin anew. The worker that noticed calls it.
func (v *volume) hangUp(s *served, why error) {
	if b := s.backend.Load(); b != nil {
		b.Abandon(why, hangUpAfter)
	}
	go v.log.Warn("volume out of service until its front-end connects again", "reason", why)
}

// close takes back whatever of a store in service there is: the guest first, so that nothing new comes in. Where a request hangs in the kernel, as at a disk
// that does not answer, the store stays open until that has ended.
func (v *volume) close(s *served) error {
	var err error
	if b := s.backend.Load(); b != nil {
		err = b.Close()
	}
	if s.device != nil {
		if busy := s.device.Close(); busy != nil {
			v.engine.lingering.Go(func() { v.linger(s) })
			return errors.Join(err, busy)
		}
	}
	return errors.Join(err, s.volume.Close())
}

// lingerPause is how often one looks whether what hung in the kernel has ended.
const lingerPause = time.Second

// linger closes a store when its last requests have ended. Until then a file is locked, so whoever opens it next waits for them. When the engine ends, the kernel closes it.
func (v *volume) linger(s *served) {
	for {
		select {
		case <-v.engine.closing:
			return
		case <-time.After(lingerPause):
		}
		if s.device.Close() == nil {
			v.engine.left("volume", s.volume.Name(), s.volume.Close())
			v.log.Info("the last requests of a volume that was removed have ended")
			return
		}
	}
}

// end takes a volume out of service, from any state. An opener that hangs in the kernel, as on a network file system that does not answer, is left alone after
// ctx: it closes what it opens.
func (v *volume) end(ctx context.Context) error {
	v.stop()
	select {
	case <-v.done:
	case <-ctx.Done():
	}
	v.mu.Lock()
	s := v.served
	v.served, v.why, v.ended = nil, errEnding, true
	v.mu.Unlock()
	select {
	case <-v.done:
	default:
		return fmt.Errorf("its store is still being opened: %w", ctx.Err())
	}
	if s == nil {
		return nil
	}
	return v.close(s)
}

// permit gives the socket the mode and owner of another configuration.
func (v *volume) permit(s *served, was, will config.Volume) error {
	if was.Mode == will.Mode && was.Owner == will.Owner && was.Group == will.Group {
		return nil
	}
	owner, group, err := accounts(config.Port{Owner: will.Owner, Group: will.Group})
	if err != nil {
		return err
	}
	return s.backend.Load().Permit(fs.FileMode(will.Mode), owner, group)
}

// UpdateVolume implements control.Engine.
func (e *engine) UpdateVolume(_ context.Context, c config.Volume) error {
	if _, _, err := accounts(config.Port{Owner: c.Owner, Group: c.Group}); err != nil {
		return err
	}
	e.mu.Lock()
	v, policy := e.volumes[c.Name], e.policyOf(c)
	e.mu.Unlock()
	if v == nil {
		return fmt.Errorf("volume %s: %w", c.Name, control.ErrNotFound)
	}
	v.mu.Lock()
	was, s := v.config, v.served
	if s == nil {
		v.config, v.policy = c, policy
		v.mu.Unlock()
		return nil
	}
	v.mu.Unlock()
	if err := v.permit(s, was, c); err != nil {
		return err
	}
	v.mu.Lock()
	v.config, v.policy = c, policy
	v.mu.Unlock()
	v.setPolicy()
	return nil
}

// RemoveVolumes implements control.Engine.
func (e *engine) RemoveVolumes(ctx context.Context, names []string) []error {
	errs := make([]error, len(names))
	var going []*volume
	e.mu.Lock()
	for i, name := range names {
		v := e.volumes[name]
		if v == nil {
			errs[i] = fmt.Errorf("volume %s: %w", name, control.ErrNotFound)
			continue
		}
		delete(e.volumes, name)
		going = append(going, v)
	}
	e.mu.Unlock()
	for i, err := range endAll(ctx, going) {
		e.left("volume", going[i].config.Name, err)
	}
	return errs
}

// endAll takes volumes out of service, all at the same time: one whose store does not answer takes a while.
func endAll(ctx context.Context, volumes []*volume) []error {
	errs := make([]error, len(volumes))
	var ending sync.WaitGroup
	for i, v := range volumes {
		ending.Go(func() { errs[i] = v.end(ctx) })
	}
	ending.Wait()
	return errs
}

// ResizeVolume implements control.Engine.
func (e *engine) ResizeVolume(ctx context.Context, name string) error {
	e.mu.Lock()
	v := e.volumes[name]
	e.mu.Unlock()
	if v == nil {
		return fmt.Errorf("volume %s: %w", name, control.ErrNotFound)
	}
	v.mu.Lock()
	s, why := v.served, v.why
	v.mu.Unlock()
	if s == nil {
		return storeError(fmt.Errorf("the volume waits for its store: %s", reasonOf(why)))
	}
	if _, err := s.volume.Refresh(ctx); err != nil {
		return storeError(err)
	}
	return nil
}

// openVolumeOf finds a volume that has a source open.
func (e *engine) openVolumeOf(source string) *blk.Volume {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range e.volumes {
		v.mu.Lock()
		s, same := v.served, v.config.Source == source
		v.mu.Unlock()
		if same && s != nil {
			return s.volume
		}
	}
	return nil
}
