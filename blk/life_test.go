package blk

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// life is a guest whose device is killed now and then. It writes numbered sectors, each one once, and sees that every request is answered once, after its
// sector is on the disk.
type life struct {
	*bed
	rng      *rand.Rand
	file     int // of the in-flight area
	disk     []byte
	sent     map[uint16]written // by head
	numbers  uint64
	answered int
	restarts int
	resumed  int
	given    int // given back by stops

	begun   map[uint64]bool // offsets that the store of a dead process was to write
	doubted int             // of them that came again
}

type written struct {
	number uint64
	status virtq.Buffer
}

const lifeRing = 8

func newLife(t testing.TB, features, seed uint64) *life {
	l := &life{bed: bare(t, FeatureVersion1|FeatureIndirect|FeatureFlush|features, lifeRing), rng: rand.New(rand.NewPCG(seed, 0)), sent: map[uint16]written{},
		begun: map[uint64]bool{}}
	l.disk = make([]byte, bedSize)
	area, fd, err := vhostuser.NewInflight(1, lifeRing, features&FeaturePacked != 0)
	l.must(err)
	l.file, l.area = fd, area
	t.Cleanup(func() {
		unix.Close(fd)
		area.Free()
	})
	l.drive()
	return l
}

// process is a new one, up to where its ring runs.
func (l *life) process(base *uint32) {
	l.gate = &ram{disk: l.disk, hold: true, order: l.rng.IntN}
	i := bedInfo
	i.Quiesce = time.Hour
	l.begin(i)
	l.connect()
	l.start(base)
}

// dead is the end of one, which does nothing any more. Of what its store had been given, some is done all the same.
func (l *life) dead() {
	for _, r := range l.gate.waiting {
		l.begun[r.Offset] = true
		if l.rng.IntN(2) == 0 {
			l.gate.perform(r)
		}
	}
	q := l.queue()
	l.resumed += int(q.stats.Resumed.Load())
	l.given += int(q.stats.GivenBack.Load())
	q.run = nil
	l.dev.area = nil
	l.dev.Disconnected()
	if l.restarts++; l.rng.IntN(2) == 0 {
		l.collect() // the guest goes on
	}
}

func contents(number uint64) []byte {
	data := make([]byte, 512)
	for i := 0; i < len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], number*1_000_003+uint64(i))
	}
	return data
}

// write makes a request available, if there is room for it.
func (l *life) write() {
	if l.numbers == bedSize/512 {
		return
	}
	shapes := [][]int{{16, 512}, {528}, {16, 200, 312}, {10, 518}}
	readable, status := l.buffers(shapes[l.rng.IntN(len(shapes))]...), l.buffers(1)
	l.put(join(header(1, l.numbers), contents(l.numbers)), readable)
	l.view(status[0])[0] = 0xee
	var head uint16
	ok := false
	if l.rng.IntN(3) == 0 {
		table := virtq.Buffer{Addr: bedTables + 0x8000 + 256*(l.numbers%64), Len: 256}
		head, ok = l.driver.AddIndirect(l.view(table), table.Addr, readable, status)
	} else {
		head, ok = l.driver.Add(readable, status)
	}
	if !ok {
		return
	}
	l.sent[head] = written{l.numbers, status[0]}
	l.numbers++
	l.driver.Publish()
}

// collect takes what was answered.
func (l *life) collect() {
	for {
		head, n, ok, err := l.driver.Used()
		if err != nil {
			l.Fatalf("answered twice: %v", err)
		}
		if !ok {
			return
		}
		w, known := l.sent[head]
		delete(l.sent, head)
		switch {
		case !known:
			l.Fatalf("chain %d came back and was not sent", head)
		case n != 1 || l.view(w.status)[0] != 0:
			l.Fatalf("request %d: %d bytes, status %d", w.number, n, l.view(w.status)[0])
		case !bytes.Equal(l.disk[512*w.number:][:512], contents(w.number)):
			l.Fatalf("request %d was answered, and is not on the disk", w.number)
		}
		l.answered++
	}
}

// act does one thing.
func (l *life) act() {
	switch n := l.rng.IntN(20); {
	case n < 8:
		l.write()
	case n < 13:
		l.round()
	case n < 17:
		if len(l.gate.waiting) > 0 {
			l.gate.answer(OK)
		}
	case n < 19:
		l.collect()
	default:
		base, err := l.dev.StopVring(0)
		l.must(err)
		l.start(&base)
	}
}

