package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/need"
)

var dropCaptured = dataplane.NewReason("test-capture", "a test wanted it so")

// captureBed is a worker with a guest's port and an uplink's two queues; what comes from the guest leaves by the uplink, behind eight bytes of a header, unless
// it begins with 0xdd.
type captureBed struct {
	taps   taps
	worker *dataplane.Worker
	guest  *dataplanetest.Port
	vm, up *dataplane.Link
}

func (b *captureBed) Forward(w *dataplane.Worker, from *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		frames[i] = nil
		if f.Head()[0] == 0xdd {
			w.Drop(from, f, dropCaptured)
			continue
		}
		copy(f.Prepend(8), "outer---")
		w.Send(b.up, f)
	}
}

func newCaptureBed(t testing.TB) *captureBed {
	b := &captureBed{worker: dataplanetest.NewWorker(t, 256)}
	b.vm, b.guest = dataplanetest.NewLink("vm1-eth0")
	var sink *dataplanetest.Port
	b.up, sink = dataplanetest.NewLink("up0/1")
	sink.Discard = true
	b.vm.Forwarder, b.up.Forwarder = b, b
	b.worker.Add(b.vm)
	b.worker.Add(b.up)
	b.taps.add(b.up, subject{kind: control.KindUplink, name: "up0", description: "uplink on eth1", queue: 1})
	b.taps.add(b.vm, subject{kind: control.KindPort, name: "vm1-eth0", description: "port of network blue"})
	return b
}

// capturedFrame is a frame that the test recognizes.
func capturedFrame(first byte, i, n int) []byte {
	f := bytes.Repeat([]byte{byte(i)}, n)
	f[0] = first
	return f
}

