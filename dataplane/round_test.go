package dataplane_test

import (
	"fmt"
	"testing"

	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// One quantum each way between two guests, the guests' own work included; for comparing two states of the code on one machine, where
// the figures of package bench need two quiet CPUs.
func BenchmarkRound(b *testing.B) {
	for _, length := range []int{60, 1400} {
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			l := newLAN(b, 2, vnettest.Options{QueueSize: 256})
			for _, h := range l.hosts {
				h.link.Port, h.link.Forwarder = h.port, crossover{l.hosts[1-int(h.name[0]-'A')].link}
				h.Prepare(make([]byte, length), nil)
			}
			frames := 0
			byHand(func() {
				for b.Loop() {
					for _, h := range l.hosts {
						if _, err := h.Blast(64, length); err != nil {
							b.Fatal(err)
						}
					}
					frames += l.worker.Round()
					for _, h := range l.hosts {
						if _, err := h.Sink(64); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(frames), "ns/frame")
			b.ReportMetric(0, "ns/op")
		})
	}
}