// restart begins with a new process, where the dead one ended, and sees that what that had taken comes first, in the order in which the driver sent it.
func (l *life) restart() {
	l.process(nil)
	l.round()
	if l.answered > 0 && len(l.gate.inherited) == 0 {
		l.Fatalf("%d writes were answered and never flushed, and the next process does not know", l.answered)
	}
	for i, r := range l.gate.waiting {
		if l.begun[r.Offset] {
			l.doubted++
			if r.After < dataplane.Clock() {
				l.Fatalf("request %d may go though the store may still do it for a dead process", r.Offset/512)
			}
		}
		if i > 0 && r.Offset < l.gate.waiting[i-1].Offset {
			l.Fatalf("request %d came before %d", l.gate.waiting[i-1].Offset/512, r.Offset/512)
		}
	}
}

// finish sees that everything is answered in the end, and the ring goes on.
func (l *life) finish() {
	l.Helper()
	l.gate.hold = false
	for want := l.answered + len(l.sent) + 3*lifeRing; l.answered < want; {
		before := l.answered
		if l.answered+len(l.sent) < want {
			l.write()
		}
		l.round()
		l.round()
		l.collect()
		if l.answered == before {
			l.Fatalf("%d requests are not answered: %v, %v", len(l.sent), l.sent, l.failed)
		}
	}
	if base, err := l.dev.StopVring(0); err != nil || len(l.sent) > 0 {
		l.Fatalf("base %#x, %v, %d are left", base, err, len(l.sent))
	}
	l.dead()
}

const lifeActs = 60

// TestKilledBetweenRounds: the device of a guest ends at any time; nothing is lost, nothing is answered twice. inflight_race_test.go does the same between any
// two stores.
func TestKilledBetweenRounds(t *testing.T) {
	for ring, bit := range rings {
		t.Run(ring, func(t *testing.T) {
			resumed, given, doubted, seeds := 0, 0, 0, uint64(40)
			if testing.Short() {
				seeds = 4
			}
			for seed := range seeds {
				l := newLife(t, bit, seed)
				l.process(nil)
				for range 5 * lifeActs {
					if l.act(); l.rng.IntN(12) == 0 {
						l.dead()
						l.restart()
					}
				}
				l.finish()
				resumed, given, doubted = resumed+l.resumed, given+l.given, doubted+l.doubted
			}
			if t.Logf("%d resumed, %d of them fenced, %d given back", resumed, doubted, given); resumed == 0 || given == 0 || doubted == 0 {
				t.Error("nothing was under way")
			}
		})
	}
}

// TestAreaIsClean: a ring that was stopped leaves nothing in the area, so that back-ends on other machines, and front-ends that have none, lose nothing.
func TestAreaIsClean(t *testing.T) {
	for ring, bit := range rings {
		t.Run(ring, func(t *testing.T) {
			for _, with := range []bool{true, false} {
				l := newLife(t, bit, 1)
				area := l.area
				if !with {
					l.area = nil
				}
				l.process(nil)
				for range 3 {
					for range 3 {
						l.write()
					}
					l.round()
				}
				l.gate.answer(OK)
				l.gate.answer(OK)
				l.round()
				before := len(l.gate.waiting)
				base, err := l.dev.StopVring(0)
				l.must(err)
				if n := l.queue().stats.GivenBack.Load(); int(n) != before || n == 0 {
					t.Errorf("%d given back of %d", n, before)
				}
				if bit&FeaturePacked == 0 {
					_, entries, err := area.Split(0, lifeRing)
					l.must(err)
					for i := range entries {
						if entries[i].Inflight != 0 {
							t.Errorf("entry %d is marked", i)
						}
					}
					if base != 2 {
						t.Errorf("base %d", base)
					}
				} else if avail, used := uint16(base), uint16(base>>16); avail != used {
					t.Errorf("base %#x", base)
				}
				l.collect()
				// Another machine: no area, and nothing but the ring and its base.
				l.dead()
				l.area = nil
				l.process(&base)
				l.round()
				if len(l.gate.waiting) != before {
					t.Errorf("%d requests came, of %d", len(l.gate.waiting), before)
				}
				l.finish()
			}
		})
	}
}

