package guestmem

import (
	"bytes"
	"errors"
	"math"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/tools/need"
)

const page = 4096

// memFD is a memory file whose every page begins with its number.
func memFD(t testing.TB, pages int) int {
	t.Helper()
	fd, err := shm.NewMemFD("guestmem-test", int64(pages)*page)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for i := range pages {
		if _, err := unix.Pwrite(fd, []byte{byte(i)}, int64(i)*page); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func mustOpen(t testing.TB, regions ...Region) *Map {
	t.Helper()
	m, err := Open(regions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Free() })
	return m
}

func TestViews(t *testing.T) {
	fd := memFD(t, 8)
	m := mustOpen(t, // out of order; the first two touch
		Region{GuestAddr: 0x3000, UserAddr: 0x70003000, Size: 2 * page, Offset: 0x4000, FD: fd},
		Region{GuestAddr: 0x1000, UserAddr: 0x70001000, Size: 2 * page, Offset: 0x1000, FD: fd},
		Region{GuestAddr: 0x10000, UserAddr: 0x90000000, Size: page, Offset: 0x7000, FD: fd},
	)
	for _, c := range []struct {
		addr uint64
		n    uint32
		page int // that the view begins with; -1: none
	}{
		{0x1000, 1, 1}, {0x1000, 2 * page, 1}, {0x2000, page, 2}, {0x3000, 2 * page, 4}, {0x4000, 1, 5}, {0x10000, page, 7},
		{0x1000, 0, 1}, {0xfff, 1, -1}, {0xfff, 2, -1}, {0x1000, 2*page + 1, -1}, {0x2000, page + 1, -1}, {0x5000, 1, -1}, {0x5000, 0, -1},
		{0, 1, -1}, {0x10000, page + 1, -1}, {0x11000, 0, -1}, {math.MaxUint64, 1, -1}, {math.MaxUint64, 2, -1},
		{0x1000, math.MaxUint32, -1}, {math.MaxUint64 - 0xfff, math.MaxUint32, -1},
	} {
		v := m.View(c.addr, c.n)
		switch {
		case (v == nil) != (c.page < 0):
			t.Errorf("View(%#x, %#x) is %d bytes", c.addr, c.n, len(v))
		case v != nil && (len(v) != int(c.n) || cap(v) != int(c.n)):
			t.Errorf("View(%#x, %#x): length %d, capacity %d", c.addr, c.n, len(v), cap(v))
		case len(v) > 0 && v[0] != byte(c.page):
			t.Errorf("View(%#x, %#x) begins with page %d, want %d", c.addr, c.n, v[0], c.page)
		}
	}
	for _, c := range []struct {
		addr uint64
		n    uint32
		want int
	}{{0x1000, 2 * page, 2 * page}, {0x2fff, 10, 1}, {0x3000, 10, 10}, {0x4ff0, 100, 16}, {0x5000, 1, 0}, {0x10000, math.MaxUint32, page}} {
		if v := m.Prefix(c.addr, c.n); len(v) != c.want || cap(v) != c.want {
			t.Errorf("Prefix(%#x, %d) is %d bytes, want %d", c.addr, c.n, len(v), c.want)
		}
	}
	for _, c := range []struct {
		addr uint64
		n    int
		ok   bool
	}{
		{0x70001000, 2 * page, true}, {0x70003000, 1, true}, {0x70002fff, 2, false}, {0x1000, 1, false}, {0x90000000, page, true},
		{0x90000001, page, false}, {0x90000000, math.MaxInt, false}, {0x90000000, -1, false}, {math.MaxUint64, 1, false},
	} {
		if v := m.User(c.addr, c.n); (v != nil) != c.ok {
			t.Errorf("User(%#x, %d) is %d bytes", c.addr, c.n, len(v))
		}
	}
	got := m.Regions()
	if len(got) != 3 || got[0].GuestAddr != 0x1000 || got[1].GuestAddr != 0x3000 || got[2].GuestAddr != 0x10000 {
		t.Errorf("regions %+v", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	fd := memFD(t, 4)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	many := make([]Region, MaxRegions+1)
	for i := range many {
		many[i] = Region{GuestAddr: uint64(i) * page, Size: page, FD: fd}
	}
	for name, regions := range map[string][]Region{
		"no file":             {{Size: page, FD: -1}},
		"pipe":                {{Size: page, FD: pipe[0]}},
		"empty":               {{Size: 0, FD: fd}},
		"huge":                {{Size: 1 << 62, FD: fd}},
		"huge offset":         {{Size: page, Offset: 1 << 62, FD: fd}},
		"longer than file":    {{Size: 5 * page, FD: fd}},
		"beyond file":         {{Size: page, Offset: 4 * page, FD: fd}},
		"one byte beyond":     {{Size: 4 * page, Offset: 1, FD: fd}},
		"guest address wraps": {{GuestAddr: math.MaxUint64 - page + 2, Size: page, FD: fd}},
		"guest end is 2^64":   {{GuestAddr: math.MaxUint64 - page + 1, Size: page, FD: fd}},
		"user address wraps":  {{UserAddr: math.MaxUint64 - 1, Size: page, FD: fd}},
		"offset wraps":        {{Offset: math.MaxUint64 - 1, Size: page, FD: fd}},
		"same twice":          {{Size: page, FD: fd}, {Size: page, FD: fd}},
		"overlap by a byte":   {{GuestAddr: page, Size: page, FD: fd}, {GuestAddr: 1, Size: page, FD: fd}},
		"one in another":      {{Size: 4 * page, FD: fd}, {GuestAddr: page, Size: page, FD: fd}},
		"too many":            many,
	} {
		before := mapped.Load()
		if m, err := Open(regions); err == nil {
			t.Errorf("%s: accepted", name)
			m.Free()
		} else if !errors.Is(err, ErrRegion) {
			t.Errorf("%s: %v is no ErrRegion", name, err)
		}
		if mapped.Load() != before {
			t.Errorf("%s: %d bytes stay mapped", name, mapped.Load()-before)
		}
	}
	m, err := Open(many[:MaxRegions])
	if err != nil {
		t.Fatalf("%d regions: %v", MaxRegions, err)
	}
	if _, err := m.With(many[MaxRegions]); !errors.Is(err, ErrRegion) {
		t.Errorf("one more than %d: %v", MaxRegions, err)
	}
	if err := m.Free(); err != nil {
		t.Error(err)
	}
}

// A sparse file costs its owner nothing, and us addresses, of which a process has 2^47 bytes.
func TestAddressesAreRationed(t *testing.T) {
	fd := memFD(t, 1)
	if err := unix.Ftruncate(fd, 1<<45); err != nil {
		need.Missing(t, "no sparse file of 2^45 bytes: %v", err)
	}
	a := mustOpen(t, Region{Size: 1 << 45, FD: fd})
	if _, err := Open([]Region{{Size: 1 << 45, FD: fd}, {GuestAddr: 1 << 45, Size: page, FD: fd}}); !errors.Is(err, ErrRegion) {
		t.Errorf("more than 2^46 bytes: %v", err)
	}
	if err := a.Free(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, Region{Size: 1 << 45, FD: fd})
	// The end of a large file is small.
	mustOpen(t, Region{Size: page, Offset: 1<<45 - page, FD: fd}, Region{GuestAddr: 1 << 30, Size: page, Offset: 1 << 44, FD: fd})
	if n := mapped.Load(); n != 1<<45+2*page {
		t.Errorf("%#x bytes are mapped", n)
	}
}

// A region may begin and end within a page of its file.
func TestUnalignedOffset(t *testing.T) {
	fd := memFD(t, 3)
	if _, err := unix.Pwrite(fd, []byte("here"), page+100); err != nil {
		t.Fatal(err)
	}
	m := mustOpen(t, Region{GuestAddr: 0x1234, Size: page, Offset: page + 100, FD: fd})
	if v := m.View(0x1234, 4); string(v) != "here" {
		t.Errorf("view holds %q", v)
	}
	if m.View(0x1234+page-1, 1) == nil || m.View(0x1234+page, 1) != nil || m.View(0x1233, 1) != nil {
		t.Error("the bounds are not the region's")
	}
}

func TestWithAndWithout(t *testing.T) {
	fd := memFD(t, 4)
	a := Region{GuestAddr: 0, UserAddr: 0x10000, Size: page, FD: fd}
	b := Region{GuestAddr: page, UserAddr: 0x20000, Size: page, Offset: page, FD: fd}
	var none *Map
	one, err := none.With(a)
	if err != nil {
		t.Fatal(err)
	}
	two, err := one.With(b)
	if err != nil {
		t.Fatal(err)
	}
	if one.View(page, 1) != nil || two.View(page, 1) == nil || two.View(0, 1) == nil {
		t.Error("the new map has both regions, the old one its own")
	}
	if &one.View(0, 1)[0] != &two.View(0, 1)[0] {
		t.Error("the region that stays was mapped again")
	}
	if _, err := two.With(a); !errors.Is(err, ErrRegion) {
		t.Errorf("the same again: %v", err)
	}
	for _, wrong := range []Region{{GuestAddr: 1, UserAddr: 0x10000, Size: page}, {UserAddr: 1, Size: page}, {UserAddr: 0x10000, Size: 1}} {
		if _, _, err := two.Without(wrong.GuestAddr, wrong.UserAddr, wrong.Size); !errors.Is(err, ErrRegion) {
			t.Errorf("removed %+v, which is not there: %v", wrong, err)
		}
	}
	if _, _, err := none.Without(0, 0, page); !errors.Is(err, ErrRegion) {
		t.Errorf("removed from nothing: %v", err)
	}
	rest, removed, err := two.Without(a.GuestAddr, a.UserAddr, a.Size)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(removed.Revoke(), removed.Free()); err != nil {
		t.Fatal(err)
	}
	if rest.View(0, 1) != nil || rest.View(page, 1)[0] != 1 {
		t.Error("the rest is not what stays")
	}
	if err := rest.Free(); err != nil {
		t.Error(err)
	}
	if n := mapped.Load(); n != 0 {
		t.Errorf("%d bytes stay mapped", n)
	}
}

// faultAddress is the address fn faulted at; 0: it did not.
func faultAddress(t *testing.T, fn func()) (address uintptr) {
	t.Helper()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			address = r.(interface {
				runtime.Error
				Addr() uintptr
			}).Addr()
		}
	}()
	fn()
	return 0
}

func TestRevokedViewsFault(t *testing.T) {
	fd := memFD(t, 4)
	m := mustOpen(t, Region{GuestAddr: 0, Size: 2 * page, FD: fd}, Region{GuestAddr: 8 * page, Size: 2 * page, Offset: 2 * page, FD: fd})
	other := mustOpen(t, Region{Size: page, FD: fd})
	stale := m.View(9*page, page)
	if at := faultAddress(t, func() { stale[1] = 1 }); at != 0 {
		t.Fatalf("fault at %#x before Revoke", at)
	}
	if err := m.Revoke(); err != nil {
		t.Fatal(err)
	}
	at := faultAddress(t, func() { stale[1] = 1 })
	if at == 0 {
		t.Fatal("a view of revoked memory can be written")
	}
	if !m.Contains(at) || other.Contains(at) {
		t.Errorf("fault at %#x is laid to the wrong guest", at)
	}
	if m.Contains(0) || m.Contains(math.MaxUint64) {
		t.Error("the guest has address 0")
	}
	if other.View(0, 1)[0] != 0 {
		t.Error("another map of the file was revoked with it")
	}
	if err := m.Free(); err != nil {
		t.Fatal(err)
	}
	if m.Contains(at) {
		t.Error("freed memory still counts as the guest's")
	}
}

// Every byte that View and Prefix give out is the byte of the file that the regions say, and they give out all there are.
func TestViewsAgainstTheFile(t *testing.T) {
	const pages = 16
	fd := memFD(t, pages)
	file := make([]byte, pages*page)
	for i := range file {
		file[i] = byte(i*7 ^ i>>8)
	}
	if _, err := unix.Pwrite(fd, file, 0); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		var regions []Region
		at := uint64(0)
		for range rapid.IntRange(0, 2*scanned).Draw(t, "regions") {
			at += rapid.Uint64Range(0, 3).Draw(t, "gap") * 100
			size := rapid.Uint64Range(1, 3*page).Draw(t, "size")
			regions = append(regions, Region{GuestAddr: at, UserAddr: at + 1<<40, Size: size, FD: fd,
				Offset: rapid.Uint64Range(0, pages*page-size).Draw(t, "offset")})
			at += size
		}
		m, err := Open(rapid.Permutation(regions).Draw(t, "order"))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Free()
		addr, n := rapid.Uint64Range(0, at+200).Draw(t, "addr"), rapid.Uint32Range(0, 2*page).Draw(t, "n")
		var want []byte // as many of the n bytes as lie in the region
		inside := false
		for _, r := range regions {
			if addr >= r.GuestAddr && addr < r.GuestAddr+r.Size {
				inside = true
				end := min(addr+uint64(n), r.GuestAddr+r.Size)
				want = file[r.Offset+addr-r.GuestAddr : r.Offset+end-r.GuestAddr]
			}
		}
		if got := m.Prefix(addr, n); (got != nil) != inside || !bytes.Equal(got, want) {
			t.Fatalf("Prefix(%#x, %d): %d bytes, want %d", addr, n, len(got), len(want))
		}
		whole := inside && len(want) == int(n)
		for name, got := range map[string][]byte{"View": m.View(addr, n), "User": m.User(addr+1<<40, int(n))} {
			if (got != nil) != whole || whole && !bytes.Equal(got, want) {
				t.Fatalf("%s(%#x, %d): %d bytes, want %d", name, addr, n, len(got), len(want))
			}
			if back, ok := m.Guest(got); len(got) > 0 && (!ok || back != addr) {
				t.Fatalf("%s(%#x, %d) is said to lie at %#x, %v", name, addr, n, back, ok)
			}
		}
	})
}

