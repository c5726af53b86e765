package lab

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/hostile"
	"github.com/shuntio/shunt/blk/driver/verify"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"github.com/shuntio/shunt/tools/need"
)

// TestVolumeHoles: guests give memory back that requests under way point to, by holes in the file behind it, as a balloon does, and by cutting that file short, which no
// honest one does. Stores that read and write guest memory in each of their ways have it so: through pages that were registered, through pages of the moment, and through
// a socket. The daemon lives, requests are answered, and the neighbour on the same worker loses nothing. Memory that was registered is so anew when the front-end gives it anew.
func TestVolumeHoles(t *testing.T) {
	rounds := 20
	if need.Soak() {
		rounds = 2000
	}
	ctx := within(t, 2*time.Minute+time.Duration(rounds)*50*time.Millisecond)
	s := newShelf(t, "[1]")
	names := []string{"registered", "plain", "nbd"}
	s.file(t, "registered", ", registered-buffers: true")
	s.file(t, "plain", "")
	s.blank(t, "nbd", shelfDisk)
	s.nbdkit(t, "nbd", "file", s.image("nbd"))
	s.volume("nbd", s.nbd("nbd"), ", quiesce: 50ms")
	s.file(t, "neighbour", "")
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	pid := d.PID()
	neighbour := s.user(t, "neighbour", ringForms["packed"], verify.Options{MaxBytes: 64 << 10})
	neighbour.begin(t)
	for _, name := range names {
		for ring, o := range ringForms {
			s.punch(t, ctx, name, o, rounds)
			s.shrink(t, ctx, name, o.Packed)
			if err := moves(ctx, 10, neighbour); err != nil || d.PID() != pid || !d.Running() {
				t.Fatalf("after holes in %s rings of volume %s: %v", ring, name, err)
			}
		}
	}
	neighbour.end(t)
	neighbour.check(t)
	neighbour.checkImage(t, s.image("neighbour"))
	if w := warnings(d, "neighbour"); w != "" {
		t.Errorf("the log blames the neighbour:\n%s", w)
	}
}

// punch makes holes in memory that requests under way point to.
func (s *shelf) punch(t *testing.T, ctx context.Context, name string, o driver.Options, rounds int) {
	t.Helper()
	const depth, length = 16, 64 << 10
	o.Memory = depth*length + length
	disk := s.dial(t, name, o)
	data, err := disk.Alloc(depth * length)
	must(t, err)
	q, done := disk.Queue(0), make([]*driver.Request, depth)
	nowhere := 0
	for round := range rounds {
		for i := range data.Bytes {
			data.Bytes[i] = byte(round + 1)
		}
		var requests []*driver.Request
		for i := range depth {
			r := &driver.Request{Op: driver.In, Sector: uint64(i * length / driver.SectorSize), Data: []virtq.Buffer{data.Segment(i*length, length)}}
			if i%2 == round%2 {
				r.Op = driver.Out
			}
			must(t, q.Submit(r))
			requests = append(requests, r)
		}
		q.Kick()
		must(t, disk.PunchHole(data))
		for n := 0; n < depth; {
			if !q.Wait(10*time.Second) || ctx.Err() != nil {
				t.Fatalf("holes under volume %s: %s", name, q.Stuck())
			}
			k, err := q.Poll(done)
			must(t, err)
			n += k
		}
		for i, r := range requests {
			if r.Status != driver.OK {
				t.Fatalf("holes under volume %s: %v ended with %v", name, r.Op, r.Status)
			}
			if r.Op == driver.In && data.Bytes[i*length] == 0 {
				nowhere++
			}
		}
	}
	// The front-end takes the memory away and gives it again: whatever was registered is gone, and what lies there is right.
	for _, n := range []int{1, 2} {
		must(t, disk.Frontend(func(f *vhostuser.Frontend) error { return f.SetMemory(disk.Regions()[:n]...) }))
	}
	y, err := disk.NewSync(0, length) // memory that no request has used yet
	must(t, err)
	wrote, read := bytes.Repeat([]byte(name), length)[:length], make([]byte, length)
	_, err = y.WriteAt(wrote, 0)
	must(t, err)
	_, err = y.ReadAt(read, 0)
	must(t, err)
	if !bytes.Equal(wrote, read) {
		t.Errorf("volume %s: after holes, memory that was given anew has other data", name)
	}
	must(t, y.Flush())
	must(t, disk.Close())
	t.Logf("volume %s: %d of %d reads left nothing where there are holes now", name, nowhere, rounds*depth/2)
}

// shrink cuts the memory's file short under requests, and takes regions away.
func (s *shelf) shrink(t *testing.T, ctx context.Context, name string, packed bool) {
	t.Helper()
	o := hostile.Options{Path: s.socket(name), Packed: packed, Inflight: true, Silence: 30 * time.Millisecond}
	must(t, hostile.Prepare(ctx, o))
	n := 0
	for _, a := range hostile.Attacks(packed) {
		if !strings.Contains(a.Name, "truncated") && !strings.Contains(a.Name, "buffers removed") {
			continue
		}
		n++
		if err := attack(ctx, a, o); err != nil {
			t.Errorf("volume %s, %s: %v", name, a.Name, err)
		}
	}
	if n < 4 {
		t.Errorf("only %d attacks on memory are left", n)
	}
}
