package bpf

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/xsk"
)

// receiver is an AF_XDP port on a queue of up0.
type receiver struct {
	port *xsk.Port
	pool *frame.Pool
}

func (l *lab) receiver(t *testing.T, p *Program) *receiver {
	t.Helper()
	return l.socket(t, func(fd int) error { return p.AddSocket(0, 0, fd) })
}

// socket opens one on queue 0 of up0 and gives it to add.
func (l *lab) socket(t *testing.T, add func(fd int) error) *receiver {
	t.Helper()
	const frames, ring = 256, 64
	chunks, err := unix.Mmap(-1, 0, frames*frame.ChunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := frame.NewMemory(chunks)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := memory.NewPool(0, frames)
	if err != nil {
		t.Fatal(err)
	}
	var socket *xsk.Socket
	err = l.host.Do(func() error {
		dev, err := xsk.LookupDevice("up0")
		if err != nil {
			return err
		}
		socket, err = xsk.NewUMEM(memory).Open(xsk.SocketOptions{Device: dev, Rx: ring, Tx: ring, Fill: ring, Completion: ring})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
		if err := unix.Munmap(chunks); err != nil {
			t.Error(err)
		}
	})
	port, err := xsk.NewPort(xsk.PortOptions{Socket: socket, Pool: pool, Counters: &dataplane.Counters{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := add(socket.FD()); err != nil {
		t.Fatal(err)
	}
	return &receiver{port, pool}
}

// next returns the next frame that arrives.
func (r *receiver) next(t *testing.T) []byte {
	t.Helper()
	var batch [1]*frame.Frame
	for deadline := time.Now().Add(10 * time.Second); ; {
		if r.port.Receive(batch[:], r.pool) == 1 {
			got := bytes.Clone(batch[0].Head())
			r.pool.Put(batch[0])
			return got
		}
		if time.Now().After(deadline) {
			t.Fatal("no frame arrived on the socket")
		}
		left := []unix.PollFd{{Fd: int32(r.port.Socket().FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(left, 1000); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// A known network's frames arrive on the socket, in either mode, and nowhere
// else; others of the same port, which the host may serve itself, arrive there.
func TestFramesReachTheSocket(t *testing.T) {
	for _, mode := range []Mode{Native, Generic} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Setenv("SHUNT_MASK", "")
			l := newLab(t, 1500)
			kernel, send := l.udpListener(t), l.sender(t)
			p := l.attach(t, Options{Mode: mode})
			ours := l.receiver(t, p)
			if err := errors.Join(p.AddVTEP(vtep4), p.AddVNI(knownVNI, 0)); err != nil {
				t.Fatal(err)
			}
			for range 100 {
				send(knownVNI)
				send(otherVNI)
				// Ethernet, IPv4, UDP, VXLAN, then what was sent.
				if got := ours.next(t); len(got) < 50 || !bytes.HasPrefix(got[50:], inner) || got[48] != knownVNI {
					t.Fatalf("the socket got % x", got)
				}
				if got := arrivals(t, kernel, otherVNI); got[knownVNI] != 0 {
					t.Fatalf("the kernel got %v by VNI", got)
				}
			}
			counters, err := p.Counters()
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range []steerVerdict{steerVerdictREDIRECT, steerVerdictPASS_UNKNOWN_VNI} {
				if c := counters[v]; c.Packets != 100 || c.Bytes != 100*uint64(50+len(inner)) {
					t.Errorf("%s: %d packets, %d bytes, want 100 of %d bytes", c.Verdict, c.Packets, c.Bytes, 50+len(inner))
				}
			}
		})
	}
}

// Frames of a flat network arrive by their MAC, and the host keeps its own.
func TestFlatFramesReachTheSocket(t *testing.T) {
	l := newLab(t, 1500)
	p := l.attach(t, Options{})
	ours := l.receiver(t, p)
	if err := errors.Join(p.SetFlat(true), p.AddMAC(guestMAC, []int{0})); err != nil {
		t.Fatal(err)
	}
	// The peer takes the guest for its neighbour 192.0.2.7.
	_, err := l.peer.Run(t.Context(), "ip", "neigh", "add", "192.0.2.7", "lladdr", "52:54:00:00:00:01", "dev", "peer0")
	if err != nil {
		t.Fatal(err)
	}
	guest := udpSocket(t, l.peer, "192.0.2.2:50001")
	if _, err := guest.WriteToUDP([]byte("to the guest"), udpAddr("192.0.2.7:9")); err != nil {
		t.Fatal(err)
	}
	if got := ours.next(t); !bytes.HasPrefix(got, guestMAC[:]) || !bytes.HasSuffix(got, []byte("to the guest")) {
		t.Errorf("the socket got % x", got)
	}
	if _, err := l.peer.Run(t.Context(), "ping", "-c1", "-W5", "192.0.2.1"); err != nil {
		t.Errorf("the host beside it: %v", err)
	}
}
