package blk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
)

// OnError says what becomes of requests while the store is away.
type OnError uint8

const (
	// Wait: they wait until it is back, and those that it had are submitted again; up to Policy.Timeout.
	Wait OnError = iota
	// Fail: they fail at once; or, with a timeout, if the store is not back by then.
	Fail
)

// Durability says when writes are stable.
type Durability uint8

const (
	// DurabilityFlush: when the guest flushes, as with any disk that has a cache.
	DurabilityFlush Durability = iota
	// DurabilityFUA: when they are done. So nothing is lost when a server dies, at the price of each write's latency.
	DurabilityFUA
)

// Policy is what an operator decides for a volume. The zero value waits for ever.
type Policy struct {
	OnError OnError
	// Timeout is how long a request may take once the limits let it go, lost and submitted again or not; then it fails. Zero: for ever with
	// Wait; with Fail no request that the store has is called back.
	Timeout    time.Duration
	Durability Durability
	// Limits are the volume's own, Group is what it shares with others. Zero, nil: none.
	Limits LimitOptions
	Group  *Limit
}

// VolumeOptions configure a Volume. Name and Open must be set.
type VolumeOptions struct {
	Name string
	// Serial is what the guest sees, at most 20 bytes.
	Serial string
	// ReadOnly: the guest may not write. It must be set for a store that cannot be written.
	ReadOnly bool
	Policy   Policy
	// Restarted: before Open succeeded the store could not be reached, so it may have been restarted since a process before this one used it. If that has left
	// unflushed writes (INFLIGHT_SHMFD), the next flush fails.
	Restarted bool
	// Source says where the store is: in a process that has closed a volume there with writes that may not have ended, the next one waits for them. Empty: the disk is known
	// by Info.Identity, if by anything.
	Source string
	// Unended is a directory, made if need be, in which the next process finds which disks may have writes under way that nobody else tells it of. It must outlive processes, and need not
	// outlive the host. Empty: the next process is not told.
	Unended string
	// Open opens the store, which tells the watcher when it changes.
	Open func(Watcher) (Store, error)
	// Log hears what people should know. Nil: nobody does.
	Log *slog.Logger
}

// Volume is a disk: what all its queues share. It owns the store and its lanes, one on each worker that has a queue; it knows the policy, counts, and passes
// on that the store has changed. Its methods belong to the control side, and are not called on a worker nor within Do, unless they say so.
//
//	Queue ─▶ Gate ─┐
//	Queue ─▶ Gate ─┴▶ trunk ─▶ Lane ─┐                worker 0
//	Queue ─▶ Gate ──▶ trunk ─▶ Lane ─┴▶ Store ◀─ Volume    worker 1
type Volume struct {
	options VolumeOptions
	store   Store                // set under telling
	info    atomic.Pointer[Info] // as the guest sees it
	policy  atomic.Pointer[Policy]
	bounds  atomic.Pointer[bounds] // nil: nothing is limited
	changed atomic.Pointer[func(Info)]
	telling sync.Mutex // held while one tells what the store is by now
	ledger  ledger
	notes   notes

	restarted atomic.Bool   // the store may have lost what was not flushed, since or before it was opened
	doubt     atomic.Uint64 // when a write last came back that may not have ended, by dataplane.Clock; 0: all have
	marked    atomic.Bool   // the next process is told of the disk, should this one be killed
	fenced    atomic.Int64  // until then no write goes to the store, since those of others may not have ended; 0: it never had to wait

	control sync.Mutex // held by who changes what follows
	mu      sync.Mutex // of what follows, for a moment
	trunks  []*trunk
	retired GateStats // of gates that were closed
	past    trunkStats
}

var _ Watcher = (*Volume)(nil)

// OpenVolume opens a volume and its store.
func OpenVolume(o VolumeOptions) (*Volume, error) {
	if len(o.Serial) > serialBytes {
		return nil, fmt.Errorf("volume %s: serial %q has %d bytes, at most %d are possible: make it shorter", o.Name, o.Serial, len(o.Serial), serialBytes)
	}
	v := &Volume{options: o}
	v.ledger.init()
	v.restarted.Store(o.Restarted)
	v.setPolicy(o.Policy)
	v.notes.open(o.Log, o.Name)
	store, err := o.Open(v)
	if err != nil {
		v.notes.close()
		return nil, fmt.Errorf("volume %s: %w", o.Name, err)
	}
	if err := v.begin(store); err != nil {
		return nil, errors.Join(fmt.Errorf("volume %s: %w", o.Name, err), v.Close())
	}
	v.enter()
	return v, nil
}

