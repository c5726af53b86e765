package control

import (
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/shuntio/shunt/tools/control/config"
)

// What a whole configuration wants and the engine could not be given, as for a file or an interface that is not there, is missing. It is tried again, later and
// later, until nothing is:
//
//	Start, Apply ─▶ missing ─▶ timer ─▶ retry: add it to what runs ─┬▶ nothing is missing
//	                 ▲                    ▲        └ still missing ──┴▶ the timer again
//	                 │                    └ Nudge: the host has changed
//	                 └ Edit, Delete: what an operator changed himself is not missing any more, whatever came of it: he was told
//
// An attempt takes nothing from anybody: what stands in the way of a missing object stays, and is the reason that the status shows.

// How long what is missing is left alone: at first, and at most. Each time it is twice as long as before, unless something came of the last one.
const (
	firstPause = time.Second
	mostPause  = 30 * time.Second
)

// Failure is an object that is not as it should be.
type Failure struct {
	Change
	// Retry tells how it is tried again. Absent: it is not, since it runs as it was before, or since the change was refused to who asked for it.
	Retry *Retry `json:"retry,omitempty"`
}

// Retry tells of attempts to bring an object into service.
type Retry struct {
	Since time.Time `json:"since"` // the first one
	Tries int       `json:"tries"` // so far
	Next  time.Time `json:"next"`  // the next one, at the latest
}

// missing is what of a configuration is not running and can be tried without taking anything out of service. What would have to be replaced is not
// among it, since each attempt would cost a guest its connection.
func missing(want, running *config.Config) config.Config {
	var m config.Config
	pick(&m.Uplinks, want.Uplinks, running.Uplinks, func(_, _ config.Uplink) bool { return true })
	pick(&m.Networks, want.Networks, running.Networks, func(_, _ config.Network) bool { return false })
	pick(&m.Ports, want.Ports, running.Ports, Replaces)
	pick(&m.VolumeGroups, want.VolumeGroups, running.VolumeGroups, func(_, _ config.VolumeGroup) bool { return false })
	pick(&m.Volumes, want.Volumes, running.Volumes, ReplacesVolume)
	return m
}

type named interface{ ObjectName() string }

func byName[T named](list []T) map[string]T {
	m := make(map[string]T, len(list))
	for _, v := range list {
		m[v.ObjectName()] = v
	}
	return m
}

func pick[T named](into *[]T, want, running []T, replaces func(was, will T) bool) {
	runs := byName(running)
	for _, v := range want {
		if is, there := runs[v.ObjectName()]; !there || !reflect.DeepEqual(is, v) && !replaces(is, v) {
			*into = append(*into, v)
		}
	}
}

// only is the part of a configuration for which keep says so.
func only(c config.Config, keep func(object) bool) config.Config {
	return config.Config{
		Uplinks: sift(c.Uplinks, KindUplink, keep), Networks: sift(c.Networks, KindNetwork, keep), Ports: sift(c.Ports, KindPort, keep),
		VolumeGroups: sift(c.VolumeGroups, KindVolumeGroup, keep), Volumes: sift(c.Volumes, KindVolume, keep),
	}
}

func sift[T named](list []T, kind Kind, keep func(object) bool) []T {
	return slices.DeleteFunc(slices.Clone(list), func(v T) bool { return !keep(object{kind, v.ObjectName()}) })
}

// with is a configuration with more objects, in the place of those of their names.
func with(c, more *config.Config) *config.Config {
	return &config.Config{
		Workers: c.Workers, Control: c.Control,
		Uplinks: join(c.Uplinks, more.Uplinks), Networks: join(c.Networks, more.Networks), Ports: join(c.Ports, more.Ports),
		VolumeGroups: join(c.VolumeGroups, more.VolumeGroups), Volumes: join(c.Volumes, more.Volumes),
	}
}

func join[T named](list, more []T) []T {
	news := byName(more)
	all := slices.Clone(list)
	for i, v := range all {
		if n, changed := news[v.ObjectName()]; changed {
			all[i] = n
			delete(news, v.ObjectName())
		}
	}
	for _, v := range more {
		if _, is := news[v.ObjectName()]; is {
			all = append(all, v)
		}
	}
	return all
}

// retry tries once more what is missing.
func (c *Controller) retry() {
	if c.take(c.alive) != nil {
		return
	}
	defer c.give()
	if c.alive.Err() != nil || !c.backoff.due() {
		return
	}
	running := c.Config()
	r := newReconciler(c.alive, c.engine, running, with(running, &c.missing), c.running.Store)
	c.remember(again, r, r.add(), &c.missing)
}

// Nudge says that the host has changed, so that what is missing may be tried sooner.
func (c *Controller) Nudge() { c.backoff.soon() }

// backoff is when what is missing is tried again.
type backoff struct {
	mu         sync.Mutex
	timer      *time.Timer // nil: nothing is missing
	pause      time.Duration
	last, next time.Time
}

// plan sets the time of the next attempt, after one of which something came, or nothing.
func (b *backoff) plan(try func(), came bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pause = min(2*b.pause, mostPause)
	if came || b.pause == 0 {
		b.pause = firstPause
	}
	b.last = time.Now()
	b.next = b.last.Add(b.pause)
	if b.timer == nil {
		b.timer = time.AfterFunc(b.pause, try)
	} else {
		b.timer.Reset(b.pause)
	}
}

// soon brings the next attempt forward, but for what was tried just now.
func (b *backoff) soon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	at := b.last.Add(firstPause)
	if at.Before(now) {
		at = now
	}
	if b.timer != nil && at.Before(b.next) {
		b.next = at
		b.timer.Reset(at.Sub(now))
	}
}

// due tells whether it is time: somebody else may have tried since the timer ran out.
func (b *backoff) due() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.timer != nil && !time.Now().Before(b.next)
}

// stop ends it: nothing is missing, or nobody is to try.
func (b *backoff) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
	}
	b.timer, b.pause = nil, 0
}

// at is the time of the next attempt.
func (b *backoff) at() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next
}
