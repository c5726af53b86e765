package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestGuestToWire compares the whole way from a guest's virtqueue through VXLAN to AF_XDP with DPDK's testpmd that only transmits frames
// of the same kind and length, by turns, on two queues of one interface with one sink. Turns are short and the ratio is taken pair
// by pair, because neighbours on the physical machine halve the rates for seconds.
func TestGuestToWire(t *testing.T) {
	need.Time(t, "measures")
	need.Root(t)
	need.Program(t, "dpdk-testpmd")
	ends := veth(t, 2)
	drop(t, ends[1])
	var g *GuestToWire
	err := ends[0].Namespace.Do(func() (err error) {
		g, err = NewGuestToWire(GuestToWireOptions{Interface: ends[0].Name, WorkerCPU: 1, GuestCPU: 0})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}()
	pmd, err := peer.StartTestpmd(t.Context(), peer.TestpmdOptions{
		Name: "wire", Namespace: ends[0].Namespace, CPU: 1, Mode: "txonly",
		Devices: []string{"net_af_xdp0,iface=" + ends[0].Name + ",start_queue=1,queue_count=1,busy_budget=0"},
		Args:    []string{"--txpkts=114"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pmd.Close()
	if err := pmd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pmd.Pause(true)
	us := sender{g.On, fmt.Sprintf("/proc/self/task/%d", g.Thread()), g.BusyNanos}
	them := sender{func(on bool) { pmd.Pause(!on) }, fmt.Sprintf("/proc/%d/task/*", pmd.PID()), nil}
	const turns, least = 40, 0.85
	for n := 1; ; n++ {
		ratio := byTurns(t, ends[0], us, them, turns)
		if ratio >= least {
			break
		}
		if n == tries {
			t.Fatalf("ratio %.2f is below %.2f", ratio, least)
		}
	}
	busy := g.Uplink().Drops(xsk.DropBusy)
	if s, err := peer.NetdevStats(ends[0].Namespace, ends[0].Name); err != nil || busy > s.TxDropped {
		t.Errorf("the device refused %d frames of the uplink's, of all it was given %d (%v)", busy, s.TxDropped, err)
	}
	for _, r := range dataplane.Reasons() {
		if r == xsk.DropBusy {
			continue // where others use the machine, the other end's queue is served too late
		}
		if a, b := g.Uplink().Drops(r), g.Guest().Drops(r); a+b > 0 {
			t.Errorf("dropped for %s: %d at the uplink, %d at the guest", r, a, b)
		}
	}
}

// TestAddedToBare holds what the engine adds to a frame that AF_XDP transmits anyway: taking it from the guest, judging it, looking up where it goes, the outer
// headers. It may be 140 ns, and more in proportion where the machine is slowed down: a bare frame takes 530 ns here when nobody else has work.
func TestAddedToBare(t *testing.T) {
	need.Time(t, "measures")
	need.Root(t)
	ends := veth(t, 2)
	drop(t, ends[1])
	var g *GuestToWire
	var bare *Bare
	err := ends[0].Namespace.Do(func() (err error) {
		if g, err = NewGuestToWire(GuestToWireOptions{Interface: ends[0].Name, WorkerCPU: 1, GuestCPU: 0}); err == nil {
			bare, err = NewBare(BareOptions{Interface: ends[0].Name, Queue: 1, CPU: 1})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(g.Close(), bare.Close()); err != nil {
			t.Error(err)
		}
	}()
	us := sender{g.On, fmt.Sprintf("/proc/self/task/%d", g.Thread()), nil}
	them := sender{bare.On, bare.Threads(), nil}
	const turns, most = 40, 140.0
	for n := 1; ; n++ {
		var added, alone []float64
		for range turns {
			x, y := us.turn(t, ends[0]), them.turn(t, ends[0])
			if x > 0 && y > 0 {
				added, alone = append(added, 1e3/x-1e3/y), append(alone, 1e3/y)
			}
		}
		if len(added) == 0 {
			t.Fatal("no turn in which both sent")
		}
		slices.Sort(added)
		slices.Sort(alone)
		more, takes := added[len(added)/2], alone[len(alone)/2]
		t.Logf("a guest's frame takes %.0f ns of CPU time more than one sent from memory, which takes %.0f (medians of %d turns)", more, takes, len(added))
		if more <= most*max(1, takes/530) {
			return
		}
		if n == tries {
			t.Fatalf("%.0f ns are more than %.0f", more, most)
		}
	}
}

// byTurns lets both transmit by turns, and returns the median ratio.
func byTurns(t *testing.T, e netlab.End, us, them sender, turns int) float64 {
	t.Helper()
	var ours, theirs, ratios []float64
	for range turns {
		x, y := us.turn(t, e), them.turn(t, e)
		if x > 0 && y > 0 { // else one of them was not run at all
			ours, theirs, ratios = append(ours, x), append(theirs, y), append(ratios, x/y)
		}
	}
	if len(ratios) == 0 {
		t.Fatal("no turn in which both sent")
	}
	for _, s := range [][]float64{ours, theirs, ratios} {
		slices.Sort(s)
	}
	middle := len(ratios) / 2
	t.Logf("guest to wire %.2f, testpmd txonly %.2f million packets per second of CPU time, ratio %.2f (medians of %d turns; ratios %.2f)",
		ours[middle], theirs[middle], ratios[middle], len(ratios), ratios)
	return ratios[middle]
}

// sender is somebody who transmits while set to, and the threads that do it.
type sender struct {
	set     func(on bool)
	threads string // a glob under /proc
	// busy is how long, in nanoseconds, rounds of a worker took that found work; nil where nobody has to give it any.
	busy func() uint64
}

// turn lets the sender transmit for a while, and returns its rate in million packets per second of CPU time: on an idle machine that
// is wall time, and on a busy one the neighbours do not count. Nor does what a worker spins while its guest has no CPU to give it anything.
func (s sender) turn(t *testing.T, e netlab.End) float64 {
	s.set(true)
	defer s.set(false)
	time.Sleep(5 * time.Millisecond)
	n, cpu, fed := transmitted(t, e), s.cpu(t), s.hungry(t)
	time.Sleep(60 * time.Millisecond)
	return float64(transmitted(t, e)-n) / max(1, float64(s.cpu(t)-cpu-fed())) * 1e3
}

// cpu is what the threads have run.
func (s sender) cpu(t *testing.T) time.Duration {
	ran, _ := scheduled(t, s.threads)
	return ran
}

// hungry begins to look how long a sender spins for want of a guest that waits for a CPU, until it is asked: not longer than it found nothing to do, nor than
// other threads of this process, which the guest is of, have waited.
func (s sender) hungry(t *testing.T) func() time.Duration {
	if s.busy == nil {
		return func() time.Duration { return 0 }
	}
	ran, waited := scheduled(t, s.threads)
	_, all := scheduled(t, "/proc/self/task/*")
	busy := s.busy()
	return func() time.Duration {
		worked := float64(s.busy() - busy) // with what the worker itself waited meanwhile
		nowRan, nowWaited := scheduled(t, s.threads)
		_, nowAll := scheduled(t, "/proc/self/task/*")
		run, wait := nowRan-ran, nowWaited-waited
		idle := run - time.Duration(worked*float64(run)/max(1, float64(run+wait)))
		return max(0, min(idle, nowAll-all-wait))
	}
}

// scheduled is how long threads have run, and have waited for a CPU.
func scheduled(t *testing.T, threads string) (ran, waited time.Duration) {
	files, _ := filepath.Glob(threads + "/schedstat")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has just ended
		}
		var run, wait int64
		if n, _ := fmt.Sscan(string(text), &run, &wait); n != 2 {
			t.Fatalf("%s: %q, %v", f, text, err)
		}
		ran, waited = ran+time.Duration(run), waited+time.Duration(wait)
	}
	return ran, waited
}

// veth makes a pair of interfaces in two namespaces.
func veth(t *testing.T, queues int) (ends [2]netlab.End) {
	t.Helper()
	for i := range ends {
		ns, err := netlab.NewNamespace(fmt.Sprintf("bench-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := ns.Close(); err != nil {
				t.Error(err)
			}
		})
		ends[i] = netlab.End{Namespace: ns, Name: fmt.Sprintf("up%d", i), MAC: fmt.Sprintf("02:00:00:00:00:0%d", i+1), MTU: 1600}
	}
	if err := netlab.Veth(ends[0], ends[1], queues); err != nil {
		t.Fatal(err)
	}
	return ends
}

// drop makes an end swallow what it gets before the kernel's stack sees it.
func drop(t *testing.T, e netlab.End) {
	t.Helper()
	const xdpDrop = 1
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpDrop), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	err = e.Namespace.Do(func() error {
		d, err := netlink.LinkByName(e.Name)
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: d.Attrs().Index, Flags: link.XDPDriverMode})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// transmitted is the interface's own count.
func transmitted(t *testing.T, e netlab.End) uint64 {
	s, err := peer.NetdevStats(e.Namespace, e.Name)
	if err != nil {
		t.Fatal(err)
	}
	return s.TxPackets
}
