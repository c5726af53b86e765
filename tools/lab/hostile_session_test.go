package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
	"github.com/shuntio/shunt/tools/control"
)

// attackFUSE gives files whose server answers nothing any more, as memory, as a log, as an in-flight area and as eventfds. All are refused without a
// question to the server. That a file of it is closed is a question, too: whoever closes it waits, which must be that port's session alone.
func attackFUSE(t *testing.T, a *arena) {
	fs := mountFUSE(t, 2<<20)
	fs.dead.Store(true)
	fd := fs.fd
	region := vhostuser.Region{GuestAddr: here, UserAddr: vnettest.UserBase, Size: 2 << 20, FD: fd}
	const features = vhostuser.FeatureProtocol | usual
	waiting := []int{}
	for _, attack := range []struct {
		reason string
		try    func(f *vhostuser.Frontend) error
	}{
		{"SET_MEM_TABLE", func(f *vhostuser.Frontend) error { return f.SetMemory(region) }},
		{"ADD_MEM_REG", func(f *vhostuser.Frontend) error { return f.AddMemory(region) }},
		{"SET_LOG_BASE", func(f *vhostuser.Frontend) error { return f.SetLog(fd, 4096, 0) }},
		{"SET_VRING_KICK", func(f *vhostuser.Frontend) error { return f.SetKick(1, fd) }},
		{"SET_VRING_CALL", func(f *vhostuser.Frontend) error { return f.SetCall(1, fd) }},
	} {
		port, i := a.next(t)
		f := a.dial(t, port)
		if err := f.Negotiate(features, vhostuser.DefaultProtocolFeatures); err != nil {
			t.Fatalf("%v:\n%s", err, a.of(port))
		}
		asked := fs.asked.Load()
		if err := attack.try(f); !errors.Is(err, vhostuser.ErrRefused) {
			t.Errorf("%s: %v", attack.reason, err)
		}
		a.names(t, port, attack.reason)
		for ctx := within(t, 20*time.Second); fs.asked.Load() == asked; time.Sleep(time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatal("shuntd has not closed the file")
			}
		}
		f.Close()
		waiting = append(waiting, i)
	}
	a.unhurt(t) // while five sessions wait for a dead server
	port, i := a.next(t)
	a.serves(t, port, i)
	fs.end()
	for _, i := range waiting {
		a.serves(t, fmt.Sprintf("v%d", i), i)
	}
}

