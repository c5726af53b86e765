package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/need"
)

// hangs are stores that have a request each, and neither answer it nor let go of it.
type hangs struct {
	mu     sync.Mutex
	stores []*blktest.Store
	closed atomic.Int32
}

// hanging counts how often it is closed.
type hanging struct {
	*blktest.Store
	of *hangs
}

func (h *hanging) Close() error {
	h.of.closed.Add(1)
	return h.Store.Close()
}

func (h *hangs) open(_ context.Context, o storeOptions) (blk.Store, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := blktest.New(blktest.Options{Size: 1 << 20, Watcher: o.watcher})
	h.stores = append(h.stores, s)
	return &hanging{s, h}, nil
}

func (h *hangs) set(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.stores {
		s.Silence(on)
		s.Deafen(on)
	}
}

// Volumes whose stores let go of nothing end all at the same time, whoever ends them; each is closed when its store lets go at last.
func TestVolumesEndTogether(t *testing.T) {
	need.Time(t, "waits for stores that hang")
	const volumes, queues = 5, 3
	e := runningEngine(t)
	h := &hangs{}
	e.stores = h.open
	t.Cleanup(func() { h.set(false) })
	var names []string
	add := func() {
		t.Helper()
		for range volumes {
			c := volumeOf(t, t.TempDir(), fmt.Sprint("v", len(names)), "nbd://192.0.2.1")
			c.Queues = queues
			names = append(names, c.Name)
			if err := e.AddVolume(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			d, err := driver.Dial(t.Context(), c.Socket, driver.Options{Queues: queues, Memory: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			h.set(true)
			for q := range queues {
				at, err := d.Alloc(512)
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Queue(q).Submit(&driver.Request{Op: driver.Out, Data: []virtq.Buffer{at.Segment(0, 512)}}); err != nil {
					t.Fatal(err)
				}
				d.Queue(q).Kick()
			}
			for end := time.Now().Add(10 * time.Second); underWay(e, c.Name) != queues; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s has %d requests", c.Name, underWay(e, c.Name))
				}
			}
		}
	}
	inTime := func(what string, end func() []error) {
		t.Helper()
		began := time.Now()
		errs := end()
		took := time.Since(began)
		t.Logf("%s: %v, %v", what, took, errs[0])
		if took > 5*time.Second { // 2 s for each
			t.Errorf("%s of %d volumes took %v", what, volumes, took)
		}
		if n := h.closed.Load(); n != 0 {
			t.Errorf("%s: %d stores are closed with requests under way", what, n)
		}
	}
	add()
	inTime("removal", func() []error { return e.RemoveVolumes(t.Context(), names) })
	add()
	inTime("end", func() []error { return e.removeAll(t.Context()) })
	h.set(false)
	for end := time.Now().Add(20 * time.Second); h.closed.Load() != 2*volumes; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d stores are closed, of %d that have let go", h.closed.Load(), 2*volumes)
		}
	}
}

// underWay is how many requests of a volume are not answered.
func underWay(e *engine, name string) uint64 {
	for _, o := range e.volumeStats() {
		if o.Kind == control.KindVolume && o.Name == name {
			return o.Volume.InFlight
		}
	}
	return 0
}

// A volume whose worker has no place for its file is refused, with what to do.
func TestVolumeTooMany(t *testing.T) {
	dir, e, ctx := t.TempDir(), runningEngine(t), t.Context()
	e.files = 4
	for i := range 2 * e.files {
		err := e.AddVolume(ctx, testVolume(t, dir, fmt.Sprintf("v%d", i), 1<<20))
		if err == nil {
			continue
		}
		if i == 0 || !errors.Is(err, errHere) || !strings.HasPrefix(err.Error(), "its worker has 4 files and connections of volumes") {
			t.Errorf("volume %d: %v", i, err)
		}
		return
	}
	t.Errorf("%d volumes in %d places", 2*e.files, e.files)
}

// Who looks at a volume while it is removed finds it waiting, for a reason.
func TestVolumeLookedAtWhileItEnds(t *testing.T) {
	dir, e, ctx := t.TempDir(), runningEngine(t), t.Context()
	if err := e.AddVolume(ctx, testVolume(t, dir, "v1", 1<<20)); err != nil {
		t.Fatal(err)
	}
	// As who found it a moment before it was taken out of the map.
	if err := e.volumes["v1"].end(ctx); err != nil {
		t.Fatal(err)
	}
	if s := volumeState(e, "v1"); s.State != control.StateWaiting || s.Reason != errEnding.Error() {
		t.Errorf("it is %s: %q", s.State, s.Reason)
	}
	if err := e.ResizeVolume(ctx, "v1"); !errors.Is(err, control.ErrStore) || !strings.Contains(err.Error(), errEnding.Error()) {
		t.Errorf("resized: %v", err)
	}
}

// ailing is a store that can be reached, and has something wrong with it.
type ailing struct{ *blktest.Store }

func (a ailing) State() blk.State {
	s := a.Store.State()
	s.Why = errors.New("it is not what it should be")
	return s
}

// What is wrong with a store that can be reached is in the volume's status, too.
func TestVolumeStoreAils(t *testing.T) {
	e := runningEngine(t)
	e.stores = func(_ context.Context, o storeOptions) (blk.Store, error) {
		return ailing{blktest.New(blktest.Options{Size: 1 << 20, Watcher: o.watcher})}, nil
	}
	if err := e.AddVolume(t.Context(), volumeOf(t, t.TempDir(), "v1", "nbd://192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	if s := volumeState(e, "v1"); s.State != control.StateDisconnected || s.Reason != "it is not what it should be" {
		t.Errorf("%+v", s)
	}
}

// A server that was reached, and left since this host could not serve the disk, is out of sight until it is tried again: it may have been restarted meanwhile, so what
// the guest had not flushed counts as lost. A file is always the same.
func TestVolumeTriedAgain(t *testing.T) {
	dir, e := t.TempDir(), runningEngine(t)
	image := testVolume(t, dir, "image", 1<<20)
	e.stores = func(ctx context.Context, o storeOptions) (blk.Store, error) {
		o.VolumeSource = image.From()
		return openStore(ctx, o)
	}
	for source, want := range map[string]bool{"nbd://192.0.2.9/v1": true, image.Source: false} {
		c := volumeOf(t, dir, "v1", source)
		if err := os.Mkdir(c.Socket, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := e.AddVolume(t.Context(), c); err == nil {
			t.Fatal("a directory is a socket")
		}
		if err := os.Remove(c.Socket); err != nil {
			t.Fatal(err)
		}
		for _, want := range []bool{want, false} { // the second time it was in service before
			if err := e.AddVolume(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if v := e.volumes["v1"]; v.away != want {
				t.Errorf("%s was out of sight: %v, want %v", source, v.away, want)
			}
			if err := removeVolume(t.Context(), e, "v1"); err != nil {
				t.Fatal(err)
			}
		}
	}
}
