package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

const prompt = "testpmd> "

// TestpmdOptions say how DPDK's testpmd is started.
type TestpmdOptions struct {
	// Name in messages; testpmds that run at the same time need their own.
	Name string
	// Namespace to run in; nil is the caller's.
	Namespace *netlab.Namespace
	// Devices are the arguments of --vdev: a [VirtioUser], or as
	// "net_vhost0,iface=PATH". They become ports 0, 1 and so on.
	Devices []string
	// Mode of forwarding (io, mac, txonly, rxonly, flowgen, icmpecho); empty is io.
	Mode string
	// CPU of the forwarding thread, which polls; testpmd's main thread sleeps
	// on CPU 0.
	CPU int
	// MemoryMiB for packet buffers; 0 is 128.
	MemoryMiB int
	// HugePages takes the memory from huge pages, reserved with
	// [ReserveHugePages]; for measurements. Ordinary memory is shared with a
	// back-end just as well.
	HugePages bool
	// EAL are further arguments of DPDK's environment, as "--force-max-simd-bitwidth=512".
	EAL []string
	// Args are further arguments of testpmd itself, as "--txpkts=64".
	Args []string
}

// VirtioUser is DPDK's vhost-user front-end: a guest's driver without a guest.
type VirtioUser struct {
	Number    int // of the device, in its name
	Path      string
	MAC       string
	Queues    int // pairs; 0 is 1
	QueueSize int // 0 is 1024
	Server    bool
	Packed    bool // packed rings
	// NotMergeable leaves VIRTIO_NET_F_MRG_RXBUF out.
	NotMergeable bool
	// InOrder takes VIRTIO_F_IN_ORDER, which virtio-user takes unless told not to.
	InOrder    bool
	Vectorized bool
}

// String is the argument of --vdev.
func (v VirtioUser) String() string {
	size := v.QueueSize
	if size == 0 {
		size = 1024
	}
	s := fmt.Sprintf("net_virtio_user%d,path=%s,queues=%d,queue_size=%d", v.Number, v.Path, max(1, v.Queues), size)
	if v.MAC != "" {
		s += ",mac=" + v.MAC
	}
	for _, option := range []struct {
		on   bool
		text string
	}{{v.Server, "server=1"}, {v.Packed, "packed_vq=1"}, {v.NotMergeable, "mrg_rxbuf=0"}, {!v.InOrder, "in_order=0"}, {v.Vectorized, "vectorized=1"}} {
		if option.on {
			s += "," + option.text
		}
	}
	return s
}

// Testpmd is a running testpmd. It has a pseudo-terminal for its prompt, as
// on a pipe its main thread would poll.
type Testpmd struct {
	name    string
	process *netlab.Process
	term    *os.File
	runtime string // DPDK's directory for it, which DPDK leaves behind
	close   sync.Once

	mu     sync.Mutex // one command at a time
	output *screen
}

// ForwardStats are the exact counts of one port since forwarding began.
type ForwardStats struct {
	Received, ReceiveDropped, Sent, SendDropped uint64
}

// PortStats are a port's counters since its start or since ClearStats.
type PortStats struct {
	Received, Missed, ReceiveErrors, NoBuffer, Sent, SendErrors uint64
}

// StartTestpmd starts testpmd and waits for its prompt. It does not forward
// until [Testpmd.Start].
func StartTestpmd(ctx context.Context, o TestpmdOptions) (*Testpmd, error) {
	t := &Testpmd{name: o.Name, output: newScreen()}
	if err := t.launch(o); err != nil {
		return nil, fmt.Errorf("start testpmd %s: %w", o.Name, err)
	}
	if _, err := t.await(ctx, 0); err != nil {
		err = fmt.Errorf("start testpmd %s: %w\nIt said:\n%s", o.Name, err, t.output.from(0))
		t.Close()
		return nil, err
	}
	return t, nil
}

func (o TestpmdOptions) arguments() []string {
	memory, mode := o.MemoryMiB, o.Mode
	if memory == 0 {
		memory = 128
	}
	if mode == "" {
		mode = "io"
	}
	args := []string{"--lcores", fmt.Sprintf("0@0,1@%d", o.CPU), "--no-pci", "--no-telemetry", "-m", strconv.Itoa(memory)}
	if o.HugePages {
		args = append(args, "--in-memory", "--single-file-segments")
	} else {
		args = append(args, "--no-huge", "--no-shconf", "--file-prefix="+o.prefix())
	}
	for _, device := range o.Devices {
		args = append(args, "--vdev="+device)
	}
	args = append(args, o.EAL...)
	args = append(args, "--", "-i", "--forward-mode="+mode, "--total-num-mbufs=16384", "--no-flush-rx")
	return append(args, o.Args...)
}

// prefix of the names of files that DPDK makes for this testpmd alone.
func (o TestpmdOptions) prefix() string { return fmt.Sprintf("shunt-%d-%s", os.Getpid(), o.Name) }

