package blk

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// wantBroken sees that the device is out of service for a reason, says so in every way it has, and looks at the ring no more.
func (b *bed) wantBroken(why error) {
	b.Helper()
	if len(b.failed) != 1 || !errors.Is(b.failed[0], why) {
		b.Fatalf("failed with %v, want %v", b.failed, why)
	}
	if !signalled(b.broken) {
		b.Error("the error eventfd was not signalled")
	}
	if s := b.dev.State(); !errors.Is(s.Failed, why) {
		b.Errorf("state %+v", s)
	}
	for range 3 {
		if n := b.round(); n != 0 || b.queue().Pending() {
			b.Error("it goes on looking at the ring")
		}
	}
	if len(b.failed) != 1 {
		b.Errorf("failed again: %v", b.failed)
	}
}

// TestBrokenChains: what cannot even carry a status breaks the ring, and nothing else.
func TestBrokenChains(t *testing.T) {
	const next, wr, ind = 1, 2, 4
	desc := func(b *bed, i int, addr uint64, n uint32, flags, more uint16) {
		d := b.memory[16*i:]
		if b.features&FeaturePacked != 0 {
			flags |= 1 << 7 // available
		}
		binary.LittleEndian.PutUint64(d, addr)
		binary.LittleEndian.PutUint32(d[8:], n)
		if b.features&FeaturePacked != 0 {
			flags, more = more, flags
			flags = 0 // the id
		}
		binary.LittleEndian.PutUint16(d[12:], flags)
		binary.LittleEndian.PutUint16(d[14:], more)
	}
	const buffer = bedBuffers
	for name, c := range map[string]struct {
		build func(b *bed)
		why   error
	}{
		"nothing to write":              {func(b *bed) { desc(b, 0, buffer, 16, 0, 0) }, errNoStatus},
		"an empty status":               {func(b *bed) { desc(b, 0, buffer, 16, next, 1); desc(b, 1, buffer+16, 0, wr, 0) }, errNoStatus},
		"one empty descriptor":          {func(b *bed) { desc(b, 0, buffer, 0, wr, 0) }, errNoStatus},
		"one empty readable descriptor": {func(b *bed) { desc(b, 0, buffer, 0, 0, 0) }, errNoStatus},
		"header outside memory":         {func(b *bed) { desc(b, 0, 0, 16, next, 1); desc(b, 1, buffer, 1, wr, 0) }, virtq.ErrAddress},
		"status outside memory":         {func(b *bed) { desc(b, 0, buffer, 16, next, 1); desc(b, 1, bedBuffers+bedRoom, 1, wr, 0) }, virtq.ErrAddress},
		"data over the end of memory": {func(b *bed) {
			desc(b, 0, buffer, 16, next, 1)
			desc(b, 1, bedBuffers+bedRoom-512, 1024, wr|next, 2)
			desc(b, 2, buffer, 1, wr, 0)
		}, virtq.ErrAddress},
		"data that wraps": {func(b *bed) {
			desc(b, 0, buffer, 16, next, 1)
			desc(b, 1, 1<<64-256, 512, wr|next, 2)
			desc(b, 2, buffer, 1, wr, 0)
		}, virtq.ErrAddress},
		"4 GiB": {func(b *bed) { desc(b, 0, buffer, 16, next, 1); desc(b, 1, buffer, 1<<32-1, wr, 0) }, virtq.ErrAddress},
		"readable behind writable": {func(b *bed) {
			desc(b, 0, buffer, 1, wr|next, 1)
			desc(b, 1, buffer, 16, 0, 0)
		}, virtq.ErrChain},
		"empty indirect table":   {func(b *bed) { desc(b, 0, buffer, 0, ind, 0) }, virtq.ErrIndirect},
		"indirect table in half": {func(b *bed) { desc(b, 0, buffer, 24, ind, 0) }, virtq.ErrIndirect},
		"indirect and next":      {func(b *bed) { desc(b, 0, buffer, 16, ind|next, 1); desc(b, 1, buffer, 1, wr, 0) }, virtq.ErrIndirect},
		"more segments than announced": {func(b *bed) {
			table := b.memory[bedTables:]
			for i := range 200 {
				d := table[16*i:]
				binary.LittleEndian.PutUint64(d, buffer+0x8000)
				binary.LittleEndian.PutUint32(d[8:], 1)
				binary.LittleEndian.PutUint16(d[12:], next)
				binary.LittleEndian.PutUint16(d[14:], uint16(i+1))
			}
			desc(b, 0, buffer, 200*16, ind, 0)
		}, virtq.ErrChain},
	} {
		t.Run(name, func(t *testing.T) {
			for _, bit := range []uint64{0, FeaturePacked} {
				b := newBed(t, bedInfo, modern|bit)
				c.build(b)
				if bit == 0 {
					binary.LittleEndian.PutUint16(b.memory[0x2004:], 0)
					binary.LittleEndian.PutUint16(b.memory[0x2002:], 1)
				}
				b.round()
				b.wantBroken(c.why)
				base, err := b.dev.StopVring(0)
				if err != nil {
					t.Error(err)
				}
				// Begun anew, it works.
				b.must(b.dev.Reset())
				b.failed = nil
				b.drive()
				b.must(b.dev.SetFeatures(b.features))
				b.start(nil)
				if st, _ := b.do(header(1, 0), counting(512), 0); st != 0 || b.dev.State().Failed != nil {
					t.Errorf("after a reset: status %d, base was %#x", st, base)
				}
			}
		})
	}
}

