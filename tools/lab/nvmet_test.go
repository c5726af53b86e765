package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/need"
)

// nvmetName is the subsystem's.
const nvmetName = "nqn.2026-11.io.shunt:lab"

// nvmetUp makes a subsystem and lets TCP reach it: namespace 1 is a block device of 32 MiB, 7 a file of 8 MiB. What they hold outlives nvmetDown.
const nvmetUp = `
set -e
mount -t configfs none /sys/kernel/config 2>/dev/null || true
if [ ! -e /run/disk ]; then
	dd if=/dev/zero of=/run/disk bs=1M count=32 2>/dev/null
	losetup /dev/loop0 /run/disk
	dd if=/dev/zero of=/run/file bs=1M count=8 2>/dev/null
fi
cd /sys/kernel/config/nvmet
mkdir subsystems/` + nvmetName + `
cd subsystems/` + nvmetName + `
echo 1 >attr_allow_any_host
mkdir namespaces/1 namespaces/7
echo -n /dev/loop0 >namespaces/1/device_path
echo 6a0f9e64-1d5b-4c1f-9d7e-000000000001 >namespaces/1/device_uuid
echo 1 >namespaces/1/enable
echo -n /run/file >namespaces/7/device_path
echo 1 >namespaces/7/buffered_io
echo 1 >namespaces/7/enable
cd ../..
mkdir ports/1
cd ports/1
echo ipv4 >addr_adrfam
echo tcp >addr_trtype
echo 4420 >addr_trsvcid
echo 0.0.0.0 >addr_traddr
ln -s /sys/kernel/config/nvmet/subsystems/` + nvmetName + ` subsystems/
`

const nvmetDown = `
set -e
cd /sys/kernel/config/nvmet
rm ports/1/subsystems/*
rmdir ports/1
rmdir subsystems/` + nvmetName + `/namespaces/* subsystems/` + nvmetName + `
`

