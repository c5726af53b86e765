package file

import (
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
)

// BenchmarkRead4K reads from a file that the page cache holds, through a lane.
func BenchmarkRead4K(b *testing.B) {
	const size = 64 << 20
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "depth-1", 32: "depth-32"}[depth], func(b *testing.B) {
			path, _ := makeFile(b, b.TempDir(), size)
			bed := newBed(b, uring.Options{})
			u := bed.open(openStore(b, path, Options{}))
			m := memory(b, depth*4096)
			all := make([]*request, depth)
			for i := range all {
				all[i] = newRequest(blk.OpRead, 0, 4096, m[i*4096:][:4096])
				all[i].done = 1
			}
			b.ReportAllocs()
			b.ResetTimer()
			busy := 0
			for n := 0; n < b.N || busy > 0; {
				for _, q := range all {
					if q.done == 0 {
						continue
					}
					if q.done = 0; n < b.N {
						q.Offset = uint64(n*7919%(size/4096)) * 4096
						u.lane.Submit(&q.Request)
						n++
						busy++
					}
				}
				u.worker.Round()
				for _, q := range all {
					busy -= q.done
				}
			}
			b.ReportMetric(float64(bed.ring.Stats().Punted.Load())/float64(b.N), "apart/op")
		})
	}
}
