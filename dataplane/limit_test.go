package dataplane_test

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// What comes in under a limit waits, what goes out beyond it is dropped; both keep the rate within its burst.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		options   dataplane.LimitOptions
		direction dataplane.Direction
		length    int
		least     float64 // frames in 50 ms beside the burst
	}{
		"packets in":  {dataplane.LimitOptions{PPS: 20_000, Burst: time.Millisecond}, dataplane.In, 60, 1000},
		"bits in":     {dataplane.LimitOptions{BPS: 96_000_000, Burst: time.Millisecond}, dataplane.In, 600, 1000},
		"packets out": {dataplane.LimitOptions{PPS: 20_000, Burst: time.Millisecond}, dataplane.Out, 60, 1000},
		"bits out":    {dataplane.LimitOptions{BPS: 96_000_000, Burst: time.Millisecond}, dataplane.Out, 600, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			w := dataplanetest.NewWorker(t, 256)
			from, source := dataplanetest.NewLink("from")
			into, sink := dataplanetest.NewLink("to")
			sink.Discard = true
			from.Forwarder = to{into}
			w.Do(func() { w.Add(from); w.Add(into) })
			limited := from
			if c.direction == dataplane.Out {
				limited = into
			}
			limited.Limits[c.direction].Store(dataplane.NewLimit(c.options))
			packet := make([]byte, c.length)
			fed, began := uint64(0), time.Now()
			for time.Since(began) < 50*time.Millisecond {
				for source.Waiting() < 256 {
					source.FeedBytes(packet)
					fed++
				}
				w.Round()
			}
			took := time.Since(began)
			passed := float64(sink.Counters.TxPackets.Load())
			most := c.least*float64(took)/float64(50*time.Millisecond) + c.least/50 + 2*dataplane.Quantum // the burst, and a vector of unknown length
			if passed > most || passed < c.least/50 {                                                     // a pause of the machine costs what it would have let pass; see TestBucket for the least
				t.Errorf("%v frames in %v", passed, took)
			}
			dropped := sink.Counters.Drops(dataplane.DropLimit)
			if c.direction == dataplane.In {
				if dropped != 0 || fed-uint64(passed) != uint64(source.Waiting()) {
					t.Errorf("%d dropped, %d of %d fed are left", dropped, source.Waiting(), fed)
				}
				return
			}
			if fed != uint64(source.Waiting())+uint64(passed)+dropped {
				t.Errorf("of %d %v passed and %d were dropped", fed-uint64(source.Waiting()), passed, dropped)
			}
			limited.Limits[c.direction].Store(nil) // live
			source.FeedBytes(packet)
			dataplanetest.Settle(w)
			if sink.Counters.Drops(dataplane.DropLimit) != dropped {
				t.Error("dropped without a limit")
			}
		})
	}
}

// A link with long frames gets no more bytes of a round than one with short ones: its share is a vector of full Ethernet frames.
func TestQuantum(t *testing.T) {
	w := dataplanetest.NewWorker(t, 1024)
	long, longs := dataplanetest.NewLink("long")
	short, shorts := dataplanetest.NewLink("short")
	sink, sunk := dataplanetest.NewLink("sink")
	sunk.Discard = true
	long.Forwarder, short.Forwarder = to{sink}, to{sink}
	w.Do(func() { w.Add(long); w.Add(short); w.Add(sink) })
	big, small := make([]byte, 60_000), make([]byte, 1500)
	for range 1000 {
		for longs.Waiting() < 64 {
			longs.Feed(dataplanetest.Packet{Bytes: big, Head: 256, Piece: 60_000})
		}
		for shorts.Waiting() < 64 {
			shorts.FeedBytes(small)
		}
		w.Round()
	}
	a, b := longs.Counters.RxBytes.Load(), shorts.Counters.RxBytes.Load()
	if ratio := float64(a) / float64(b); ratio < 0.8 || ratio > 1.1 {
		t.Errorf("long frames brought %d bytes, short ones %d: ratio %.2f", a, b, ratio)
	}
}

// cutting feeds packets that are to be cut.
type cutting struct{ *dataplanetest.Port }

func (c cutting) Receive(into []*frame.Frame, pool *frame.Pool) int {
	n := c.Port.Receive(into, pool)
	for _, f := range into[:n] {
		f.GSO = frame.GSO{Type: frame.GSOTCP4, Size: 100}
	}
	return n
}

