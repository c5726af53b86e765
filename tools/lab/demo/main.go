// Demo shows shunt's main job on one machine, and takes everything down again:
//
//	┌─ node A (a network namespace) ──────────┐        ┌─ node B (a network namespace) ──┐
//	│  QEMU guest                              │        │                                 │
//	│  Debian's kernel, virtio-net  10.0.0.1   │        │  10.0.0.2  the kernel's VXLAN   │
//	│      │           virtio-blk  /dev/vda    │        │      │     device, not ours     │
//	│      │ vhost-user: shared memory         │        │      │                          │
//	│  shuntd ── VXLAN over AF_XDP ── 192.0.2.1 ══ veth ══ 192.0.2.2                      │
//	│        └── NBD over io_uring, TCP ──────┘ │        │    nbdkit: the guest's root     │
//	└──────────────────────────────────────────┘        └─────────────────────────────────┘
//
// It needs root. Every address lies in a namespace that it makes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: makes network namespaces and AF_XDP sockets; run it as root")
		os.Exit(2)
	}
	if err := run(ctx); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted; everything is removed")
		}
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// The demo's world.
const (
	underlayA, underlayB = "192.0.2.1", "192.0.2.2"
	guestIP, peerIP      = "10.0.0.1", "10.0.0.2"
	guestMAC             = "52:54:00:00:00:01"
	diskPort             = "10809"
	vni                  = 100
	mtu                  = 1450
)

// demo is what has to be removed, in the reverse order of its making.
type demo struct {
	began  time.Time
	undo   []func() error
	dir    string
	nodeA  *netlab.Namespace
	nodeB  *netlab.Namespace
	daemon *daemon.Daemon
	guest  *guest.Guest
}

