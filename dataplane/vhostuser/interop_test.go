package vhostuser

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/need"
)

// netFeatures are CSUM, MAC, MRG_RXBUF, CTRL_VQ, MQ, INDIRECT_DESC, EVENT_IDX and VERSION_1.
const netFeatures = 1<<0 | 1<<5 | 1<<15 | 1<<17 | 1<<22 | 1<<28 | 1<<29 | 1<<32

// tapped serves a fake device that offers what a network device would, and records the conversation.
func tapped(t *testing.T, pairs int) (*Backend, *fakeDevice, *recorder) {
	d := newFake(t)
	d.offer = Offer{Features: netFeatures, Vrings: 2 * pairs, QueueNum: pairs, ProtocolFeatures: DefaultProtocolFeatures | ProtocolNetMTU}
	rec := &recorder{}
	return listenFake(t, d, Options{tap: rec.tap}), d, rec
}

// process is another program, running until the test ends.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Writer
	out   bytes.Buffer
	done  chan struct{}
}

func run(t *testing.T, name string, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	p := &process{t: t, cmd: exec.CommandContext(ctx, name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	var err error
	p.stdin, err = p.cmd.StdinPipe()
	must(t, err)
	must(t, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		cancel()
		<-p.done
		if t.Failed() {
			t.Logf("%s %s\n%s", name, strings.Join(args, " "), p.out.String())
		}
	})
	return p
}

// ask types a line into the program; end interrupts it. It then has to leave by itself.
func (p *process) ask(line string) {
	_, err := io.WriteString(p.stdin, line+"\n")
	must(p.t, err)
}

func (p *process) end() {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(os.Interrupt))
	p.left()
}

func (p *process) left() {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s does not end", p.cmd.Path)
	}
}

func qemu(t *testing.T, socket string, netdev, device string, more ...string) *process {
	return run(t, "qemu-system-x86_64", append([]string{"-M", "q35", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none",
		"-monitor", "stdio", "-m", "128M", "-object", "memory-backend-memfd,id=m,size=128M,share=on", "-numa", "node,memdev=m",
		"-chardev", "socket,id=c,path=" + socket,
		"-netdev", "vhost-user,id=n,chardev=c" + netdev, "-device", "virtio-net-pci,netdev=n" + device}, more...)...)
}

func pairRuns(t *testing.T, d *fakeDevice) {
	t.Helper()
	eventually(t, "both rings run", func() bool {
		_, rx := d.running(0)
		_, tx := d.running(1)
		return rx && tx
	})
}

// orderlyEnd waits for the front-end to be gone, having broken no rule and been refused nothing.
func orderlyEnd(t *testing.T, b *Backend, d *fakeDevice) {
	t.Helper()
	eventually(t, "disconnected", func() bool { return d.disconnects() == 1 && b.Status().Session == nil })
	if end := b.Status().LastEnd; end != "" {
		t.Error(end)
	}
}

// TestQEMU lets the network boot code in QEMU's option ROM drive a device of ours: rings run with memory, stop and start again
// when the machine is reset or paused, and stop at the end.
func TestQEMU(t *testing.T) {
	need.Program(t, "qemu-system-x86_64")
	b, d, rec := tapped(t, 1)
	p := qemu(t, b.path, "", "")
	pairRuns(t, d)
	if s := b.Status().Session; s.Refused != 0 || s.MemoryBytes < 100<<20 || s.ProtocolFeatures&ProtocolMemSlots == 0 {
		t.Errorf("%+v", s)
	}
	p.ask("system_reset")
	eventually(t, "rings stop", func() bool { return slices.Contains(d.seen(), "stop 1") })
	pairRuns(t, d)
	// A paused machine goes on where the device stood, although QEMU 7.2 resets the device before it asks where that was.
	d.set(func() { d.base = 3 })
	p.ask("stop")
	eventually(t, "rings stop", func() bool { _, ok := d.running(1); return !ok })
	p.ask("cont")
	pairRuns(t, d)
	if c, _ := d.running(1); c.Base != 3 {
		t.Errorf("ring goes on at %d", c.Base)
	}
	p.ask("quit")
	p.left()
	orderlyEnd(t, b, d)
	rec.save(t, "qemu-7.2-reset", "QEMU 7.2, q35: network boot code starts the rings, machine reset, the same again, stop, cont, quit")
}

