package main

import (
	"fmt"
	"time"

	"github.com/shuntio/shunt/tools/control"
)

// operations of a volume by name, and what is the same of all of them.
const (
	opRead  = "read"
	opWrite = "write"
)

func operation(v *control.VolumeStats, name string) (o control.OperationStats) {
	if v != nil {
		for _, o := range v.Operations {
			if o.Operation == name {
				return o
			}
		}
	}
	return o
}

// volumeRates is what one volume did in a second.
type volumeRates struct {
	reads, readBytes, writes, writeBytes, others, errors float64
	total                                                control.Histogram // of all operations
	inFlight                                             uint64
}

// compareVolumes makes rates of two looks at a volume. One that is new, or whose counters began anew, has none yet.
func compareVolumes(was, is *control.VolumeStats, seconds float64) *volumeRates {
	r := &volumeRates{inFlight: is.InFlight}
	if was == nil || seconds <= 0 {
		return r
	}
	for _, o := range is.Operations {
		old := operation(was, o.Operation)
		if o.Requests < old.Requests {
			return &volumeRates{inFlight: is.InFlight}
		}
		requests, bytes := float64(o.Requests-old.Requests)/seconds, float64(o.Bytes-old.Bytes)/seconds
		switch o.Operation {
		case opRead:
			r.reads, r.readBytes = requests, bytes
		case opWrite:
			r.writes, r.writeBytes = requests, bytes
		default:
			r.others += requests
		}
		r.errors += float64(o.Errors-old.Errors) / seconds
		r.total = merge(r.total, o.Total.Since(old.Total))
	}
	return r
}

// merge adds two histograms.
func merge(a, b control.Histogram) control.Histogram {
	sum := control.Histogram{Count: a.Count + b.Count, Sum: a.Sum + b.Sum}
	for len(a.Buckets) > 0 || len(b.Buckets) > 0 {
		switch {
		case len(b.Buckets) == 0 || len(a.Buckets) > 0 && a.Buckets[0].Bound < b.Buckets[0].Bound:
			sum.Buckets = append(sum.Buckets, a.Buckets[0])
			a.Buckets = a.Buckets[1:]
		case len(a.Buckets) == 0 || b.Buckets[0].Bound < a.Buckets[0].Bound:
			sum.Buckets = append(sum.Buckets, b.Buckets[0])
			b.Buckets = b.Buckets[1:]
		default:
			sum.Buckets = append(sum.Buckets, control.Bucket{Bound: a.Buckets[0].Bound, Count: a.Buckets[0].Count + b.Buckets[0].Count})
			a.Buckets, b.Buckets = a.Buckets[1:], b.Buckets[1:]
		}
	}
	return sum
}

// latency shows a time of some digits that matter.
func latency(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d == 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%.1f us", seconds*1e6)
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", seconds*1e3)
	}
	return fmt.Sprintf("%.1f s", seconds)
}

func drawVolumeStats(t *table, list []control.ObjectStats) {
	t.head("VOLUME", "READS", "READ BYTES", "WRITES", "WRITTEN BYTES", "FLUSHES", "ERRORS", "IN FLIGHT", "RETRIES", "RECONNECTS")
	for _, o := range list {
		errors := uint64(0)
		for _, op := range o.Volume.Operations {
			errors += op.Errors
		}
		r, w := operation(o.Volume, opRead), operation(o.Volume, opWrite)
		t.row(o.Name, count(r.Requests), size(r.Bytes), count(w.Requests), size(w.Bytes), count(operation(o.Volume, "flush").Requests), count(errors),
			count(o.Volume.InFlight), count(o.Volume.Retries), count(o.Volume.Reconnects))
	}
}

// drawVolumeMore shows how long the requests of one volume took.
func drawVolumeMore(t *table, v *control.VolumeStats) {
	t.head("OPERATION", "REQUESTS", "BYTES", "ERRORS", "QUEUE MEAN", "STORE MEAN", "TOTAL MEAN", "TOTAL P50", "TOTAL P99", "TOTAL P99.9")
	for _, o := range v.Operations {
		t.row(o.Operation, count(o.Requests), size(o.Bytes), count(o.Errors), latency(o.Queue.Mean()), latency(o.Store.Mean()), latency(o.Total.Mean()),
			latency(o.Total.Quantile(0.5)), latency(o.Total.Quantile(0.99)), latency(o.Total.Quantile(0.999)))
	}
	t.head("EVENT", "COUNT")
	t.row("unflushed", count(v.Unflushed))
	t.row("lost-flushes", count(v.LostFlushes))
}

func drawVolumeRates(t *table, list []rates) {
	t.head("VOLUME", "READ/S", "READ B/S", "WRITE/S", "WRITE B/S", "OTHER/S", "ERROR/S", "IN FLIGHT", "MEAN", "P99")
	for _, r := range list {
		v := r.volume
		t.row(r.name, rate(v.reads), rate(v.readBytes), rate(v.writes), rate(v.writeBytes), rate(v.others), rate(v.errors), v.inFlight,
			latency(v.total.Mean()), latency(v.total.Quantile(0.99)))
	}
}

// mostVolumes is how many lines there are for volumes in a live view.
const mostVolumes = 8

// volumeLines are the volumes, those with most requests first.
func (v *topView) volumeLines() []string {
	list := v.volumes()
	if len(list) == 0 {
		return nil
	}
	lines := []string{"", fmt.Sprintf("%-16s %-12s %8s %8s %8s %8s %8s %8s %9s %9s", "VOLUME", "STATE", "READ/S", "READ B/S", "WRITE/S", "WRITE B/S", "ERROR/S",
		"IN FLT", "MEAN", "P99")}
	for i, r := range list {
		if i == mostVolumes-1 && len(list) > mostVolumes {
			lines = append(lines, fmt.Sprintf("and %d more: shuntctl stats -w", len(list)-i))
			break
		}
		d := r.volume
		lines = append(lines, fmt.Sprintf("%-16s %-12s %8s %8s %8s %8s %8s %8d %9s %9s", cut(r.name, 16), v.stateOf(r.object), rate(d.reads), rate(d.readBytes),
			rate(d.writes), rate(d.writeBytes), rate(d.errors), d.inFlight, latency(d.total.Mean()), latency(d.total.Quantile(0.99))))
	}
	return lines
}