// attackDescriptors gives kicks and calls that are none, and eventfds that are set so that reading or signalling them would wait for ever, or never end.
func attackDescriptors(t *testing.T, a *arena) {
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	zero, err := os.OpenFile("/dev/zero", os.O_RDWR, 0)
	must(t, err)
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	must(t, err)
	defer func() {
		zero.Close()
		for _, fd := range []int{pipe[0], pipe[1], pair[0], pair[1], epoll} {
			unix.Close(fd)
		}
	}()
	port, _ := a.next(t)
	f := a.dial(t, port)
	must(t, f.Negotiate(vhostuser.FeatureProtocol|usual, vhostuser.DefaultProtocolFeatures))
	for _, fd := range []int{pipe[0], pipe[1], pair[0], int(zero.Fd())} {
		if err := errors.Join(f.SetKick(1, fd), f.SetCall(1, fd)); !errors.Is(err, vhostuser.ErrRefused) {
			t.Errorf("descriptor %d: %v", fd, err)
		}
	}
	a.names(t, port, `SET_VRING_KICK: ring 1: descriptor is not an eventfd but \"pipe:`)
	if err := f.SetKick(1, epoll); !errors.Is(err, vhostuser.ErrRefused) {
		t.Errorf("an epoll instance as kick: %v", err)
	}
	f.Close()

	saturate := func(fd int) { // as full as it gets, whoever adds to it meanwhile; it must not be blocking yet
		var full [8]byte
		for more := uint64(1<<64 - 2); more > 0; more /= 2 {
			binary.NativeEndian.PutUint64(full[:], more)
			_, _ = unix.Write(fd, full[:])
		}
	}
	blocking := func(fd int) { must(t, unix.SetNonblock(fd, false)) }
	for _, form := range kinds() {
		for name, prepare := range map[string]func(g *vnettest.Guest, v *[2]vhostuser.VringConfig) (after func()){
			"full and blocking calls": func(g *vnettest.Guest, _ *[2]vhostuser.VringConfig) func() {
				return func() {
					for q := range 2 {
						saturate(g.CallFD(q))
						blocking(g.CallFD(q))
					}
				}
			},
			"empty and blocking kicks": func(g *vnettest.Guest, _ *[2]vhostuser.VringConfig) func() {
				return func() { blocking(g.KickFD(1)) }
			},
			"a kick that is a semaphore of 2^64": func(_ *vnettest.Guest, v *[2]vhostuser.VringConfig) func() {
				fd, err := unix.Eventfd(0, unix.EFD_SEMAPHORE|unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
				must(t, err)
				t.Cleanup(func() { unix.Close(fd) })
				v[1].Kick = fd
				return func() { saturate(fd); blocking(fd) }
			},
			"a kick that is the call": func(_ *vnettest.Guest, v *[2]vhostuser.VringConfig) func() {
				v[0].Call, v[1].Call = v[1].Kick, v[1].Kick
				return func() {}
			},
			"one eventfd for all": func(_ *vnettest.Guest, v *[2]vhostuser.VringConfig) func() {
				for q := range 2 {
					v[q].Kick, v[q].Call, v[q].Err = v[0].Err, v[0].Err, v[0].Err
				}
				return func() { saturate(v[0].Err); blocking(v[0].Err) }
			},
		} {
			port, i := a.next(t)
			g := a.guest(t, vnettest.Options{Features: form.features})
			v := [2]vhostuser.VringConfig{g.Vring(0), g.Vring(1)}
			after := prepare(g, &v)
			f := a.dial(t, port)
			must(t, f.Negotiate(g.Features()|vhostuser.FeatureProtocol, vhostuser.DefaultProtocolFeatures))
			must(t, f.SetMemory(g.Region()))
			for q := range v {
				must(t, f.StartVring(v[q]))
			}
			after()
			stop := a.traffic(t, g, i)
			for ctx := within(t, 20*time.Second); counters(t, a.d, control.KindPort, port).RxPackets < 1000; time.Sleep(time.Millisecond) {
				if ctx.Err() != nil {
					t.Fatalf("%s, %s: %d frames passed in 20 s", form.name, name, counters(t, a.d, control.KindPort, port).RxPackets)
				}
			}
			stop()
			f.Close()
			g.Close()
		}
	}
}

// message is one as it may not be.
func message(request vhostuser.Request, flags, size uint32, payload ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(request))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return append(binary.NativeEndian.AppendUint32(b, size), payload...)
}

