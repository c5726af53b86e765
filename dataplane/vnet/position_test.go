package vnet_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// stateDir is a place in memory for state files.
func stateDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "shunt-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// formats are the kinds of rings.
var formats = map[string]uint64{
	"split": 0, "split in order": vnet.FeatureInOrder, "packed": vnet.FeaturePacked, "packed in order": vnet.FeaturePacked | vnet.FeatureInOrder,
}

// life is a guest whose device is killed now and then, between any two of its stores.
type life struct {
	testing.TB
	file     string
	owner    string
	worker   *dataplane.Worker
	guest    *vnettest.Guest
	dev      *vnet.Device
	port     *vnet.Pair
	vector   [dataplane.Quantum]*frame.Frame
	packed   bool
	used     [2]int // descriptors used of each ring, as published
	sent     uint32 // numbers of frames
	seen     uint32 // those that the device received; the next new one
	made     uint32
	got      uint32
	restarts int
	base     [2]*uint32 // what the front-end knows; nil: the beginning
}

const lifeRing = 8

func newLife(t testing.TB, file string, features uint64) *life {
	l := &life{TB: t, file: file, worker: newWorker(t, 64), packed: features&vnet.FeaturePacked != 0}
	var err error
	l.guest, err = vnettest.New(vnettest.Options{QueueSize: lifeRing, BufferSize: 256, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | features})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.guest.Close)
	l.start()
	return l
}

// start is a new process.
func (l *life) start() {
	link := &dataplane.Link{Counters: &dataplane.Counters{}}
	var err error
	l.dev, err = vnet.New(vnet.Options{Pairs: []vnet.PairOptions{{Worker: l.worker, Link: link}}, StateFile: l.file,
		StateOwner: l.owner, Failed: func(err error) { l.Fatal(err) }})
	if err != nil {
		l.Fatal(err)
	}
	l.port = link.Port.(*vnet.Pair)
	err = l.dev.SetFeatures(l.guest.Features())
	if err == nil {
		err = l.dev.SetMemory(regions(l.guest))
	}
	for q := range 2 {
		c := l.guest.Vring(q)
		if l.base[q] != nil {
			c.Base = *l.base[q]
		}
		if err == nil {
			err = l.dev.StartVring(c)
		}
	}
	if err != nil {
		l.Fatal(err)
	}
}

// end is the end of one; nothing is written any more.
func (l *life) end() {
	memory := bytes.Clone(l.guest.Memory[:lifeTables])
	if err := l.dev.Close(); err != nil {
		l.Fatal(err)
	}
	if !bytes.Equal(memory, l.guest.Memory[:lifeTables]) {
		l.Fatal("the end of a device wrote to the guest's memory")
	}
}

// world is what outlives a process: the tables of the rings, and what the file says of each.
type world struct {
	memory []byte
	file   [2][]byte
}

const (
	lifeTables = 3 * 4096               // all tables lie in the first pages
	slotBytes  = 4096 + 8*virtq.MaxSize // of the file, behind its first page
)

func (l *life) world() (w world) {
	w.memory = bytes.Clone(l.guest.Memory[:lifeTables])
	for q := range w.file {
		w.file[q] = make([]byte, 64+8*lifeRing)
	}
	f, err := os.Open(l.file)
	if !l.packed && errors.Is(err, fs.ErrNotExist) {
		return w // nothing is known of split rings
	}
	if err != nil {
		l.Fatal(err)
	}
	defer f.Close()
	for q := range w.file {
		if _, err := f.ReadAt(w.file[q], int64(4096+q*slotBytes)); err != nil {
			l.Fatal(err)
		}
	}
	return w
}

// store is one store that a process made.
type store struct {
	file     bool
	at       int
	old, new []byte
}

