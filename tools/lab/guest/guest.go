// Package guest boots virtual machines with Debian's stock kernel under QEMU,
// in software emulation, so that neither KVM nor an installed image is needed:
//
//	Build   Debian packages -> kernel, initial file system, kept in a cache
//	Start   QEMU -> boot -> the guest's init says that it is ready
//	Run     command line -> virtio-serial port -> init -> output and exit status
//	Reset   QMP system_reset -> boot -> ready, on the same QEMU
//
// A guest's memory is a shared memfd, and its network devices are vhost-user
// front-ends: QEMU hands the memory to the back-end under test. A guest takes
// ten seconds to boot; let many checks share one.
package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// BootTime bounds a boot; ten times what it takes on an idle machine.
const BootTime = 2 * time.Minute

// Options of a guest.
type Options struct {
	// Name in messages and of the files in Dir.
	Name string
	// Image to boot, from Build.
	Image Image
	// MemoryMiB of the guest; 0 is 256.
	MemoryMiB int
	// CPUs of the guest; 0 is 1.
	CPUs int
	// NICs appear in the guest as eth0, eth1 and so on.
	NICs []NIC
	// Forwards let the host reach the guest, by a device behind the NICs.
	Forwards []Forward
	// Disks appear in the guest as /dev/vda, /dev/vdb and so on.
	Disks []Disk
	// Slots is how many empty slots there are for disks that are plugged in later (see Plug).
	Slots int
	// Root is the device with the guest's root file system, as /dev/vda; empty: the guest stays in its initial one.
	Root string
	// Namespace QEMU runs in; nil is the caller's.
	Namespace *netlab.Namespace
	// Incoming makes a machine that waits for another to move into it (see Migrate); it must have the same devices.
	Incoming bool
	// Dir for QEMU's sockets and the console log; empty makes one in the
	// temporary directory, which Close removes.
	Dir string
}

// NIC is a virtio-net device whose back-end speaks vhost-user.
type NIC struct {
	// Socket of the back-end.
	Socket string
	// Server makes QEMU listen on Socket; otherwise it connects.
	Server bool
	// Reconnect makes QEMU connect again, after a second, when the back-end
	// went away.
	Reconnect bool
	// MAC address; empty takes QEMU's default.
	MAC string
	// Queues is the number of queue pairs; 0 is 1.
	Queues int
	// Properties of virtio-net-pci beyond that, as "csum=off,packed=on".
	Properties string
}

// Disk is a virtio-blk device whose back-end speaks vhost-user.
type Disk struct {
	// Socket of the back-end.
	Socket string
	// Reconnect makes QEMU connect again, after a second, when the back-end went away.
	Reconnect bool
	// Queues is the number of queues; 0 is 1.
	Queues int
	// Properties of vhost-user-blk-pci beyond that, as "packed=on".
	Properties string
}

// Guest is a running virtual machine.
type Guest struct {
	name    string
	console string // path of the console log
	qemu    *netlab.Process
	qmp     *qmp
	control *control
	arrival string // where a machine that moves here is received
	tmpDir  string // removed by Close if not empty
	close   sync.Once
}

// Start starts a guest and waits until it can run commands. The error of a
// guest that does not come up carries the end of its console.
func Start(ctx context.Context, o Options) (*Guest, error) {
	g := &Guest{name: o.Name}
	if err := g.start(ctx, o); err != nil {
		err = fmt.Errorf("start guest %s: %w%s", o.Name, err, g.evidence())
		g.Close()
		return nil, err
	}
	return g, nil
}