// start begins a capture into a buffer and returns when it sees what comes.
func (b *captureBed) start(t testing.TB, o control.CaptureOptions) (*capture, func() []byte) {
	t.Helper()
	if o.Direction == "" {
		o.Direction = control.CaptureBoth
	}
	c, err := b.taps.capture(o, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var out bytes.Buffer
	ended := make(chan error, 1)
	begun := &firstWrite{to: &out, done: make(chan struct{})}
	go func() { ended <- c.Run(ctx, begun) }()
	<-begun.done
	return c, func() []byte {
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
}

// firstWrite tells when the file's beginning was written: the taps are set before.
type firstWrite struct {
	to   io.Writer
	once sync.Once
	done chan struct{}
}

func (w *firstWrite) Write(b []byte) (int, error) {
	defer w.once.Do(func() { close(w.done) })
	return w.to.Write(b)
}

// TestCaptureFile shows a capture to a reader of pcapng that is not ours.
func TestCaptureFile(t *testing.T) {
	b := newCaptureBed(t)
	_, stop := b.start(t, control.CaptureOptions{Drops: []string{"test-capture"}, Snaplen: 1000})
	begin := time.Now()
	b.guest.Feed(dataplanetest.Packet{Bytes: capturedFrame(1, 1, 60)}, dataplanetest.Packet{Bytes: capturedFrame(0xdd, 2, 70)},
		dataplanetest.Packet{Bytes: capturedFrame(1, 3, 3000), Head: 256})
	dataplanetest.Settle(b.worker)
	file := stop()
	r, err := pcapgo.NewNgReader(bytes.NewReader(file), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	type seen struct {
		iface, length, kept int
		head                string
	}
	var got []seen
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if info.Timestamp.Before(begin.Add(-time.Second)) || info.Timestamp.After(time.Now().Add(time.Second)) {
			t.Errorf("packet at %v", info.Timestamp)
		}
		got = append(got, seen{info.InterfaceIndex, info.Length, len(data), string(data[:9])})
	}
	want := []seen{
		{1, 60, 60, "\x01\x01\x01\x01\x01\x01\x01\x01\x01"}, {1, 70, 70, "\xdd\x02\x02\x02\x02\x02\x02\x02\x02"},
		{1, 3000, 1000, "\x01\x03\x03\x03\x03\x03\x03\x03\x03"}, {1, 70, 70, "\xdd\x02\x02\x02\x02\x02\x02\x02\x02"},
		{0, 68, 68, "outer---\x01"}, {0, 3008, 1000, "outer---\x01"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for i, want := range []struct{ name, description string }{{"up0", "uplink on eth1"}, {"vm1-eth0", "port of network blue"}} {
		face, err := r.Interface(i)
		if err != nil || face.Name != want.name || face.Description != want.description || face.SnapLength != 1000 {
			t.Errorf("interface %d: %+v %v", i, face, err)
		}
	}
	if up, err := r.Interface(0); err != nil || up.Statistics.PacketsReceived != 2 || up.Statistics.PacketsDropped != 0 {
		t.Errorf("statistics: %+v %v", up.Statistics, err)
	}
	if vm, err := r.Interface(1); err != nil || vm.Statistics.PacketsReceived != 4 {
		t.Errorf("statistics: %+v %v", vm.Statistics, err)
	}
}

// TestCaptureInWireshark shows names, directions, queues, comments and statistics to tshark and capinfos.
func TestCaptureInWireshark(t *testing.T) {
	need.Program(t, "tshark", "capinfos")
	b := newCaptureBed(t)
	_, stop := b.start(t, control.CaptureOptions{Drops: []string{control.AnyReason}, Filter: "greater 60"})
	b.guest.FeedBytes(capturedFrame(1, 1, 100), capturedFrame(0xdd, 2, 200), capturedFrame(1, 3, 40))
	dataplanetest.Settle(b.worker)
	file := filepath.Join(t.TempDir(), "capture.pcapng")
	if err := os.WriteFile(file, stop(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "tshark", "-r", file, "-n", "-T", "fields", "-E", "separator=|", "-e", "frame.interface_name",
		"-e", "frame.interface_description", "-e", "frame.packet_flags_direction", "-e", "frame.interface_queue", "-e", "frame.comment", "-e", "frame.len").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"vm1-eth0|port of network blue|1|||100",
		"vm1-eth0|port of network blue|1|||200",
		"vm1-eth0|port of network blue|0||dropped: test-capture: a test wanted it so|200",
		"up0|uplink on eth1|2|1||108",
	}, "\n") + "\n"
	got := strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(string(out), "0x00000001", "1"), "0x00000002", "2"), "0x00000000", "0")
	if got != want {
		t.Errorf("tshark shows\n%swant\n%s", got, want)
	}
	info, err := exec.CommandContext(t.Context(), "capinfos", file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, info)
	}
	for _, want := range []string{"Name = up0", "Name = vm1-eth0", "Description = port of network blue", "Filter string = greater 60",
		"Time precision = nanoseconds (9)", "Number of stat entries = 1", "Number of packets = 3", "shuntd "} {
		if !strings.Contains(string(info), want) {
			t.Errorf("capinfos does not show %q:\n%s", want, info)
		}
	}
}

