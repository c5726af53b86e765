package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/shuntio/shunt/tools/control/config"
)

// StateWaiting is that of a volume whose store cannot be reached; it is tried again and again.
const StateWaiting State = "waiting"

// VolumeStatus is the state of a guest's disk.
type VolumeStatus struct {
	Name   string `json:"name"`
	Socket string `json:"socket"`
	Source string `json:"source"`
	Serial string `json:"serial"`
	State  State  `json:"state"`            // connected, disconnected, waiting (for the store) or failed
	Reason string `json:"reason,omitempty"` // of a waiting or failed state, or what is wrong with a store that can be reached
	// Store is what answered, once something did.
	Store *StoreStatus `json:"store,omitempty"`
	// Since is when the store became, or ceased to be, reachable.
	Since    time.Time `json:"since,omitzero"`
	Guest    bool      `json:"guest"`              // a front-end is connected
	Features []string  `json:"features,omitempty"` // negotiated, by their names in the specification
	Queues   int       `json:"queues"`             // that run
	Workers  []int     `json:"workers,omitempty"`  // the IDs of those that have its queues, by queue
	// WriteThrough: a write is on stable storage when it is done, as the guest wants it or since the store has no cache.
	WriteThrough bool `json:"write-through"`
	// Waits is what requests are held back for, beside limits and a store that is away.
	Waits []VolumeWait `json:"waits,omitempty"`
}

// VolumeWait is something that requests of a volume wait for.
type VolumeWait struct {
	Reason string    `json:"reason"`
	Until  time.Time `json:"until,omitzero"` // at the latest; absent: until it has happened
}

// StoreStatus is what a volume's data lie in.
type StoreStatus struct {
	Description        string `json:"description"` // one line: what answered, and how
	Size               uint64 `json:"size"`        // bytes
	BlockSize          uint32 `json:"block-size"`
	PhysicalBlock      uint32 `json:"physical-block-size,omitempty"`
	OptimalIO          uint32 `json:"optimal-io-size,omitempty"`
	DiscardGranularity uint32 `json:"discard-granularity,omitempty"`
	ReadOnly           bool   `json:"readonly"`
	Rotational         bool   `json:"rotational"`
	Flush              bool   `json:"flush"`
	FUA                bool   `json:"fua"`
	Discard            bool   `json:"discard"`
	WriteZeroes        bool   `json:"write-zeroes"`
	// MultiWorker: several workers can have queues of the volume.
	MultiWorker bool `json:"multi-worker"`
}

// VolumeStats are the counters of a volume.
type VolumeStats struct {
	Operations []OperationStats `json:"operations"`
	InFlight   uint64           `json:"in-flight"` // requests that are not answered
	Retries    uint64           `json:"retries"`   // requests submitted again after the store was away
	Reconnects uint64           `json:"reconnects"`
	// Unflushed is how many writes were acknowledged since the last flush; LostFlushes how many flushes failed since such writes may be lost.
	Unflushed   uint64 `json:"unflushed"`
	LostFlushes uint64 `json:"lost-flushes"`
}

// OperationStats are the counters of one kind of request.
type OperationStats struct {
	Operation string `json:"operation"` // read, write, flush, discard, write-zeroes
	Requests  uint64 `json:"requests"`  // that ended
	Bytes     uint64 `json:"bytes"`
	Errors    uint64 `json:"errors"` // of those that ended
	// Queue is how long requests waited before the store had them, Store how long it had them, Total from the guest's ring to the answer.
	Queue Histogram `json:"queue"`
	Store Histogram `json:"store"`
	Total Histogram `json:"total"`
}

// Histogram is a distribution of times.
type Histogram struct {
	Count   uint64   `json:"count"`
	Sum     float64  `json:"sum"`               // seconds
	Buckets []Bucket `json:"buckets,omitempty"` // that hold any, the shortest times first
}

// Bucket counts the times that are above the bound of the one before it and not above its own.
type Bucket struct {
	Bound float64 `json:"bound"` // seconds
	Count uint64  `json:"count"`
}

// Since is what came to a histogram after it was like before.
func (h Histogram) Since(before Histogram) Histogram {
	old := before.Buckets
	now := Histogram{Count: h.Count - before.Count, Sum: h.Sum - before.Sum}
	for _, b := range h.Buckets {
		if len(old) > 0 && old[0].Bound == b.Bound {
			b.Count -= old[0].Count
			old = old[1:]
		}
		if b.Count > 0 {
			now.Buckets = append(now.Buckets, b)
		}
	}
	return now
}

// Quantile is the time, in seconds, that a share of all times do not exceed, up to the bound of its bucket; 0 of none.
func (h Histogram) Quantile(share float64) (bound float64) {
	seen := uint64(0)
	for _, b := range h.Buckets {
		bound = b.Bound
		if seen += b.Count; float64(seen) >= share*float64(h.Count) {
			break
		}
	}
	return bound
}

// Mean is the mean of all times, in seconds; 0 of none.
func (h Histogram) Mean() float64 {
	if h.Count == 0 {
		return 0
	}
	return h.Sum / float64(h.Count)
}

// VolumeReport is what a check of a store found.
type VolumeReport struct {
	Source string      `json:"source"`
	Store  StoreStatus `json:"store"`
	// Notes say what an operator should think of, a sentence each.
	Notes []string `json:"notes,omitempty"`
	// Took is how long connecting and asking took, in seconds.
	Took float64 `json:"took"`
}

// VolumeExport is what a storage server offers.
type VolumeExport struct {
	Source      string `json:"source"` // as a volume names it
	Description string `json:"description,omitempty"`
}

// ErrStore says that a store could not be reached, or is not as it must be.
var ErrStore = errors.New("the store cannot be used")

// storeTime bounds what is asked of a store while somebody waits.
const storeTime = 30 * time.Second

// ResizeVolume asks a volume's store anew how large it is, tells the guest, and returns the state then.
func (c *Controller) ResizeVolume(ctx context.Context, name string) (VolumeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	if !slices.ContainsFunc(c.Config().Volumes, func(v config.Volume) bool { return v.Name == name }) {
		return VolumeStatus{}, because(ErrNotFound, "there is no volume %q", name)
	}
	if err := c.engine.ResizeVolume(ctx, name); err != nil {
		return VolumeStatus{}, err
	}
	for _, v := range c.engine.Status().Volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return VolumeStatus{}, because(ErrNotFound, "there is no volume %q any more", name)
}

// CheckVolume reads what a store is.
func (c *Controller) CheckVolume(ctx context.Context, s config.VolumeSource) (VolumeReport, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	began := time.Now()
	report, err := c.engine.CheckVolume(ctx, s)
	report.Source, report.Took = s.Source, time.Since(began).Seconds()
	return report, err
}

// VolumeExports lists what a source's server has to offer.
func (c *Controller) VolumeExports(ctx context.Context, s config.VolumeSource) ([]VolumeExport, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	list, err := c.engine.VolumeExports(ctx, s)
	return notNil(list), err
}
