package vhostuser

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
)

// raw builds a message that need not be one.
func raw(r Request, flags, size uint32, payload ...byte) []byte {
	b := appendHeader(nil, r, flags)
	binary.NativeEndian.PutUint32(b[8:], size)
	return append(b, payload...)
}

func whole(r Request, payload []byte) []byte {
	return raw(r, flagVersion, uint32(len(payload)), payload...)
}

// TestAttacks sends what no honest front-end sends. Each must end the connection with a reason, leave no descriptor open and
// no ring running, and not keep the next front-end from being served.
func TestAttacks(t *testing.T) {
	g := newGuest(t)
	small, err := shm.NewMemFD("small", pageSize)
	must(t, err)
	sparse, err := shm.NewMemFD("sparse", 8<<40)
	must(t, err)
	disk, err := os.Create(t.TempDir() + "/disk")
	must(t, err)
	must(t, disk.Truncate(guestSize))
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	t.Cleanup(func() { unix.Close(small); unix.Close(sparse); disk.Close(); unix.Close(pipe[0]); unix.Close(pipe[1]) })

	many := func(fd, n int) (fds []int) {
		for range n {
			fds = append(fds, fd)
		}
		return fds
	}
	table := func(regions ...Region) []byte {
		b := appendState(nil, uint32(len(regions)), 0)
		for _, r := range regions {
			b = appendRegion(b, r)
		}
		return whole(SetMemTable, b)
	}
	with := func(f func(*Region)) Region {
		r := g.region()
		f(&r)
		return r
	}
	ring := func(index, num uint32) []byte { return appendState(nil, index, num) }
	type attack struct {
		name   string
		bytes  []byte
		fds    []int
		reason string
	}
	attacks := []attack{
		{"version 0", raw(GetFeatures, 0, 0), nil, "version 0"},
		{"version 3", raw(GetFeatures, 3, 0), nil, "version 3"},
		{"a reply", raw(GetFeatures, flagVersion|flagReply, 0), nil, "sends no replies"},
		{"payload of 4 GiB", raw(SetFeatures, 1, 0xffffffff), nil, "4294967295 bytes"},
		{"payload of limit and one", raw(SetFeatures, 1, maxPayload+1, make([]byte, maxPayload+1)...), nil, "at most 268"},
		{"request 0", raw(0, 1, 0), nil, "request 0: not supported"},
		{"request 2^32-1", raw(0xffffffff, 1, 0), nil, "request 4294967295: not supported"},
		{"known but not served", raw(PostcopyListen, 1, 0), []int{g.call}, "POSTCOPY_LISTEN: not supported"},
		{"short payload", raw(SetFeatures, 1, 4, 0, 0, 0, 0), nil, "payload of 4 bytes instead of 8"},
		{"long payload", raw(SetFeatures, 1, 9, make([]byte, 9)...), nil, "payload of 9 bytes"},
		{"ring size in two's complement", whole(SetVringNum, ring(0, 0x80000001)), nil, "size 2147483649"},
		{"payload where none belongs", raw(GetFeatures, 1|flagNeedReply, 8, make([]byte, 8)...), nil, "GET_FEATURES"},
		{"descriptor where none belongs", raw(GetFeatures, 1, 0), []int{g.fd}, "1 descriptors came with it"},
		{"two kicks", whole(SetVringKick, appendU64(nil, 0)), many(g.kick, 2), "2 descriptors"},
		{"nine descriptors", table(), many(g.fd, 9), "more descriptors"},
		{"as many descriptors as the kernel takes", raw(GetFeatures, 1, 0), many(g.fd, 253), "more descriptors"},
		{"two messages share descriptors", append(raw(SetOwner, 1, 0), table(g.region())...), []int{g.fd}, "SET_OWNER"},
		{"slots not negotiated", whole(AddMemReg, make([]byte, 40)), []int{g.fd}, "CONFIGURE_MEM_SLOTS"},
		{"log not negotiated", whole(SetLogBase, make([]byte, 16)), []int{g.fd}, "LOG_SHMFD"},
		{"log eventfd not negotiated", whole(SetLogFD, nil), []int{g.call}, "LOG_SHMFD"},
		{"in-flight area not negotiated", whole(GetInflightFD, make([]byte, 24)), nil, "INFLIGHT_SHMFD"},
		{"in-flight file not negotiated", whole(SetInflightFD, make([]byte, 24)), []int{g.fd}, "INFLIGHT_SHMFD"},
		{"channel not negotiated", whole(SetBackendReqFD, nil), []int{g.fd}, "BACKEND_REQ"},
		{"announcement not negotiated", whole(SendRARP, make([]byte, 8)), nil, "RARP"},
		{"more protocol than offered", whole(SetProtocolFeatures, appendU64(nil, 1<<40)), nil, "bit 40"},
		{"more features than offered", whole(SetFeatures, appendU64(nil, 1<<63)), nil, "were not offered"},

		{"ring 2 of 2", whole(SetVringNum, ring(2, 256)), nil, "no ring 2"},
		{"ring 2^32-1", whole(GetVringBase, ring(0xffffffff, 0)), nil, "no ring 4294967295"},
		{"kick of ring 255", whole(SetVringKick, appendU64(nil, 255)), []int{g.kick}, "no ring 255"},
		{"size 0", whole(SetVringNum, ring(0, 0)), nil, "size 0"},
		{"size 65536", whole(SetVringNum, ring(0, 65536)), nil, "size 65536"},
		{"enable 2", whole(SetVringEnable, ring(0, 2)), nil, "neither 0 nor 1"},
		{"kick without descriptor", whole(SetVringKick, appendU64(nil, 0)), nil, "0 descriptors"},
		{"no kick with descriptor", whole(SetVringKick, appendU64(nil, vringNoFD)), []int{g.kick}, "1 descriptors"},
		{"kick is memory", whole(SetVringKick, appendU64(nil, 0)), []int{g.fd}, "not an eventfd but \"/memfd:guest"},
		{"call is a pipe", whole(SetVringCall, appendU64(nil, 0)), pipe[1:], "not an eventfd but \"pipe:"},
		{"log flags unknown", whole(SetVringAddr, appendAddr(nil, VringConfig{Flags: 2})), nil, "flags 0x2"},

		{"nine regions", whole(SetMemTable, append(appendState(nil, 9, 0), make([]byte, 8*regionSize)...)), many(g.fd, 8), "9 regions"},
		{"2^32-1 regions", whole(SetMemTable, appendState(nil, 0xffffffff, 0)), nil, "4294967295 regions"},
		{"region without descriptor", table(g.region()), nil, "0 descriptors"},
		{"descriptor without region", table(), []int{g.fd}, "0 regions"},
		{"empty region", table(with(func(r *Region) { r.Size = 0 })), []int{g.fd}, "empty"},
		{"crooked guest address", table(with(func(r *Region) { r.GuestAddr++ })), []int{g.fd}, "multiple of 4096"},
		{"crooked user address", table(with(func(r *Region) { r.UserAddr += 8 })), []int{g.fd}, "multiple of 4096"},
		{"crooked offset", table(with(func(r *Region) { r.MmapOffset = 512 })), []int{g.fd}, "multiple of 4096"},
		{"guest addresses wrap", table(with(func(r *Region) { r.GuestAddr = ^uint64(pageSize - 1) })), []int{g.fd}, "beyond 64 bits"},
		{"user addresses wrap", table(with(func(r *Region) { r.UserAddr = ^uint64(pageSize - 1) })), []int{g.fd}, "beyond 64 bits"},
		{"offset wraps", table(with(func(r *Region) { r.MmapOffset = ^uint64(pageSize - 1) })), []int{g.fd}, "beyond 64 bits"},
		{"file too small", table(g.region()), []int{small}, "only 0x1000 bytes"},
		{"offset beyond file", table(with(func(r *Region) { r.MmapOffset = pageSize })), []int{g.fd}, "only 0x100000 bytes"},
		{"more memory than anyone has", table(with(func(r *Region) { r.Size = 8 << 40 })), []int{sparse}, "at most 0x40000000000"},
		{"memory is an eventfd", table(g.region()), []int{g.call}, shm.ErrBacking.Error()},
		{"memory is a pipe", table(g.region()), pipe[:1], shm.ErrBacking.Error()},
		{"same region twice", table(g.region(), g.region()), many(g.fd, 2), "overlaps"},
		{"overlap for the guest", table(g.region(), with(func(r *Region) { r.GuestAddr += guestSize - pageSize; r.UserAddr *= 2 })),
			many(g.fd, 2), "in the guest's addresses"},
		{"overlap for the front-end", table(g.region(), with(func(r *Region) { r.UserAddr -= guestSize - pageSize; r.GuestAddr *= 2 })),
			many(g.fd, 2), "in the front-end's addresses"},
	}
	if _, err := shm.CheckBacking(int(disk.Fd())); err != nil { // the temporary directory lies on no tmpfs
		attacks = append(attacks, attack{"memory is a file on disk", table(g.region()), []int{int(disk.Fd())}, shm.ErrBacking.Error()})
	}

	d := newFake(t)
	b := listenFake(t, d, Options{})
	fds := steadyFDs(t, b)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			served := b.Status().Connections
			f, err := Dial(b.path)
			must(t, err)
			defer f.Close()
			must(t, f.SendRaw(a.bytes, a.fds...))
			if _, err := f.Receive(GetFeatures); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection goes on: %v", err)
			}
			eventually(t, "end of the connection", func() bool { s := b.Status(); return s.Connections > served && s.Session == nil })
			if end := b.Status().LastEnd; !strings.Contains(end, a.reason) {
				t.Errorf("reason %q, want %q in it", end, a.reason)
			}
		})
	}
	if now := steadyFDs(t, b); now != fds {
		t.Errorf("%d descriptors open, before %d", now, fds)
	}
	for _, e := range d.seen() {
		if e != "disconnected" {
			t.Errorf("device was told %q", e)
		}
	}
}

