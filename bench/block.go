package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/pinning"
	"golang.org/x/sys/unix"
)

// BlockCell is one kind of load on a disk.
type BlockCell struct {
	Write      bool
	Sequential bool
	Bytes      int
	Depth      int
}

// String is its name, as "randread-4k-32".
func (c BlockCell) String() string {
	name := map[bool]string{false: "rand", true: "seq"}[c.Sequential] + map[bool]string{false: "read", true: "write"}[c.Write]
	return fmt.Sprintf("%s-%dk-%d", name, c.Bytes>>10, c.Depth)
}

// BlockCells are all that are compared: 4 and 128 KiB, one and 32 at a time, random and sequential, read and write.
func BlockCells() (all []BlockCell) {
	for _, write := range []bool{false, true} {
		for _, sequential := range []bool{false, true} {
			for _, bytes := range []int{4 << 10, 128 << 10} {
				for _, depth := range []int{1, 32} {
					all = append(all, BlockCell{write, sequential, bytes, depth})
				}
			}
		}
	}
	return all
}

// BlockPeer is a process that serves a disk over vhost-user-blk; or, if it has no Socket, fio on a File, or on the export that NBD is the URI of.
type BlockPeer struct {
	Name   string
	Socket string
	PID    int
	File   string
	Direct bool
	NBD    string
	// Store: not fio, but our own client of NBD by itself, on a worker in this process.
	Store bool
	// Server is the process behind the peer that has the disk; zero: there is none.
	Server int
}

// BlockOptions configure Block; zero values are good.
type BlockOptions struct {
	// Cells to be measured. Nil: BlockCells.
	Cells []BlockCell
	// Duration of each measurement of a cell and peer. Zero: 200 ms. Turns is how often it is that peer's turn. Zero: 5.
	Duration time.Duration
	Turns    int
	// Span is how much of the disk is used. Zero: all.
	Span int64
	// WorkerCPU is where the peers run, all threads of them, GuestCPU where the driver does, and their server if they have one.
	WorkerCPU, GuestCPU int
	// Packed rings. Indirect descriptors and event index are always used, as guests do.
	Packed bool
}

// BlockResult is what one cell came to with one peer.
type BlockResult struct {
	Cell BlockCell
	Peer string
	// Requests were answered in Elapsed; CPU is what the peer's process used up meanwhile, all threads together, those of the kernel's io-wq too.
	Requests uint64
	Elapsed  time.Duration
	CPU      time.Duration
	// Server is the same of the peer's server.
	Server  time.Duration
	Latency driver.Histogram

	turns []float64 // the rate of each
}

// Rate is in requests a second.
func (r *BlockResult) Rate() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// Median is the rate of the middle one of the turns: what an outlier does not change.
func (r *BlockResult) Median() float64 {
	if len(r.turns) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(r.turns))[len(r.turns)/2]
}

// PerCPU is in requests a second of CPU time; zero: the time was too short to tell.
func (r *BlockResult) PerCPU() float64 {
	if r.CPU <= 0 {
		return 0
	}
	return float64(r.Requests) / r.CPU.Seconds()
}

