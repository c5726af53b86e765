package uring

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSockets(t *testing.T) {
	modes(t, func(t *testing.T) {
		r := newRing(t, Options{})
		a, b := socketPair(t, r)
		memory := newMemory(t, 1<<20)
		rand.NewChaCha8([32]byte{2}).Read(memory[:1<<19])
		out, in := newResult(), newResult()
		vo, vi := r.Vector(40), r.Vector(3)
		for i := range 32 {
			vo.Add(memory[i*(1<<14):][: 1<<14-1 : 1<<14-1])
		}
		total := vo.Len()
		vi.Add(memory[1<<19:][:total/2])
		vi.Add(memory[1<<19+total/2:][:total-total/2])
		pushed(t, r.Recv(&in.op, a.file, vi, unix.MSG_WAITALL))
		pushed(t, r.Send(&out.op, b.file, vo, unix.MSG_WAITALL))
		settle(t, r, func() bool { return in.done && out.done })
		if int(in.res) != total || int(out.res) != total {
			t.Fatalf("sent %d, received %d of %d", out.res, in.res, total)
		}
		var want []byte
		for i := range 32 {
			want = append(want, memory[i*(1<<14):][:1<<14-1]...)
		}
		if !bytes.Equal(memory[1<<19:][:total], want) {
			t.Fatal("other bytes arrived")
		}
		in.done = false
		vi.Reset()
		vi.Add(memory[:100])
		pushed(t, r.Recv(&in.op, a.file, vi, 0))
		pushed(t, r.Shutdown(&out.op, b.file, unix.SHUT_WR))
		if res := in.wait(t, r); res != 0 {
			t.Errorf("after shutdown: received %d, want the end", res)
		}
		unix.Close(a.fd)
		r.Unregister(a.file)
		vo.Reset()
		vo.Add(memory[:100])
		for out.res != -int32(unix.EPIPE) { // and no SIGPIPE
			out.done = false
			pushed(t, r.Send(&out.op, b.file, vo, 0))
			out.wait(t, r)
		}
	})
}