// TestTornMessages cuts a good message at every byte: sent in two halves it is understood, sent half it ends the connection.
func TestTornMessages(t *testing.T) {
	d, g := newFake(t), newGuest(t)
	b := listenFake(t, d, Options{})
	msg := whole(SetMemTable, appendRegion(appendState(nil, 1, 0), g.region()))
	for cut := 1; cut < len(msg); cut++ {
		f, err := Dial(b.path)
		must(t, err)
		if cut%2 == 0 { // descriptors come with either half
			must(t, f.SendRaw(msg[:cut], g.fd))
			must(t, f.SendRaw(msg[cut:]))
		} else {
			must(t, f.SendRaw(msg[:cut]))
			must(t, f.SendRaw(msg[cut:], g.fd))
		}
		if err := f.Barrier(); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		must(t, f.SendRaw(msg[:cut]))
		must(t, f.conn.CloseWrite())
		if _, err := f.Receive(SetMemTable); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("half message of %d bytes: %v", cut, err)
		}
		f.Close()
	}
	eventually(t, "session ended", func() bool { return b.Status().Session == nil })
	if end := b.Status().LastEnd; !strings.Contains(end, "in the middle") {
		t.Error(end)
	}
}

// TestStall: a front-end that stops in the middle of a message, and one that reads no replies, lose their place.
func TestStall(t *testing.T) {
	t.Parallel()
	var devices []*fakeDevice
	var backends []*Backend
	for _, attack := range []func(f *Frontend){
		func(f *Frontend) { must(t, f.SendRaw(raw(GetFeatures, 1, 0)[:7])) },
		func(f *Frontend) { must(t, f.SendRaw(whole(SetFeatures, make([]byte, 8))[:15])) },
		flood,
	} {
		d := newFake(t)
		b := listenFake(t, d, Options{})
		attack(dial(t, b))
		devices, backends = append(devices, d), append(backends, b)
	}
	for i, d := range devices {
		eventually(t, "session ended", func() bool { return d.disconnects() == 1 && backends[i].Status().State != Connected })
		must(t, dial(t, backends[i]).Negotiate(wantAll, wantAll))
	}
}