// TestBrokenSplitRings: a driver that offers more than it has, or what is under way.
func TestBrokenSplitRings(t *testing.T) {
	for name, c := range map[string]struct {
		build func(b *bed)
		why   error
	}{
		"index jumped":   {func(b *bed) { binary.LittleEndian.PutUint16(b.memory[0x2002:], bedQueue+2) }, virtq.ErrIndex},
		"head too large": {func(b *bed) { binary.LittleEndian.PutUint16(b.memory[0x2004+2:], bedQueue) }, virtq.ErrHead},
		"head under way": {func(b *bed) {
			binary.LittleEndian.PutUint16(b.memory[0x2004+2:], binary.LittleEndian.Uint16(b.memory[0x2004:]))
		}, virtq.ErrHead},
		"next too large": {func(b *bed) {
			head := binary.LittleEndian.Uint16(b.memory[0x2004+2:])
			binary.LittleEndian.PutUint16(b.memory[16*int(head)+14:], bedQueue)
		}, virtq.ErrHead},
		"a loop": {func(b *bed) {
			head := binary.LittleEndian.Uint16(b.memory[0x2004+2:])
			binary.LittleEndian.PutUint16(b.memory[16*int(head)+14:], head)
		}, virtq.ErrChain},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bedInfo, modern)
			b.gate.hold = true
			request := b.buffers(16, 512)
			b.put(header(1, 0), request)
			b.add(request, b.buffers(1))
			b.round()
			b.add(request, b.buffers(1))
			c.build(b)
			b.round()
			b.wantBroken(c.why)
			if len(b.gate.waiting) != 0 || b.gate.called == 0 {
				t.Error("what was under way was not called back")
			}
		})
	}
}

// TestMemoryGoes: a guest's front-end truncates the file behind its memory. Wherever the device is by then, it ends, the worker does not.
func TestMemoryGoes(t *testing.T) {
	for name, c := range map[string]struct {
		keep int64 // bytes of the file
		hold bool  // the request is at the store when it happens
		what string
	}{
		"rings":                    {0, false, "the guest's memory"},
		"rings, request under way": {0, true, "the guest's memory"},
		"header":                   {bedTables, false, "the guest's memory"},
		"status":                   {bedTables, true, "the guest's memory"},
	} {
		for ring, bit := range rings {
			b := newBed(t, bedInfo, modern|bit)
			b.gate.hold = true
			request := b.buffers(16, 512)
			b.put(header(1, 0), request)
			b.add(request, b.buffers(1))
			if c.hold {
				b.round()
			}
			b.must(unix.Ftruncate(b.fd, c.keep))
			if c.hold {
				b.gate.end(0, OK)
			}
			faults := b.worker.Stats().Faults.Load()
			b.round()
			if b.worker.Stats().Faults.Load() == faults || len(b.failed) != 1 || !strings.Contains(b.failed[0].Error(), c.what) {
				t.Errorf("%s, %s: %v", name, ring, b.failed)
			}
			b.worker.Round()
			if _, err := b.dev.StopVring(0); err != nil {
				t.Error(err)
			}
			b.dev.Disconnected()
			// Others who come find a device that works.
			b.failed = nil
			b.must(unix.Ftruncate(b.fd, bedTables+bedRoom))
			b.drive()
			b.connect()
			b.start(nil)
			b.gate.hold = false
			if st, _ := b.do(header(1, 0), counting(512), 0); st != 0 || len(b.failed) > 0 {
				t.Errorf("%s, %s: the next front-end: status %d, %v", name, ring, st, b.failed)
			}
		}
	}
}

