package lab

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/need"
)

// answerBound is how long a front-end, which holds its hypervisor's lock, may wait for the daemon.
const answerBound = 100 * time.Millisecond

// answers are how long requests of one kind took.
type answers struct {
	took   []time.Duration
	worst  time.Duration // of those, less what processes waited for a CPU
	beyond int
}

// ask measures one.
func (a *answers) ask(pids []int, request func() error) error {
	before, begin := waitsOf(pids), time.Now()
	err := request()
	took := time.Since(begin)
	a.took = append(a.took, took)
	if took > answerBound {
		took -= waitsOf(pids).since(before)
	}
	a.worst = max(a.worst, took)
	if took > answerBound {
		a.beyond++
	}
	return err
}

func (a *answers) judge(t *testing.T, what string) {
	t.Helper()
	slices.Sort(a.took)
	median, slowest := a.took[len(a.took)/2], a.took[len(a.took)-1]
	t.Logf("%s: %d answers, median %v, slowest %v, without waiting for a CPU %v", what, len(a.took), median, slowest, a.worst)
	if median > answerBound {
		t.Errorf("%s is answered in %v, median of %d", what, median, len(a.took))
	}
	// That nobody else had the CPU the kernel does not tell of everything.
	if a.beyond > len(a.took)/50 {
		t.Errorf("%s was answered too late %d times in %d", what, a.beyond, len(a.took))
	}
}

// A front-end stops rings, resets the device, takes memory away while two neighbours flood its guest, and it them. Each is answered at once, and the
// neighbours' traffic never stands still.
func TestAnswersUnderLoad(t *testing.T) {
	for name, features := range map[string]uint64{"split": splitRing, "packed": packedRing} {
		t.Run(name, func(t *testing.T) { answersUnderLoad(t, features) })
	}
}

func answersUnderLoad(t *testing.T, features uint64) {
	rounds := 50
	if need.Soak() {
		rounds = 1000
	}
	ctx := within(t, time.Minute+time.Duration(rounds)*500*time.Millisecond)
	d, socket, mac := neighbours(t, "busy", "left", "right")
	guest := func(name string, f uint64) *ownGuest {
		g := newOwnGuest(t, socket(name), mac(name), vnettest.Options{Features: f})
		if err := g.attach(ctx); err != nil {
			t.Fatal(err)
		}
		return g
	}
	busy, left, right := guest("busy", features), guest("left", splitRing), guest("right", packedRing)
	pids := []int{os.Getpid(), d.PID()}
	more, err := shm.NewMemFD("more", 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(more) })
	region := vhostuser.Region{GuestAddr: 0x10_0000_0000, UserAddr: 0x7e00_0000_0000, Size: 2 << 20, FD: more}
	load := floods(t, busy, left.mac)
	floods(t, left, busy.mac)
	around := floods(t, right, left.mac)

	var stop, reset, remove answers
	stopRings := func() (bases [2]uint32, err error) {
		for q := range bases {
			err = stop.ask(pids, func() (err error) { bases[q], err = busy.front.StopVring(q); return err })
			if err != nil {
				return bases, err
			}
		}
		return bases, nil
	}
	startRings := func(bases [2]uint32) error {
		for q, base := range bases {
			ring := busy.Vring(q)
			ring.Base = base
			if err := busy.front.StartVring(ring); err != nil {
				return err
			}
		}
		return nil
	}
	flows := func() error { // before each request, so that it interrupts something
		deadline := time.Now().Add(10 * time.Second)
		for sent, came := load.sent.Load(), load.received.Load(); load.sent.Load() < sent+200 || load.received.Load() < came+200; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				return fmt.Errorf("no traffic: %d frames sent, %d received, as 10 s ago", sent, came)
			}
		}
		return nil
	}
	round := func() error {
		if err := flows(); err != nil {
			return err
		}
		bases, err := stopRings()
		if err != nil {
			return err
		}
		if err := startRings(bases); err != nil {
			return err
		}
		if err := flows(); err != nil {
			return err
		}
		if err := busy.front.AddMemory(region); err != nil {
			return err
		}
		if err := remove.ask(pids, func() error { return busy.front.RemoveMemory(region) }); err != nil {
			return err
		}
		if err := flows(); err != nil {
			return err
		}
		if bases, err = stopRings(); err != nil {
			return err
		}
		if err := reset.ask(pids, busy.front.Reset); err != nil {
			return err
		}
		if err := busy.front.AcceptFeatures(busy.Features() | vhostuser.FeatureProtocol); err != nil {
			return err
		}
		return startRings(bases)
	}
	for i := range rounds {
		passed := around.sent.Load()
		if err := round(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if around.sent.Load() == passed {
			t.Errorf("round %d: the neighbours' traffic stood still", i)
		}
	}
	stop.judge(t, "GET_VRING_BASE")
	reset.judge(t, "RESET_DEVICE")
	remove.judge(t, "REM_MEM_REG")
	in := counters(t, d, control.KindPort, "busy")
	t.Logf("meanwhile the guest sent %d frames and got %d", in.RxPackets, in.TxPackets)
}