// flood asks until the back-end no longer reads.
func flood(f *Frontend) {
	f.Timeout = time.Second
	for f.Send(GetFeatures, nil) == nil {
	}
}

// TestDescriptorsAreClosedOnce walks the honest ways that exchange descriptors, and then some refused ones.
func TestDescriptorsAreClosedOnce(t *testing.T) {
	d, g := newFake(t), newGuest(t)
	b := listenFake(t, d, Options{})
	before := steadyFDs(t, b)
	f, err := Dial(b.path)
	must(t, err)
	must(t, f.Negotiate(wantAll, wantAll))
	must(t, f.SetMemory(g.region()))
	second := g.region()
	second.GuestAddr, second.UserAddr = 2*guestPhys, 2*guestUser
	for range 3 {
		must(t, f.AddMemory(second))
		must(t, f.AddMemory(second))
		must(t, f.Do(RemMemReg, appendRegion(appendU64(nil, 0), second), second.FD))
		for i := range 2 {
			must(t, f.StartVring(g.ring(i)))
			must(t, f.SetCall(i, g.call2))
			must(t, f.SetKick(i, g.kick))
		}
		must(t, f.Reset())
		for i := range 2 {
			must(t, f.StartVring(g.ring(i)))
		}
		refused(t, f.SetCall(0, g.fd))
		refused(t, f.Do(SetVringKick, appendU64(nil, 7), g.kick))
		for i := range 2 {
			if _, err := f.StopVring(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Per ring a call and an error descriptor: a stopped ring keeps those.
	if now := openFDs(t); now != before+4 {
		t.Errorf("%d descriptors open, before %d", now, before)
	}
	must(t, f.Close())
	if now := steadyFDs(t, b); now != before {
		t.Errorf("%d descriptors open, before %d", now, before)
	}
}
