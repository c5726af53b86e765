package vhostuser

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
)

// The layouts are the specification's, so that back-ends of others find what they expect.
func TestInflightLayout(t *testing.T) {
	for _, c := range []struct {
		of      any
		size    uintptr
		offsets map[string]uintptr
	}{
		{SplitQueue{}, splitQueueBytes, map[string]uintptr{"Version": 8, "DescNum": 10, "LastBatchHead": 12, "UsedIdx": 14}},
		{SplitEntry{}, splitEntryBytes, map[string]uintptr{"Inflight": 0, "Next": 6, "Counter": 8}},
		{PackedQueue{}, packedQueueBytes, map[string]uintptr{"Version": 8, "DescNum": 10, "Free": 12, "Used": 16}},
		{PackedEntry{}, packedEntryBytes, map[string]uintptr{"Inflight": 0, "Next": 2, "Last": 4, "Num": 6, "Counter": 8, "ID": 16, "Flags": 18,
			"Len": 20, "Addr": 24}},
	} {
		have := reflect.TypeOf(c.of)
		if have.Size() != c.size {
			t.Errorf("%v has %d bytes, want %d", have, have.Size(), c.size)
		}
		for name, at := range c.offsets {
			if f, ok := have.FieldByName(name); !ok || f.Offset != at {
				t.Errorf("%v.%s at %d, want %d", have, name, f.Offset, at)
			}
		}
	}
}

// TestInflightSurvives: what a back-end wrote down, the next one reads, through the front-end's hands alone.
func TestInflightSurvives(t *testing.T) {
	for _, packed := range []bool{false, true} {
		d, g := newFake(t), newGuest(t)
		features := wantAll
		if packed {
			d.offer.Features |= featurePacked
		}
		f := dial(t, listenFake(t, d, Options{}))
		must(t, f.Negotiate(features, wantAll))
		must(t, f.SetMemory(g.region()))
		file, err := f.GetInflight(2, 256)
		must(t, err)
		defer unix.Close(file.FD)
		if file.Queues != 2 || file.Size != 256 || file.Offset != 0 || file.Bytes < 2*256*splitEntryBytes {
			t.Errorf("%+v", file)
		}
		if err := unix.Ftruncate(file.FD, 0); err != unix.EPERM {
			t.Errorf("the front-end can take the area away: %v", err)
		}
		d.set(func() { record(t, d.inflight, packed, 1, 256, 77) })
		must(t, f.StartVring(g.ring(1)))
		refused(t, f.SetInflight(file)) // not while rings run
		must(t, f.Close())

		next := newFake(t)
		next.offer.Features = d.offer.Features
		f = dial(t, listenFake(t, next, Options{}))
		must(t, f.Negotiate(features, wantAll))
		must(t, f.SetInflight(file))
		next.set(func() {
			if next.inflight.Fresh(1) {
				t.Error("the area looks unused")
			}
			if used := recorded(t, next.inflight, packed, 1, 256); used < 77 {
				t.Errorf("used index %d", used)
			}
			if _, _, err := next.inflight.Split(1, 128); !errors.Is(err, errInflight) {
				t.Errorf("half the size: %v", err)
			}
			if _, _, err := next.inflight.Split(2, 256); err == nil {
				t.Error("ring 2 of 2")
			}
			if next.inflight.Forget(1); !next.inflight.Fresh(1) {
				t.Error("the area looks used")
			}
		})
		must(t, f.Close())
	}
	eventually(t, "nothing mapped", func() bool { return mappings(t, "memfd:shunt-inflight") == 0 })
}

func record(t *testing.T, a *Inflight, packed bool, queue, size int, used uint16) {
	t.Helper()
	if packed {
		q, _, err := a.Packed(queue, size)
		must(t, err)
		shm.Store64(&q.Used, uint64(used))
		q.Adopt(size)
		return
	}
	q, _, err := a.Split(queue, size)
	must(t, err)
	shm.Store16(&q.UsedIdx, used)
	q.Adopt(size)
}

func recorded(t *testing.T, a *Inflight, packed bool, queue, size int) uint16 {
	t.Helper()
	if packed {
		q, entries, err := a.Packed(queue, size)
		must(t, err)
		if len(entries) != size {
			t.Errorf("%d entries", len(entries))
		}
		return uint16(shm.Load64(&q.Used))
	}
	q, entries, err := a.Split(queue, size)
	must(t, err)
	if len(entries) != size {
		t.Errorf("%d entries", len(entries))
	}
	return shm.Load16(&q.UsedIdx)
}