func (t *Testpmd) launch(o TestpmdOptions) error {
	master, slave, err := openTerminal()
	if err != nil {
		return err
	}
	defer slave.Close()
	cmd := o.Namespace.Command(context.Background(), "dpdk-testpmd", o.arguments()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = false, true, true
	if t.process, err = netlab.Start(cmd); err != nil {
		master.Close()
		return err
	}
	t.term = master
	if !o.HugePages { // those share one, of DPDK's own name
		t.runtime = filepath.Join("/run/dpdk", o.prefix())
	}
	go t.output.fill(master)
	return nil
}

// Command types a line and returns what is printed until the next prompt.
func (t *Testpmd) Command(ctx context.Context, line string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	begin := t.output.len()
	if _, err := t.term.WriteString(line + "\n"); err != nil {
		return "", fmt.Errorf("testpmd %s: %q: %w", t.name, line, err)
	}
	out, err := t.await(ctx, begin)
	if err == nil && (strings.Contains(out, "Bad arguments") || strings.Contains(out, "Command not found")) {
		err = errors.New(strings.TrimSpace(out))
	}
	if err != nil {
		return out, fmt.Errorf("testpmd %s: %q: %w\n%s", t.name, line, err, out)
	}
	return out, nil
}

// await waits for a prompt after the given place.
func (t *Testpmd) await(ctx context.Context, begin int) (string, error) {
	for {
		text, more := t.output.watch(begin)
		// The echo of what was typed ends with a line break, the prompt does not.
		if i := strings.LastIndex(text, prompt); i >= 0 && i+len(prompt) == len(text) {
			return text[:i], nil
		}
		select {
		case <-more:
		case <-t.process.Exited():
			return text, errors.New("it ended")
		case <-ctx.Done():
			return text, ctx.Err()
		}
	}
}

// Start begins to forward.
func (t *Testpmd) Start(ctx context.Context) error {
	_, err := t.Command(ctx, "start")
	return err
}

var forwardLine = regexp.MustCompile(`(?s)Forward statistics for port (\d+).*?RX-packets: *(\d+) *RX-dropped: *(\d+).*?TX-packets: *(\d+) *TX-dropped: *(\d+)`)

// Stop ends forwarding and returns what each port counted since it began. A
// packet testpmd could not send is in SendDropped, never silent.
func (t *Testpmd) Stop(ctx context.Context) (map[int]ForwardStats, error) {
	out, err := t.Command(ctx, "stop")
	if err != nil {
		return nil, err
	}
	stats := map[int]ForwardStats{}
	for _, m := range forwardLine.FindAllStringSubmatch(out, -1) {
		stats[int(number(m[1]))] = ForwardStats{number(m[2]), number(m[3]), number(m[4]), number(m[5])}
	}
	if len(stats) == 0 {
		return nil, fmt.Errorf("testpmd %s: no statistics in: %s", t.name, out)
	}
	return stats, nil
}

var statsLine = regexp.MustCompile(`(RX-packets|RX-missed|RX-errors|RX-nombuf|TX-packets|TX-errors): *(\d+)`)

// Stats reads a port's counters, also while it forwards.
func (t *Testpmd) Stats(ctx context.Context, port int) (PortStats, error) {
	out, err := t.Command(ctx, fmt.Sprintf("show port stats %d", port))
	if err != nil {
		return PortStats{}, err
	}
	values := map[string]uint64{}
	for _, m := range statsLine.FindAllStringSubmatch(out, -1) {
		values[m[1]] = number(m[2])
	}
	if len(values) == 0 {
		return PortStats{}, fmt.Errorf("testpmd %s: no counters in: %s", t.name, out)
	}
	return PortStats{values["RX-packets"], values["RX-missed"], values["RX-errors"], values["RX-nombuf"], values["TX-packets"], values["TX-errors"]}, nil
}

// WaitStats reads a port's counters until they satisfy enough.
func (t *Testpmd) WaitStats(ctx context.Context, port int, enough func(PortStats) bool) (PortStats, error) {
	for {
		stats, err := t.Stats(ctx, port)
		if err != nil || enough(stats) {
			return stats, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return stats, fmt.Errorf("testpmd %s: port %d is at %+v: %w", t.name, port, stats, ctx.Err())
		}
	}
}

// Output is all testpmd printed.
func (t *Testpmd) Output() string { return t.output.from(0) }

// PID is that of testpmd's process.
func (t *Testpmd) PID() int { return t.process.PID() }

// Kill kills testpmd as a crash would and waits until it is gone.
func (t *Testpmd) Kill() { t.process.Kill() }

// closeWait is how long Close lets testpmd close its ports.
const closeWait = 10 * time.Second

// Close quits testpmd, or kills it where it does not listen. A second call
// does nothing.
func (t *Testpmd) Close() error {
	var err error
	t.close.Do(func() {
		if t.process.Running() {
			_, _ = t.term.WriteString("quit\n")
			select {
			case <-t.process.Exited():
			case <-time.After(closeWait):
				err = fmt.Errorf("testpmd %s did not quit within %v", t.name, closeWait)
				t.Kill()
			}
		}
		t.term.Close()
		if t.runtime != "" {
			err = errors.Join(err, os.RemoveAll(t.runtime))
		}
	})
	return err
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(err) // the expressions above match digits; 2^64 packets do not pass
	}
	return n
}
