package nvmetcp

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
	"github.com/shuntio/shunt/dataplane/uring"
)

// Every way of moving data, against every way a target may want it.
func TestTransfers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		target nvmetcptest.Options
		hdgst  bool
		ddgst  bool
	}{
		{name: "in capsule", target: nvmetcptest.Options{InCapsule: 16 << 10}},
		{name: "R2T", target: nvmetcptest.Options{}},
		{name: "small PDUs", target: nvmetcptest.Options{MaxH2CData: 4096, MaxC2HData: 4096, MaxR2T: 64 << 10, NoSuccess: true}},
		{name: "odd PDUs", target: nvmetcptest.Options{MaxH2CData: 12 << 10, MaxC2HData: 20 << 10, MaxR2T: 20 << 10}},
		{name: "MDTS", target: nvmetcptest.Options{MDTS: 3, InCapsule: 4 << 10}},
		{name: "MDTS, shallow", target: nvmetcptest.Options{MDTS: 2, Entries: 3}},
		{name: "aligned", target: nvmetcptest.Options{InCapsule: 8 << 10, CPDA: 31}},
		{name: "header digest", target: nvmetcptest.Options{InCapsule: 8 << 10}, hdgst: true},
		{name: "data digest", target: nvmetcptest.Options{InCapsule: 8 << 10, MaxC2HData: 40 << 10}, ddgst: true},
		{name: "digests", target: nvmetcptest.Options{InCapsule: 8 << 10, MaxH2CData: 36 << 10, MaxR2T: 100 << 10, CPDA: 7, NoSuccess: true}, hdgst: true, ddgst: true},
		{name: "4 KiB blocks", target: nvmetcptest.Options{InCapsule: 8 << 10, Shift: 12, Blocks: 8 << 10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := nvmetcptest.New(t, c.target)
			o := options(target)
			o.HeaderDigest, o.DataDigest = c.hdgst, c.ddgst
			s := connect(t, o)
			client := newWorkbench(t).open(t, s)
			client.awaitUp()
			exercise(t, client, target, uint64(s.Info().BlockSize))
		})
	}
}

// exercise moves data to and from, in requests of all sizes and scatters, several at once.
func exercise(t *testing.T, c *client, target *nvmetcptest.Target, block uint64) {
	r := rand.New(rand.NewPCG(1, 2))
	const area = 3 << 20
	fillRandom(c.memory[:area], 7)
	var jobs []*job
	for at := uint64(0); at < area; {
		n := min(block<<r.UintN(9), area-at) // up to 128 KiB, of 512
		if at == 0 {
			n = 2 << 20
		}
		j := c.job(blk.OpWrite, at+block, n, int(at), 512, 1, 3, 4096, 12*1024, 100)
		jobs = append(jobs, j)
		c.submit(j)
		at += n
	}
	for _, j := range jobs {
		if o := c.end(j); o != blk.OK {
			t.Fatalf("write: outcome %d", o)
		}
	}
	target.Do(func() {
		if !bytes.Equal(target.Disk()[block:block+area], c.memory[:area]) {
			t.Fatal("the target has other data than was written")
		}
	})
	into := c.memory[area:][:area]
	for round := range 2 {
		clear(into)
		jobs = jobs[:0]
		for at := uint64(0); at < area; {
			n := min(block<<r.UintN(9), area-at)
			if round == 1 && at == 0 {
				n = 2 << 20
			}
			j := c.job(blk.OpRead, at+block, n, int(area+at), 4096, 4096, 1, 8191, 20000)
			jobs = append(jobs, j)
			c.submit(j)
			at += n
		}
		for _, j := range jobs {
			if o := c.end(j); o != blk.OK {
				t.Fatalf("read: outcome %d", o)
			}
		}
		if !bytes.Equal(into, c.memory[:area]) {
			t.Fatal("other data was read than was written")
		}
	}
	c.must(c.job(blk.OpFlush, 0, 0, 0))
	c.must(c.job(blk.OpDiscard, block, 1<<20, 0))
	c.must(c.job(blk.OpWriteZeroes, block+1<<20, 1<<20, 0))
	target.Do(func() {
		d := target.Disk()
		if !bytes.Equal(d[block:block+2<<20], make([]byte, 2<<20)) || bytes.Equal(d[block+2<<20:block+area], make([]byte, 1<<20)) {
			t.Error("discard and write zeroes did not do what they were told")
		}
	})
}