// Each capture gets what it wants, links that come later are seen, and those that go leave nothing behind.
func TestCaptureFollowsLinks(t *testing.T) {
	b := newCaptureBed(t)
	only, stopOnly := b.start(t, control.CaptureOptions{Names: []string{"vm1-eth0"}, Direction: control.CaptureIn, Count: 5})
	drops, stopDrops := b.start(t, control.CaptureOptions{Drops: []string{"test-capture"}, Direction: control.CaptureNone})
	all, stopAll := b.start(t, control.CaptureOptions{Direction: control.CaptureIn})
	late, port := dataplanetest.NewLink("vm2-eth0")
	late.Forwarder = b
	b.worker.Add(late)
	b.taps.add(late, subject{kind: control.KindPort, name: "vm2-eth0"})
	for i := range 10 {
		b.guest.FeedBytes(capturedFrame(1, i, 60), capturedFrame(0xdd, i, 60))
		port.FeedBytes(capturedFrame(1, i, 60))
		dataplanetest.Settle(b.worker)
	}
	await(t, "five packets", func() bool { return only.Counters().Packets == 5 })
	await(t, "thirty packets", func() bool { return all.Counters().Packets == 30 })
	await(t, "ten drops", func() bool { return drops.Counters().Packets == 10 })
	b.taps.remove(late)
	if late.Tap.Load() != nil {
		t.Error("a link that was removed still has a tap")
	}
	for name, file := range map[string][]byte{"only": stopOnly(), "drops": stopDrops(), "all": stopAll()} {
		packets := 0
		r, err := pcapgo.NewNgReader(bytes.NewReader(file), pcapgo.NgReaderOptions{})
		for err == nil {
			_, _, err = r.ReadPacketData()
			packets++
		}
		if want := map[string]int{"only": 5, "drops": 10, "all": 30}[name]; !errors.Is(err, io.EOF) || packets-1 != want {
			t.Errorf("%s: %d packets, want %d, then %v", name, packets-1, want, err)
		}
	}
	if b.vm.Tap.Load() != nil || b.up.Tap.Load() != nil || len(b.taps.captures) != 0 {
		t.Error("taps are left behind")
	}
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A reader that dies, or stalls, costs the workers nothing, and leaves nothing behind when it is gone.
func TestCaptureReaderDies(t *testing.T) {
	b := newCaptureBed(t)
	c, err := b.taps.capture(control.CaptureOptions{Direction: control.CaptureBoth}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe() // that nobody reads from
	ended := make(chan error, 1)
	go func() { ended <- c.Run(context.Background(), w) }()
	await(t, "the tap", func() bool { return b.vm.Tap.Load() != nil })
	passed := b.up.Counters.TxPackets.Load()
	for range 1000 {
		for range 64 {
			b.guest.FeedBytes(capturedFrame(1, 1, 100))
		}
		dataplanetest.Settle(b.worker)
	}
	if n := b.up.Counters.TxPackets.Load() - passed; n != 64000 {
		t.Errorf("%d packets passed", n)
	}
	if n := c.Counters(); n.Missed == 0 {
		t.Errorf("nothing was missed of what 4 MiB cannot hold: %+v", n)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the capture ended with %v", err)
	}
	if b.vm.Tap.Load() != nil || len(b.taps.captures) != 0 {
		t.Error("taps are left behind")
	}
}

// busyNet is a caller of a capture for whom there is always more: what it reads is made up for before it comes back.
type busyNet struct {
	bed    *captureBed
	end    func()
	writes int
}

func (n *busyNet) Write(b []byte) (int, error) {
	if n.writes++; n.writes == 10 {
		n.end()
	}
	if n.writes == 200 {
		return 0, errors.New("it goes on and on")
	}
	for range 16 {
		for range 64 {
			n.bed.guest.FeedBytes(capturedFrame(1, 1, 1000))
		}
		dataplanetest.Settle(n.bed.worker)
	}
	return len(b), nil
}

// A capture ends when it is told to, also if packets come faster than they can be written.
func TestCaptureEndsUnderLoad(t *testing.T) {
	b := newCaptureBed(t)
	c, err := b.taps.capture(control.CaptureOptions{Direction: control.CaptureBoth}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := c.Run(ctx, &busyNet{bed: b, end: cancel}); err != nil {
		t.Error(err)
	}
}

func TestCaptureRefused(t *testing.T) {
	b := newCaptureBed(t)
	for _, test := range []struct {
		options control.CaptureOptions
		kind    error
		want    string
	}{
		{control.CaptureOptions{Names: []string{"vm9"}}, control.ErrNotFound, `there is no port or uplink "vm9"`},
		{control.CaptureOptions{Drops: []string{"whim"}}, control.ErrRequest, `there is no drop reason "whim"`},
		{control.CaptureOptions{Filter: "prot 80"}, control.ErrRequest, `filter, column 1: "prot" is no test`},
	} {
		if _, err := b.taps.capture(test.options, 1, nil); !errors.Is(err, test.kind) || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%+v: %v", test.options, err)
		}
	}
}

// The reader allocates nothing for a packet, so that a long capture is no load of garbage.
func TestCaptureWritesWithoutAllocating(t *testing.T) {
	p := pcapng{out: io.Discard, buf: make([]byte, 0, pcapngFlush+1<<17)}
	data := capturedFrame(1, 1, 1500)
	if n := testing.AllocsPerRun(1000, func() {
		if err := p.packet(capturedPacket{time: 1, length: 1500, flags: 1, comment: "x"}, data); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
