package blk

import (
	"errors"
	"fmt"
	"testing"

	"github.com/shuntio/shunt/dataplane/shm"
)

// pinboard is a ring that knows what was registered with it.
type pinboard struct {
	testing.TB
	have map[string]bool
	full bool
}

func (p *pinboard) RegisterMemory(b []byte) error {
	key := fmt.Sprint(shm.Address(b), len(b))
	if p.have[key] {
		p.Errorf("%s is registered twice", key)
	}
	if p.full {
		return errFull
	}
	p.have[key] = true
	return nil
}

func (p *pinboard) UnregisterMemory(b []byte) error {
	key := fmt.Sprint(shm.Address(b), len(b))
	if !p.have[key] {
		p.Errorf("%s is not registered", key)
	}
	_ = b[0] // it is still there
	delete(p.have, key)
	return nil
}

var errFull = errors.New("no more")

// TestRegistered: rings know the guest's memory as long as it is there.
func TestRegistered(t *testing.T) {
	b := newBed(t, bedInfo, modern)
	ring := &pinboard{TB: t, have: map[string]bool{}}
	b.dev.pins = []*pin{{worker: b.worker, ring: ring}}
	want := func(n int, bytes uint64, err error) {
		t.Helper()
		if s := b.dev.State(); len(ring.have) != n || s.Registered != bytes || s.Unregistered != err {
			t.Errorf("%d regions, %d bytes, %v; want %d, %d, %v", len(ring.have), s.Registered, s.Unregistered, n, bytes, err)
		}
	}
	_, err := b.dev.StopVring(0)
	b.must(err)
	b.must(b.dev.SetMemory(b.regions()))
	want(2, bedTables+bedRoom, nil)
	b.must(b.dev.RemoveMemory(b.regions()[1]))
	want(1, bedTables, nil)
	ring.full = true
	b.must(b.dev.AddMemory(b.regions()[1]))
	want(1, bedTables, errFull)
	b.must(b.dev.RemoveMemory(b.regions()[1]))
	ring.full = false
	b.must(b.dev.AddMemory(b.regions()[1]))
	want(2, bedTables+bedRoom, nil)
	b.dev.Disconnected()
	if len(ring.have) != 0 {
		t.Errorf("%d regions are left", len(ring.have))
	}
}