func TestConnect(t *testing.T) {
	r := newRing(t, Options{})
	path := filepath.Join(t.TempDir(), "socket")
	for name, c := range map[string]struct {
		family int
		bind   unix.Sockaddr
	}{
		"ipv4":     {unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}},
		"ipv6":     {unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}},
		"unix":     {unix.AF_UNIX, &unix.SockaddrUnix{Name: path}},
		"abstract": {unix.AF_UNIX, &unix.SockaddrUnix{Name: "@shunt-uring-test"}},
	} {
		listener, err := unix.Socket(c.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(listener)
		if err := unix.Bind(listener, c.bind); err != nil {
			t.Logf("%s: %v", name, err)
			continue
		}
		if err := unix.Listen(listener, 1); err != nil {
			t.Fatal(err)
		}
		bound, err := unix.Getsockname(listener)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Socket(c.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		to, err := NewAddress(bound)
		if err != nil {
			t.Fatal(err)
		}
		defer to.Free()
		d := newResult()
		pushed(t, r.Connect(&d.op, registerFD(t, r, fd), to))
		if res := d.wait(t, r); res != 0 {
			t.Errorf("%s: connect: %v", name, unix.Errno(-res))
		}
		if _, err := unix.Getpeername(fd); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []unix.Sockaddr{&unix.SockaddrUnix{Name: string(make([]byte, 200))}, &unix.SockaddrVM{}} {
		if _, err := NewAddress(bad); err == nil {
			t.Errorf("%T is taken", bad)
		}
	}
}

// Multishot recv: each piece in a buffer of its own, out of buffers is a completion without More, and it goes on when it is pushed again.
func TestMultishot(t *testing.T) {
	modes(t, func(t *testing.T) {
		r := newRing(t, Options{})
		a, b := socketPair(t, r)
		buffers, err := r.Provide(4, 64)
		if err != nil {
			t.Fatal(err)
		}
		d := newResult()
		var got []byte
		var held []uint32
		dry := 0
		d.then = func() {
			switch {
			case d.res == -int32(unix.ENOBUFS):
				dry++
			case d.res > 0:
				got = append(got, buffers.Bytes(d.flags, int(d.res))...)
				held = append(held, d.flags)
			}
			if d.flags&More == 0 && d.res != 0 {
				for _, flags := range held {
					buffers.Return(flags)
				}
				held = held[:0]
				pushed(t, r.RecvMulti(&d.op, a.file, buffers))
			}
		}
		pushed(t, r.RecvMulti(&d.op, a.file, buffers))
		var sent []byte
		for i := range 200 {
			piece := bytes.Repeat([]byte{byte(i)}, 1+i%150)
			if _, err := unix.Write(b.fd, piece); err != nil {
				t.Fatal(err)
			}
			sent = append(sent, piece...)
			if i%3 == 0 {
				settle(t, r, func() bool { return len(got) == len(sent) })
			}
		}
		settle(t, r, func() bool { return len(got) == len(sent) })
		if !bytes.Equal(got, sent) {
			t.Error("other bytes, or in another order")
		}
		if dry == 0 {
			t.Error("the buffers never ran out")
		}
		unix.Shutdown(b.fd, unix.SHUT_WR)
		if res := d.wait(t, r); res != 0 || d.op.Busy() {
			t.Errorf("the end: %d, busy %v", res, d.op.Busy())
		}
		if b := buffers.Bytes(0, 1); b != nil {
			t.Error("bytes of a completion without a buffer")
		}
		if err := buffers.Free(); err != nil {
			t.Error(err)
		}
		if again, err := r.Provide(8, 16); err != nil || again.group != buffers.group {
			t.Errorf("its group is not free: %v", err)
		}
		for _, bad := range [][2]int{{3, 64}, {0, 64}, {4, 0}, {1 << 16, 1}} {
			if _, err := r.Provide(bad[0], bad[1]); err == nil {
				t.Errorf("%d buffers of %d bytes are provided", bad[0], bad[1])
			}
		}
	})
}

func TestPoll(t *testing.T) {
	r := newRing(t, Options{})
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	d := newResult()
	pushed(t, r.PollAdd(&d.op, registerFD(t, r, p[0]), unix.POLLIN))
	r.Flush()
	if r.Poll(); d.done {
		t.Fatal("an empty pipe is readable")
	}
	unix.Write(p[1], []byte{1})
	if res := d.wait(t, r); res&unix.POLLIN == 0 {
		t.Errorf("events %#x", res)
	}
}

// Whenever a cancellation comes, an operation ends once, and each of its bytes is counted or still there.
func TestCancelRaces(t *testing.T) {
	modes(t, func(t *testing.T) {
		r := newRing(t, Options{Entries: 4})
		a, b := socketPair(t, r)
		memory := newMemory(t, 64)
		stop := make(chan struct{})
		feeding := make(chan int)
		go func() {
			n := 0
			for {
				select {
				case <-stop:
					feeding <- n
					return
				default:
					if _, err := unix.SendmsgN(b.fd, []byte{1}, nil, nil, unix.MSG_DONTWAIT); err == nil {
						n++
					}
					if n%16 == 0 {
						time.Sleep(20 * time.Microsecond)
					}
				}
			}
		}()
		v := r.Vector(1)
		v.Add(memory)
		received, cancelled := 0, 0
		for i := range 3000 {
			d := newResult()
			pushed(t, r.Recv(&d.op, a.file, v, 0))
			if i%2 == 0 {
				r.Flush()
			}
			if i%3 != 0 {
				r.Poll()
			}
			asked := r.Cancel(&d.op)
			if !asked && !d.done {
				t.Fatal("busy, and cannot be cancelled")
			}
			if asked && !r.Cancel(&d.op) {
				t.Fatal("the second time it is not busy")
			}
			settle(t, r, func() bool { return d.done })
			if d.times != 1 {
				t.Fatalf("%d completions", d.times)
			}
			switch {
			case d.res > 0:
				received += int(d.res)
			case d.res == -int32(unix.ECANCELED) || d.res == -int32(unix.EINTR):
				cancelled++
			default:
				t.Fatal(unix.Errno(-d.res))
			}
		}
		close(stop)
		sent := <-feeding
		rest := make([]byte, sent+1)
		for {
			n, _, err := unix.Recvfrom(a.fd, rest, unix.MSG_DONTWAIT)
			if err != nil {
				break
			}
			received += n
		}
		if received != sent {
			t.Errorf("sent %d bytes, received %d", sent, received)
		}
		if r.Busy() != 0 {
			t.Errorf("%d are under way", r.Busy())
		}
		t.Logf("%d received, %d cancelled", received, cancelled)
	})
}

// A cancellation has room when nothing else has.
func TestCancelWhenFull(t *testing.T) {
	r := newRing(t, Options{Entries: 4})
	a, _ := socketPair(t, r)
	memory := newMemory(t, 64)
	var all [4]*result
	for i := range all {
		all[i] = newResult()
		v := r.Vector(1)
		v.Add(memory)
		pushed(t, r.Recv(&all[i].op, a.file, v, 0))
	}
	for _, d := range all { // the SQ is full, too
		if !r.Cancel(&d.op) {
			t.Fatal("not cancelled")
		}
	}
	settle(t, r, func() bool { return r.Busy() == 0 })
	for _, d := range all {
		if d.res != -int32(unix.ECANCELED) {
			t.Errorf("ended with %d", d.res)
		}
	}
	if r.Cancel(&all[0].op) {
		t.Error("what has ended is cancelled")
	}
}