func run(ctx context.Context) (err error) {
	d := &demo{began: time.Now()}
	defer func() { err = errors.Join(err, d.close()) }()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"build the guest's image from Debian's packages, once", d.image},
		{"two nodes, joined by a cable", d.nodes},
		{"node B: the kernel's own VXLAN device", d.peer},
		{"node B: a cloud disk with the guest's root file system, served by nbdkit", d.disk},
		{"node A: shuntd", d.start},
		{"node A: boot a guest with Debian's stock kernel from the cloud disk (QEMU, software emulation)", d.boot},
		{"the guest writes to its root, and reads what the disk holds", d.write},
		{"guest and peer ping each other, 56, 1400 and 8000 bytes", d.ping},
		{"iperf3 through QEMU's emulated CPU, which is the limit here", d.throughput},
		{"what shuntd counted meanwhile", d.counters},
	} {
		d.say(step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// say announces a step, with the time since the beginning.
func (d *demo) say(what string) { fmt.Printf("\n[%4.0fs] %s\n", time.Since(d.began).Seconds(), what) }

// show prints a result under a step.
func show(format string, args ...any) { fmt.Printf("        "+format+"\n", args...) }

func (d *demo) later(undo func() error) { d.undo = append(d.undo, undo) }

func (d *demo) close() error {
	d.say("remove everything")
	var errs []error
	for i := len(d.undo) - 1; i >= 0; i-- {
		errs = append(errs, d.undo[i]())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	show("done; nothing is left")
	return nil
}

func (d *demo) image(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "shunt-demo-"); err != nil {
		return err
	}
	d.later(func() error {
		err := os.RemoveAll(d.dir)
		daemon.SweepRings(filepath.Dir(d.dir))
		return err
	})
	_, err = d.recipe(ctx)
	return err
}

func (d *demo) recipe(ctx context.Context) (guest.Image, error) {
	return guest.Build(ctx, guest.Recipe{
		Root:     &guest.Root{MiB: 64},
		Progress: func(s string) { show("%s", s) },
	})
}

func (d *demo) nodes(ctx context.Context) (err error) {
	for _, n := range []struct {
		name string
		at   **netlab.Namespace
	}{{"demo-a", &d.nodeA}, {"demo-b", &d.nodeB}} {
		if *n.at, err = netlab.NewNamespace(n.name); err != nil {
			return err
		}
		d.later((*n.at).Close)
	}
	err = netlab.Veth(
		netlab.End{Namespace: d.nodeA, Name: "eth0", Addrs: []string{underlayA + "/24"}},
		netlab.End{Namespace: d.nodeB, Name: "eth0", Addrs: []string{underlayB + "/24"}}, 1)
	if err != nil {
		return err
	}
	// A veth passes frames on with the checksums and segments that a NIC would still have to make. Here B makes them itself.
	_, err = d.nodeB.Run(ctx, "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
	return err
}

func (d *demo) peer(ctx context.Context) error {
	show("ip link add vxlan0 type vxlan id %d dstport 4789 local %s remote %s", vni, underlayB, underlayA)
	return peer.KernelVXLAN(ctx, d.nodeB, peer.VXLAN{
		Name: "vxlan0", VNI: vni, Device: "eth0", Local: underlayB, Remote: underlayA, MTU: mtu, Addrs: []string{peerIP + "/24"},
	})
}

// disk serves a copy of the root file system.
func (d *demo) disk(ctx context.Context) error {
	image, err := d.recipe(ctx)
	if err != nil {
		return err
	}
	path, uri := filepath.Join(d.dir, "root.ext4"), "nbd://"+underlayB+":"+diskPort
	if err := guest.CopyDisk(image.Root, path); err != nil {
		return err
	}
	show("nbdkit --port %s file root.ext4", diskPort)
	server, err := peer.StartNBD(ctx, d.nodeB, uri, "nbdkit", "--foreground", "--port", diskPort, "file", path)
	if err != nil {
		return err
	}
	d.later(func() error { server.Kill(); return nil })
	return nil
}

func (d *demo) start(ctx context.Context) error {
	binary, err := daemon.Build(ctx, d.dir)
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`uplinks:
  - {name: up0, interface: eth0}
networks:
  - {name: blue, vni: %d, uplink: up0, mtu: %d, flood: [%s]}
ports:
  - {name: vm1-eth0, network: blue, socket: %s, mac: "%s", ips: [%s]}
volumes:
  - {name: vm1-root, socket: %s, source: "nbd://%s:%s/", serial: vm1-root}
`, vni, mtu, underlayB, d.socket("vm1-eth0"), guestMAC, guestIP, d.socket("vm1-root"), underlayB, diskPort)
	for line := range strings.Lines(config) {
		show("%s", strings.TrimRight(strings.ReplaceAll(line, d.dir, "/run/shunt"), "\n"))
	}
	d.daemon = daemon.New(daemon.Options{Name: "shuntd", Binary: binary, Namespace: d.nodeA, Dir: d.dir, Config: config})
	if err := d.daemon.Start(ctx); err != nil {
		return err
	}
	d.later(func() error { return d.daemon.Stop(context.WithoutCancel(ctx)) })
	s, err := d.daemon.API().Status(ctx)
	if err != nil {
		return err
	}
	for _, u := range s.Uplinks {
		show("uplink %s on %s: XDP %s, AF_XDP %s, %d queue, tunnel endpoint %v", u.Name, u.Interface, u.XDP, u.Bind, u.Queues, u.Address)
	}
	return nil
}

func (d *demo) socket(name string) string { return filepath.Join(d.dir, name+".sock") }

func (d *demo) boot(ctx context.Context) error {
	image, err := d.recipe(ctx)
	if err != nil {
		return err
	}
	d.guest, err = guest.Start(ctx, guest.Options{
		Name: "vm1", Image: image, Dir: d.dir, NICs: []guest.NIC{{Socket: d.socket("vm1-eth0"), MAC: guestMAC, Reconnect: true, Properties: fmt.Sprintf("host_mtu=%d", mtu)}},
		Disks: []guest.Disk{{Socket: d.socket("vm1-root"), Reconnect: true}}, Root: "/dev/vda",
	})
	if err != nil {
		return err
	}
	d.later(d.guest.Close)
	out, err := d.guest.Shell(ctx, fmt.Sprintf("ip link set eth0 up && ip addr add %s/24 dev eth0 && uname -sr && cat /sys/class/net/eth0/mtu", guestIP))
	if err != nil {
		return err
	}
	kernel, mtu, _ := strings.Cut(strings.TrimSpace(out), "\n")
	show("guest runs %s, eth0 is %s with an MTU of %s", kernel, guestIP, mtu)
	return nil
}

func (d *demo) write(ctx context.Context) error {
	out, err := d.guest.Shell(ctx, `echo "/dev/vda is $(cat /sys/block/vda/serial), $(($(cat /sys/block/vda/size) / 2048)) MiB, and the root: $(df -P / | tail -n 1)"
dd if=/dev/urandom of=/demo bs=1M count=16 conv=fsync 2>/dev/null
was=$(sha256sum </demo)
echo 3 >/proc/sys/vm/drop_caches
now=$(sha256sum </demo)
[ "$was" = "$now" ] && echo "16 MiB written, flushed, read back from the disk: the same"`)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		show("%s", strings.TrimRight(line, "\n"))
	}
	return nil
}

func (d *demo) ping(ctx context.Context) error {
	for _, way := range []struct {
		name string
		from peer.Runner
		to   string
	}{{"guest -> peer", d.guest, peerIP}, {"peer -> guest", d.nodeB, guestIP}} {
		for _, size := range []int{56, 1400, 8000} {
			p, err := peer.Ping(ctx, way.from, way.to, peer.PingOptions{Size: size})
			if err != nil {
				return err
			}
			show("%s  %4d bytes: %d of %d answered, %v on average", way.name, size, p.Received, p.Sent, p.Avg)
			if p.Received == 0 {
				return errors.New("no answer came back")
			}
		}
	}
	return nil
}

func (d *demo) throughput(ctx context.Context) error {
	stop := d.live(ctx)
	defer stop()
	for _, o := range []struct {
		name string
		peer.IperfOptions
	}{
		{"TCP guest -> peer", peer.IperfOptions{}},
		{"TCP peer -> guest", peer.IperfOptions{Reverse: true}},
		{"UDP guest -> peer", peer.IperfOptions{UDP: true, Rate: 20e6, Length: 1200}},
	} {
		r, err := peer.Iperf(ctx, d.nodeB, d.guest, peerIP, o.IperfOptions)
		if err != nil {
			return err
		}
		show("%s  %7.1f Mbit/s", o.name, r.BitsPerSecond/1e6)
	}
	for who, r := range map[string]peer.Runner{"guest": d.guest, "peer": d.nodeB} {
		n, err := peer.ChecksumErrors(ctx, r)
		if err != nil {
			return err
		}
		show("checksum errors seen by the %s: %d", who, n)
	}
	return nil
}

// live prints the guest's port's rates every second, until the returned function is called.
func (d *demo) live(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		last, at := d.port(ctx), time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := d.port(ctx)
			seconds := time.Since(at).Seconds()
			rate := func(now, last uint64) float64 { return float64(now-last) / seconds }
			show("    live: from the guest %7.0f packets/s %6.1f Mbit/s, to the guest %7.0f packets/s %6.1f Mbit/s, dropped %4.0f/s",
				rate(now.RxPackets, last.RxPackets), rate(now.RxBytes, last.RxBytes)*8/1e6,
				rate(now.TxPackets, last.TxPackets), rate(now.TxBytes, last.TxBytes)*8/1e6, rate(now.Dropped(), last.Dropped()))
			last, at = now, time.Now()
		}
	}()
	return func() { cancel(); <-done }
}