// begin takes the store, which may have told of a change before.
func (v *Volume) begin(store Store) error {
	v.telling.Lock()
	defer v.telling.Unlock()
	v.store = store
	i := store.Info()
	if err := v.judge(&i); err != nil {
		return err
	}
	v.info.Store(v.present(i))
	return nil
}

// judge refuses a store that cannot be the volume's.
func (v *Volume) judge(i *Info) error {
	if i.ReadOnly && !v.options.ReadOnly {
		return errors.New("the store is read-only: set readonly: true, or open it for writing at the server")
	}
	return i.check()
}

// check refuses what no disk can be.
func (i *Info) check() error {
	b := max(i.BlockSize, 1)
	switch {
	case i.BlockSize != 0 && b < sector || b&(b-1) != 0:
		return fmt.Errorf("the store has blocks of %d bytes: they must be a power of two from %d on", b, sector)
	case i.Size%uint64(b) != 0:
		return fmt.Errorf("the store's size of %d bytes is not a multiple of its block size of %d: resize it", i.Size, b)
	}
	return nil
}

// beyond says what a store could do and another one cannot; nil: nothing.
func (i *Info) beyond(now *Info) error {
	var lost []string
	for _, c := range [...]struct {
		gone bool
		what string
	}{
		{i.Discard && !now.Discard, "discard"},
		{i.WriteZeroes && !now.WriteZeroes, "write zeroes"},
		{i.FUA && !now.FUA, "make single writes stable"},
		{!i.ReadOnly && now.ReadOnly, "be written to"},
	} {
		if c.gone {
			lost = append(lost, c.what)
		}
	}
	if lost == nil {
		return nil
	}
	return errors.New(strings.Join(lost, ", "))
}

// present is the store as the guest sees it.
func (v *Volume) present(i Info) *Info {
	i.ReadOnly = i.ReadOnly || v.options.ReadOnly
	return &i
}

// same compares two, and the lifetimes that they point to.
func (i *Info) same(other *Info) bool {
	a, b := *i, *other
	if a.Lifetime != nil && b.Lifetime != nil && *a.Lifetime == *b.Lifetime {
		a.Lifetime = b.Lifetime
	}
	return a == b
}

// Name is the volume's in the configuration.
func (v *Volume) Name() string { return v.options.Name }

// Serial is what the guest sees.
func (v *Volume) Serial() string { return v.options.Serial }

// Info is what the store was when it was asked last, as the guest sees it. Anybody may ask.
func (v *Volume) Info() Info { return *v.info.Load() }

// Policy is the one in force. Anybody may ask.
func (v *Volume) Policy() Policy { return *v.policy.Load() }

// SetPolicy replaces the policy of a volume that may be in use. Requests that wait are judged by the new one.
func (v *Volume) SetPolicy(p Policy) {
	v.control.Lock()
	defer v.control.Unlock()
	v.setPolicy(p)
	v.eachGate((*Gate).review)
}

func (v *Volume) setPolicy(p Policy) {
	if old := v.policy.Load(); old == nil || old.Limits != p.Limits || old.Group != p.Group {
		b := &bounds{own: NewLimit(p.Limits), group: p.Group}
		if old != nil && old.Limits == p.Limits && v.bounds.Load() != nil {
			b.own = v.bounds.Load().own // it goes on where it is
		}
		if b.own == nil && b.group == nil {
			b = nil
		}
		v.bounds.Store(b)
	}
	v.policy.Store(&p)
}

// OnChange has fn called whenever the store has changed, such as its size, with what it is now. It replaces the function that was there; nil: nobody is called.
func (v *Volume) OnChange(fn func(Info)) {
	if fn == nil {
		v.changed.Store(nil)
		return
	}
	v.changed.Store(&fn)
}

// Changed implements Watcher. Of two who tell at the same time the older news may come last, so what counts is what the store is by now.
func (v *Volume) Changed(i Info) {
	v.telling.Lock()
	defer v.telling.Unlock()
	if v.store != nil {
		i = v.store.Info()
	}
	if err := i.check(); err != nil {
		v.note(noteRefused, 0, err, 0)
		return
	}
	v.become(i)
}