// A packet that comes in to be cut counts for its segments, or a guest would be let in more of them the longer its packets are.
func TestLimitInCountsSegments(t *testing.T) {
	w := dataplanetest.NewWorker(t, 256)
	from, source := dataplanetest.NewLink("from")
	into, sink := dataplanetest.NewLink("to")
	sink.Discard = true
	from.Port, from.Forwarder = cutting{source}, to{into}
	w.Do(func() { w.Add(from); w.Add(into) })
	from.Limits[dataplane.In].Store(dataplane.NewLimit(dataplane.LimitOptions{PPS: 1000, Burst: time.Second}))
	for range 200 {
		source.FeedBytes(make([]byte, 1000))
	}
	for range 10 {
		w.Round()
	}
	// The burst is 1000 packets, and a vector of which nobody knew what it was.
	if n := sink.Counters.TxPackets.Load(); n < 100 || n > 100+dataplane.Quantum {
		t.Errorf("%d packets of 10 segments passed", n)
	}
}

// piped is a port whose frames come by a file that tells of them as long as they wait, as an AF_XDP socket does.
type piped struct {
	*dataplanetest.Port
	fd int
}

func (p piped) Arm() time.Duration { return dataplane.Forever }

func (p piped) Pending() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, _ := unix.Poll(fds, 0)
	return n > 0
}

func (p piped) Receive(into []*frame.Frame, pool *frame.Pool) int {
	var b [1]byte
	if n, _ := unix.Read(p.fd, b[:]); n < 1 {
		return 0
	}
	p.FeedBytes(b[:])
	return p.Port.Receive(into, pool)
}

// A worker sleeps while a limit holds back what waits in a file, until the limit lets it pass; other files wake it meanwhile.
func TestLimitedFileLetsSleep(t *testing.T) {
	w := dataplanetest.NewWorker(t, 64)
	from, fed := dataplanetest.NewLink("from")
	into, sink := dataplanetest.NewLink("to")
	sink.Discard = true
	fds := make([]int, 2)
	if err := unix.Pipe2(fds, unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	from.Port, from.Forwarder, into.Port = piped{fed, fds[0]}, to{into}, quiet{sink}
	from.Limits[dataplane.In].Store(dataplane.NewLimit(dataplane.LimitOptions{PPS: 50, Burst: time.Millisecond}))
	w.Do(func() {
		w.Add(from)
		w.Add(into)
		w.WatchFor(from, fds[0], unix.POLLIN, false)
	})
	if _, err := unix.Write(fds[1], make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	began, rounds := time.Now(), w.Stats().Rounds.Load()
	stop := run(t, w)
	const frames = 10
	for sink.Counters.TxPackets.Load() < frames && time.Since(began) < 20*time.Second {
		time.Sleep(time.Millisecond)
	}
	within(t, func() { w.Do(func() {}) }) // the mailbox is heard
	stop()
	took, stats := time.Since(began), w.Stats()
	n := sink.Counters.TxPackets.Load() // more than that where this thread was late
	if n < frames || float64(n) > 50*took.Seconds()+3 {
		t.Errorf("%d frames in %v", n, took)
	}
	// Beside each frame's sleep there is what the worker spins before it, for 50 us: of a thousand rounds at most, on a quick machine.
	if sleeps := stats.Sleeps.Load(); sleeps > 4*n || stats.Rounds.Load()-rounds > 4*n*2000 {
		t.Errorf("%d sleeps and %d rounds for %d frames", sleeps, stats.Rounds.Load()-rounds, n)
	}
	if stats.Late.Load() > 0 {
		t.Errorf("%d sleeps count as late: the limit is over at no file's word", stats.Late.Load())
	}
}

// laden is a port with frames that nobody announces any more: a ring that its driver has filled.
type laden struct{ quiet }

func (laden) Pending() bool { return true }

// Two workers share a limit. One finds that it does not hold it back, and looks what waits; meanwhile the other uses the limit up. The first must not sleep over what
// waits, or take a time with it.
func TestSharedLimitUsedUpWhileArming(t *testing.T) {
	limit := dataplane.NewLimit(dataplane.LimitOptions{PPS: 10, Burst: 100 * time.Millisecond})
	one, other := dataplanetest.NewWorker(t, 64), dataplanetest.NewWorker(t, 64)
	waiting, port := dataplanetest.NewLink("waiting")
	waiting.Port = laden{quiet{port}}
	busy, source := dataplanetest.NewLink("busy")
	into, sink := dataplanetest.NewLink("to")
	sink.Discard = true
	busy.Forwarder = to{into}
	for _, l := range []*dataplane.Link{waiting, busy} {
		l.Limits[dataplane.In].Store(limit)
	}
	one.Do(func() { one.Add(waiting) })
	other.Do(func() { other.Add(busy); other.Add(into) })
	sleep := waiting.Arm()
	source.FeedBytes(make([]byte, 60))
	other.Round()
	if sink.Counters.TxPackets.Load() != 1 {
		t.Fatal("the other worker did not use the limit up")
	}
	if !waiting.Pending() && sleep == dataplane.Forever {
		t.Error("the worker would sleep for ever while frames wait")
	}
}

// quiet is a port that nothing comes from.
type quiet struct{ *dataplanetest.Port }

func (quiet) Arm() time.Duration { return dataplane.Forever }
