package shm

import "testing"

func TestView(t *testing.T) {
	type pair struct{ a, b uint32 }
	b := mapFD(t, MapOptions{FD: -1, Length: 4096}).Bytes()[:100:100]
	check := func(name string, err error, want bool) {
		t.Helper()
		if (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := View[uint16](b, 50)
	check("all of it", err, true)
	_, err = View[uint16](b, 51)
	check("more than there is", err, false)
	_, err = View[uint64](b, 12)
	check("with a rest", err, true)
	_, err = View[uint64](b, 13)
	check("beyond the end", err, false)
	_, err = View[uint64](b, -1)
	check("negative", err, false)
	_, err = View[uint64](b, 1<<62)
	check("size wraps", err, false)
	_, err = View[uint16](b[1:], 1)
	check("16 bits at an odd address", err, false)
	_, err = View[pair](b[2:], 1)
	check("32 bits at 2", err, false)
	_, err = View[pair](b[4:], 1)
	check("32 bits at 4", err, true)
	_, err = View[uint64](b[4:], 1)
	check("64 bits at 4", err, false)
	_, err = View[byte](b[3:], 97)
	check("bytes anywhere", err, true)
	_, err = View[uint64](nil, 0)
	check("nothing of nothing", err, true)

	v, err := View[pair](b[8:], 3)
	check("pairs", err, true)
	v[1] = pair{a: 0x04030201, b: 0x08070605}
	for i := range 8 {
		if b[16+i] != byte(i+1) {
			t.Fatalf("bytes %v, want 1 to 8", b[16:24])
		}
	}
	if len(v) != 3 || cap(v) != 3 {
		t.Errorf("length %d, capacity %d, want 3", len(v), cap(v))
	}
}
