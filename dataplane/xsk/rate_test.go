package xsk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// frameLength is what VXLAN makes of the shortest Ethernet frame: 64 (60 without its check sequence) + 50 + 4.
const frameLength = 114

// BenchmarkTransmit sends frames of 114 bytes through veth into an XDP program that drops them, by turns with
// DPDK's testpmd on its AF_XDP driver: the same interface (two queues of it, since each has one owner), sink and CPU, and both counted by the
// interface. Whoever is not to send stands still. Rates are per second of CPU time, which on an idle machine is wall time. Turns are short,
// because neighbours on the physical machine halve all rates for seconds; the ratio of a pair of turns hardly feels them, and its median is
// the result.
func BenchmarkTransmit(b *testing.B) {
	need.Root(b)
	need.Program(b, "dpdk-testpmd")
	from, to := newPair(b, 2, 1500)
	to.sink(b)
	us := from.transmitter(b, SocketOptions{Budget: budget()})
	peer := from.testpmd(b)
	turn := func(s sender) float64 {
		s.set(true)
		defer s.set(false)
		time.Sleep(5 * time.Millisecond)
		n, cpu := from.transmitted(b), s.cpu()
		time.Sleep(60 * time.Millisecond)
		return float64(from.transmitted(b)-n) / max(1, float64(s.cpu()-cpu)) * 1e3
	}
	var ours, theirs, ratios []float64
	for b.Loop() {
		for range 40 {
			x, y := turn(us), turn(peer)
			if x > 0 && y > 0 { // else one of them was not run at all
				ours, theirs, ratios = append(ours, x), append(theirs, y), append(ratios, x/y)
			}
		}
	}
	if len(ratios) == 0 {
		b.Fatal("no turn in which both sent")
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	slices.Sort(ratios)
	b.Logf("turns in Mpps, sorted: ours %.2f, testpmd %.2f, ratios %.2f", ours, theirs, ratios)
	b.ReportMetric(ours[len(ours)/2], "Mpps")
	b.ReportMetric(theirs[len(theirs)/2], "testpmd-Mpps")
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
	b.ReportMetric(0, "ns/op")
}

// sender is somebody who transmits while set to, and the CPU time he has used.
type sender struct {
	set func(on bool)
	cpu func() time.Duration
}

// cpuTime is what the threads of a glob under /proc have run.
func cpuTime(tb testing.TB, threads string) (sum time.Duration) {
	files, _ := filepath.Glob(threads + "/schedstat")
	for _, f := range files {
		text, err := os.ReadFile(f)
		var ns int64
		if n, _ := fmt.Sscan(string(text), &ns); n != 1 {
			tb.Fatalf("%s: %q, %v", f, text, err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// budget is what the environment wants tried; 0: the kernel's.
func budget() int {
	n, _ := strconv.Atoi(os.Getenv("SHUNT_TX_BUDGET"))
	return n
}

// transmitted is the device's own count.
func (e *end) transmitted(tb testing.TB) uint64 {
	tb.Helper()
	return e.link(tb).Attrs().Statistics.TxPackets
}

// lastCPU is the one that transmitters run on.
func lastCPU() int { return runtime.NumCPU() - 1 }

// transmitter sends from queue 0 on a thread of its own, whenever it is on, until the test ends.
func (e *end) transmitter(tb testing.TB, o SocketOptions) sender {
	tb.Helper()
	u, pool := newUMEM(tb, 2*RingSize+512)
	p := newPort(tb, e.open(tb, u, o), pool)
	var on, quit atomic.Bool
	done, thread := make(chan struct{}), make(chan int, 1)
	go func() {
		defer close(done)
		runtime.LockOSThread() // pinned, so never unlocked
		thread <- unix.Gettid()
		var cpus unix.CPUSet
		cpus.Set(lastCPU())
		unix.SchedSetaffinity(0, &cpus)
		batch := make([]*frame.Frame, dataplane.Quantum)
		for !quit.Load() {
			if !on.Load() {
				time.Sleep(time.Millisecond)
				continue
			}
			p.Receive(nil, pool)
			for i := range batch {
				if batch[i] = pool.Get(); batch[i] != nil {
					copy(batch[i].Append(frameLength), header)
				}
			}
			p.Transmit(batch, pool)
			pool.PutAll(batch)
			p.Flush()
		}
	}()
	tb.Cleanup(func() {
		quit.Store(true)
		<-done
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
		if n, why := drops(p.counters); n != 0 {
			tb.Logf("drops:%s of %d, %d system calls, kept %d times", why, p.counters.TxPackets.Load(), p.stats.Kicks.Load(), p.stats.Kept.Load())
		}
	})
	task := fmt.Sprintf("/proc/self/task/%d", <-thread)
	return sender{on.Store, func() time.Duration { return cpuTime(tb, task) }}
}

var header = []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, etherType >> 8, etherType & 0xff}

// testpmd transmits with DPDK from queue 1, whenever it is on, until the test ends.
func (e *end) testpmd(tb testing.TB) sender {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := e.Namespace.Command(ctx, "dpdk-testpmd", "--lcores", fmt.Sprintf("0@0,1@%d", lastCPU()),
		"--no-pci", "--no-huge", "--no-shconf", "--no-telemetry", "-m", "256",
		"--vdev=net_af_xdp0,iface="+e.Name+",start_queue=1,queue_count=1,busy_budget=0",
		"--", "--forward-mode=txonly", fmt.Sprintf("--txpkts=%d", frameLength), "--total-num-mbufs=8192", "--stats-period=100000")
	cmd.WaitDelay = 5 * time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cancel()
		tb.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tb.Cleanup(func() { cancel(); <-done })
	before := e.transmitted(tb)
	for deadline := time.Now().Add(20 * time.Second); e.transmitted(tb) < before+100_000; {
		select {
		case err := <-done:
			done <- err
			tb.Fatalf("testpmd ended: %v\n%s", err, out.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			tb.Fatal("testpmd sends nothing")
		}
	}
	set := func(on bool) {
		signal := syscall.SIGSTOP
		if on {
			signal = syscall.SIGCONT
		}
		if err := cmd.Process.Signal(signal); err != nil {
			tb.Fatalf("testpmd: %v", err)
		}
	}
	set(false)
	tasks := fmt.Sprintf("/proc/%d/task/*", cmd.Process.Pid)
	return sender{set, func() time.Duration { return cpuTime(tb, tasks) }}
}