// TestMemoryGoesAtStart: the same while a ring is started or stopped.
func TestMemoryGoesAtStart(t *testing.T) {
	b := newBed(t, bedInfo, modern)
	_, err := b.dev.StopVring(0)
	b.must(err)
	b.must(unix.Ftruncate(b.fd, 0))
	if err := b.dev.StartVring(b.vring(nil)); !errors.Is(err, errGone) {
		t.Errorf("start: %v", err)
	}
	b.must(unix.Ftruncate(b.fd, bedTables+bedRoom))
	b.drive()
	b.start(nil)
	b.gate.hold = true
	request := b.buffers(16, 512)
	b.put(header(1, 0), request)
	b.add(request, b.buffers(1))
	b.round()
	b.must(unix.Ftruncate(b.fd, 0))
	if base, err := b.dev.StopVring(0); err != nil || base != 1 {
		t.Errorf("base %d, %v", base, err)
	}
	b.must(unix.Ftruncate(b.fd, bedTables+bedRoom))
}

// TestRemovedMemory: a request with buffers in a region that is removed ends with an error, others go on, and one whose status lies there takes the ring along.
func TestRemovedMemory(t *testing.T) {
	for ring, bit := range rings {
		b := newBed(t, bedInfo, modern|bit)
		b.gate.hold = true
		far := []virtq.Buffer{{Addr: bedBuffers, Len: 512}}
		near := func(at uint64, n uint32) []virtq.Buffer {
			return []virtq.Buffer{{Addr: bedTables + 0x8000 + at, Len: n}}
		}
		b.put(header(0, 1), near(0, 16))
		b.add(near(0, 16), append(far[:1:1], near(16, 1)...))
		b.add(near(0, 16), near(32, 513))
		b.round()
		copy(b.gate.disk, counting(2048))
		if len(b.gate.waiting) != 2 {
			t.Fatal(b.failed)
		}
		b.must(b.dev.RemoveMemory(b.regions()[1]))
		if b.gate.called != 1 {
			t.Errorf("%s: called back %d times", ring, b.gate.called)
		}
		b.gate.hold = false
		b.round()
		b.round()
		if got := b.view(near(16, 1)[0])[0]; got != byte(statusIOErr) {
			t.Errorf("%s: status %d", ring, got)
		}
		if got := b.view(near(32, 513)[0]); got[512] != 0 || got[1] != counting(514)[513] {
			t.Errorf("%s: status %d of the other", ring, got[512])
		}
		if n := 0; true {
			for _, _, ok, err := b.driver.Used(); ok; _, _, ok, err = b.driver.Used() {
				b.must(err)
				n++
			}
			if n != 2 {
				t.Errorf("%s: %d chains came back", ring, n)
			}
		}
		b.must(b.dev.AddMemory(b.regions()[1]))

		b.gate.hold = true
		b.add(near(0, 16), []virtq.Buffer{{Addr: bedBuffers + 1, Len: 513}})
		b.round()
		b.must(b.dev.RemoveMemory(b.regions()[1]))
		b.round()
		if len(b.failed) != 1 || !strings.Contains(b.failed[0].Error(), "removed memory") {
			t.Errorf("%s: %v", ring, b.failed)
		}
		if err := b.dev.RemoveMemory(vhostuser.Region{GuestAddr: 1, Size: 4096}); err == nil {
			t.Errorf("%s: memory that was not there was removed", ring)
		}
	}
}

// TestAreaGoes: a front-end that truncates the area of requests in flight ends its own device, whatever is done there.
func TestAreaGoes(t *testing.T) {
	for ring, bit := range rings {
		b := bare(t, modern|bit, bedQueue)
		b.gate.disk = make([]byte, bedSize)
		b.begin(bedInfo)
		b.drive()
		path := filepath.Join(t.TempDir(), "s")
		backend, err := vhostuser.Listen(vhostuser.Options{Path: path, Log: slog.New(slog.DiscardHandler)}, b.dev)
		b.must(err)
		f, err := vhostuser.Dial(path)
		b.must(err)
		b.must(f.Negotiate(b.features|vhostuser.FeatureProtocol, vhostuser.DefaultProtocolFeatures|vhostuser.ProtocolConfig))
		b.must(f.SetMemory(b.regions()...))
		fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC)
		b.must(err)
		b.must(unix.Ftruncate(fd, 1<<16))
		b.must(f.SetInflight(vhostuser.InflightFile{FD: fd, Bytes: 1 << 16, Queues: 1, Size: bedQueue}))
		b.must(unix.Ftruncate(fd, 0))
		_ = f.SetConfig(configWriteback, []byte{0}, false)
		if err := f.StartVring(b.vring(nil)); err == nil {
			t.Errorf("%s: a ring was started", ring)
		}
		_ = f.Close()
		_ = unix.Close(fd)
		b.must(backend.Close())
		if len(b.failed) == 0 {
			t.Errorf("%s: nobody was told", ring)
		}
	}
}