func words(v ...uint32) (b []byte) {
	for _, w := range v {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

// attackMessages sends messages that are short, long, wrong, cut in two, or noise.
func attackMessages(t *testing.T, a *arena) {
	port, lines := "", 0
	for _, m := range []struct {
		bytes  []byte
		reason string
	}{
		{message(vhostuser.GetFeatures, 0, 0), "version 0"},
		{message(vhostuser.GetFeatures, 3, 0), "version 3"},
		{message(vhostuser.GetFeatures, 5, 0), "sends no replies"},
		{message(vhostuser.SetFeatures, 1, 0xffffffff), "4294967295 bytes"},
		{message(vhostuser.SetFeatures, 1, 4, 0, 0, 0, 0), "SET_FEATURES: payload of 4 bytes instead of 8"},
		{message(vhostuser.SetFeatures, 1, 16, make([]byte, 16)...), "SET_FEATURES: payload of 16 bytes"},
		{message(vhostuser.GetFeatures, 1, 8, make([]byte, 8)...), "GET_FEATURES"},
		{message(0, 1, 0), "request 0"},
		{message(0xffffffff, 1, 0), "request 4294967295"},
		{message(vhostuser.PostcopyListen, 1, 0), "POSTCOPY_LISTEN"},
		{message(vhostuser.SetVringNum, 1, 8, words(4, 256)...), "no ring 4"},
		{message(vhostuser.SetVringNum, 1, 8, words(0, 0)...), "size 0"},
		{message(vhostuser.SetVringNum, 1, 8, words(0, 1<<31)...), "size 2147483648"},
		{message(vhostuser.GetVringBase, 1, 8, words(0xffffffff, 0)...), "no ring 4294967295"},
		{message(vhostuser.SetVringEnable, 1, 8, words(0, 2)...), "neither 0 nor 1"},
		{message(vhostuser.SetMemTable, 1, 8, words(0xffffffff, 0)...), "4294967295 regions"},
		{message(vhostuser.SetVringKick, 1, 8, make([]byte, 8)...), "SET_VRING_KICK: ring 0: 0 descriptors"},
		{message(vhostuser.SetFeatures, 1, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "were not offered"},
		{message(vhostuser.GetFeatures, 1, 0)[:7], "in the middle"},
		{message(vhostuser.SetFeatures, 1, 8, 0, 0, 0), "in the middle"},
	} {
		if lines%4 == 0 { // of a port, ten lines are written at once, and each of these is two
			port, _ = a.next(t)
		}
		lines++
		f := a.dial(t, port)
		must(t, f.SendRaw(m.bytes))
		if m.reason == "in the middle" {
			f.Close()
		}
		a.names(t, port, m.reason)
		if _, err := f.Receive(vhostuser.GetFeatures); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection goes on: %v", m.reason, err)
		}
		f.Close()
	}
	a.noise(t)
}

// noise sends random messages, most with a right size, with random descriptors.
func (a *arena) noise(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	g := a.guest(t, vnettest.Options{})
	fd, err := shm.NewMemFD("shunt-test-noise", 1<<20)
	must(t, err)
	defer unix.Close(fd)
	fds := []int{fd, g.FD, g.KickFD(0), g.CallFD(1), g.KickFD(1), 1}
	sizes := []int{0, 8, 8, 8, 12, 16, 24, 40, 40, 72, 268}
	sent := 0
	for range 4 {
		port, i := a.next(t)
		for range times(25, 250) {
			f := a.dial(t, port)
			f.Timeout = time.Second
			if err := f.Negotiate(g.Features()|vhostuser.FeatureProtocol, ^uint64(0)); err != nil {
				t.Fatal(err)
			}
			if random.IntN(2) == 0 {
				_ = f.SetMemory(g.Region())
				for q := range 2 {
					_ = f.StartVring(g.Vring(q))
				}
			}
			for range 60 {
				payload := make([]byte, sizes[random.IntN(len(sizes))])
				for k := range payload {
					if random.IntN(4) == 0 {
						payload[k] = byte(random.Uint32())
					}
				}
				if len(payload) >= 8 && random.IntN(2) == 0 { // a ring there is, a likely value
					copy(payload, words(random.Uint32N(5), []uint32{0, 1, 64, 256, 1 << 15}[random.IntN(5)]))
				}
				var with []int
				if random.IntN(3) == 0 {
					for range 1 + random.IntN(3) {
						with = append(with, fds[random.IntN(len(fds))])
					}
				}
				request := vhostuser.Request(1 + random.Uint32N(44))
				if f.SendRaw(message(request, 1|8*random.Uint32N(2), uint32(len(payload)), payload...), with...) != nil {
					break
				}
				sent++
			}
			f.Close()
		}
		a.serves(t, port, i)
	}
	t.Logf("%d random messages", sent)
}

// attackConnects connects and leaves as often and as fast as it goes: at once, in the middle of a message, in the middle of a session, and while
// another front-end is being served.
func attackConnects(t *testing.T, a *arena) {
	const ports = 30
	total := int64(times(3000, 100_000))
	var done, refused atomic.Int64
	var wait sync.WaitGroup
	g := a.guest(t, vnettest.Options{})
	alone, _ := a.next(t)
	for i := range ports {
		wait.Go(func() {
			for n := 0; done.Load() < total; n++ {
				c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: a.socket(fmt.Sprintf("v%d", i)), Net: "unix"})
				if err != nil {
					refused.Add(1) // its queue is full
					time.Sleep(5 * time.Millisecond)
					continue
				}
				done.Add(1)
				f := vhostuser.NewFrontend(c)
				switch n % 8 {
				case 1:
					_ = f.SendRaw(message(vhostuser.GetFeatures, 1, 0)[:5])
				case 3:
					_ = f.SendRaw(message(vhostuser.GetFeatures, 1, 0))
				case 5:
					_ = f.SendRaw(message(vhostuser.SetMemTable, 1, 8, words(1, 0)...), g.FD, g.FD, g.FD)
				case 7:
					_ = f.SendRaw(message(vhostuser.SetVringKick, 1, 8, words(0, 0)...), g.KickFD(0))
				}
				f.Close()
			}
		})
	}
	wait.Wait()
	t.Logf("%d connections, and %d for which there was no room in the queue", done.Load(), refused.Load())
	for i := range ports {
		a.serves(t, fmt.Sprintf("v%d", i), i)
	}
	// One is served, the others are turned away.
	f := a.join(t, alone, g)
	for range 5 {
		c, err := net.Dial("unix", a.socket(alone))
		must(t, err)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a second front-end: %v", err)
		}
		c.Close()
	}
	a.names(t, alone, "another one is connected")
	must(t, f.Barrier())
	f.Close()
}
