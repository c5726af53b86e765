package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/filter"
	"github.com/shuntio/shunt/tools/control"
)

// The way of a captured packet, from the workers to whoever asked:
//
//	Link.Tap ─▶ dataplane.Capture: a ring for each worker ─▶ capture.copy, on the request's goroutine ─▶ pcapng ─▶ control socket
//
// Links come and go while captures run. The engine tells taps of each, and taps gives it a Tap of all captures that want it.

// taps knows every link, and every capture that runs.
type taps struct {
	mu       sync.Mutex
	links    map[*dataplane.Link]subject
	captures map[*capture]bool
}

// subject is what a link belongs to, as operators know it.
type subject struct {
	kind        control.Kind
	name        string
	description string // of the interface, in a capture file
	queue       uint32 // the link's, if the object has several
}

// add makes a link known, and those who capture its subject see it.
func (t *taps) add(l *dataplane.Link, s subject) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.links == nil {
		t.links = map[*dataplane.Link]subject{}
	}
	t.links[l] = s
	for c := range t.captures {
		c.attach(l, s)
	}
	t.set(l)
}

// remove forgets a link.
func (t *taps) remove(l *dataplane.Link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.links, l)
	for c := range t.captures {
		delete(c.points, l)
	}
	l.Tap.Store(nil)
}

// set gives a link the tap of all captures that have a point there.
func (t *taps) set(l *dataplane.Link) {
	var points []*dataplane.Point
	for c := range t.captures {
		if p := c.points[l]; p != nil {
			points = append(points, p)
		}
	}
	l.Tap.Store(dataplane.NewTap(points...))
}

// begin lets a capture see what it wants.
func (t *taps) begin(c *capture) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.captures == nil {
		t.captures = map[*capture]bool{}
	}
	t.captures[c] = true
	links := make([]*dataplane.Link, 0, len(t.links))
	for l := range t.links {
		links = append(links, l)
	}
	slices.SortFunc(links, func(a, b *dataplane.Link) int { return t.links[a].compare(t.links[b]) }) // so are the file's interfaces
	for _, l := range links {
		c.attach(l, t.links[l])
		t.set(l)
	}
}

func (s subject) compare(o subject) int {
	kinds := []control.Kind{control.KindUplink, control.KindNetwork, control.KindPort}
	if d := slices.Index(kinds, s.kind) - slices.Index(kinds, o.kind); d != 0 {
		return d
	}
	if s.name != o.name {
		if s.name < o.name {
			return -1
		}
		return 1
	}
	return int(s.queue) - int(o.queue)
}

// end takes a capture's points away. A worker may still be showing it a vector.
func (t *taps) end(c *capture) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.captures, c)
	for l := range t.links {
		if c.points[l] != nil {
			t.set(l)
		}
	}
}

// capture implements control.Capture.
type capture struct {
	taps    *taps
	options control.CaptureOptions
	reasons [dataplane.MaxReasons]bool
	// comments say of a dropped packet why.
	comments [dataplane.MaxReasons]string
	source   *dataplane.Capture

	// Guarded by taps.mu.
	points map[*dataplane.Link]*dataplane.Point
	shown  []shown // by ID of a point
	faces  []*face

	file    pcapng
	begun   int64
	packets atomic.Uint64
}

// face is an interface of the file: an object with all its links.
type face struct {
	kind              control.Kind
	name, description string
	points            []*dataplane.Point
	number            uint32
	written           bool
}

// shown is where a point's packets belong.
type shown struct {
	face  *face
	queue uint32
}

// Capture implements control.Engine.
func (e *engine) Capture(o control.CaptureOptions) (control.Capture, error) {
	return e.taps.capture(o, len(e.workers), e.tunnelPorts())
}

// tunnelPorts are the UDP ports that carry VXLAN on some uplink.
func (e *engine) tunnelPorts() (ports []uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, u := range e.uplinks {
		if !slices.Contains(ports, u.config.Port) {
			ports = append(ports, u.config.Port)
		}
	}
	return ports
}

func (t *taps) capture(o control.CaptureOptions, workers int, tunnelPorts []uint16) (*capture, error) {
	c := &capture{taps: t, options: o, points: map[*dataplane.Link]*dataplane.Point{}}
	chosen, err := filter.Compile(o.Filter, tunnelPorts...)
	if err != nil {
		return nil, &refusal{err.Error(), []error{control.ErrRequest, err}}
	}
	if err := t.know(o.Names); err != nil {
		return nil, err
	}
	if err := c.choose(o.Drops); err != nil {
		return nil, err
	}
	options := dataplane.CaptureOptions{Workers: workers, Snaplen: o.Snaplen}
	if o.Filter != "" {
		options.Filter = chosen
	}
	c.source = dataplane.NewCapture(options)
	return c, nil
}

// know refuses names of nothing.
func (t *taps) know(names []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := map[string]bool{}
	for _, s := range t.links {
		known[s.name] = true
	}
	for _, name := range names {
		if !known[name] {
			return &refusal{fmt.Sprintf("there is no port or uplink %q: shuntctl status shows them", name), []error{control.ErrNotFound}}
		}
	}
	return nil
}

// choose takes drop reasons by their names.
func (c *capture) choose(reasons []string) error {
	all := map[string]dataplane.Reason{}
	for _, r := range dataplane.Reasons() {
		all[r.String()] = r
		c.comments[r] = fmt.Sprintf("dropped: %s: %s", r, r.Help())
	}
	for _, name := range reasons {
		r, known := all[name]
		switch {
		case name == control.AnyReason:
			for i := range c.reasons {
				c.reasons[i] = true
			}
		case !known:
			return &refusal{fmt.Sprintf("there is no drop reason %q: shuntctl drops shows those that occurred, %s means all", name, control.AnyReason),
				[]error{control.ErrRequest}}
		default:
			c.reasons[r] = true
		}
	}
	return nil
}

