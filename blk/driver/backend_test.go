package driver

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver/drivertest"
)

func backend(tb testing.TB, queues int) (*drivertest.Backend, *drivertest.Content, string) {
	tb.Helper()
	path, c := filepath.Join(tb.TempDir(), "blk.sock"), drivertest.NewContent(1<<20)
	b, err := drivertest.Serve(drivertest.BackendOptions{Path: path, Content: c, Queues: queues})
	must(tb, err)
	tb.Cleanup(func() {
		must(tb, b.Kill())
		if err := b.Err(); err != nil {
			tb.Error(err)
		}
	})
	return b, c, path
}

// TestResize: the news arrives, and the new sectors can be used. QEMU 7.2's daemon does not tell.
func TestResize(t *testing.T) {
	b, c, path := backend(t, 1)
	news := make(chan Config, 8)
	d := dial(t, path, Options{Changed: func(c Config) { news <- c }})
	c.Grow(1 << 20)
	b.ConfigChanged()
	select {
	case now := <-news:
		if now.Capacity != 4096 || d.Size() != 2<<20 {
			t.Errorf("%+v", now)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no news")
	}
	y, err := d.NewSync(0, 4096)
	must(t, err)
	_, err = y.WriteAt(make([]byte, 512), 2<<20-512)
	must(t, err)
}

// TestPackedStopStart: a packed ring goes on where it stood, also across its end.
func TestPackedStopStart(t *testing.T) {
	_, _, path := backend(t, 2)
	for _, inflight := range []bool{false, true} {
		d := dial(t, path, Options{Queues: 2, Packed: true, Size: 8, EventIdx: true, Inflight: inflight})
		y, err := d.NewSync(1, 4096)
		must(t, err)
		for i := range 30 {
			want, back := fmt.Appendf(nil, "%512d", i), make([]byte, 512)
			_, err := y.WriteAt(want, 512)
			must(t, err)
			must(t, d.Stop())
			if i%7 == 0 {
				must(t, d.Reset())
			} else {
				must(t, d.Start())
			}
			_, err = y.ReadAt(back, 512)
			must(t, err)
			if string(want) != string(back) {
				t.Fatalf("round %d: %q", i, back)
			}
		}
		must(t, d.Close())
	}
}

// TestHistogram: quantiles are right to a sixteenth.
func TestHistogram(t *testing.T) {
	var h, o Histogram
	for i := range 1000 {
		h.Add(time.Duration(i) * time.Microsecond)
	}
	o.Add(time.Second)
	h.Merge(&o)
	if h.Count() != 1001 || h.Max() != time.Second || h.Quantile(1) != time.Second {
		t.Error(&h)
	}
	for _, share := range []float64{.1, .5, .9, .99} {
		if got, want := h.Quantile(share), time.Duration(share*1000)*time.Microsecond; got < want || got > want+want/15 {
			t.Errorf("%v: %v, not %v", share, got, want)
		}
	}
	for i := range len(h.buckets) {
		if v := floor(i); bucket(v) != i {
			t.Fatalf("bucket %d begins at %d, which is in %d", i, v, bucket(v))
		}
	}
}