// port reads the counters of the guest's port.
func (d *demo) port(ctx context.Context) control.Counters {
	c, _ := d.daemon.Counters(ctx, control.KindPort, "vm1-eth0")
	return c
}

func (d *demo) counters(ctx context.Context) error {
	s, err := d.daemon.API().Stats(ctx, "")
	if err != nil {
		return err
	}
	show("%-7s %-9s %12s %12s %9s", "", "", "received", "transmitted", "dropped")
	for _, o := range s.Objects {
		if o.RxPackets+o.TxPackets > 0 {
			show("%-7s %-9s %12d %12d %9d", o.Kind, o.Name, o.RxPackets, o.TxPackets, o.Dropped())
		}
	}
	for _, o := range s.Objects {
		if o.Volume == nil {
			continue
		}
		for _, op := range o.Volume.Operations {
			if op.Requests > 0 {
				mean := time.Duration(op.Total.Sum / float64(max(op.Total.Count, 1)) * 1e9)
				show("volume  %-9s %7d requests to %-12s %9.1f MiB, %v each on average, %d errors", o.Name, op.Requests, op.Operation, float64(op.Bytes)/(1<<20), mean.Round(time.Microsecond), op.Errors)
			}
		}
	}
	for _, drop := range s.DropList() {
		show("dropped at %s: %d, %s", drop.Name, drop.Packets, drop.Meaning)
	}
	return nil
}
