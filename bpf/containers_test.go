package bpf

import (
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

// patch is a cable between two ports that completes checksums, as both ends want them complete.
type patch struct {
	to        *dataplane.Link
	completed int
}

// Forward implements dataplane.Forwarder.
func (p *patch) Forward(w *dataplane.Worker, _ *dataplane.Link, frames []*frame.Frame) {
	for i, f := range frames {
		if f.Checksum.Needed && wire.Complete(f.Head(), f.Body(), f.Checksum.Start, f.Checksum.Offset) {
			f.Checksum = frame.Checksum{}
			p.completed++
		}
		frames[i] = nil
		w.Send(p.to, f)
	}
}

// Two containers, each behind a veth whose host end runs our program, talk TCP through a worker: what their kernels would have
// left to each other, checksums and segmentation, is done.
func TestContainersTalk(t *testing.T) {
	for name, jumbo := range map[string]bool{"MTU 1500": false, "MTU 9000": true} {
		t.Run(name, func(t *testing.T) {
			mtu := 1500
			if jumbo {
				if err := xsk.MultiBuffer.Check(); xsk.Masked(xsk.MultiBuffer.Name) {
					t.Skip("masked")
				} else if err != nil {
					need.Missing(t, "%v", err)
				}
				mtu = 9000
			}
			l := newLab(t, mtu)
			second := namespace(t, "second")
			err := netlab.Veth(netlab.End{Namespace: l.host, Name: "up1", MTU: mtu},
				netlab.End{Namespace: second, Name: "peer1", MTU: mtu, Addrs: []string{"192.0.2.3/24"}}, 1)
			if err != nil {
				t.Fatal(err)
			}
			const frames, ring = 4096, 512
			chunks, err := unix.Mmap(-1, 0, frames*frame.ChunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Munmap(chunks) })
			memory, err := frame.NewMemory(chunks)
			if err != nil {
				t.Fatal(err)
			}
			pool, err := memory.NewPool(0, frames)
			if err != nil {
				t.Fatal(err)
			}
			w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { w.Close() })
			umem := xsk.NewUMEM(memory)
			var links [2]*dataplane.Link
			var patches [2]*patch
			var programs [2]*PortProgram
			for i, name := range []string{"up0", "up1"} {
				programs[i] = l.attachPortTo(t, name)
				if programs[i].Mode() == Generic { // as PortProgram demands of the container then
					need.Program(t, "ethtool")
					container := []*netlab.Namespace{l.peer, second}[i]
					if _, err := container.Run(t.Context(), "ethtool", "-K", []string{"peer0", "peer1"}[i], "tso", "off", "gso", "off"); err != nil {
						t.Fatal(err)
					}
				}
				var s *xsk.Socket
				err := l.host.Do(func() error {
					d, err := xsk.LookupDevice(name)
					if err != nil {
						return err
					}
					s, err = umem.Open(xsk.SocketOptions{Device: d, Rx: ring, Tx: ring, Fill: ring, Completion: ring, MultiBuffer: jumbo})
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				counters := &dataplane.Counters{}
				port, err := xsk.NewPort(xsk.PortOptions{Socket: s, Pool: pool, Counters: counters, CompletePartial: true})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { port.Close() })
				patches[i] = &patch{}
				links[i] = &dataplane.Link{Name: name, Port: port, Forwarder: patches[i], Counters: counters}
				w.Add(links[i])
				w.Watch(s.FD(), unix.POLLIN, false)
				if err := programs[i].AddSocket(0, s.FD()); err != nil {
					t.Fatal(err)
				}
			}
			patches[0].to, patches[1].to = links[1], links[0]
			ended := make(chan error)
			go func() { ended <- w.Run() }()
			t.Cleanup(func() { w.Stop(); <-ended })

			l.transfer(t, second)
			w.Do(func() {
				for i, p := range patches {
					if p.completed == 0 {
						t.Errorf("no checksum of container %d was open", i)
					}
				}
			})
			for i, p := range programs {
				got := verdicts(t, p)
				if got["drop-too-long"] != 0 || got["redirect"] == 0 {
					t.Errorf("container %d: %v", i, got)
				}
				if n := links[i].Counters.Drops(xsk.DropChecksum) + links[i].Counters.Drops(xsk.DropTooLong) + links[i].Counters.Drops(xsk.DropMalformed); n != 0 {
					t.Errorf("container %d: %d dropped", i, n)
				}
			}
		})
	}
}

func (l *lab) attachPortTo(t *testing.T, name string) (p *PortProgram) {
	t.Helper()
	err := l.host.Do(func() (err error) {
		p, err = AttachPort(Options{Interface: name, PinPath: l.pins()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// transfer sends some megabytes from the first container to the second, and compares.
func (l *lab) transfer(t *testing.T, second *netlab.Namespace) {
	t.Helper()
	var listener net.Listener
	err := second.Do(func() (err error) { listener, err = net.Listen("tcp4", "192.0.2.3:80"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	sum := make(chan [32]byte, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		h := sha256.New()
		io.Copy(h, conn)
		sum <- [32]byte(h.Sum(nil))
	}()
	var conn net.Conn
	if err := l.peer.Do(func() (err error) { conn, err = net.DialTimeout("tcp4", "192.0.2.3:80", 10*time.Second); return err }); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(data); err != nil {
		t.Fatal(errors.Join(err, conn.Close()))
	}
	conn.Close()
	select {
	case got := <-sum:
		if got != sha256.Sum256(data) {
			t.Error("what arrived is not what was sent")
		}
	case <-time.After(30 * time.Second):
		t.Error("the transfer did not end")
	}
}