// TestQEMUPairs: with two queue pairs QEMU speaks for each of them.
func TestQEMUPairs(t *testing.T) {
	need.Program(t, "qemu-system-x86_64")
	b, d, rec := tapped(t, 2)
	p := qemu(t, b.path, ",queues=2", ",mq=on,vectors=6")
	pairRuns(t, d)
	must(t, p.cmd.Process.Kill())
	p.left()
	orderlyEnd(t, b, d)
	rec.save(t, "qemu-7.2-pairs", "QEMU 7.2, q35, two queue pairs of which the boot code uses one; then QEMU is killed")
}

func testpmd(t *testing.T, vdev string, args ...string) *process {
	all := []string{"--lcores", "0@0,1@1", "--no-pci", "--no-huge", "-m", "64", "--no-telemetry", "--file-prefix",
		strings.ReplaceAll(t.Name(), "/", "-"), "--vdev", vdev, "--", "--total-num-mbufs=2048", "--stats-period=3600"}
	return run(t, "dpdk-testpmd", append(all, args...)...)
}

// TestVirtioUser: DPDK's front-end gets rings running on us, with and without acknowledgements.
func TestVirtioUser(t *testing.T) {
	need.Program(t, "dpdk-testpmd")
	for name, protocol := range map[string]uint64{
		"acknowledged": DefaultProtocolFeatures, "classic": ProtocolMQ, "old": ProtocolInband, // the last is not served: none is left
	} {
		t.Run(name, func(t *testing.T) {
			b, d, rec := tapped(t, 1)
			d.set(func() { d.offer.ProtocolFeatures = protocol })
			p := testpmd(t, "net_virtio_user0,path="+b.path+",queues=1,queue_size=256,mac=52:54:00:00:00:01", "--forward-mode=rxonly")
			pairRuns(t, d)
			p.end()
			orderlyEnd(t, b, d)
			rec.save(t, "virtio-user-22.11-"+name, "DPDK 22.11 testpmd, net_virtio_user, "+name+", until it is interrupted")
		})
	}
}

// TestFrontendAgainstDPDK: our front-end negotiates with net_vhost, starts rings and gets their base back.
func TestFrontendAgainstDPDK(t *testing.T) {
	need.Program(t, "dpdk-testpmd")
	path := filepath.Join(t.TempDir(), "s")
	testpmd(t, "net_vhost0,iface="+path+",queues=1", "--forward-mode=rxonly")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			f, err := DialWait(ctx, path)
			must(t, err)
			defer f.Close()
			must(t, f.Negotiate(mode.features&(1<<32|1<<15|FeatureProtocol), mode.protocol&^ProtocolStatus))
			g := newGuest(t)
			must(t, f.SetMemory(g.region()))
			for i := range 2 {
				must(t, f.StartVring(g.ring(i)))
			}
			must(t, f.Barrier())
			for i := range 2 {
				if base, err := f.StopVring(i); err != nil || base != 0 {
					t.Errorf("ring %d: base %d, %v", i, base, err)
				}
			}
		})
	}
}

// TestFrontendAgainstQEMU: a block device of qemu-storage-daemon, with configuration space and memory slots.
func TestFrontendAgainstQEMU(t *testing.T) {
	need.Program(t, "qemu-storage-daemon")
	path := filepath.Join(t.TempDir(), "s")
	run(t, "qemu-storage-daemon", "--blockdev", "driver=null-co,node-name=n,size=1048576",
		"--export", "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path="+path+",writable=on")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f, err := DialWait(ctx, path)
	must(t, err)
	defer f.Close()
	must(t, f.Negotiate(1<<32|FeatureProtocol, wantAll&^ProtocolBackendReq))
	if !slices.Contains(ProtocolNames(f.Protocol()), "CONFIG") {
		t.Fatal(ProtocolNames(f.Protocol()))
	}
	config, err := f.Config(0, 60)
	must(t, err)
	if sectors := uint64(config[0]) | uint64(config[1])<<8; sectors != 2048 {
		t.Errorf("%d sectors", sectors)
	}
	if n, err := f.MaxMemSlots(); err != nil || n < 8 {
		t.Errorf("%d slots, %v", n, err)
	}
	g := newGuest(t)
	must(t, f.AddMemory(g.region()))
	must(t, f.StartVring(g.ring(0)))
	if base, err := f.StopVring(0); err != nil || base != 0 {
		t.Errorf("base %d, %v", base, err)
	}
	must(t, f.RemoveMemory(g.region()))
	must(t, f.Barrier())
}