func TestIdentity(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, Cache: true})
	s := connect(t, options(target))
	i := s.Info()
	if i.Size != 32<<20 || i.BlockSize != 512 || !i.Flush || !i.FUA || !i.Discard || !i.WriteZeroes || i.ReadOnly || i.Lanes != 0 || i.Lifetime != nil {
		t.Errorf("info %+v", i)
	}
	if i.Quiesce < testKATO {
		t.Errorf("a next process writes after %v, and the controller may live for %v", i.Quiesce, testKATO)
	}
	for _, part := range []string{target.Address(), nvmetcptest.NQN, "shunt test target", "uuid 42000000-0000-0000-0000-000000000001", "digests none"} {
		if !strings.Contains(i.Describe, part) {
			t.Errorf("%q does not say %q", i.Describe, part)
		}
	}
	if st := s.State(); st.Why != nil {
		t.Errorf("state %+v", st)
	}
}

// What the health log says of wear is what a guest is told, if it says anything: as of now, not as of when the association began.
func TestLifetime(t *testing.T) {
	health := func(warning, spare, used byte) []byte { return []byte{0: warning, 3: spare, 5: used} }
	target := nvmetcptest.New(t, nvmetcptest.Options{Health: health(0, 100, 0)})
	o, changed := options(target), make(watcher, 8)
	o.Watcher = changed
	s := connect(t, o)
	if l := s.Info().Lifetime; l == nil || *l != (blk.Lifetime{PreEOL: 1, TypeA: 1, TypeB: 1}) {
		t.Errorf("of a new device: %v", l)
	}
	for _, c := range []struct {
		log  []byte
		want *blk.Lifetime
	}{
		{health(0, 90, 42), &blk.Lifetime{PreEOL: 1, TypeA: 5, TypeB: 5}},
		{health(0, 30, 95), &blk.Lifetime{PreEOL: 2, TypeA: 10, TypeB: 10}},
		{health(1, 5, 255), &blk.Lifetime{PreEOL: 3, TypeA: 11, TypeB: 11}},
		{health(0, 0, 0), nil},
		{health(0, 0, 3), &blk.Lifetime{PreEOL: 1, TypeA: 1, TypeB: 1}},
		{[]byte{}, nil}, // it is refused
	} {
		target.SetHealth(c.log)
		i, err := s.Refresh(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if told := <-changed; !reflect.DeepEqual(i.Lifetime, c.want) || !reflect.DeepEqual(told.Lifetime, c.want) {
			t.Errorf("the log says % x, the store %v, the watcher hears %v", c.log, i.Lifetime, told.Lifetime)
		}
	}
}

func TestUnsupported(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{NoOptional: true})
	s := connect(t, options(target))
	if i := s.Info(); i.Discard || i.WriteZeroes || i.Flush {
		t.Errorf("info %+v", i)
	}
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	if o := c.run(c.job(blk.OpDiscard, 0, 512, 0)); o != blk.Unsupported {
		t.Errorf("discard: outcome %d", o)
	}
	if o := c.run(c.job(blk.OpRead, 32<<20, 512, 0)); o != blk.Failed {
		t.Errorf("read beyond the end: outcome %d", o)
	}
}

// More requests than there are commands, with room told.
func TestRoom(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 4096})
	o := options(target)
	o.QueueDepth = 4
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	target.Hold(func([]byte) bool { return true })
	var jobs []*job
	for i := range 4 {
		j := c.job(blk.OpWrite, uint64(i)*512, 512, i*512)
		c.submit(j)
		jobs = append(jobs, j)
	}
	one := c.job(blk.OpWrite, 4*512, 512, 4*512)
	taken := true
	c.bench.worker.Do(func() { taken = c.lane.Submit(&one.Request) })
	if taken {
		t.Fatal("a fifth request was taken at depth 4")
	}
	c.await("all four are held", func() bool { return target.Held() == 4 })
	target.Release()
	for _, j := range jobs {
		if o := c.end(j); o != blk.OK {
			t.Errorf("outcome %d", o)
		}
	}
	c.await("there is room", func() bool { return c.rooms > 0 })
	c.must(one)
}

// watcher hears of changes.
type watcher chan blk.Info

func (w watcher) Changed(i blk.Info) { w <- i }

func TestResize(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 4096})
	w := make(watcher, 8)
	o := options(target)
	o.Watcher = w
	s := connect(t, o)
	for _, blocks := range []uint64{100 << 10, 80 << 10} {
		target.Resize(blocks)
		select {
		case i := <-w:
			if i.Size != blocks*512 || s.Info().Size != i.Size {
				t.Errorf("size %d, want %d", i.Size, blocks*512)
			}
		case <-time.After(patience):
			t.Fatal("no word of the new size")
		}
	}
	i, err := s.Refresh(context.Background())
	if err != nil || i.Size != 80<<10*512 {
		t.Errorf("refresh: %+v, %v", i, err)
	}
}