func (l *life) undo(s store) {
	if !s.file {
		copy(l.guest.Memory[s.at:], s.old)
		return
	}
	f, err := os.OpenFile(l.file, os.O_WRONLY, 0)
	if err != nil {
		l.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(s.old, int64(s.at)); err != nil {
		l.Fatal(err)
	}
}

// stores are those between two states, in the order in which publish makes them: the file's, its span last; the ring's, the first descriptor
// or the index last. Data in buffers is left out.
func (l *life) stores(a, b world, queue int) (all []store) {
	slot := 4096 + queue*slotBytes
	diff := func(file bool, x, y []byte, from, to, step int) {
		for at := from; at < to; at += step {
			if !bytes.Equal(x[at:at+step], y[at:at+step]) {
				s := store{file, at, x[at : at+step], y[at : at+step]}
				if file {
					s.at += slot
				}
				all = append(all, s)
			}
		}
	}
	diff(true, a.file[queue], b.file[queue], 8, 64+8*lifeRing, 8)
	diff(true, a.file[queue], b.file[queue], 0, 8, 8)
	layout := l.guest.Layout(queue)
	desc := len(l.guest.Memory) - len(layout.Desc)
	used := len(l.guest.Memory) - len(layout.Used)
	if l.packed {
		first := l.used[queue] % lifeRing
		for i := 1; i <= lifeRing; i++ {
			at := desc + 16*((first+i)%lifeRing) + 8
			diff(false, a.memory, b.memory, at, at+8, 8)
		}
	} else {
		diff(false, a.memory, b.memory, used+4, used+4+8*lifeRing, 4)
		diff(false, a.memory, b.memory, used+2, used+4, 2)
	}
	return all
}

// number is a frame that can be told from others.
func number(n uint32) []byte {
	b := make([]byte, 60)
	binary.BigEndian.PutUint32(b[14:], n)
	for i := 18; i < 60; i++ {
		b[i] = byte(n) + byte(i)
	}
	return b
}

func (l *life) numberOf(b []byte) uint32 {
	n := binary.BigEndian.Uint32(b[14:])
	if !bytes.Equal(b, number(n)) {
		l.Fatalf("a torn frame %x", b)
	}
	return n
}

// send has the guest send frames and the device receive what there is.
func (l *life) send(n int) {
	for range n {
		if l.guest.Send(number(l.sent)) == nil {
			l.sent++
		}
	}
	got := l.vector[:l.port.Receive(l.vector[:], l.worker.Pool())]
	for _, f := range got {
		k := l.numberOf(f.Head())
		if k > l.seen {
			l.Fatalf("frame %d was received before %d", k, l.seen)
		}
		l.seen = max(l.seen, k+1)
	}
	l.worker.Pool().PutAll(got)
}

// transmit has the device send frames, so many as the guest has buffers for.
func (l *life) transmit(n int) {
	for i := range n {
		f := l.worker.Pool().Get()
		copy(f.Append(60), number(l.made))
		l.made++
		l.vector[i] = f
	}
	l.port.Transmit(l.vector[:n], l.worker.Pool())
	l.worker.Pool().PutAll(l.vector[:n])
}

// drain has the guest take what arrived: in order, each at most once.
func (l *life) drain() (n int) {
	for {
		b, err := l.guest.Recv()
		if err != nil {
			l.Fatal(err)
		}
		if b == nil {
			return n
		}
		k := l.numberOf(b)
		if k < l.got {
			l.Fatalf("frame %d came again, or after %d", k, l.got-1)
		}
		l.got = k + 1
		n++
	}
}

// publish does what publishes a batch of a queue, kills the process after so many stores, if that many are made, and starts another one, which
// is killed, too, while it starts. It tells how many stores there were.
func (l *life) publish(queue int, do func(), kill int) (n int) {
	before := l.world()
	do()
	all := l.stores(before, l.world(), queue)
	shown := kill < 0 || kill >= len(all)
	if kill >= 0 && kill <= len(all) {
		for i := len(all) - 1; i >= kill; i-- {
			l.undo(all[i])
		}
		crashed := l.world()
		l.end()
		l.start()
		// It started; then it had not, quite. What it brings in order, it brings in order again.
		l.end()
		again := l.stores(crashed, l.world(), queue)
		slices.SortStableFunc(again, func(a, b store) int { return cmp.Compare(b2i(a.file), b2i(b.file)) }) // the file comes last here
		for _, s := range again[len(again)/2:] {
			l.undo(s)
		}
		l.start()
		l.restarts++
	}
	if shown {
		l.used[queue] += l.completed(all, queue)
	}
	return len(all)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// completed is how many descriptors a batch used.
func (l *life) completed(all []store, queue int) int {
	if len(all) == 0 {
		return 0
	}
	if !l.packed {
		last := all[len(all)-1]
		return int(binary.LittleEndian.Uint16(last.new) - binary.LittleEndian.Uint16(last.old))
	}
	for _, s := range all {
		if s.file && s.at == 4096+queue*slotBytes {
			span := binary.LittleEndian.Uint64(s.new)
			return (int(span>>16&0x7fff)-int(span&0x7fff)+lifeRing-1)%lifeRing + 1
		}
	}
	return 0
}

// A guest goes on, whenever its device was killed: no chain is lost, none comes back twice.
func TestKilledBetweenStores(t *testing.T) {
	for name, features := range formats {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(stateDir(t), "state")
			const batches = 9
			kills := 0
			for batch := range batches {
				for queue := range 2 {
					for kill := 0; ; kill++ {
						l := newLife(t, file, features)
						stores := 0
						for i := range batches {
							at := [2]int{-1, -1}
							if i == batch {
								at[queue] = kill
							}
							l.send(1 + i%4)
							n := l.publish(0, func() { l.transmit(1 + (i*3)%5) }, at[0])
							if at[1] >= 0 && l.restarts > 0 {
								t.Fatal("killed twice")
							}
							m := l.publish(1, l.port.Release, at[1])
							if at[0] >= 0 {
								l.send(0) // what was not released comes again
								l.publish(1, l.port.Release, -1)
							}
							if i == batch {
								stores = [2]int{n, m}[queue]
							}
							l.drain()
						}
						kills += l.restarts
						l.finish()
						l.end()
						if kill > stores {
							break
						}
					}
				}
			}
			t.Logf("killed %d times", kills)
			if kills < 2*batches*2 {
				t.Errorf("killed only %d times", kills)
			}
		})
	}
}

