package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/dataplane"
)

// Child makes this process a back-end that is measured, if it was started as one; programs that run scenarios of disks call it first of all.
func Child() { drivertest.Child() }

// blockImage is how large the image is that disks are measured on.
const blockImage = 256 << 20

// BlockBed is a directory with an image, which lies in the page cache as a whole, and back-ends on copies of it.
type BlockBed struct {
	dir    string
	kill   []func() error
	images []string // not given out; nil: not made
	Peers  []BlockPeer
}

// NewBlockBed makes one below a directory; empty: the system's for temporary files.
func NewBlockBed(dir string) (*BlockBed, error) {
	dir, err := os.MkdirTemp(dir, "shunt-bench-")
	if err != nil {
		return nil, err
	}
	return &BlockBed{dir: dir}, nil
}

// Close ends all back-ends and removes what they had.
func (b *BlockBed) Close() error {
	var errs []error
	for _, kill := range b.kill {
		errs = append(errs, kill())
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// blockImages is how many back-ends with a file a bed has at most.
const blockImages = 4

// image gives out a file that was written once, so that all of it is in the page cache and has its blocks.
func (b *BlockBed) image(name string) (string, error) {
	if b.images == nil {
		if err := b.lay(); err != nil {
			return "", err
		}
	}
	if len(b.images) == 0 {
		return "", fmt.Errorf("image for %s: there are no more than %d", name, blockImages)
	}
	path := filepath.Join(b.dir, name+".raw")
	err := os.Rename(b.images[0], path)
	b.images = b.images[1:]
	return path, err
}

// lay writes all images by turns. Of images that were written one behind the other, on ext4, random writes to the one cost up to half as much again as to another, whoever had which; why, we do
// not know: it may be where the kernel found memory for what it notes of each block.
func (b *BlockBed) lay() (err error) {
	var files [blockImages]*os.File
	defer func() {
		for _, f := range files {
			if f != nil {
				err = errors.Join(err, f.Sync(), f.Close())
			}
		}
	}()
	for i := range files {
		path := filepath.Join(b.dir, fmt.Sprintf("image%d", i))
		if files[i], err = os.Create(path); err != nil {
			return err
		}
		b.images = append(b.images, path)
	}
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	for range blockImage / len(chunk) {
		for _, f := range files {
			if _, err := f.Write(chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// Memory adds our own device on a disk in memory.
func (b *BlockBed) Memory() error {
	return b.own("shunt-memory", drivertest.EngineOptions{Size: blockImage})
}

// Null adds our own device on a disk that keeps nothing: what the device itself costs.
func (b *BlockBed) Null() error {
	return b.own("shunt-null", drivertest.EngineOptions{Size: blockImage, Null: true})
}

// File adds our own device on a file.
func (b *BlockBed) File(direct bool) error {
	path, err := b.image("shunt")
	if err != nil {
		return err
	}
	return b.own("shunt", drivertest.EngineOptions{File: path, Direct: direct})
}

// Interrupt adds the same whose worker never polls for what is not there: less CPU time, and more time for each request.
func (b *BlockBed) Interrupt(direct bool) error {
	path, err := b.image("shunt-interrupt")
	if err != nil {
		return err
	}
	return b.own("shunt-interrupt", drivertest.EngineOptions{File: path, Direct: direct, Idle: dataplane.Interrupt})
}

func (b *BlockBed) own(name string, o drivertest.EngineOptions) error {
	o.Socket = filepath.Join(b.dir, name+".sock")
	p, err := drivertest.Spawn(o)
	if err != nil {
		return err
	}
	b.kill = append(b.kill, p.Kill)
	b.Peers = append(b.Peers, BlockPeer{Name: name, Socket: o.Socket, PID: p.PID()})
	return nil
}

// StorageDaemon adds qemu-storage-daemon on a file of its own.
func (b *BlockBed) StorageDaemon(direct bool) error {
	path, err := b.image("qsd")
	if err != nil {
		return err
	}
	s, err := drivertest.Start(drivertest.Options{Dir: b.dir, File: path, Direct: direct, Uring: true})
	if err != nil {
		return err
	}
	b.kill = append(b.kill, s.Kill)
	b.Peers = append(b.Peers, BlockPeer{Name: drivertest.Program, Socket: s.Socket, PID: s.PID()})
	return nil
}

// Fio adds fio on a file of its own.
func (b *BlockBed) Fio(direct bool) error {
	path, err := b.image("fio")
	b.Peers = append(b.Peers, BlockPeer{Name: "fio", File: path, Direct: direct})
	return err
}

// blockTurns is how often it is each back-end's turn in a scenario.
const blockTurns = 5

// blockScenario measures back-ends that add makes beside one another: every figure of each, and of the others in proportion to the first.
func blockScenario(add ...func(*BlockBed) error) func(context.Context, Options) ([]Metric, error) {
	return func(ctx context.Context, o Options) (_ []Metric, err error) {
		bed, err := NewBlockBed(o.Dir)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, bed.Close()) }()
		for _, f := range add {
			if err := f(bed); err != nil {
				return nil, err
			}
		}
		all, err := Block(ctx, BlockOptions{Duration: max(o.Duration/blockTurns, 10*time.Millisecond), Turns: blockTurns, WorkerCPU: o.WorkerCPU, GuestCPU: o.GuestCPU},
			bed.Peers)
		if err != nil {
			return nil, err
		}
		return blockMetrics(all, len(bed.Peers)), nil
	}
}

func blockMetrics(all []BlockResult, peers int) (m []Metric) {
	for i := range all {
		r, first := &all[i], &all[i/peers*peers]
		name := fmt.Sprintf("%v %s", r.Cell, r.Peer)
		m = append(m, Metric{name, "kIOPS", r.Rate() / 1e3, +1}, Metric{name + " per CPU", "kIOPS", r.PerCPU() / 1e3, +1})
		if r.Server > 0 {
			m = append(m, Metric{name + " server", "us", float64(r.Server.Microseconds()) / float64(max(r.Requests, 1)), 0})
		}
		if r != first && r.PerCPU() > 0 {
			m = append(m, Metric{fmt.Sprintf("%v %s : %s per CPU", r.Cell, first.Peer, r.Peer), "", first.PerCPU() / r.PerCPU(), +1})
		}
		if r.Latency.Count() > 0 {
			m = append(m, Metric{name + " median", "us", float64(r.Latency.Quantile(.5)) / 1e3, -1},
				Metric{name + " p99", "us", float64(r.Latency.Quantile(.99)) / 1e3, 0})
		}
	}
	return m
}

func buffered(f func(*BlockBed, bool) error) func(*BlockBed) error {
	return func(b *BlockBed) error { return f(b, false) }
}

func direct(f func(*BlockBed, bool) error) func(*BlockBed) error {
	return func(b *BlockBed) error { return f(b, true) }
}

func blockScenarios() []Scenario {
	return []Scenario{
		{"blk-memory", "a disk in memory, and one that keeps nothing: what the virtio-blk device itself costs",
			blockScenario((*BlockBed).Null, (*BlockBed).Memory)},
		{"blk-file", "a file in the page cache, beside qemu-storage-daemon and fio",
			blockScenario(buffered((*BlockBed).File), buffered((*BlockBed).Interrupt), buffered((*BlockBed).StorageDaemon), buffered((*BlockBed).Fio))},
		{"blk-file-direct", "a file past the page cache (O_DIRECT), beside qemu-storage-daemon and fio",
			blockScenario(direct((*BlockBed).File), direct((*BlockBed).Interrupt), direct((*BlockBed).StorageDaemon), direct((*BlockBed).Fio))},
	}
}
