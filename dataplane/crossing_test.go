package dataplane_test

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
)

// to is a forwarder that sends everything to one link.
type to struct{ link *dataplane.Link }

func (t to) Forward(w *dataplane.Worker, _ *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		if f.Borrowed() && t.link.Owner() != w { // as flooding does: a copy, and the frame itself
			if g := w.Clone(f); g != nil {
				w.Send(t.link, g)
			}
		}
		frames[i] = nil
		w.Send(t.link, f)
	}
}

// across makes a link on each of two workers, whose frames go to the other.
func across(t *testing.T, frames int) (workers []*dataplane.Worker, links [2]*dataplane.Link, ports [2]*dataplanetest.Port) {
	workers = dataplanetest.NewWorkers(t, 2, frames)
	for i := range links {
		links[i], ports[i] = dataplanetest.NewLink(string(rune('a' + i)))
	}
	for i, l := range links {
		l.Forwarder = to{links[1-i]}
		workers[i].Do(func() { workers[i].Add(l) })
	}
	return workers, links, ports
}

func TestFramesCross(t *testing.T) {
	w, links, ports := across(t, 256)
	long := bytes.Repeat([]byte("0123456789abcdef"), 600)
	ports[0].FeedBytes([]byte("short"))
	ports[0].Feed(dataplanetest.Packet{Bytes: long, Head: 256}, dataplanetest.Packet{Bytes: long[:3000], Head: 256})
	if n := w[0].Round(); n != 3 {
		t.Fatalf("%d received", n)
	}
	if n := w[1].Round(); n != 5 { // each long one was cloned
		t.Fatalf("%d arrived", n)
	}
	sent := ports[1].Sent()
	for i, want := range [][]byte{[]byte("short"), long, long, long[:3000], long[:3000]} {
		if i >= len(sent) || !bytes.Equal(sent[i].Bytes, want) {
			t.Fatalf("frame %d of %d is not what was sent", i, len(sent))
		}
	}
	if c, n := w[0].Stats().Crossed.Load(), w[0].Stats().Copied.Load(); c != 5 || n != 4 {
		t.Errorf("%d crossed, %d of them copied", c, n)
	}
	w[0].Round() // takes the frames in that the other one sent home at the end of its round
	if a, b := w[0].Pool().Len(), w[1].Pool().Len(); a != 256 || b != 256 {
		t.Errorf("%d and %d frames are back of 256", a, b)
	}

	w[1].Do(func() { w[1].Remove(links[1]) })
	ports[0].FeedBytes([]byte("too late"))
	w[0].Round()
	if n := links[1].Counters.Drops(dataplane.DropGone); n != 1 {
		t.Errorf("%d dropped for a link that left", n)
	}
}

// A link that moves takes along what was on its way to it.
func TestLinkMoves(t *testing.T) {
	w, links, ports := across(t, 64)
	ports[0].FeedBytes([]byte("on its way"))
	w[0].Round()
	w[1].Do(func() { w[1].Remove(links[1]) })
	w[0].Do(func() { w[0].Add(links[1]) })
	w[1].Round() // finds that the link is the other's now
	w[0].Round()
	if sent := ports[1].Sent(); len(sent) != 1 || string(sent[0].Bytes) != "on its way" {
		t.Errorf("sent %v", sent)
	}
}

// A link that moves from worker to worker under traffic loses nothing.
func TestLinkMovesUnderTraffic(t *testing.T) {
	const frames, n = 512, 100_000
	workers := dataplanetest.NewWorkers(t, 3, frames)
	a, ap := dataplanetest.NewLink("a")
	b, bp := dataplanetest.NewLink("b")
	bp.Discard = true
	a.Port = &feeder{Port: ap, until: n}
	a.Forwarder = to{b}
	workers[0].Do(func() { workers[0].Add(a) })
	workers[1].Do(func() { workers[1].Add(b) })
	var running sync.WaitGroup
	for _, w := range workers {
		running.Go(func() {
			if err := w.Run(); err != nil {
				t.Error(err)
			}
		})
	}
	arrived := func() uint64 { return b.Counters.TxPackets.Load() + b.Counters.Drops(dataplane.DropQueueFull) }
	moves := 0
	for deadline := time.Now().Add(time.Minute); arrived() < n && time.Now().Before(deadline); moves++ {
		b.Move(workers[moves%3], func() {})
		a.Move(workers[(moves+1)/2%3], func() {})
	}
	for _, w := range workers {
		w.Stop()
	}
	running.Wait()
	if arrived() != n || b.Counters.Drops(dataplane.DropGone) != 0 {
		t.Errorf("%d of %d arrived over %d moves, %d found the link gone", arrived(), n, moves, b.Counters.Drops(dataplane.DropGone))
	}
	free := 0
	for range 3 {
		for _, w := range workers {
			w.Round()
		}
	}
	for _, w := range workers {
		free += w.Pool().Len()
	}
	if free != 3*frames {
		t.Errorf("%d of %d frames are back after %d moves", free, 3*frames, moves)
	}
}