// become passes on what the store is. With telling held.
func (v *Volume) become(i Info) {
	i = *v.present(i)
	if old := v.info.Swap(&i); old != nil {
		if old.Size != i.Size {
			v.note(noteSize, 0, nil, i.Size)
		}
		if lost := old.beyond(&i); lost != nil {
			v.note(noteLacks, 0, lost, 0)
		}
	}
	if fn := v.changed.Load(); fn != nil {
		(*fn)(i)
	}
}

// Refresh asks the store anew what it is: a disk may have grown.
func (v *Volume) Refresh(ctx context.Context) (Info, error) {
	if _, err := v.store.Refresh(ctx); err != nil {
		return Info{}, fmt.Errorf("volume %s: %w", v.Name(), err)
	}
	v.telling.Lock()
	defer v.telling.Unlock()
	i := v.store.Info() // it may have changed once more, and told so
	if err := i.check(); err != nil {
		return Info{}, fmt.Errorf("volume %s: %w", v.Name(), err)
	}
	if !v.info.Load().same(v.present(i)) {
		v.become(i)
	}
	return v.Info(), nil
}

// NewGate makes the way for a queue's requests on a worker, which has a ring that it polls.
func (v *Volume) NewGate(h Host) (*Gate, error) {
	if h.Ring == nil {
		return nil, fmt.Errorf("volume %s: the worker has no io_uring, which its timers are", v.Name())
	}
	return v.newGate(h, h.Ring, dataplane.Clock)
}

func (v *Volume) newGate(h Host, t timers, clock func() int64) (*Gate, error) {
	v.control.Lock()
	defer v.control.Unlock()
	on, err := v.trunkOn(h)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.Name(), err)
	}
	g := &Gate{volume: v, trunk: on, worker: h.Worker, timers: t, clock: clock, deadline: never}
	g.timer.Handler = g
	h.Worker.Do(func() { on.gates = append(on.gates, g) })
	return g, nil
}

// trunkOn finds the worker's lane, or opens it.
func (v *Volume) trunkOn(h Host) (*trunk, error) {
	for _, t := range v.trunks {
		if t.host.Worker == h.Worker {
			return t, nil
		}
	}
	if most := v.info.Load().Lanes; most > 0 && len(v.trunks) >= most {
		return nil, fmt.Errorf("the store can be used by %d workers at once, not by more: put all queues of the volume on as many", most)
	}
	t := &trunk{volume: v, host: h, page: v.ledger.page()}
	lane, err := v.store.Open(h, t)
	if err != nil {
		v.ledger.leave(t.page)
		return nil, err
	}
	h.Worker.Do(func() { t.attach(lane) })
	v.mu.Lock()
	v.trunks = append(v.trunks, t)
	v.mu.Unlock()
	return t, nil
}

// Close ends the gate, which has no request any more (Busy), and with the last one on its worker the lane.
func (g *Gate) Close() {
	v, t := g.volume, g.trunk
	v.control.Lock()
	defer v.control.Unlock()
	var last GateStats
	left := newSurvey() // without this gate, which is among the retired then
	g.worker.Do(func() {
		g.timers.Stop(&g.timer)
		g.deadline = never
		g.collect(&last)
		for i, other := range t.gates {
			if other == g {
				t.gates = append(t.gates[:i:i], t.gates[i+1:]...)
				break
			}
		}
		t.fill(left)
		if len(t.gates) == 0 {
			t.lane.Close()
		}
	})
	v.mu.Lock()
	defer v.mu.Unlock()
	v.retired.Merge(&last)
	if len(t.gates) > 0 {
		return
	}
	v.past.backs += t.stats.backs
	v.past.downs += t.stats.downs
	v.ledger.leave(t.page)
	for i, other := range v.trunks {
		if other == t {
			v.trunks = append(v.trunks[:i:i], v.trunks[i+1:]...)
			break
		}
	}
}

// eachGate runs fn for every gate, on its worker.
func (v *Volume) eachGate(fn func(*Gate)) {
	v.mu.Lock()
	trunks := v.trunks
	v.mu.Unlock()
	for _, t := range trunks {
		t.host.Worker.Do(func() {
			for _, g := range t.gates {
				fn(g)
			}
		})
	}
}

// Close ends the store, after all gates were closed.
func (v *Volume) Close() error {
	err := errors.Join(v.leave(), v.store.Close())
	v.notes.close()
	return err
}