func (g *Guest) start(ctx context.Context, o Options) error {
	dir := o.Dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "shunt-guest-"); err != nil {
			return err
		}
		g.tmpDir = dir
	}
	g.console = filepath.Join(dir, o.Name+".console")
	// QEMU connects to sockets that are there before it starts, so there is
	// nothing to wait for and nothing to find half made.
	var listeners [2]net.Listener
	var paths [2]string
	for i, what := range []string{"control", "qmp"} {
		paths[i] = filepath.Join(dir, o.Name+"."+what)
		listener, err := net.Listen("unix", paths[i])
		if err != nil {
			return err
		}
		defer listener.Close()
		listeners[i] = listener
	}
	args := o.arguments(g.console, paths[0], paths[1])
	if o.Incoming {
		g.arrival = "unix:" + filepath.Join(dir, o.Name+".arrival")
		args = append(args, "-incoming", g.arrival)
	}
	// The process outlives the caller's context: a guest is ended by Close.
	var err error
	g.qemu, err = netlab.Start(o.Namespace.Command(context.Background(), "qemu-system-x86_64", args...))
	if err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	var conns [2]net.Conn
	for i := range listeners {
		if conns[i], err = g.accept(ctx, listeners[i]); err != nil {
			return err
		}
	}
	g.control = newControl(conns[0])
	if g.qmp, err = newQMP(conns[1]); err != nil || o.Incoming {
		return err
	}
	return g.waitReady(ctx, 1)
}

func (o Options) arguments(console, control, qmp string) []string {
	memory, cpus := o.MemoryMiB, max(1, o.CPUs)
	if memory == 0 {
		memory = 256
	}
	args := []string{
		"-name", o.Name, "-nodefaults", "-no-user-config", "-display", "none",
		// With no more than one CPU QEMU leaves out the fences and the locks of the guest's code, which order what it writes for a device behind a socket as well: so
		// there is room for one more.
		"-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", fmt.Sprintf("%d,maxcpus=%d", cpus, cpus+1), "-m", fmt.Sprintf("%dM", memory),
		"-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", memory), "-numa", "node,memdev=ram",
		"-kernel", o.Image.Kernel, "-initrd", o.Image.Initramfs,
		"-append", o.commandLine(),
		"-chardev", "file,id=console,path=" + console, "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=control,path=" + control,
		"-device", "virtserialport,chardev=control,name=shunt.control",
		"-qmp", "unix:" + qmp,
	}
	for i, nic := range o.NICs {
		args = append(args, nic.arguments(i)...)
	}
	args = append(args, forwardArguments(o.Forwards)...)
	for i, disk := range o.Disks {
		args = append(args, disk.arguments(i)...)
	}
	return append(args, slotArguments(o.Slots)...)
}

// commandLine is the kernel's.
func (o Options) commandLine() string {
	// A panic stops the guest where it is; the console tells.
	line := "console=ttyS0 loglevel=5 panic=0 mitigations=off nokaslr random.trust_cpu=on cryptomgr.notests no_timer_check tsc=reliable rcupdate.rcu_expedited=1 net.ifnames=0"
	if o.Root != "" {
		line += " shunt.root=" + o.Root
	}
	return line
}

// DiskID names the i-th disk to QEMU's monitor.
func DiskID(i int) string { return fmt.Sprintf("disk%d", i) }

func (d Disk) arguments(i int) []string {
	chardev := fmt.Sprintf("socket,id=blk%d,path=%s", i, d.Socket)
	if d.Reconnect {
		chardev += ",reconnect=1"
	}
	// No MSI-X vectors: as for a NIC.
	device := fmt.Sprintf("vhost-user-blk-pci,id=%s,chardev=blk%d,num-queues=%d,vectors=0", DiskID(i), i, max(1, d.Queues))
	if d.Properties != "" {
		device += "," + d.Properties
	}
	return []string{"-chardev", chardev, "-device", device}
}

func (n NIC) arguments(i int) []string {
	chardev := fmt.Sprintf("socket,id=nic%d,path=%s", i, n.Socket)
	if n.Server {
		chardev += ",server=on,wait=off"
	} else if n.Reconnect {
		chardev += ",reconnect=1"
	}
	netdev := fmt.Sprintf("vhost-user,id=net%d,chardev=nic%d", i, i)
	// No boot ROM: the kernel comes from the command line. No MSI-X vectors:
	// without KVM, QEMU 7.2 crashes when it unmasks one of a vhost-user device.
	device := fmt.Sprintf("virtio-net-pci,netdev=net%d,romfile=,vectors=0", i)
	if n.Queues > 1 {
		netdev += fmt.Sprintf(",queues=%d", n.Queues)
		device += ",mq=on"
	}
	if n.MAC != "" {
		device += ",mac=" + n.MAC
	}
	if n.Properties != "" {
		device += "," + n.Properties
	}
	return []string{"-chardev", chardev, "-netdev", netdev, "-device", device}
}

