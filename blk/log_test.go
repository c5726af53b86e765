package blk

import (
	"testing"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

func newLog(t *testing.T) *guestmem.Log {
	t.Helper()
	fd, err := shm.NewMemFD("shunt-test-log", 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	log, err := guestmem.OpenLog(guestmem.LogOptions{FD: fd, Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Free() })
	return log
}

func taken(l *guestmem.Log) map[uint64]bool {
	pages := map[uint64]bool{}
	l.Take(func(page uint64) { pages[page] = true })
	return pages
}

// wantPages sees that all of these are marked, and of buffers nothing else.
func (b *bed) wantPages(what string, pages map[uint64]bool, buffers ...virtq.Buffer) {
	b.Helper()
	for _, x := range buffers {
		for p := x.Addr / guestmem.LogPage; p <= (x.Addr+uint64(x.Len)-1)/guestmem.LogPage; p++ {
			if !pages[p] {
				b.Errorf("%s: page %#x is not marked", what, p)
			}
			pages[p] = false
		}
	}
	for p, is := range pages {
		if is && p >= bedBuffers/guestmem.LogPage {
			b.Errorf("%s: page %#x is marked", what, p)
		}
	}
}

// pagesOf are buffers far from all others.
func (b *bed) pagesOf(page uint64, lengths ...uint32) (all []virtq.Buffer) {
	for _, n := range lengths {
		all = append(all, virtq.Buffer{Addr: bedBuffers + page*guestmem.LogPage + 100, Len: n})
		page += uint64(n)/guestmem.LogPage + 2
	}
	return all
}

// TestLog: while a guest moves, what is written to its memory is marked: data, status, rings; also that of requests which were under way when the migration began, and of those
// that had no end.
func TestLog(t *testing.T) {
	for ring, bit := range rings {
		t.Run(ring, func(t *testing.T) {
			b := newBed(t, bedInfo, modern|bit)
			b.gate.hold = true
			header1, header2 := b.pagesOf(0, 16), b.pagesOf(2, 16)
			b.put(header(0, 0), header1)
			b.put(header(1, 0), header2)
			reads, writes := b.pagesOf(10, 8192, 1), b.pagesOf(20, 1)
			b.add(header1, reads)
			b.add(append(header2, b.pagesOf(30, 512)...), writes)
			b.round()

			log := newLog(t)
			b.must(b.dev.SetLog(log))
			if n := len(taken(log)); n != 0 {
				t.Errorf("%d pages are marked before the feature is on", n)
			}
			b.must(b.dev.SetFeatures(b.features | vhostuser.FeatureLogAll))
			b.gate.answer(OK)
			b.round()
			pages := taken(log)
			used := uint64(bedTables + 0x4000)
			if bit&FeaturePacked != 0 {
				used = bedTables
			}
			if !pages[used/guestmem.LogPage] {
				t.Error("the ring is not marked")
			}
			b.wantPages("a read that was under way", pages, reads...)
			b.gate.answer(Failed)
			b.round()
			b.wantPages("a write that failed", taken(log), writes...)

			// What a read that fails has brought by then is nobody's, but it is there, and so is the status behind it.
			b.put(header(0, 0), header1)
			failing := b.pagesOf(35, 4096, 1)
			b.add(header1, failing)
			b.round()
			b.gate.answer(Failed)
			b.round()
			b.wantPages("a read that failed", taken(log), failing...)

			// Called back: the store may have written all of it.
			b.put(header(0, 0), header1)
			more := b.pagesOf(40, 4096, 1)
			b.add(header1, more)
			b.round()
			_, err := b.dev.StopVring(0)
			b.must(err)
			pages = taken(log)
			rewritten := uint64(bedTables + 0x2000) // the avail ring
			if bit&FeaturePacked != 0 {
				rewritten = bedTables
			}
			if !pages[rewritten/guestmem.LogPage] {
				t.Error("the place where the request was given back is not marked")
			}
			b.wantPages("a read that was given back", pages, more...)

			b.must(b.dev.SetFeatures(b.features))
			b.must(b.dev.SetLog(nil))
			if n := len(taken(log)); n != 0 {
				t.Errorf("%d pages are marked after the end", n)
			}
		})
	}
}

// TestLogGoes: a log that is taken away ends the device, and nothing else.
func TestLogGoes(t *testing.T) {
	b := newBed(t, bedInfo, modern)
	fd, err := unix.MemfdCreate("shunt-test-log", 0) // which cannot be sealed
	b.must(err)
	defer unix.Close(fd)
	b.must(unix.Ftruncate(fd, 4096))
	log, err := guestmem.OpenLog(guestmem.LogOptions{FD: fd, Size: 4096})
	b.must(err)
	defer log.Free()
	b.must(b.dev.SetLog(log))
	b.must(b.dev.SetFeatures(b.features | vhostuser.FeatureLogAll))
	b.must(unix.Ftruncate(fd, 0))
	request := b.buffers(16)
	b.put(header(4, 0), request)
	b.add(request, b.buffers(1))
	for range 3 {
		b.round()
	}
	if len(b.failed) != 1 {
		t.Errorf("%v", b.failed)
	}
}