func TestBadInflightAreas(t *testing.T) {
	d := newFake(t)
	b := listenFake(t, d, Options{})
	f := dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	fd := logFile(t)
	for reason, i := range map[string]InflightFile{
		"too few for 2 rings of 256":    {Bytes: pageSize, Queues: 2, Size: 256, FD: fd},
		"of a file of 0x1000":           {Bytes: 2 * pageSize, Queues: 1, Size: 16, FD: fd},
		"offset 0x8 in the file is not": {Bytes: 1024, Offset: 8, Queues: 1, Size: 16, FD: fd},
		"offset 0xfffffffffffff000 of":  {Bytes: pageSize, Offset: ^uint64(pageSize - 1), Queues: 1, Size: 16, FD: fd},
		"0 rings of 16":                 {Bytes: 1024, Queues: 0, Size: 16, FD: fd},
		"3 rings of 16":                 {Bytes: 1024, Queues: 3, Size: 16, FD: fd},
		"1 rings of 0":                  {Bytes: 1024, Queues: 1, Size: 0, FD: fd},
		"1 rings of 65535":              {Bytes: 1024, Queues: 1, Size: 65535, FD: fd},
		shm.ErrBacking.Error():          {Bytes: 1024, Queues: 1, Size: 16, FD: devNull(t)},
	} {
		refused(t, f.SetInflight(i))
		if s := b.Status().Session; !strings.Contains(s.LastRefusal, reason) {
			t.Errorf("want %q: %s", reason, s.LastRefusal)
		}
	}
	d.set(func() {
		if d.inflight != nil {
			t.Error("the device has an area")
		}
	})
	if _, err := f.GetInflight(3, 16); err == nil {
		t.Error("more rings than there are")
	}
}

// TestInflightAreaGoes: a front-end that truncates the area, where it could not be sealed, ends no process.
func TestInflightAreaGoes(t *testing.T) {
	fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Ftruncate(fd, 1<<16))
	a, err := mapInflight(fd, 0, 1<<16, 2, 64)
	must(t, err)
	defer a.Free()
	a.SetFeatures(1)
	if a.Features() != 1 || !a.Fresh(0) {
		t.Error("an area that is there")
	}
	must(t, unix.Ftruncate(fd, 0))
	a.SetFeatures(3)
	a.Forget(1)
	if bits := a.Features(); bits != 0 || !a.Fresh(1) {
		t.Errorf("an area that is gone has features %#x", bits)
	}
}

// TestInflightOwn: a device's own part lies behind all entries, outlives Forget, and is not there in an area that has no room for it.
func TestInflightOwn(t *testing.T) {
	for _, packed := range []bool{false, true} {
		a, fd, err := NewInflight(2, 64, packed)
		must(t, err)
		defer a.Free()
		defer unix.Close(fd)
		for i := range 2 {
			own := a.Own(i, packed)
			if len(own) != OwnBytes {
				t.Fatalf("%d bytes of its own", len(own))
			}
			own[0], own[OwnBytes-1] = 1, byte(i+2)
			record(t, a, packed, i, 64, 7)
		}
		again, err := mapInflight(fd, 0, uint64(len(a.bytes)), 2, 64)
		must(t, err)
		defer again.Free()
		for i := range 2 {
			if again.Forget(i); !again.Fresh(i) {
				t.Error("the area looks used")
			}
			if own := again.Own(i, packed); own[0] != 1 || own[OwnBytes-1] != byte(i+2) {
				t.Errorf("its own is %d and %d", own[0], own[OwnBytes-1])
			}
		}
		if a.Own(2, packed) != nil || a.Own(-1, packed) != nil {
			t.Error("a ring that is not there")
		}
		tight, err := mapInflight(fd, 0, uint64(2*inflightStride(64, packed)), 2, 64)
		must(t, err)
		defer tight.Free()
		if tight.Own(0, packed) != nil {
			t.Error("there is room where none was left")
		}
	}
}

// TestAccepted: a driver goes on with what it was offered once, and with nothing else.
func TestAccepted(t *testing.T) {
	d := newFake(t)
	d.offer.Features, d.offer.Accepted = 1<<32|1<<5, 1<<13
	f := dial(t, listenFake(t, d, Options{}))
	must(t, f.Negotiate(FeatureProtocol|1<<32, wantAll))
	must(t, f.Do(SetFeatures, appendU64(nil, FeatureProtocol|1<<32|1<<13)))
	d.set(func() {
		if d.features != 1<<32|1<<13 {
			t.Errorf("features %#x", d.features)
		}
	})
	refused(t, f.Do(SetFeatures, appendU64(nil, FeatureProtocol|1<<32|1<<14)))
}
