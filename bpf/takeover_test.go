package bpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/need"
)

// childEnv makes this test binary an owner of up0 instead of a test run.
const childEnv = "SHUNT_BPF_TEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(own(os.Getenv(childEnv)))
	}
	os.Exit(m.Run())
}

// own attaches to up0, as an uplink makes knownVNI ours, says so, and ends cleanly
// when its standard input does.
func own(kind string) int {
	var p io.Closer
	var err error
	if kind == "port" {
		p, err = AttachPort(Options{Interface: "up0"})
	} else {
		var u *Program
		if u, err = Attach(Options{Interface: "up0"}); err == nil {
			err = errors.Join(u.AddVTEP(vtep4), u.AddVNI(knownVNI, 0), u.AddStation(knownVNI, guestMAC, []int{1}), u.Settle())
		}
		p = u
	}
	if err != nil {
		fmt.Printf("%v, permission %v\n", err, errors.Is(err, ErrPermission))
		return 1
	}
	fmt.Println("attached")
	io.Copy(io.Discard, os.Stdin)
	if err := p.Close(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// ownerProcess is a process that holds up0.
type ownerProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// startOwner returns when the process has said its first line, with that line.
func (l *lab) startOwner(t *testing.T) (*ownerProcess, string) {
	t.Helper()
	cmd := l.host.Command(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=uplink")
	return startCommand(t, cmd)
}

func startCommand(t *testing.T, cmd *exec.Cmd) (*ownerProcess, string) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &ownerProcess{cmd, stdin}
	t.Cleanup(o.kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the owner said %q: %v", line, err)
	}
	return o, strings.TrimSpace(line)
}

func (l *lab) mustStartOwner(t *testing.T) *ownerProcess {
	t.Helper()
	o, line := l.startOwner(t)
	if line != "attached" {
		t.Fatalf("the owner said %q", line)
	}
	return o
}

func (o *ownerProcess) kill() {
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
}

func (o *ownerProcess) end(t *testing.T) {
	t.Helper()
	o.stdin.Close()
	if err := o.cmd.Wait(); err != nil {
		t.Errorf("the owner: %v", err)
	}
}

func TestLivingOwnerIsRespected(t *testing.T) {
	l := newLab(t, 1500)
	o := l.mustStartOwner(t)
	id := l.device(t).program
	pid := "process " + strconv.Itoa(o.cmd.Process.Pid) + " "
	for name, err := range map[string]error{
		"attach":  second(l.tryAttach(Options{})),
		"replace": second(l.tryAttach(Options{Replace: true})),
		"detach":  l.detach(false),
	} {
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), pid) {
			t.Errorf("%s: %v, want ErrBusy and %q", name, err, pid)
		}
	}
	// Neither does another name make another interface of it.
	if _, err := l.host.Run(t.Context(), "ip", "link", "property", "add", "dev", "up0", "altname", "uplink-zero"); err != nil {
		t.Fatal(err)
	}
	err := l.host.Do(func() error {
		_, err := Attach(Options{Interface: "uplink-zero", PinPath: l.pins()})
		return err
	})
	if !errors.Is(err, ErrBusy) {
		t.Errorf("attach by the alternative name: %v", err)
	}
	if now := l.device(t).program; now != id {
		t.Errorf("program %d became %d", id, now)
	}
	o.end(t)
	l.nothingLeft(t)
}

func second[T any](_ T, err error) error { return err }

func TestForcedDetachUnderALivingOwner(t *testing.T) {
	l := newLab(t, 1500)
	o := l.mustStartOwner(t)
	if err := l.detach(true); err != nil {
		t.Error(err)
	}
	if dev := l.device(t); dev.program != 0 {
		t.Errorf("up0 still runs %s", dev.describe())
	}
	o.end(t)
	l.nothingLeft(t)
}

// arrivals counts what the host's kernel gets, by VNI, until the marker does.
func arrivals(t *testing.T, at *net.UDPConn, marker uint32) map[uint32]int {
	t.Helper()
	got := map[uint32]int{}
	buf := make([]byte, 2048)
	for {
		at.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := at.Read(buf)
		if err != nil || n < 8 {
			t.Fatalf("waiting for VNI %d, got %v: %v", marker, got, err)
		}
		vni := uint32(buf[4])<<16 | uint32(buf[5])<<8 | uint32(buf[6])
		got[vni]++
		if vni == marker {
			return got
		}
	}
}