// The keep-alive keeps an idle association alive well beyond its timeout.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 4096})
	s := connect(t, options(target))
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	c.await("keep-alives go out", func() bool { return target.KeptUp.Load() >= 3 })
	if target.Expired.Load() != 0 || target.Controllers() != 1 {
		t.Errorf("%d controllers, %d expired", target.Controllers(), target.Expired.Load())
	}
	c.must(c.job(blk.OpWrite, 0, 4096, 0))
}

func TestDiscover(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{})
	target.SetGeneration(7)
	log, err := Discover(context.Background(), target.Address())
	if err != nil {
		t.Fatal(err)
	}
	if log.Generation != 7 || len(log.Entries) != 2 {
		t.Fatalf("log %+v", log)
	}
	want := DiscoveryEntry{Transport: "tcp", Family: "ipv4", Subsystem: "nvm", Port: 1, Address: "127.0.0.1", Service: "4420", NQN: nvmetcptest.NQN}
	if log.Entries[1] != want || log.Entries[0].Subsystem != "discovery" {
		t.Errorf("entries %+v", log.Entries)
	}
}

// What an operator may get wrong, each with its sentence.
func TestRefusals(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{})
	secured := nvmetcptest.New(t, nvmetcptest.Options{Authenticate: true})
	plain := nvmetcptest.New(t, nvmetcptest.Options{NoDigests: true})
	deaf := nvmetcptest.New(t, nvmetcptest.Options{})
	deaf.Pause()
	for _, c := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.NSID = 3 }, "has no namespace 3 for this host; it has [1]"},
		{func(o *Options) { o.NQN = "nqn.2026-11.io.shunt:other" }, "there is none of that name here"},
		{func(o *Options) { o.NQN = "iqn.2026" }, "is no NQN"},
		{func(o *Options) { o.Address = "127.0.0.1:1" }, "connection refused"},
		{func(o *Options) { o.Address = "" }, "has no address"},
		{func(o *Options) { o.Address = secured.Address() }, "wants DH-HMAC-CHAP"},
		{func(o *Options) { o.Address, o.HeaderDigest = plain.Address(), true }, "answers digests none where header were asked for"},
		{func(o *Options) { o.Address, o.ConnectTimeout = deaf.Address(), 100*time.Millisecond }, "was not ready within 100ms"},
		{func(o *Options) { o.KATO = time.Millisecond }, "keep-alive timeout of 1ms"},
		{func(o *Options) { o.QueueDepth = 5000 }, "queue depth of 5000"},
	} {
		o := options(target)
		c.change(&o)
		s, err := Open(context.Background(), o)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}

func TestTooManyLanes(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{Queues: 1, InCapsule: 4096})
	s := connect(t, options(target))
	if s.Info().Lanes != 1 {
		t.Errorf("lanes %d, want 1", s.Info().Lanes)
	}
	b := newWorkbench(t)
	c := b.open(t, s)
	c.awaitUp()
	if _, err := s.Open(blk.Host{Worker: b.worker, Ring: b.ring}, c); err == nil || !strings.Contains(err.Error(), "has 1 IO queues") {
		t.Errorf("error %v", err)
	}
	c.close()
	again := b.open(t, s) // the first has made room
	again.awaitUp()
	again.must(again.job(blk.OpWrite, 0, 4096, 0))
}