// The target of Debian's kernel, in a guest: digests off and on, requests of all sizes, a target that goes away and comes back in the middle, a namespace that grows.
func TestNVMeTarget(t *testing.T) {
	need.Time(t, "boots a guest")
	need.Program(t, "qemu-system-x86_64", "apt-get", "dpkg-deb")
	img, err := guest.Build(t.Context(), guest.Recipe{Modules: []string{"nvmet_tcp", "loop", "ext4", "crc32c_generic"}, Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	at := freePort(t)
	g := boot(t, guest.Options{Name: "nvmet", Image: img, Forwards: []guest.Forward{{Host: at, Guest: 4420}}})
	shell := func(script string) {
		t.Helper()
		if out, err := g.Shell(t.Context(), script); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	address(t, g, "eth0", 1500, "10.0.2.15/24")
	shell(nvmetUp)
	t.Run("discovery", func(t *testing.T) {
		log, err := nvmetcp.Discover(within(t, time.Minute), at)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range log.Entries {
			names = append(names, e.Subsystem+" "+e.NQN+" "+e.Service)
		}
		if !strings.Contains(strings.Join(names, "; "), "nvm "+nvmetName+" 4420") {
			t.Errorf("the log has %v", names)
		}
	})
	for _, digests := range []bool{false, true} {
		t.Run(fmt.Sprintf("digests %v", digests), func(t *testing.T) {
			u := openNVMe(t, nvmetcp.Options{Address: at, NQN: nvmetName, KATO: 2 * time.Second, HeaderDigest: digests, DataDigest: digests})
			if i := u.store.Info(); i.Size != 32<<20 || !i.Flush || !i.Discard || !i.WriteZeroes || i.Lifetime != nil || !strings.Contains(i.Describe, "uuid 6a0f9e64-1d5b") {
				t.Errorf("info %+v", i)
			}
			t.Log(u.store.Info().Describe)
			u.verify(t, 12, nil)
		})
	}
	t.Run("restart", func(t *testing.T) {
		for _, digests := range []bool{false, true} {
			u := openNVMe(t, nvmetcp.Options{Address: at, NQN: nvmetName, KATO: time.Second, DataDigest: digests})
			u.verify(t, 30, func() {
				shell(nvmetDown)
				shell(nvmetUp)
			})
			if n := u.store.State().Reconnects; n == 0 {
				t.Error("it has not reconnected")
			}
		}
	})
	t.Run("volumes", func(t *testing.T) { nvmeVolumes(t, g, at) })
	t.Run("resize", func(t *testing.T) {
		w := make(nvmeWatcher, 8)
		u := openNVMe(t, nvmetcp.Options{Address: at, NQN: nvmetName, NSID: 7, Watcher: w})
		if err := u.do(blk.OpWriteZeroes, 0, 4096, nil); err == nil {
			t.Error("tmpfs has zeroed a range")
		}
		shell("dd if=/dev/zero of=/run/file bs=1M seek=40 count=0 2>/dev/null; echo 1 >/sys/kernel/config/nvmet/subsystems/" + nvmetName + "/namespaces/7/revalidate_size")
		select {
		case i := <-w:
			if i.Size != 40<<20 {
				t.Errorf("size %d, want 40 MiB", i.Size)
			}
		case <-time.After(time.Minute):
			t.Fatal("no word of the new size")
		}
		if i := u.store.Info(); i.Size != 40<<20 {
			t.Errorf("info %+v", i)
		}
	})
	shell("true") // QEMU is still there
	t.Run("wrong", func(t *testing.T) {
		for want, o := range map[string]nvmetcp.Options{
			"has no namespace 2 for this host; it has [1 7]": {NQN: nvmetName, NSID: 2},
			"there is none of that name here":                {NQN: nvmetName + "x"},
		} {
			o.Address = at
			s, err := nvmetcp.Open(within(t, time.Minute), o)
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			}
		}
	})
	t.Run("hangs", func(t *testing.T) { nvmeHangs(t, at, shell) })
}

// nvmetFrozen makes namespace 9 of a disk that lies in a file system which can be frozen: then what is written hangs in it.
const nvmetFrozen = `
set -e
dd if=/dev/zero of=/run/fs bs=1M count=12 2>/dev/null
mke2fs -F /run/fs >/dev/null
mkdir /run/mnt
mount -t ext4 -o loop /run/fs /run/mnt
dd if=/dev/zero of=/run/mnt/file bs=1M count=8 2>/dev/null
losetup /dev/loop7 /run/mnt/file
sync
cd /sys/kernel/config/nvmet/subsystems/` + nvmetName + `
mkdir namespaces/9
echo -n /dev/loop7 >namespaces/9/device_path
echo 1 >namespaces/9/enable
`

// nvmeHangs has the disk hang with a write in it for longer than a command's timeout and the keep-alive time. The target says at once that the controller is disabled; the lane is up again
// when the write has ended, and not before.
func nvmeHangs(t *testing.T, at string, shell func(string)) {
	shell(nvmetFrozen)
	u := openNVMe(t, nvmetcp.Options{Address: at, NQN: nvmetName, NSID: 9, KATO: time.Second, CommandTimeout: 300 * time.Millisecond, Quiesce: time.Minute})
	is := func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		return u.isUp
	}
	wait := func(up bool) {
		u.mu.Lock()
		defer u.mu.Unlock()
		for u.isUp != up {
			u.up.Wait()
		}
	}
	shell("fsfreeze --freeze /run/mnt")
	defer shell("fsfreeze --unfreeze /run/mnt 2>/dev/null || true")
	j := &nvmeJob{Request: blk.Request{Op: blk.OpWrite, Length: 4096, Buffers: [][]byte{u.memory[:4096]}}, done: make(chan blk.Outcome, 1)}
	j.Handler = j
	for taken := false; !taken; { // on a busy machine the emulated one is not always within the commands' time
		wait(true)
		u.worker.Do(func() { taken = u.lane.Submit(&j.Request) })
	}
	if o := <-j.done; o != blk.Lost {
		t.Errorf("outcome %d, want Lost", o)
	}
	time.Sleep(3 * time.Second) // longer than a target waits for a sign of life
	why := u.store.State().Why
	if t.Log(why); is() || why == nil || !strings.Contains(why.Error(), "its disk may hang") {
		t.Errorf("the lane is up: %v, while a write hangs in the target's disk: %v", is(), why)
	}
	shell("fsfreeze --unfreeze /run/mnt")
	ended := time.Now()
	wait(true)
	if d := time.Since(ended); d > 30*time.Second {
		t.Errorf("the lane is up again %v after the write has ended", d)
	}
	if err := u.do(blk.OpWrite, 0, 4096, u.memory[:4096]); err != nil {
		t.Error(err)
	}
}

// freePort is an address of this host that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

type nvmeWatcher chan blk.Info

func (w nvmeWatcher) Changed(i blk.Info) { w <- i }

// nvmeUser has a lane of a store, on a worker of its own, and gives it requests as a guest's queue does, but from goroutines.
type nvmeUser struct {
	store  *nvmetcp.Store
	worker *dataplane.Worker
	lane   blk.Lane
	memory []byte

	mu   sync.Mutex
	up   *sync.Cond
	isUp bool
	gone bool
	lost int // requests that were, and were submitted again
}

func (u *nvmeUser) Poll() int          { return 0 }
func (u *nvmeUser) Flush()             { u.lane.Flush() }
func (u *nvmeUser) Arm() time.Duration { return dataplane.Forever }
func (u *nvmeUser) Pending() bool      { return false }
func (u *nvmeUser) Disarm()            {}
func (u *nvmeUser) Up(bool)            { u.set(true) }
func (u *nvmeUser) Down(error)         { u.set(false) }
func (u *nvmeUser) Room()              { u.up.Broadcast() }

func (u *nvmeUser) set(up bool) {
	u.mu.Lock()
	u.isUp = up
	u.mu.Unlock()
	u.up.Broadcast()
}

const (
	nvmeStreams = 6
	nvmeStream  = 5 << 20 // of the disk, and of the memory, twice: what is there, and what was read
)

func openNVMe(t *testing.T, o nvmetcp.Options) *nvmeUser {
	t.Helper()
	o.HostNQN, o.HostID = "nqn.2026-11.io.shunt:lab-host", [16]byte{7}
	o.ConnectTimeout = 30 * time.Second // an emulated CPU
	o.ReconnectDelay = 200 * time.Millisecond
	s, err := nvmetcp.Open(within(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	m, err := uring.NewMemory(nvmeStreams * 2 * nvmeStream)
	if err != nil {
		t.Fatal(err)
	}
	u := &nvmeUser{store: s, worker: dataplanetest.NewWorker(t, 64), memory: m.Bytes()}
	u.up = sync.NewCond(&u.mu)
	ring, err := uring.Open(uring.Options{Entries: 256})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- u.worker.Run() }()
	for u.worker.Stats().Rounds.Load() == 0 { // until then, Do would run here
		time.Sleep(time.Millisecond)
	}
	u.worker.Do(func() {
		if err = ring.Enable(); err == nil {
			u.worker.Watch(ring.FD(), unix.POLLIN, true)
			u.worker.Add(ring)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if u.lane, err = s.Open(blk.Host{Worker: u.worker, Ring: ring}, u); err != nil {
		t.Fatal(err)
	}
	u.worker.Do(func() { u.worker.Add(u) })
	t.Cleanup(func() {
		u.mu.Lock()
		u.gone = true
		u.mu.Unlock()
		u.up.Broadcast()
		u.worker.Do(func() {
			u.worker.Remove(u)
			u.lane.Close()
			u.worker.Remove(ring)
			u.worker.Unwatch(ring.FD())
			if err := ring.Close(); err != nil {
				t.Error(err)
			}
		})
		u.worker.Stop()
		<-ended
		m.Free()
	})
	return u
}

type nvmeJob struct {
	blk.Request
	done chan blk.Outcome
}

func (j *nvmeJob) Done(_ *blk.Request, o blk.Outcome) { j.done <- o }

// do is one request, again as often as it is lost.
func (u *nvmeUser) do(op blk.Op, offset, length uint64, b []byte) error {
	j := &nvmeJob{Request: blk.Request{Op: op, Offset: offset, Length: length}, done: make(chan blk.Outcome, 1)}
	j.Handler = j
	if b != nil {
		cut := len(b) / 3
		j.Buffers = [][]byte{b[:cut], b[cut:]}
	}
	for {
		u.mu.Lock()
		for !u.isUp && !u.gone {
			u.up.Wait()
		}
		gone := u.gone
		u.mu.Unlock()
		if gone {
			return errors.New("the test is over")
		}
		taken := false
		u.worker.Do(func() { taken = u.lane.Submit(&j.Request) })
		if !taken {
			time.Sleep(time.Millisecond)
			continue
		}
		switch o := <-j.done; o {
		case blk.OK:
			return nil
		case blk.Lost:
			u.mu.Lock()
			u.lost++
			u.mu.Unlock()
		default:
			return fmt.Errorf("%v of %d bytes at %d: outcome %d", op, length, offset, o)
		}
	}
}

// verify writes and reads in several streams, each in a part of the disk of its own, and compares all of it at the end. midway runs when half of the requests are
// through.
func (u *nvmeUser) verify(t *testing.T, rounds int, midway func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	half := make(chan bool, nvmeStreams)
	ended := make(chan error, nvmeStreams)
	for i := range nvmeStreams {
		go func() { ended <- u.stream(i, rounds, half) }()
	}
	if midway != nil {
		for range nvmeStreams / 2 {
			<-half
		}
		midway()
	}
	for range nvmeStreams {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-ctx.Done():
			t.Fatalf("the streams did not end: %+v", u.store.State())
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	t.Logf("%d requests were lost and submitted again", u.lost)
}

func (u *nvmeUser) stream(i, rounds int, half chan<- bool) error {
	r := rand.New(rand.NewPCG(uint64(i), uint64(rounds)))
	there, read := u.memory[2*i*nvmeStream:][:nvmeStream], u.memory[(2*i+1)*nvmeStream:][:nvmeStream]
	base := uint64(i * nvmeStream)
	if err := u.do(blk.OpWriteZeroes, base, nvmeStream, nil); err != nil {
		return err
	}
	clear(there)
	for round := range rounds {
		if round == rounds/2 {
			half <- true
		}
		n := 512 << r.IntN(12) // up to 1 MiB
		at := r.IntN((nvmeStream-n)/512+1) * 512
		part := there[at : at+n]
		for j := range part {
			part[j] = byte(r.Uint32())
		}
		if err := u.do(blk.OpWrite, base+uint64(at), uint64(n), part); err != nil {
			return err
		}
		if round%5 == 4 {
			if err := u.do(blk.OpFlush, 0, 0, nil); err != nil {
				return err
			}
		}
		if round%3 == 2 {
			at = min(at, nvmeStream-64<<10)
			clear(there[at:][:64<<10])
			if err := u.do(blk.OpWriteZeroes, base+uint64(at), 64<<10, nil); err != nil {
				return err
			}
		}
		if err := u.do(blk.OpRead, base+uint64(at), uint64(n), read[:n]); err != nil {
			return err
		}
		if !bytes.Equal(read[:n], there[at:][:n]) {
			return fmt.Errorf("stream %d, round %d: other data was read than was written, %d bytes at %d", i, round, n, at)
		}
	}
	for at := 0; at < nvmeStream; at += 1 << 20 {
		if err := u.do(blk.OpRead, base+uint64(at), 1<<20, read[at:][:1<<20]); err != nil {
			return err
		}
	}
	if !bytes.Equal(read, there) {
		return fmt.Errorf("stream %d: the disk has other data at the end than was written", i)
	}
	return nil
}