// TestReset: a driver's reset makes what the area says void, but not the choice of write-through.
func TestReset(t *testing.T) {
	for ring, bit := range rings {
		t.Run(ring, func(t *testing.T) {
			l := newLife(t, bit|FeatureConfigWCE, 1)
			l.process(nil)
			l.must(l.dev.WriteConfig(configWriteback, []byte{0}, false))
			for range 3 {
				l.write()
				l.round()
			}
			l.dead()
			l.process(nil)
			if !l.dev.State().WriteThrough {
				t.Error("the driver's choice of write-through did not outlive the process")
			}
			_, err := l.dev.StopVring(0)
			l.must(err)
			l.must(l.dev.Reset())
			if !l.area.Fresh(0) {
				t.Error("the area remembers")
			}
			l.must(l.dev.SetFeatures(l.features))
			l.sent = map[uint16]written{}
			l.drive()
			l.gate.waiting = nil
			l.start(nil)
			l.write()
			l.round()
			if len(l.gate.waiting) != 1 || !l.gate.waiting[0].FUA {
				t.Errorf("%d requests", len(l.gate.waiting))
			}
			l.must(l.dev.WriteConfig(configWriteback, []byte{1}, false))
			l.finish()
			if l.area.Features() != 0 {
				t.Errorf("features %#x", l.area.Features())
			}
		})
	}
}

// TestForeignArea: what somebody else wrote is believed as far as it can be, and never further than the ring.
func TestForeignArea(t *testing.T) {
	for name, c := range map[string]struct {
		packed bool
		spoil  func(l *life)
		bad    bool
	}{
		"split, all marked": {false, func(l *life) {
			_, e, _ := l.area.Split(0, lifeRing)
			for i := range e {
				e[i].Inflight, e[i].Next = 255, 0xffff
			}
		}, true},
		"split, list out of bounds": {false, func(l *life) {
			h, _, _ := l.area.Split(0, lifeRing)
			h.LastBatchHead, h.UsedIdx = 0xffff, h.UsedIdx-3
		}, false},
		"split, of another ring": {false, func(l *life) {
			h, e, _ := l.area.Split(0, lifeRing)
			h.UsedIdx -= 1000
			e[0].Inflight = 1
		}, false},
		"packed, all marked": {true, func(l *life) {
			_, e, _ := l.area.Packed(0, lifeRing)
			for i := range e {
				e[i].Inflight, e[i].Num, e[i].Next = 1, 0xffff, 0
			}
		}, true},
		"packed, one too long": {true, func(l *life) {
			h, e, _ := l.area.Packed(0, lifeRing)
			h.Free = 0xffff_ffff
			e[0].Inflight, e[0].Num = 1, lifeRing+1
		}, true},
		"packed, a chain in itself": {true, func(l *life) {
			h, e, _ := l.area.Packed(0, lifeRing)
			h.Free = 0xffff_ffff
			e[0].Inflight, e[0].Num, e[0].Next = 1, 2, 0
		}, true},
		"packed, the same id twice": {true, func(l *life) {
			h, e, _ := l.area.Packed(0, lifeRing)
			h.Free = 0xffff_ffff
			for i := range 2 {
				e[i].Inflight, e[i].Num, e[i].ID = 1, 1, 3
			}
		}, true},
		"packed, an id beyond the ring": {true, func(l *life) {
			h, e, _ := l.area.Packed(0, lifeRing)
			h.Free = 0xffff_ffff
			e[0].Inflight, e[0].Num, e[0].ID = 1, 1, lifeRing
		}, true},
		"packed, place beyond the ring": {true, func(l *life) {
			h, _, _ := l.area.Packed(0, lifeRing)
			h.Used = lifeRing | lifeRing<<16
		}, true},
		"packed, free list in a circle": {true, func(l *life) {
			_, e, _ := l.area.Packed(0, lifeRing)
			for i := range e {
				e[i].Next = 0
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			features := uint64(0)
			if c.packed {
				features = FeaturePacked
			}
			l := newLife(t, features, 1)
			l.process(nil)
			_, err := l.dev.StopVring(0)
			l.must(err)
			c.spoil(l)
			err = l.dev.StartVring(l.vring(nil))
			if c.bad != (err != nil) {
				t.Fatal(err)
			}
			if !c.bad {
				l.finish()
			}
		})
	}
}