// A worker that does not keep up costs the frames for its links, counted there, and nothing else.
func TestCrossingFull(t *testing.T) {
	w, links, ports := across(t, 4096)
	ports[1].Discard = true
	const n = 4000
	for range n {
		ports[0].FeedBytes([]byte("frame"))
	}
	dataplanetest.Settle(w[0])
	dataplanetest.Settle(w[1])
	full := links[1].Counters.Drops(dataplane.DropQueueFull)
	if got := links[1].Counters.TxPackets.Load(); full == 0 || got+full != n {
		t.Errorf("%d arrived and %d dropped of %d", got, full, n)
	}
	w[0].Round()
	if free := w[0].Pool().Len(); free != 4096 {
		t.Errorf("%d of 4096 frames are back", free)
	}
}

// hearing notes the numbers it is told.
type hearing struct {
	mu   sync.Mutex
	last uint64
	bad  int
}

func (h *hearing) Hear(_ *dataplane.Worker, from int, n *dataplane.Note) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if from != 0 || n[0] != h.last+1 {
		h.bad++
	}
	h.last = n[0]
}

func (h *hearing) Last() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// teller tells the number of each frame before it sends it.
type teller struct {
	t    *testing.T
	link *dataplane.Link
}

func (p teller) Forward(w *dataplane.Worker, _ *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		n := dataplane.Note{binary.BigEndian.Uint64(f.Head())}
		for !w.Tell(1, &n) {
			time.Sleep(10 * time.Microsecond)
		}
		w.Send(p.link, f)
	}
}

// late is a port that checks that the note came before the frame.
type late struct {
	*dataplanetest.Port
	heard *hearing
	bad   int
}

func (l *late) Transmit(frames []*frame.Frame, pool *frame.Pool) {
	for _, f := range frames {
		if binary.BigEndian.Uint64(f.Head()) > l.heard.Last() {
			l.bad++
		}
	}
	l.Port.Transmit(frames, pool)
}

// feeder is a port that makes numbered frames as long as it is let.
type feeder struct {
	*dataplanetest.Port
	n, until uint64
}

func (f *feeder) Pending() bool { return f.n < f.until }

func (f *feeder) Receive(into []*frame.Frame, pool *frame.Pool) (n int) {
	for n = range into {
		g := pool.Get()
		if f.n == f.until || g == nil {
			if g != nil {
				pool.Put(g)
			}
			return n
		}
		into[n] = g
		f.n++
		binary.BigEndian.PutUint64(g.Append(8), f.n)
		f.Counters.RxPackets.Add(1)
		f.Counters.RxBytes.Add(8)
	}
	return len(into)
}

// Two running workers that also sleep: every frame arrives or is counted, its note before it, every frame returns home.
func TestCrossingConcurrently(t *testing.T) {
	const frames, n = 512, 200_000
	workers := dataplanetest.NewWorkers(t, 2, frames)
	a, ap := dataplanetest.NewLink("a")
	b, bp := dataplanetest.NewLink("b")
	bp.Discard = true
	from := &feeder{Port: ap, until: n}
	heard := &hearing{}
	end := &late{Port: bp, heard: heard}
	a.Port, b.Port = from, end
	a.Forwarder = teller{t, b}
	workers[1].Listen(heard)
	workers[0].Do(func() { workers[0].Add(a) })
	workers[1].Do(func() { workers[1].Add(b) })
	var running sync.WaitGroup
	for _, w := range workers {
		running.Go(func() {
			if err := w.Run(); err != nil {
				t.Error(err)
			}
		})
	}
	deadline := time.Now().Add(time.Minute)
	settled := func() bool {
		return b.Counters.TxPackets.Load()+b.Counters.Drops(dataplane.DropQueueFull) == n
	}
	for !settled() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	for _, w := range workers {
		w.Stop()
	}
	running.Wait()
	if !settled() {
		t.Errorf("%d arrived, %d dropped of %d", b.Counters.TxPackets.Load(), b.Counters.Drops(dataplane.DropQueueFull), n)
	}
	if end.bad > 0 || heard.bad > 0 || heard.last != n {
		t.Errorf("%d frames came before their note, %d notes out of order, the last was %d", end.bad, heard.bad, heard.last)
	}
	workers[1].Round()
	workers[0].Round()
	if free := workers[0].Pool().Len() + workers[1].Pool().Len(); free != 2*frames {
		t.Errorf("%d of %d frames are back", free, 2*frames)
	}
}

func TestCrossingAllocatesNothing(t *testing.T) {
	w, _, ports := across(t, 512)
	ports[1].Discard = true
	from := &feeder{Port: ports[0], until: 1 << 62}
	w[0].Do(func() {
		for _, l := range w[0].Links() {
			l.Port = from
		}
	})
	if n := testing.AllocsPerRun(500, func() {
		w[0].Round()
		w[1].Round()
	}); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
}