// A killed owner leaves a program that keeps its networks from the kernel. The
// next one goes on in its place, knows what it knew, and forgets what it does
// not ask for.
func TestTakeoverFromADeadOwner(t *testing.T) {
	l := newLab(t, 1500)
	kernel, send := l.udpListener(t), l.sender(t)
	const marker = 7 // unknown, so the kernel's
	see := func(when string, want int) {
		t.Helper()
		send(knownVNI)
		send(marker)
		if got := arrivals(t, kernel, marker)[knownVNI]; got != want {
			t.Errorf("%s: %d frames of the known network reached the kernel, want %d", when, got, want)
		}
	}
	see("before", 1)
	o := l.mustStartOwner(t)
	before := l.link(t)
	see("while the owner lives", 0)
	o.kill()
	see("after its death", 0)

	p := l.attach(t, Options{})
	after := l.link(t)
	if after.Program == before.Program || after.ID != before.ID {
		t.Errorf("link %d with program %d became link %d with program %d; want the same link, another program",
			before.ID, before.Program, after.ID, after.Program)
	}
	see("after the takeover", 0)
	if err := errors.Join(p.AddVTEP(vtep4), p.AddVNI(knownVNI, 0), p.Settle()); err != nil {
		t.Error(err)
	}
	see("after the same configuration", 0)
	if err := p.Leave(); err != nil {
		t.Error(err)
	}
	see("after it left", 0)
	if p = l.attach(t, Options{}); p.Return() != nil {
		t.Error("it does not return")
	}
	see("after one who came to nothing", 0)
	p = l.attach(t, Options{})
	see("after another takeover", 0)
	if err := errors.Join(p.AddVTEP(vtep4), p.Settle(knownVNI)); err != nil {
		t.Error(err)
	}
	see("while the network is still to come", 0)
	if err := p.Settle(); err != nil {
		t.Error(err)
	}
	see("after an empty configuration", 1)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	see("after the end", 1)
	if p = l.attach(t, Options{}); p.Return() != nil {
		t.Error("it does not return")
	}
	l.nothingLeft(t)
}

func (l *lab) link(t *testing.T) (info struct{ ID, Program uint32 }) {
	t.Helper()
	held, err := l.device(t).findLink()
	if err != nil || held == nil {
		t.Fatalf("up0's link: %v, %v", held, err)
	}
	defer held.Close()
	i, err := held.Info()
	if err != nil {
		t.Fatal(err)
	}
	info.ID, info.Program = uint32(i.ID), uint32(i.Program)
	return info
}

// Owners come and go under fire; not one frame of a known network may reach the
// kernel in between.
func TestTakeoverHasNoGap(t *testing.T) {
	l := newLab(t, 1500)
	kernel, send := l.udpListener(t), l.sender(t)
	p := l.attach(t, Options{})
	if err := errors.Join(p.AddVTEP(vtep4), p.AddVNI(knownVNI, 0)); err != nil {
		t.Fatal(err)
	}
	fire, cease := context.WithCancel(t.Context())
	ceased := make(chan int)
	go func() {
		n := 0
		for ; fire.Err() == nil; n++ {
			send(knownVNI)
		}
		ceased <- n
	}()
	var dropped uint64
	for range 20 {
		// Each owner sees fire before it goes.
		for seen := uint64(0); seen < 100; {
			counters, err := p.Counters()
			if err != nil {
				t.Fatal(err)
			}
			seen = counters[steerVerdictDROP_NO_SOCKET].Packets
		}
		counters, err := p.Counters()
		if err != nil {
			t.Fatal(err)
		}
		dropped += counters[steerVerdictDROP_NO_SOCKET].Packets
		if err := p.Leave(); err != nil {
			t.Fatal(err)
		}
		p = l.attach(t, Options{})
		if err := errors.Join(p.AddVTEP(vtep4), p.AddVNI(knownVNI, 0), p.Settle()); err != nil {
			t.Fatal(err)
		}
	}
	cease()
	sent := <-ceased
	send(knownVNI + 1)
	if got := arrivals(t, kernel, knownVNI+1)[knownVNI]; got != 0 {
		t.Errorf("%d of %d frames reached the kernel", got, sent)
	}
	t.Logf("%d frames sent over 20 takeovers, at least %d seen to be dropped", sent, dropped)
}

// A leftover in the wrong mode is replaced, as it cannot change its mode.
func TestTakeoverInAnotherMode(t *testing.T) {
	l := newLab(t, 1500)
	t.Setenv("SHUNT_MASK", "")
	p := l.attach(t, Options{Mode: Generic})
	if err := errors.Join(p.AddVNI(knownVNI, 0), p.Leave()); err != nil {
		t.Fatal(err)
	}
	p = l.attach(t, Options{Mode: Native})
	if p.Mode() != Native {
		t.Errorf("mode %s, want native", p.Mode())
	}
	if err := p.objs.Networks.Lookup(uint32(knownVNI), new(steerNetwork)); err != nil {
		t.Errorf("the known network was not taken over: %v", err)
	}
	if err := p.Leave(); err != nil {
		t.Fatal(err)
	}
	p = l.attach(t, Options{}) // Auto is content with what there is
	if p.Mode() != Native {
		t.Errorf("mode %s, want native", p.Mode())
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	l.nothingLeft(t)
}

func TestWithoutPrivileges(t *testing.T) {
	l := newLab(t, 1500)
	need.Program(t, "setpriv")
	cmd := l.host.Command(t.Context(), "setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=uplink")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), "run as root") || !strings.Contains(string(out), "permission true") {
		t.Errorf("an owner without privileges said %q, %v", out, err)
	}
}

// Where no BPF file system is mounted the first owner mounts one.
func TestMountsTheBPFFileSystem(t *testing.T) {
	l := newLab(t, 1500)
	cmd := l.host.Command(t.Context(), "sh", "-c", `umount /sys/fs/bpf && "$0" && stat -f -c %T /sys/fs/bpf`, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=uplink")
	out, err := cmd.CombinedOutput() // without input, so the owner ends at once
	if want := "attached\nbpf_fs\n"; err != nil || string(out) != want {
		t.Errorf("the owner said %q, %v, want %q", out, err, want)
	}
	l.nothingLeft(t)
}
