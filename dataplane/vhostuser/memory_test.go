package vhostuser

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// TestMemory: a device's workers have the new map before the old memory goes away, and the grace point comes before its addresses are used again.
func TestMemory(t *testing.T) {
	const name = "memfd:shunt-memory-test"
	fd, err := shm.NewMemFD("shunt-memory-test", 4*pageSize)
	must(t, err)
	defer unix.Close(fd)
	region := func(i uint64) Region {
		return Region{GuestAddr: i * pageSize, UserAddr: i << 32, Size: pageSize, MmapOffset: i * pageSize, FD: fd}
	}
	mapped := func() int { return mappings(t, name) }
	var steps []string
	var m Memory
	m = Memory{
		Use: func(next *guestmem.Map) {
			if next != m.Map() {
				t.Error("the workers are given another map")
			}
			steps = append(steps, "use")
		},
		Grace: func() { steps = append(steps, "grace") },
	}
	did := func(want ...string) {
		t.Helper()
		if !slices.Equal(steps, want) {
			t.Errorf("%v, want %v", steps, want)
		}
		steps = nil
	}
	must(t, m.Set([]Region{region(0), region(1)}))
	did("use")
	must(t, m.Add(region(2)))
	did("use")
	if n := mapped(); n != 3 {
		t.Errorf("%d regions are mapped", n)
	}
	if m.Add(region(2)) == nil || m.Remove(region(3)) == nil || m.Set([]Region{region(0), region(0)}) == nil {
		t.Error("a wrong region was taken")
	}
	did()
	must(t, m.Remove(region(0)))
	did("use", "grace")
	if n := mapped(); n != 2 || m.Map().View(0, 1) != nil || m.Map().View(pageSize, 1) == nil {
		t.Errorf("%d regions are mapped", n)
	}

	// What the kernel may still write to is out of reach, and its addresses stay taken.
	var want VringConfig
	want.Size, want.DescAddr, want.AvailAddr, want.UsedAddr = 8, 1<<32, 1<<32+512, 1<<32+1024
	l, ok := want.Tables(m.Map(), false)
	if !ok || len(l.Desc) != 128 {
		t.Fatalf("tables %v", ok)
	}
	want.UsedAddr = 1<<32 + pageSize - 4
	if _, ok := want.Tables(m.Map(), false); ok {
		t.Error("tables beyond memory")
	}
	m.Hold()
	m.Hold()
	m.Clear()
	did("use", "grace")
	if m.Map() != nil || mapped() != 0 {
		t.Error("memory is in reach")
	}
	m.Release()
	if len(m.gone) != 1 {
		t.Error("addresses were given up while something is held")
	}
	m.Release()
	eventually(t, "nothing kept", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.gone == nil })
}