// A link that floods another worker waits while that does not keep up, and what others send it crosses.
func TestFloodLeavesRoomToCross(t *testing.T) {
	workers, links, ports := across(t, 8192)
	small, sp := dataplanetest.NewLink("small")
	small.Forwarder = to{links[1]}
	workers[0].Do(func() { workers[0].Add(small) })
	ports[1].Discard = true
	links[0].Patient, small.Patient = true, true
	const flood, few = 5000, 50
	for range flood {
		ports[0].FeedBytes([]byte("flood"))
	}
	for i := range 100 { // the other worker does nothing
		if i%2 == 0 {
			sp.FeedBytes([]byte("small"))
		}
		workers[0].Round()
	}
	if n := links[1].Counters.Drops(dataplane.DropQueueFull); n != 0 || ports[0].Waiting() == 0 {
		t.Errorf("%d dropped of those that could have waited, %d wait", n, ports[0].Waiting())
	}
	for range 200 {
		workers[1].Round()
		workers[0].Round()
	}
	workers[1].Round()
	if n := links[1].Counters.TxPackets.Load(); n != flood+few {
		t.Errorf("%d of %d crossed", n, flood+few)
	}
}

// Links that flood the same worker share what it takes, whichever of them is polled first.
func TestFloodsShareACrossing(t *testing.T) {
	workers, links, ports := across(t, 16384)
	other, op := dataplanetest.NewLink("other")
	other.Forwarder = to{links[1]}
	workers[0].Do(func() { workers[0].Add(other) })
	ports[1].Discard = true
	links[0].Patient, other.Patient = true, true
	for range 400 {
		for _, p := range []*dataplanetest.Port{ports[0], op} {
			for p.Waiting() < dataplane.Quantum {
				p.FeedBytes([]byte("flood"))
			}
		}
		workers[0].Round()
		workers[1].Round() // takes half of what the two could bring
	}
	a, b := links[0].Counters.RxPackets.Load(), other.Counters.RxPackets.Load()
	if a > 2*b || b > 2*a {
		t.Errorf("one brought %d frames across, the other %d", a, b)
	}
}

// byLetter forwards a frame to the link of its first letter.
type byLetter map[byte]*dataplane.Link

func (b byLetter) Forward(w *dataplane.Worker, _ *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		w.Send(b[f.Head()[0]], f)
	}
}

// What the wire floods one destination with, and another, costs these two: what goes to others crosses, from the same link and from others that cannot wait; and
// from guests all of it does, also to those that are flooded.
func TestFloodedDestinationLosesAlone(t *testing.T) {
	workers := dataplanetest.NewWorkers(t, 2, 16384)
	links, ports := map[string]*dataplane.Link{}, map[string]*dataplanetest.Port{}
	for _, name := range []string{"wire", "container", "guest", "d", "e", "f"} {
		links[name], ports[name] = dataplanetest.NewLink(name)
	}
	links["guest"].Patient = true
	there := byLetter{'d': links["d"], 'e': links["e"], 'f': links["f"]}
	for name, l := range links {
		w := workers[0]
		if l.Forwarder = there; len(name) == 1 {
			w, ports[name].Discard = workers[1], true
		}
		w.Do(func() { w.Add(l) })
	}
	sent := map[string]map[byte]uint64{"wire": {}, "container": {}, "guest": {}}
	feed := func(from string, to byte, n int) {
		for range n {
			ports[from].FeedBytes([]byte{to})
		}
		sent[from][to] += uint64(n)
	}
	const rounds = 4000
	for i := range rounds {
		feed("wire", 'd', 28)
		feed("wire", 'e', 2)
		feed("wire", 'f', 28)
		feed("container", 'e', 2)
		feed("container", 'f', 2)
		if i%4 == 0 {
			feed("guest", 'd', 4)
			feed("guest", 'e', 4)
		}
		workers[0].Round()
		if i%4 == 0 { // takes a quarter of what comes
			workers[1].Round()
		}
	}
	if n := ports["guest"].Waiting(); n > 0 {
		t.Errorf("%d of the guest's frames were kept waiting by what others flood", n)
	}
	for range 200 {
		workers[0].Round()
		workers[1].Round()
	}
	for _, name := range []string{"d", "e", "f"} {
		all := sent["wire"][name[0]] + sent["container"][name[0]] + sent["guest"][name[0]]
		took, full := links[name].Counters.TxPackets.Load(), links[name].Counters.Drops(dataplane.DropQueueFull)
		if took+full != all {
			t.Errorf("%s: of %d frames %d arrived and %d were dropped", name, all, took, full)
		}
		if flooded := name != "e"; flooded == (full == 0) {
			t.Errorf("%s: %d of %d frames were dropped", name, full, all)
		}
	}
	if d, f := links["d"].Counters.TxPackets.Load()-sent["guest"]['d'], links["f"].Counters.TxPackets.Load(); d > 2*f || f > 2*d {
		t.Errorf("of two that are flooded one got %d frames, the other %d", d, f)
	}
	for range 3 {
		for _, w := range workers {
			w.Round()
		}
	}
	if free := workers[0].Pool().Len() + workers[1].Pool().Len(); free != 2*16384 {
		t.Errorf("%d of %d frames are back", free, 2*16384)
	}
}