// attach makes a point for a link, if the capture wants it. With taps.mu held.
func (c *capture) attach(l *dataplane.Link, s subject) {
	if len(c.options.Names) > 0 && !slices.Contains(c.options.Names, s.name) {
		return
	}
	i := slices.IndexFunc(c.faces, func(f *face) bool { return f.kind == s.kind && f.name == s.name })
	if i < 0 {
		i = len(c.faces)
		c.faces = append(c.faces, &face{kind: s.kind, name: s.name, description: s.description})
	}
	f := c.faces[i]
	d := c.options.Direction
	p := c.source.Point(dataplane.PointOptions{
		ID: uint32(len(c.shown)), In: d == control.CaptureIn || d == control.CaptureBoth, Out: d == control.CaptureOut || d == control.CaptureBoth,
		Drops: c.reasons,
	})
	c.shown = append(c.shown, shown{f, s.queue})
	f.points = append(f.points, p)
	c.points[l] = p
}

// How long the reader of the rings sleeps: a short time after it found something, longer and longer while there is nothing. A worker cannot be
// asked to wake it, since that is a system call.
const (
	captureNap  = time.Millisecond
	captureRest = 10 * time.Millisecond
)

// captureBatch is how many packets are written at most before it is looked whether the capture is to end: there may be more and more.
const captureBatch = 1024

// Run implements control.Capture.
func (c *capture) Run(ctx context.Context, out io.Writer) error {
	c.file = pcapng{out: out, buf: make([]byte, 0, pcapngFlush+1<<17)} // with the longest packet behind what is collected
	c.begun = time.Now().UnixNano()
	if err := c.file.section("shuntd " + control.Version()); err != nil {
		return err
	}
	c.taps.begin(c)
	defer c.taps.end(c)
	if err := c.describe(); err != nil {
		return err
	}
	timer := time.NewTimer(captureNap)
	defer timer.Stop()
	for rest := captureNap; ; {
		n, full, err := c.copy()
		if err == nil {
			err = c.file.Flush()
		}
		if err != nil {
			return err
		}
		if full {
			return c.finish()
		}
		switch {
		case n == captureBatch:
			rest = 0
		case n > 0:
			rest = captureNap
		default:
			rest = min(max(2*rest, captureNap), captureRest)
		}
		timer.Reset(rest)
		select {
		case <-ctx.Done():
			return c.rest()
		case <-timer.C:
		}
	}
}

// rest writes what came until the capture was told to end.
func (c *capture) rest() error {
	c.taps.end(c)
	for {
		n, full, err := c.copy()
		if err != nil {
			return err
		}
		if full || n == 0 {
			return c.finish()
		}
	}
}

// Counters implements control.Capture.
func (c *capture) Counters() control.CaptureCounters {
	c.taps.mu.Lock()
	defer c.taps.mu.Unlock()
	n := control.CaptureCounters{Packets: c.packets.Load()}
	for _, f := range c.faces {
		for _, p := range f.points {
			n.Missed += p.Missed()
		}
	}
	return n
}

// describe writes the interfaces that are new. The lock is not held while something is written, which may take as long as the reader stalls.
func (c *capture) describe() error {
	c.taps.mu.Lock()
	var fresh []*face
	for _, f := range c.faces {
		if !f.written {
			f.number, f.written = c.file.interfaces+uint32(len(fresh)), true
			fresh = append(fresh, f)
		}
	}
	c.taps.mu.Unlock()
	for _, f := range fresh {
		if err := c.file.addInterface(f.name, f.description, c.options.Filter, c.options.Snaplen); err != nil {
			return err
		}
	}
	return c.file.Flush()
}

// copy moves up to captureBatch packets that lie in the rings to the file. It tells how many, and whether there are as many as were asked for.
func (c *capture) copy() (copied int, full bool, err error) {
	var r dataplane.Record
	for n := c.packets.Load(); copied < captureBatch && c.source.Read(&r); {
		copied++
		at, err := c.placeOf(r.Point)
		if err != nil {
			return copied, false, err
		}
		packet := capturedPacket{iface: at.face.number, queue: at.queue, time: r.Time, length: r.Length, flags: pcapngInbound}
		switch {
		case r.Dropped:
			packet.flags, packet.comment = 0, c.comments[r.Reason]
		case r.Direction == dataplane.Out:
			packet.flags = pcapngOutbound
		}
		if err := c.file.packet(packet, r.Data); err != nil {
			return copied, false, err
		}
		n++
		c.packets.Store(n)
		if n == c.options.Count {
			return copied, true, nil
		}
	}
	return copied, false, nil
}

// placeOf finds where a point's packets belong, and describes the interface if it is new.
func (c *capture) placeOf(id uint32) (shown, error) {
	c.taps.mu.Lock()
	at := c.shown[id]
	written := at.face.written
	c.taps.mu.Unlock()
	if written {
		return at, nil
	}
	return at, c.describe()
}

// finish ends the file.
func (c *capture) finish() error {
	c.taps.end(c)
	c.taps.mu.Lock()
	faces := slices.Clone(c.faces)
	c.taps.mu.Unlock()
	now := time.Now().UnixNano()
	for _, f := range faces {
		if !f.written {
			continue
		}
		var seen, missed uint64
		for _, p := range f.points {
			seen += p.Seen()
			missed += p.Missed()
		}
		if err := c.file.statistics(f.number, c.begun, now, seen, missed); err != nil {
			return err
		}
	}
	return c.file.Flush()
}
