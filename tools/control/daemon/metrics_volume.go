package daemon

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shuntio/shunt/tools/control"
)

var (
	volumeRequests = desc("volume_requests_total", "Requests of a volume that ended.", "volume", "operation")
	volumeBytes    = desc("volume_bytes_total", "Bytes of a volume's requests that ended.", "volume", "operation")
	volumeErrors   = desc("volume_errors_total", "Requests of a volume that failed.", "volume", "operation")
	volumeLatency  = desc("volume_latency_seconds",
		"Time of a volume's requests: queue, before the store had them; store, while it had them; total, from the guest's ring to the answer.",
		"volume", "operation", "part")
	volumeInFlight    = desc("volume_in_flight_requests", "Requests of a volume that are not answered yet.", "volume")
	volumeRetries     = desc("volume_retries_total", "Requests submitted again after the volume's store was away.", "volume")
	volumeReconnects  = desc("volume_reconnects_total", "Times that a volume's store came back.", "volume")
	volumeUnflushed   = desc("volume_unflushed_writes", "Writes that were acknowledged since the volume's last flush.", "volume")
	volumeLostFlushes = desc("volume_lost_flushes_total", "Flushes that failed since writes before them may be lost.", "volume")
	volumeConnected   = desc("volume_connected", "Whether the volume's guest is connected.", "volume")
	volumeStoreUp     = desc("volume_store_up", "Whether the volume's store can be reached.", "volume")
	volumeWait        = desc("volume_wait_seconds",
		"How long writes of a volume still wait for those of a process or volume that is gone and may not have ended.", "volume")
	volumeSize = desc("volume_size_bytes", "Size of a volume, as its store said.", "volume")
)

var volumeDescs = []*prometheus.Desc{volumeRequests, volumeBytes, volumeErrors, volumeLatency, volumeInFlight, volumeRetries, volumeReconnects,
	volumeUnflushed, volumeLostFlushes, volumeConnected, volumeStoreUp, volumeWait, volumeSize}

// waitOf is how long a volume's requests are held back at most, as far as one knows.
func waitOf(v control.VolumeStatus, now time.Time) (longest time.Duration) {
	for _, w := range v.Waits {
		longest = max(longest, w.Until.Sub(now))
	}
	return longest
}

// collectVolume makes the metrics of one volume's counters.
func collectVolume(out chan<- prometheus.Metric, name string, v *control.VolumeStats) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for _, o := range v.Operations {
		counter(volumeRequests, o.Requests, name, o.Operation)
		counter(volumeBytes, o.Bytes, name, o.Operation)
		counter(volumeErrors, o.Errors, name, o.Operation)
		for part, h := range map[string]control.Histogram{"queue": o.Queue, "store": o.Store, "total": o.Total} {
			out <- prometheus.MustNewConstHistogram(volumeLatency, h.Count, h.Sum, octaves(h), name, o.Operation, part)
		}
	}
	counter(volumeRetries, v.Retries, name)
	counter(volumeReconnects, v.Reconnects, name)
	counter(volumeLostFlushes, v.LostFlushes, name)
	out <- prometheus.MustNewConstMetric(volumeInFlight, prometheus.GaugeValue, float64(v.InFlight), name)
	out <- prometheus.MustNewConstMetric(volumeUnflushed, prometheus.GaugeValue, float64(v.Unflushed), name)
}

// What Prometheus gets of a histogram: a bucket for each doubling from 4 us to half a minute, since each is a series of its own.
const (
	leastOctave = 4.096e-6 // 2^12 ns: the bounds are among the engine's
	octaveCount = 24
	rounding    = 1 + 1e-9
)

// octaves counts, below each bound, all shorter times, as Prometheus does.
func octaves(h control.Histogram) map[float64]uint64 {
	buckets := make(map[float64]uint64, octaveCount)
	sum, next := uint64(0), 0
	for i, bound := 0, leastOctave; i < octaveCount; i, bound = i+1, bound*2 {
		for ; next < len(h.Buckets) && h.Buckets[next].Bound <= bound*rounding; next++ {
			sum += h.Buckets[next].Count
		}
		buckets[bound] = sum
	}
	return buckets
}
