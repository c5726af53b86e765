package blk_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

func open(o blk.VolumeOptions, s blktest.Options) (*blk.Volume, *blktest.Store, error) {
	var store *blktest.Store
	o.Name = "disk"
	if o.Open == nil {
		o.Open = func(w blk.Watcher) (blk.Store, error) {
			s.Watcher = w
			store = blktest.New(s)
			return store, nil
		}
	}
	v, err := blk.OpenVolume(o)
	return v, store, err
}

func TestVolumeRefuses(t *testing.T) {
	broken := errors.New("the server refused the connection")
	for want, c := range map[string]struct {
		o blk.VolumeOptions
		s blktest.Options
	}{
		`serial "123456789012345678901" has 21 bytes`: {o: blk.VolumeOptions{Serial: "123456789012345678901"}, s: blktest.Options{Size: 4096}},
		"the store is read-only: set readonly: true":  {s: blktest.Options{Size: 4096, ReadOnly: true}},
		"not a multiple of its block size":            {s: blktest.Options{Size: 4097}},
		"power of two":                                {s: blktest.Options{Size: 3000, BlockSize: 1000}},
		"the server refused the connection":           {o: blk.VolumeOptions{Open: func(blk.Watcher) (blk.Store, error) { return nil, broken }}},
	} {
		v, _, err := open(c.o, c.s)
		if err == nil {
			t.Errorf("%s: there is no error", want)
			_ = v.Close()
			continue
		}
		if !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "volume disk: ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q, want %q", err, want)
		}
	}
}

func TestVolumeGrows(t *testing.T) {
	v, store, err := open(blk.VolumeOptions{ReadOnly: true}, blktest.Options{Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var told []uint64
	v.OnChange(func(i blk.Info) { told = append(told, i.Size) })
	store.Resize(8192)
	if i := v.Info(); i.Size != 8192 || !i.ReadOnly {
		t.Errorf("the volume is %+v", i)
	}
	store.Resize(8193) // nonsense
	if i, err := v.Refresh(context.Background()); err == nil {
		t.Errorf("a disk that ends within a block is accepted: %+v", i)
	}
	if len(told) != 1 || told[0] != 8192 || v.Info().Size != 8192 {
		t.Errorf("the device was told of sizes %d, the volume has %d", told, v.Info().Size)
	}
	v.OnChange(nil)
	store.Resize(1 << 20)
	if i, err := v.Refresh(context.Background()); err != nil || i.Size != 1<<20 || len(told) != 1 {
		t.Errorf("%+v, %v, told of %d", i, err, told)
	}
}

// TestVolumeNews: of two who learn at the same time what the store is, the one that asked first may tell last. It is not believed.
func TestVolumeNews(t *testing.T) {
	store := &slowStore{meanwhile: func() {}}
	var watcher blk.Watcher
	v, _, err := open(blk.VolumeOptions{Open: func(w blk.Watcher) (blk.Store, error) {
		watcher, store.Store = w, blktest.New(blktest.Options{Size: 4096, Watcher: w})
		return store, nil
	}}, blktest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var told []uint64
	v.OnChange(func(i blk.Info) { told = append(told, i.Size) })
	old := v.Info()
	store.meanwhile = func() { store.Resize(8192) }
	if i, err := v.Refresh(context.Background()); err != nil || i.Size != 8192 {
		t.Errorf("a store that grew while it was asked: %+v, %v", i, err)
	}
	watcher.Changed(old)
	if last := told[len(told)-1]; v.Info().Size != 8192 || last != 8192 {
		t.Errorf("the volume has %d bytes, and the device was told of %d last", v.Info().Size, last)
	}
}

// slowStore changes while it is asked.
type slowStore struct {
	*blktest.Store
	meanwhile func()
}

func (s *slowStore) Refresh(ctx context.Context) (blk.Info, error) {
	i, err := s.Store.Refresh(ctx)
	s.meanwhile()
	return i, err
}

func TestVolumeLanes(t *testing.T) {
	r := newRig(t, 0, blktest.Options{Lanes: 1}, blk.Policy{})
	for range 2 { // queues on one worker share its lane
		g, err := r.volume.NewGateAt(blk.Host{Worker: r.workers[0]}, r.watch, r.watch.clock)
		if err != nil {
			t.Fatal(err)
		}
		r.gates = append(r.gates, g)
	}
	if n := r.store.Lanes(); n != 1 {
		t.Errorf("%d lanes for one worker", n)
	}
	if _, err := r.volume.NewGateAt(blk.Host{Worker: r.workers[1]}, r.watch, r.watch.clock); err == nil || !strings.Contains(err.Error(), "1 worker") {
		t.Errorf("a second worker: %v", err)
	}
	if _, err := r.volume.NewGate(blk.Host{Worker: r.workers[0]}); err == nil {
		t.Error("a gate without timers is made")
	}
	// When the last gate is gone, another worker may come, and what is not flushed is not forgotten.
	w := r.submit(0, blk.OpWrite, 0, sectors(1, 1))
	r.rounds(2)
	r.ended(w, blk.OK)
	for _, g := range r.gates {
		g.Close()
	}
	r.gates = nil
	if n := r.store.Lanes(); n != 0 {
		t.Errorf("%d lanes are left", n)
	}
	g, err := r.volume.NewGateAt(blk.Host{Worker: r.workers[1]}, r.watch, r.watch.clock)
	if err != nil {
		t.Fatal(err)
	}
	r.gates = append(r.gates, g)
	r.store.Break(errCable)
	r.store.Restore(false)
	f := r.submit(0, blk.OpFlush, 0, nil)
	r.rounds(2)
	r.ended(f, blk.Failed)
	if s := r.volume.Stats(); s.Ops[blk.OpWrite].Done != 1 || s.Reconnects != 1 {
		t.Errorf("%d writes, %d reconnects were counted", s.Ops[blk.OpWrite].Done, s.Reconnects)
	}
}

func TestVolumeCheck(t *testing.T) {
	v, _, err := open(blk.VolumeOptions{Policy: blk.Policy{Timeout: time.Second}}, blktest.Options{Size: 1 << 20, NoFlush: true, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	r, err := v.Check(context.Background())
	if err != nil || r.Info.Size != 1<<20 || !r.State.Up || len(r.Notes) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}
