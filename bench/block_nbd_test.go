package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/need"
)

// nbdTries is how often a cell may be behind. Many at a time both clients wait for the server, which has a CPU to itself, and are some per cent apart, either way.
const nbdTries = 8

// nbdPeers is how many BlockBed.NBD adds: the device on our client, our client by itself, libnbd in fio.
const nbdPeers = 3

// TestBlockNBD holds what is promised of NBD: beside fio's engine, which is libnbd, on the same nbdkit, our client by itself does at least as many requests a
// second, over a unix socket and over TCP, one at a time and many. What a guest gets of it, on two CPUs that it shares with the server, is told; many at a time
// that is about as much as fio gets.
func TestBlockNBD(t *testing.T) {
	need.Time(t, "measures")
	need.Program(t, "fio", NBDServerProgram)
	b := bed(t, (*BlockBed).NBDUnix, (*BlockBed).NBDTCP)
	o := BlockOptions{Duration: 50 * time.Millisecond, Turns: 3, GuestCPU: 1, Cells: BlockCells()}
	if !need.Soak() {
		o.Cells = slices.DeleteFunc(o.Cells, func(c BlockCell) bool { return c.Sequential })
	}
	for i := range len(b.Peers) / nbdPeers {
		behind := o
		for n := 1; len(behind.Cells) > 0; n++ {
			all, err := Block(t.Context(), behind, b.Peers[i*nbdPeers:][:nbdPeers])
			if err != nil {
				t.Fatal(err)
			}
			behind.Cells = slower(t, all)
			if n == nbdTries && len(behind.Cells) > 0 {
				t.Errorf("fewer requests than fio with %v, %d times", behind.Cells, n)
				break
			}
		}
	}
}

// slower tells of all results, and returns the cells in which our client by itself does less than fio, or the device much less, many at a time.
func slower(t *testing.T, all []BlockResult) (cells []BlockCell) {
	for ; len(all) > 0; all = all[nbdPeers:] {
		fio := &all[nbdPeers-1]
		line := fmt.Sprintf("%-16v", fio.Cell)
		for i := range all[:nbdPeers] {
			r := &all[i]
			each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(max(r.Requests, 1)) }
			line += fmt.Sprintf("  %s %.1f k (%.2f), %.1f+%.1f us", r.Peer, r.Median()/1e3, r.Median()/fio.Median(), each(r.CPU), each(r.Server))
			if r.Requests == 0 || r.Server <= 0 {
				t.Errorf("%+v: %d requests, %v of the server's time", r.Cell, r.Requests, r.Server)
			}
		}
		t.Log(line)
		if all[1].Median() < fio.Median() || fio.Cell.Depth > 1 && all[0].Median() < .8*fio.Median() {
			cells = append(cells, fio.Cell)
		}
	}
	return cells
}
