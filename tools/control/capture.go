package control

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

// ErrRequest says that what was asked for makes no sense: an unknown drop reason, a filter that is no expression.
var ErrRequest = errors.New("bad request")

// CaptureOptions say which packets are captured.
type CaptureOptions struct {
	Names     []string         `json:"names,omitempty"`     // of ports and uplinks; absent: all, also those added later
	Direction CaptureDirection `json:"direction,omitempty"` // absent: both, or none when drops are asked for
	Drops     []string         `json:"drops,omitempty"`     // drop reasons by name, or any; absent: dropped packets are seen only where they came in
	Filter    string           `json:"filter,omitempty"`    // expression in the manner of tcpdump's; absent: every packet
	Snaplen   int              `json:"snaplen,omitempty"`   // bytes kept of each packet; absent: all
	Count     uint64           `json:"count,omitempty"`     // packets after which the capture ends; absent: it goes on until it is ended
}

// CaptureDirection says which packets of a port or uplink are captured, as the engine sees it.
type CaptureDirection string

// The directions: what comes in, from the guest or the wire; what goes out, to the guest or onto the wire; both; or only what is dropped.
const (
	CaptureIn   CaptureDirection = "in"
	CaptureOut  CaptureDirection = "out"
	CaptureBoth CaptureDirection = "both"
	CaptureNone CaptureDirection = "none"
)

// AnyReason stands for all drop reasons.
const AnyReason = "any"

// fill puts the default where the direction is absent, and judges what no engine has to know.
func (o *CaptureOptions) fill() error {
	if o.Direction == "" {
		if o.Direction = CaptureBoth; len(o.Drops) > 0 {
			o.Direction = CaptureNone
		}
	}
	switch {
	case !slices.Contains([]CaptureDirection{CaptureIn, CaptureOut, CaptureBoth, CaptureNone}, o.Direction):
		return because(ErrRequest, "direction %q is not in, out, both or none", o.Direction)
	case o.Direction == CaptureNone && len(o.Drops) == 0:
		return because(ErrRequest, "neither packets that pass nor packets that are dropped are to be captured: change direction, or name drops")
	case o.Snaplen < 0:
		return because(ErrRequest, "a snaplen of %d bytes is below zero", o.Snaplen)
	}
	return nil
}

// CaptureStatus is a capture that runs.
type CaptureStatus struct {
	ID      uint64    `json:"id"`
	Started time.Time `json:"started"`
	CaptureOptions
	CaptureCounters
}

// CaptureCounters are those of one capture.
type CaptureCounters struct {
	Packets uint64 `json:"packets"` // captured
	Missed  uint64 `json:"missed"`  // that the filter chose, while the reader did not keep up
}

// Capture is one that an engine has made and that does not run yet.
type Capture interface {
	// Run writes packets as pcapng to out until ctx ends, there are as many as asked for, or a write fails, and leaves nothing behind. A context
	// that ends is no error. It is called once.
	Run(ctx context.Context, out io.Writer) error
	// Counters may be called at any time, and are final when Run has returned.
	Counters() CaptureCounters
}

// maxCaptures bounds how many run at a time: each has some MiB for every worker.
const maxCaptures = 8

// captures are those that run.
type captures struct {
	mu      sync.Mutex
	last    uint64
	running map[uint64]*runningCapture
}

type runningCapture struct {
	CaptureStatus
	capture Capture
	end     context.CancelFunc
}

// Capture runs a capture until it has ended for one of the reasons that Capture.Run names, or by EndCapture. When all is well begin is called, with
// the capture's number, and returns what to write to. The counters are those at the end.
func (c *Controller) Capture(ctx context.Context, o CaptureOptions, begin func(id uint64) io.Writer) (CaptureCounters, error) {
	if err := o.fill(); err != nil {
		return CaptureCounters{}, err
	}
	made, err := c.engine.Capture(o)
	if err != nil {
		return CaptureCounters{}, err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	id, err := c.captures.add(&runningCapture{CaptureStatus{Started: time.Now(), CaptureOptions: o}, made, end})
	if err != nil {
		return CaptureCounters{}, err
	}
	defer c.captures.remove(id)
	stop := context.AfterFunc(c.alive, end)
	defer stop()
	c.log.Info("capture begins", "id", id, "names", o.Names, "direction", o.Direction, "drops", o.Drops, "filter", o.Filter)
	err = made.Run(ctx, begin(id))
	counters := made.Counters()
	c.log.Info("capture ends", "id", id, "packets", counters.Packets, "missed", counters.Missed)
	return counters, err
}

// Captures lists those that run, in the order of their beginning.
func (c *Controller) Captures() []CaptureStatus {
	c.captures.mu.Lock()
	defer c.captures.mu.Unlock()
	list := []CaptureStatus{}
	for _, r := range c.captures.running {
		list = append(list, r.status())
	}
	slices.SortFunc(list, func(a, b CaptureStatus) int { return int(a.ID) - int(b.ID) })
	return list
}

// EndCapture ends a capture in good order: what was captured is still written. It returns how it stands.
func (c *Controller) EndCapture(id uint64) (CaptureStatus, error) {
	c.captures.mu.Lock()
	defer c.captures.mu.Unlock()
	r := c.captures.running[id]
	if r == nil {
		return CaptureStatus{}, because(ErrNotFound, "there is no capture %d", id)
	}
	r.end()
	return r.status(), nil
}

func (r *runningCapture) status() CaptureStatus {
	s := r.CaptureStatus
	s.CaptureCounters = r.capture.Counters()
	return s
}

// EndCaptures ends all captures, before the daemon stops.
func (c *Controller) EndCaptures() {
	c.captures.mu.Lock()
	defer c.captures.mu.Unlock()
	for _, r := range c.captures.running {
		r.end()
	}
}

func (c *captures) add(r *runningCapture) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.running) >= maxCaptures {
		return 0, because(ErrConflict, "%d captures run already: end one of them with shuntctl capture --end ID", maxCaptures)
	}
	if c.running == nil {
		c.running = map[uint64]*runningCapture{}
	}
	c.last++
	r.ID = c.last
	c.running[r.ID] = r
	return r.ID, nil
}

func (c *captures) remove(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.running, id)
}
