package blk

import (
	"testing"

	"github.com/shuntio/shunt/dataplane/virtq"
)

// TestNothingAllocated: a request costs no allocation, of whatever kind and ring, with and without an in-flight area.
func TestNothingAllocated(t *testing.T) {
	for ring, bit := range rings {
		b := newBed(t, bedInfo, modern|bit)
		one := func(request []byte, readable, writable []virtq.Buffer) func() {
			b.put(request, readable)
			return func() {
				head, ok := b.driver.Add(readable, writable)
				b.driver.Publish()
				b.queue().Poll()
				b.queue().Flush()
				b.queue().Flush()
				if got, _, back, err := b.driver.Used(); !ok || !back || got != head || err != nil || b.view(writable[len(writable)-1])[0] != 0 {
					t.Fatalf("%s: %v, %v, %v", ring, ok, back, err)
				}
			}
		}
		for name, do := range map[string]func(){
			"read":         one(header(0, 0), b.buffers(16), b.buffers(4096, 1)),
			"write":        one(join(header(1, 0), counting(4096)), b.buffers(16, 2048, 2048), b.buffers(1)),
			"flush":        one(header(4, 0), b.buffers(16), b.buffers(1)),
			"identity":     one(header(8, 0), b.buffers(16), b.buffers(20, 1)),
			"discard":      one(join(header(11, 0), zone(0, 8, 0)), b.buffers(16, 16), b.buffers(1)),
			"write zeroes": one(join(header(13, 0), zone(0, 8, 1)), b.buffers(32), b.buffers(1)),
		} {
			do()
			if n := testing.AllocsPerRun(200, do); n != 0 {
				t.Errorf("%s, %s: %v allocations", ring, name, n)
			}
		}
	}
}

// BenchmarkRequest is what a request of 4 KiB costs without its store, in rounds of 16: the copy of the data is in it.
func BenchmarkRequest(b *testing.B) {
	for ring, bit := range rings {
		b.Run(ring, func(b *testing.B) {
			const depth = bedQueue / 4
			d := newBed(b, bedInfo, modern|bit)
			d.gate.order = func(n int) int { return n - 1 }
			head, data, st := d.buffers(16), d.buffers(4096), d.buffers(1)
			d.put(header(0, 0), head)
			writable := append(data, st...)
			for n := 0; n < b.N; n += depth {
				for range depth {
					d.driver.Add(head, writable)
				}
				d.driver.Publish()
				d.queue().Poll()
				d.queue().Flush()
				d.queue().Flush()
				for range depth {
					if _, _, ok, err := d.driver.Used(); !ok || err != nil {
						b.Fatal(ok, err)
					}
				}
			}
		})
	}
}