func (g *Guest) ended() error {
	if _, err := g.qemu.Result(); err != nil {
		return fmt.Errorf("QEMU ended: %w", err)
	}
	return errors.New("QEMU ended")
}

func (g *Guest) accept(ctx context.Context, listener net.Listener) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	accepted := make(chan result, 1)
	go func() {
		conn, err := listener.Accept()
		accepted <- result{conn, err}
	}()
	select {
	case r := <-accepted:
		return r.conn, r.err
	case <-g.qemu.Exited():
		return nil, g.ended()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// waitReady waits until the guest's init reported for the n-th time.
func (g *Guest) waitReady(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, BootTime, fmt.Errorf("it was not ready within %v", BootTime))
	defer cancel()
	select {
	case <-g.control.boot(n):
		return nil
	case <-g.qemu.Exited():
		return g.ended()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Run runs a program in the guest and returns what it wrote. It may be called
// from several goroutines; the programs then run at the same time.
func (g *Guest) Run(ctx context.Context, name string, args ...string) (string, error) {
	words := []string{quote(name)}
	for _, arg := range args {
		words = append(words, quote(arg))
	}
	return g.Shell(ctx, strings.Join(words, " "))
}

// Shell is Run for a script of busybox's shell. A script whose ctx ends is
// killed with what it started.
func (g *Guest) Shell(ctx context.Context, script string) (string, error) {
	out, err := g.control.run(ctx, script)
	if errors.Is(err, errGone) {
		err = fmt.Errorf("%w%s", err, g.evidence())
	}
	if err != nil {
		return out, fmt.Errorf("%s in guest %s: %w", script, g.name, err)
	}
	return out, nil
}

// Reset presses the reset button and waits until the guest is ready again.
// Programs that run meanwhile fail.
func (g *Guest) Reset(ctx context.Context) error {
	boots := g.control.bootCount()
	err := g.qmp.execute(ctx, "system_reset")
	if err == nil {
		err = g.waitReady(ctx, boots+1)
	}
	if err != nil {
		return fmt.Errorf("reset guest %s: %w%s", g.name, err, g.evidence())
	}
	return nil
}

// PID is that of QEMU.
func (g *Guest) PID() int { return g.qemu.PID() }

// Kill kills QEMU as a crash would and waits until it is gone.
func (g *Guest) Kill() {
	if g.qemu != nil {
		g.qemu.Kill()
	}
}

// Console returns what the guest wrote to its console so far.
func (g *Guest) Console() string {
	text, err := os.ReadFile(g.console)
	if err != nil {
		return ""
	}
	return string(text)
}

// Close ends the guest and removes what Start made. A second call does
// nothing.
func (g *Guest) Close() error {
	var err error
	g.close.Do(func() {
		g.Kill()
		if g.control != nil {
			g.control.close()
		}
		if g.qmp != nil {
			g.qmp.close()
		}
		if g.tmpDir != "" {
			err = os.RemoveAll(g.tmpDir)
		}
	})
	return err
}

// evidence is what to show of a guest that failed.
func (g *Guest) evidence() string {
	var text string
	if g.qemu != nil && g.qemu.Output() != "" {
		text += "\nQEMU said:\n" + g.qemu.Output()
	}
	if console := strings.TrimSpace(g.Console()); console != "" {
		lines := strings.Split(console, "\n")
		text += "\nThe console ends with:\n" + strings.Join(lines[max(0, len(lines)-20):], "\n")
	}
	return text
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