// Block puts the same loads on each of the peers by turns, so that what else the machine does hits all alike. Results are by cell, and in it by peer.
func Block(ctx context.Context, o BlockOptions, peers []BlockPeer) (all []BlockResult, err error) {
	if o.Cells == nil {
		o.Cells = BlockCells()
	}
	o.Duration, o.Turns = defaulted(o.Duration, 200*time.Millisecond), defaulted(o.Turns, 5)
	var rigs []*blockRig
	defer func() {
		for _, r := range rigs {
			err = errors.Join(err, r.close())
		}
	}()
	for _, p := range peers {
		if p.Server != 0 {
			if err := pinProcess(p.Server, o.GuestCPU); err != nil {
				return nil, err
			}
		}
		r, err := newBlockRig(ctx, o, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		rigs = append(rigs, r)
	}
	for i, cell := range o.Cells {
		results := make([]BlockResult, len(rigs))
		for range o.Turns {
			for j, r := range rigs {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				results[j].Cell, results[j].Peer = cell, r.peer.Name
				if err := r.turn(ctx, o, i, &results[j]); err != nil {
					return nil, fmt.Errorf("%s: %v: %w", r.peer.Name, cell, err)
				}
			}
		}
		all = append(all, results...)
	}
	return all, nil
}

// blockRig is a peer with its driver.
type blockRig struct {
	peer  BlockPeer
	disk  *driver.Disk
	loads []*driver.Load // by cell
	store *storeRig
}

func (r *blockRig) close() error {
	switch {
	case r.disk != nil:
		return r.disk.Close()
	case r.store != nil:
		return r.store.close()
	}
	return nil
}

func newBlockRig(ctx context.Context, o BlockOptions, p BlockPeer) (*blockRig, error) {
	if p.Store {
		return nbdRig(ctx, o, p)
	}
	if p.Socket == "" {
		return &blockRig{peer: p}, nil
	}
	memory := 0
	for _, c := range o.Cells {
		memory += c.Bytes * c.Depth
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	d, err := driver.Dial(ctx, p.Socket, driver.Options{Memory: memory, Indirect: true, EventIdx: true, Packed: o.Packed, Clock: true})
	if err != nil {
		return nil, err
	}
	r := &blockRig{peer: p, disk: d}
	for _, c := range o.Cells {
		op := driver.In
		if c.Write {
			op = driver.Out
		}
		l, err := driver.NewLoad(driver.LoadOptions{Disk: d, Op: op, Bytes: c.Bytes, Depth: c.Depth, Sequential: c.Sequential, Span: o.Span,
			Start: func() error { return pinning.Apply(o.GuestCPU) }})
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		r.loads = append(r.loads, l)
	}
	if err := pinProcess(p.PID, o.WorkerCPU); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return r, nil
}

// turn is one peer's.
func (r *blockRig) turn(ctx context.Context, o BlockOptions, cell int, to *BlockResult) error {
	was := *to
	if r.peer.Server != 0 {
		began, err := processTime(r.peer.Server)
		if err != nil {
			return err
		}
		to.Server -= began
	}
	if err := r.measure(ctx, o, cell, to); err != nil {
		return err
	}
	if r.peer.Server != 0 {
		ended, err := processTime(r.peer.Server)
		if err != nil {
			return err
		}
		to.Server += ended
	}
	to.turns = append(to.turns, float64(to.Requests-was.Requests)/(to.Elapsed-was.Elapsed).Seconds())
	return nil
}

// measure puts the load on.
func (r *blockRig) measure(ctx context.Context, o BlockOptions, cell int, to *BlockResult) error {
	if r.store != nil {
		return r.store.measure(o, o.Cells[cell], to)
	}
	if r.disk == nil {
		return fio(ctx, o, o.Cells[cell], r.peer, to)
	}
	before, err := processTime(r.peer.PID)
	if err != nil {
		return err
	}
	type outcome struct {
		result *driver.LoadResult
		err    error
	}
	done := make(chan outcome)
	go func() { // the thread is pinned, and ends with it
		var stop atomic.Bool
		result, err := r.loads[cell].Run(&stop, o.Duration)
		done <- outcome{result, err}
	}()
	out := <-done
	if out.err != nil {
		return out.err
	}
	after, err := processTime(r.peer.PID)
	if err != nil {
		return err
	}
	to.Requests += out.result.Requests
	to.Elapsed += out.result.Elapsed
	to.CPU += after - before
	to.Latency.Merge(&out.result.Latency)
	return nil
}

// processTime is the CPU time that all threads of a process have used, those that have ended too: a process's clock (clock_getcpuclockid(3)).
func processTime(pid int) (time.Duration, error) {
	const sched = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// pinProcess puts all threads of a process on one CPU. Those it makes later inherit that.
func pinProcess(pid, cpu int) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(cpu)
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH {
				return fmt.Errorf("pin thread %d: %w", tid, err)
			}
		}
	}
	return nil
}
