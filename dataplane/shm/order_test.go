package shm

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoadsAndStores(t *testing.T) {
	b := mapFD(t, MapOptions{FD: -1, Length: 4096}).Bytes()
	h, err := View[uint16](b, 8)
	if err != nil {
		t.Fatal(err)
	}
	w, err := View[uint32](b[64:], 8)
	if err != nil {
		t.Fatal(err)
	}
	d, err := View[uint64](b[128:], 8)
	if err != nil {
		t.Fatal(err)
	}
	Store16(&h[1], 0xfedc)
	Store32(&w[1], 0xfedcba98)
	Release32(&w[3], 0x89abcdef)
	Store64(&d[1], 0xfedcba9876543210)
	Release64(&d[3], 0x89abcdef01234567)
	if Load16(&h[1]) != 0xfedc || Load32(&w[1]) != 0xfedcba98 || Load32(&w[3]) != 0x89abcdef || Load64(&d[1]) != 0xfedcba9876543210 ||
		Load64(&d[3]) != 0x89abcdef01234567 {
		t.Errorf("loaded %#x %#x %#x %#x %#x", Load16(&h[1]), Load32(&w[1]), Load32(&w[3]), Load64(&d[1]), Load64(&d[3]))
	}
	for i, x := range b { // and nothing beside
		if x != 0 && i != 2 && i != 3 && (i < 68 || i >= 72) && (i < 76 || i >= 80) && (i < 136 || i >= 144) && (i < 152 || i >= 160) {
			t.Errorf("byte %d was written: %#x", i, x)
		}
	}
}

// A hint is not an access: it changes nothing, and memory may be gone, or never have been there.
func TestPrefetch(t *testing.T) {
	fd := memFD(t, 3*4096)
	m := mapFD(t, MapOptions{FD: fd, Length: 3 * 4096})
	b := m.Bytes()
	for i := range b[:4096] {
		b[i] = byte(i) | 1
	}
	hint := func() {
		for _, at := range []int{0, 63, 4096 - 64, 4096, 3*4096 - 1} { // the last one reaches beyond the mapping
			Prefetch(b[at:])
			PrefetchWrite(b[at:])
		}
		Prefetch(nil)
		PrefetchWrite(nil)
	}
	hint()
	for i, x := range b[:4096] {
		if x != byte(i)|1 {
			t.Fatalf("byte %d was written: %#x", i, x)
		}
	}
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	if at, faulted := faultAt(t, hint); faulted {
		t.Errorf("a fault at %#x, in memory that was truncated away", at)
	}
	if err := m.Revoke(); err != nil {
		t.Fatal(err)
	}
	if at, faulted := faultAt(t, hint); faulted {
		t.Errorf("a fault at %#x, in memory that was revoked", at)
	}
}

// Message passing: who sees the index sees what was written before it.
func TestReleaseAcquire(t *testing.T) {
	b := mapFD(t, MapOptions{FD: -1, Length: 8192}).Bytes()
	index, _ := View[uint16](b, 1)
	data, _ := View[uint64](b[4096:], 256)
	const n = 60000
	var done sync.WaitGroup
	done.Add(1)
	go func() {
		defer done.Done()
		for i := uint16(1); i <= n; i++ {
			data[i%256] = uint64(i)
			Store16(&index[0], i)
		}
	}()
	for seen := uint16(0); seen != n; {
		seen = Load16(&index[0])
		// The writer may be ahead by any number of rounds, never behind.
		if got := data[seen%256]; got < uint64(seen) {
			t.Fatalf("index %d was seen before its data, which is %d", seen, got)
		}
		if seen%64 == 0 {
			runtime.Gosched() // on one CPU, too
		}
	}
	done.Wait()
}

// Store buffering: two sides that each publish, fence, and look. At least one must see the other; this is what the
// sleep sequence and event suppression stand on.
func TestFenceOrdersStoreBeforeLoad(t *testing.T) {
	b := mapFD(t, MapOptions{FD: -1, Length: 4 * 4096}).Bytes()
	x, _ := View[uint16](b, 1)
	y, _ := View[uint16](b[4096:], 1)
	gate, _ := View[uint32](b[2*4096:], 2) // which round each side has come to
	other, _ := View[uint16](b[3*4096:], 16)
	rounds := uint32(60000)
	if testing.Short() {
		rounds = 10000
	}
	meet := func(me, peer int, round, delay uint32) {
		Store32(&gate[me], round)
		for spins := 0; Load32(&gate[peer]) < round; spins++ {
			if spins > 1000 {
				runtime.Gosched()
			}
		}
		for range delay { // so that the two come together at every distance
			Load16(&other[8])
		}
	}
	var done sync.WaitGroup
	done.Add(1)
	go func() {
		defer done.Done()
		for i := range rounds {
			meet(1, 0, 2*i+1, i%61)
			Store16(&y[0], uint16(i+1))
			Fence()
			Store16(&other[0], Load16(&x[0]))
			meet(1, 0, 2*i+2, 0)
		}
	}()
	for i := range rounds {
		meet(0, 1, 2*i+1, i/61%61)
		Store16(&x[0], uint16(i+1))
		Fence()
		mine := Load16(&y[0])
		meet(0, 1, 2*i+2, 0)
		if mine != uint16(i+1) && Load16(&other[0]) != uint16(i+1) {
			t.Errorf("round %d: neither side saw the other's store", i)
			break
		}
	}
	if t.Failed() {
		Store32(&gate[0], ^uint32(0)) // let the other side run out
	}
	done.Wait()
}

func TestNothingAllocated(t *testing.T) {
	b := mapFD(t, MapOptions{FD: -1, Length: 4096}).Bytes()
	h, _ := View[uint16](b, 8)
	w, _ := View[uint32](b, 8)
	d, _ := View[uint64](b, 8)
	fd := eventFD(t)
	if n := testing.AllocsPerRun(100, func() {
		Store16(&h[0], Load16(&h[1]))
		Store32(&w[0], Load32(&w[1]))
		Release32(&w[2], 1)
		Store64(&d[0], Load64(&d[1]))
		Release64(&d[2], 1)
		Fence()
		Signal(fd)
		Drain(fd)
		if v, err := View[uint64](b, 8); err != nil || len(v) != 8 {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