// finish sees that everything still moves: three rounds of both rings.
func (l *life) finish() {
	l.Helper()
	for range 3 * lifeRing {
		l.send(1)
		l.port.Release()
		l.transmit(1)
		if l.drain() != 1 {
			l.Fatalf("frame %d did not arrive", l.made-1)
		}
	}
	if err := l.guest.Send(number(l.sent)); err != nil {
		l.Fatal(err)
	}
	l.sent++
	l.send(0)
	l.port.Release()
	if l.seen != l.sent {
		l.Fatalf("%d frames sent, %d received", l.sent, l.seen)
	}
	if n := l.guest.Sent; n != uint64(l.sent)-1 { // the last one is taken back with the next one
		l.Fatalf("%d of %d chains came back", n, l.sent)
	}
}

// Without the file, a packed ring goes on where the front-end says.
func TestFrontEndsBase(t *testing.T) {
	b := newBed(t, modern|vnet.FeaturePacked)
	for i := range 5 {
		b.offer(i*1024, 500)
	}
	b.transmit(counting(60), counting(60), counting(60))
	base, err := b.dev.StopVring(0)
	if want := uint32(virtq.PackedStart | 3); err != nil || base != want|want<<16 {
		t.Fatalf("base %#x, %v", base, err)
	}
	c := b.vring(0)
	for _, mask := range []uint32{0xffff_ffff, 0xffff} { // DPDK's virtio-user knows one half
		c.Base = base & mask
		if err := b.dev.StartVring(c); err != nil {
			t.Fatal(err)
		}
		b.transmit(counting(61))
		if base, err = b.dev.StopVring(0); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []uint32{72, 72, 72, 73, 73} {
		if _, n, ok := b.used(); !ok || n != want {
			t.Errorf("%d bytes, %v, want %d", n, ok, want)
		}
	}
	for _, wrong := range []uint32{bedQueue | virtq.PackedStart, 0x7fff} {
		c.Base = wrong | wrong<<16
		if err := b.dev.StartVring(c); err == nil {
			t.Errorf("base %#x was believed", wrong)
		}
	}
}

// The file is believed of the ring it speaks of, and of no other.
func TestStateFileOfAnotherLife(t *testing.T) {
	for name, change := range map[string]func(l *life){
		"the driver began anew": func(l *life) {
			if err := l.guest.Restart(); err != nil {
				l.Fatal(err)
			}
		},
		"the driver began anew and numbered its descriptors": func(l *life) { // as DPDK does
			if err := l.guest.Restart(); err != nil {
				l.Fatal(err)
			}
			if l.guest.Features()&vnet.FeaturePacked == 0 {
				return
			}
			for i, desc := 0, l.guest.Layout(1).Desc; i < lifeRing; i++ {
				binary.LittleEndian.PutUint16(desc[16*i+12:], uint16(i))
			}
		},
		"another guest": func(l *life) {
			features := l.guest.Features()
			l.guest.Close()
			var err error
			if l.guest, err = vnettest.New(vnettest.Options{QueueSize: lifeRing, BufferSize: 256, Features: features}); err != nil {
				l.Fatal(err)
			}
			l.Cleanup(l.guest.Close)
		},
	} {
		for format, features := range formats {
			for batches := range 2 * lifeRing {
				t.Run(fmt.Sprintf("%s, %s, after %d", name, format, batches), func(t *testing.T) {
					l := newLife(t, filepath.Join(stateDir(t), "state"), features)
					for range batches {
						l.send(1)
						l.port.Release()
						l.transmit(1)
						l.drain()
					}
					l.end()
					change(l)
					l.sent, l.seen, l.guest.Sent = 0, 0, 0
					for range batches % (lifeRing + 1) { // what it sent meanwhile
						if l.guest.Send(number(l.sent)) == nil {
							l.sent++
						}
					}
					l.start()
					l.send(0)
					l.port.Release()
					l.finish()
					l.end()
				})
			}
		}
	}
}

// A guest that was elsewhere meanwhile, and comes back in other memory, goes on where its front-end says.
func TestStateFileOfAMigratedGuest(t *testing.T) {
	for format, features := range formats {
		for away := range 5 {
			t.Run(fmt.Sprintf("%s, %d", format, away), func(t *testing.T) {
				dir := stateDir(t)
				l := newLife(t, filepath.Join(dir, "here"), features)
				travel := func(file string, batches int) {
					for q := range l.base {
						base, err := l.dev.StopVring(q)
						if err != nil {
							t.Fatal(err)
						}
						l.base[q] = &base
					}
					l.end()
					if err := l.guest.MoveMemory(); err != nil {
						t.Fatal(err)
					}
					l.file = filepath.Join(dir, file)
					l.start()
					for range batches {
						l.send(1)
						l.port.Release()
						l.transmit(1)
						l.drain()
					}
				}
				travel("here", 3)
				travel("there", away)
				travel("here", 0)
				l.finish()
				l.end()
			})
		}
	}
}

func TestStateFileRefuses(t *testing.T) {
	link := func() *dataplane.Link { return &dataplane.Link{Counters: &dataplane.Counters{}} }
	open := func(file string) (*vnet.Device, error) {
		return vnet.New(vnet.Options{Pairs: []vnet.PairOptions{{Worker: newWorker(t, 1), Link: link()}}, StateFile: file})
	}
	dir := stateDir(t)
	if _, err := open(filepath.Join(dir, "none", "state")); err == nil {
		t.Error("in a directory that is not there")
	}
	target := filepath.Join(dir, "link")
	if err := os.Symlink("elsewhere", target); err != nil {
		t.Fatal(err)
	}
	if _, err := open(target); err == nil {
		t.Error("through a symbolic link")
	}
	d, err := open(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(filepath.Join(dir, "state")); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("twice: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "state")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// What is in it and makes no sense does no harm.
	for _, content := range []string{"", "nonsense", strings.Repeat("\xff", 4096+2*(4096+8*virtq.MaxSize))} {
		if err := os.WriteFile(filepath.Join(dir, "state"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		l := newLife(t, filepath.Join(dir, "state"), vnet.FeaturePacked)
		l.finish()
		l.end()
	}
	if _, err := open("/proc/version"); err == nil {
		t.Error("on a file system that is none")
	}
}
