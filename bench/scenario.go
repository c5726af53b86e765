package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Options of a run of scenarios; zero values are good.
type Options struct {
	// FrameLen is the length of the guests' frames in bytes. Zero: 64.
	FrameLen int
	// Duration of each measurement. Zero: 2 s.
	Duration time.Duration
	// WorkerCPU and GuestCPU are where worker and load generator run; they should not share a core.
	WorkerCPU, GuestCPU int
	// Interface is the uplink of scenarios that have one, in the calling thread's namespace.
	Interface string
	// Dir is where scenarios of disks make their files. Empty: the system's directory for temporary ones.
	Dir string
}

// Scenario is something to be measured.
type Scenario struct {
	// Name to run it by, and one sentence about it.
	Name, Help string
	run        func(ctx context.Context, o Options) ([]Metric, error)
}

// Metric is one figure.
type Metric struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
	// Better is +1 if more is better, -1 if less is, 0 if it is there to be looked at.
	Better int `json:"better"`
}

// Report is what a scenario measured.
type Report struct {
	Scenario string    `json:"scenario"`
	At       time.Time `json:"at"`
	Metrics  []Metric  `json:"metrics"`
}

// Scenarios are all there are, by name.
func Scenarios() []Scenario {
	all := append(slices.Concat(blockScenarios(), nbdScenarios()), []Scenario{
		{"guest-to-guest", "one guest sends to another on the same host, through the switch", guestToGuest(GuestToGuestOptions{})},
		{"guest-to-guest-both", "two guests on the same host send to each other", guestToGuest(GuestToGuestOptions{Both: true})},
		{"guest-to-guest-packed", "guest-to-guest with packed rings", guestToGuest(GuestToGuestOptions{Packed: true})},
		{"guest-to-guest-in-order", "guest-to-guest with packed rings used in order", guestToGuest(GuestToGuestOptions{Packed: true, InOrder: true})},
		{"guest-to-wire", "a guest sends into a VXLAN network; needs an interface whose peer takes what comes", guestToWire},
	}...)
	slices.SortFunc(all, func(a, b Scenario) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Run measures a scenario.
func (s Scenario) Run(ctx context.Context, o Options) (*Report, error) {
	o.FrameLen, o.Duration = defaulted(o.FrameLen, 64), defaulted(o.Duration, 2*time.Second)
	if o.WorkerCPU == o.GuestCPU {
		return nil, fmt.Errorf("worker and guest are both on CPU %d; give each its own", o.WorkerCPU)
	}
	metrics, err := s.run(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	return &Report{Scenario: s.Name, At: time.Now(), Metrics: metrics}, nil
}

func guestToGuest(g GuestToGuestOptions) func(context.Context, Options) ([]Metric, error) {
	return func(ctx context.Context, o Options) ([]Metric, error) {
		g.FrameLen, g.Duration, g.WorkerCPU, g.GuestCPU, g.Collections = o.FrameLen, o.Duration, o.WorkerCPU, o.GuestCPU, 100
		r, err := GuestToGuest(ctx, g)
		if err != nil {
			return nil, err
		}
		return []Metric{
			{"rate", "Mpps", r.Mpps, +1},
			{"busy", "ns/frame", r.BusyNanos, -1},
			{"dropped", "frames", float64(r.Dropped), 0},
			{"gc-stop-median", "us", float64(r.Pauses.Median) / 1e3, -1},
			{"gc-stop-max", "us", float64(r.Pauses.Max) / 1e3, 0},
		}, nil
	}
}

func guestToWire(ctx context.Context, o Options) (_ []Metric, err error) {
	if o.Interface == "" {
		return nil, errors.New("name an interface")
	}
	g, err := NewGuestToWire(GuestToWireOptions{Interface: o.Interface, FrameLen: o.FrameLen, WorkerCPU: o.WorkerCPU, GuestCPU: o.GuestCPU})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	g.On(true)
	n, busy, began := g.Uplink().TxPackets.Load(), g.BusyNanos(), time.Now()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(o.Duration):
	}
	sent := float64(g.Uplink().TxPackets.Load() - n)
	return []Metric{
		{"rate", "Mpps", sent / time.Since(began).Seconds() / 1e6, +1},
		{"busy", "ns/frame", float64(g.BusyNanos()-busy) / max(sent, 1), -1},
	}, nil
}
