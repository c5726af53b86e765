package dataplane_test

import (
	"testing"

	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// One quantum each way between two guests, the guests' own work included; for comparing two states of the code on one machine, where
// the figures of package bench need two quiet CPUs.
func BenchmarkRound(b *testing.B) {
	for _, c := range []struct {
		name     string
		length   int
		features uint64
	}{
		{"60", 60, 0}, {"1400", 1400, 0}, {"60 in order", 60, vnet.FeatureInOrder}, {"60 packed", 60, vnet.FeaturePacked},
		{"60 packed in order", 60, vnet.FeaturePacked | vnet.FeatureInOrder},
	} {
		b.Run(c.name, func(b *testing.B) {
			length := c.length
			l := newLAN(b, 2, vnettest.Options{QueueSize: 256, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | c.features})
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