func TestParseURL(t *testing.T) {
	o, err := ParseURL("nvme+tcp://192.0.2.1/nqn.2026-11.io.shunt:a?nsid=7&hdgst=1&ddgst=1&kato=2s&depth=32&hostnqn=nqn.2026-11.io.shunt:h")
	if err != nil || o.Address != "192.0.2.1:4420" || o.NQN != "nqn.2026-11.io.shunt:a" || o.NSID != 7 || !o.HeaderDigest || !o.DataDigest ||
		o.KATO != 2*time.Second || o.QueueDepth != 32 || o.HostNQN != "nqn.2026-11.io.shunt:h" {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := ParseURL("nvme+tcp://[2001:db8::1]:8/nqn.2026-11.io.shunt:a"); err != nil || o.Address != "[2001:db8::1]:8" || o.NSID != 1 {
		t.Errorf("%+v, %v", o, err)
	}
	for text, want := range map[string]string{
		"nvme://a/nqn.2026-11.io.shunt:a":                   "is no URL of an NVMe/TCP namespace",
		"nvme+tcp://a/nqn.2026-11.io.shunt:a?nsid=0":        "is no number of a namespace",
		"nvme+tcp://a/nqn.2026-11.io.shunt:a?nid=1":         "unknown key",
		"nvme+tcp://a/nqn.2026-11.io.shunt:a?nsid=1&nsid=2": "is given 2 times",
		"nvme+tcp:///nqn.2026-11.io.shunt:a":                "has no address",
		"nvme+tcp://a/disk":                                 "is no NQN",
		"nvme+tcp://a/nqn.2026-11.io.shunt:a?hdgst=maybe":   "is 0 or 1",
		"nvme+tcp://a:b/nqn.2026-11.io.shunt:a":             "is no URL",
	} {
		if _, err := ParseURL(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
}

// Two lanes on two workers, both loaded.
func TestLanes(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 4096})
	s := connect(t, options(target))
	for i := range 2 {
		c := newWorkbench(t).open(t, s)
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			c.awaitUp()
			fillRandom(c.memory[:1<<20], uint64(i))
			for at := 0; at < 1<<20; at += 64 << 10 {
				c.must(c.job(blk.OpWrite, uint64(i<<20+at), 64<<10, at))
			}
			c.must(c.job(blk.OpRead, uint64(i<<20), 1<<20, 1<<20))
			if !bytes.Equal(c.memory[:1<<20], c.memory[1<<20:2<<20]) {
				t.Error("other data was read than was written")
			}
		})
	}
}

// A worker without vectors: its lane waits, others work, and it is up when there are some.
func TestWorkerLacks(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 4096})
	s := connect(t, options(target))
	good := newWorkbench(t).open(t, s)
	b := newWorkbench(t)
	var taken []*uring.Vector
	b.worker.Do(func() {
		for v := b.ring.Vector(1); v != nil; v = b.ring.Vector(1) {
			taken = append(taken, v)
		}
	})
	poor := b.open(t, s)
	poor.await("somebody says so", func() bool {
		return s.State().Why != nil && strings.Contains(s.State().Why.Error(), "no vector left")
	})
	good.awaitUp()
	good.must(good.job(blk.OpWrite, 0, 4096, 0))
	b.worker.Do(func() {
		for _, v := range taken {
			b.ring.Free(v)
		}
	})
	poor.awaitUp()
	poor.must(poor.job(blk.OpWrite, 0, 4096, 0))
	good.await("the store is up", func() bool { return s.State().Up })
	if len(good.downs) != 0 {
		t.Errorf("the other lane went down: %v", good.downs)
	}
}

// TestLimits: no command is longer than the controller says that it takes.
func TestLimits(t *testing.T) {
	for _, k := range []struct {
		mdts, wzsl      byte
		dmrsl           uint32
		dmsl            uint64
		zeroes, discard uint64 // bytes
	}{
		{zeroes: 32 << 20, discard: (1<<32 - 1) << 9},
		{mdts: 5, zeroes: 128 << 10, discard: (1<<32 - 1) << 9},
		{mdts: 5, wzsl: 9, zeroes: 2 << 20, discard: (1<<32 - 1) << 9},
		{dmrsl: 1000, zeroes: 32 << 20, discard: 1000 << 9},
		{dmsl: 500, zeroes: 32 << 20, discard: 500 << 9},
		{dmrsl: 1000, dmsl: 500, zeroes: 32 << 20, discard: 500 << 9},
		{dmsl: 1 << 60, zeroes: 32 << 20, discard: (1<<32 - 1) << 9},
		{dmrsl: 1000, dmsl: 5000, zeroes: 32 << 20, discard: 1000 << 9},
	} {
		page := b256(nil)
		page[1] = k.wzsl
		le.PutUint32(page[4:], k.dmrsl)
		le.PutUint64(page[8:], k.dmsl)
		a := &association{o: &Options{QueueDepth: 128}, entries: 128, page: 12, controller: controllerData{MDTS: k.mdts, IOCCSZ: 4}, namespace: namespaceData{Blocks: 1 << 30, Shift: 9}}
		a.namespace.bound(page, a.page)
		if l := a.limits(terms{align: 4}); l.mostZeroes != k.zeroes || l.mostDiscard != k.discard {
			t.Errorf("%+v: it zeroes %d bytes and discards %d", k, l.mostZeroes, l.mostDiscard)
		}
	}
}