func TestGuestOfForeignMemory(t *testing.T) {
	m := mustOpen(t, Region{GuestAddr: 1 << 32, Size: page, FD: memFD(t, 1)})
	view := m.View(1<<32, page)
	for name, b := range map[string][]byte{"ours": make([]byte, 8), "none": nil, "longer": append(view[page-1:page:page], 0)} {
		if at, ok := m.Guest(b); ok {
			t.Errorf("%s lies at %#x", name, at)
		}
	}
	if at, ok := m.Guest(view[page-1:]); !ok || at != 1<<32+page-1 {
		t.Errorf("the last byte lies at %#x, %v", at, ok)
	}
}

func TestNothingAllocated(t *testing.T) {
	m := mustOpen(t, Region{Size: page, FD: memFD(t, 1)})
	if n := testing.AllocsPerRun(100, func() {
		if len(m.View(16, 64)) != 64 || len(m.Prefix(16, page)) != page-16 || m.User(0, page+1) != nil {
			t.Error("wrong view")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestErrorsSayWhich(t *testing.T) {
	_, err := Open([]Region{{GuestAddr: 0x8000_0000, Size: 2 * page, FD: memFD(t, 1)}})
	if err == nil || !strings.Contains(err.Error(), "0x80000000") || !strings.Contains(err.Error(), "0x1000") {
		t.Errorf("%v names neither the region nor the file's size", err)
	}
}

// All guests together cannot have so many regions that the process gets no more mappings.
func TestTooManyRegions(t *testing.T) {
	fd, err := shm.NewMemFD("many", MaxRegions*2*page)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	regions := make([]Region, MaxRegions)
	for i := range regions { // every other page, or the kernel would make one mapping of them
		regions[i] = Region{GuestAddr: uint64(2*i) * page, UserAddr: uint64(2*i) * page, Size: page, Offset: uint64(2*i) * page, FD: fd}
	}
	var maps []*Map
	before := mappings.Load()
	for err == nil && len(maps) < 2*maxMappings/MaxRegions {
		var m *Map
		if m, err = Open(regions); err == nil {
			maps = append(maps, m)
		}
	}
	if !errors.Is(err, ErrRegion) {
		t.Errorf("%d guests of %d regions: %v", len(maps), MaxRegions, err)
	}
	for _, m := range maps {
		if err := m.Free(); err != nil {
			t.Fatal(err)
		}
	}
	if n := mappings.Load(); n != before {
		t.Errorf("%d mappings are counted after the last one was freed, %d before", n, before)
	}
}
