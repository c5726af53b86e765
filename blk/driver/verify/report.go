package verify

import (
	"fmt"
	"strings"
	"time"

	"github.com/shuntio/shunt/blk/driver"
)

// Report is what a run has counted.
type Report struct {
	Elapsed time.Duration
	// Reconnects is how many back-ends there were after the first, since the disk was dialled.
	Reconnects uint64
	Ops        [kinds]Counts
}

// Counts are of one kind of request.
type Counts struct {
	Requests, Bytes, Errors uint64
	// Latency is there where the disk has Options.Clock.
	Latency driver.Histogram
}

// kinds are those of Mix, in its order.
const kinds = 5

var kindNames = [kinds]string{"reads", "writes", "flushes", "discards", "zeroes"}

func kindOf(o driver.Op) int {
	switch o {
	case driver.In:
		return 0
	case driver.Out:
		return 1
	case driver.Flush:
		return 2
	case driver.Discard:
		return 3
	}
	return 4
}

func (r *Report) count(q *driver.Request, bytes int) {
	c := &r.Ops[kindOf(q.Op)]
	c.Requests++
	if q.Op != driver.Flush {
		c.Bytes += uint64(bytes)
	}
	if q.Status != driver.OK {
		c.Errors++
	}
	if q.Ended != 0 {
		c.Latency.Add(time.Duration(q.Ended - q.Began))
	}
}

func (r *Report) add(o *Report) {
	for i := range r.Ops {
		c := &r.Ops[i]
		c.Requests += o.Ops[i].Requests
		c.Bytes += o.Ops[i].Bytes
		c.Errors += o.Ops[i].Errors
		c.Latency.Merge(&o.Ops[i].Latency)
	}
}

// Requests is how many were answered, all kinds together.
func (r *Report) Requests() (n uint64) {
	for i := range r.Ops {
		n += r.Ops[i].Requests
	}
	return n
}

// String is one line for each kind.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests in %v, each answered once; %d reconnects", r.Requests(), r.Elapsed.Round(time.Millisecond), r.Reconnects)
	for i := range r.Ops {
		if c := &r.Ops[i]; c.Requests > 0 {
			fmt.Fprintf(&b, "\n  %-8s %8d, %6.1f MiB, %d errors", kindNames[i], c.Requests, float64(c.Bytes)/(1<<20), c.Errors)
			if c.Latency.Count() > 0 {
				fmt.Fprintf(&b, ", %v", &c.Latency)
			}
		}
	}
	return b.String()
}
