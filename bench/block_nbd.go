package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/blk/nbd"
)

// NBDServerProgram is what NBD is measured with: nbdkit, whose memory plugin keeps the disk in its own memory.
const NBDServerProgram = "nbdkit"

func nbdScenarios() []Scenario {
	return []Scenario{
		{"blk-nbd", "an export of nbdkit's memory: through the device, our client by itself, and libnbd in fio", blockScenario((*BlockBed).NBDUnix)},
		{"blk-nbd-tcp", "the same over TCP", blockScenario((*BlockBed).NBDTCP)},
	}
}

// NBDUnix adds three peers on one server, over a unix socket: our own device on our client, our client by itself, and fio's nbd engine, which is libnbd.
//
// What is to be compared are the two clients, each asked by its own thread. The device has more to do: its requests come from a virtqueue, and the driver that
// makes them and is woken for each answer shares a CPU with the server, where it has but two. The server has one CPU and the client the other, whoever it is: left alone, the kernel puts the server
// where the client spins.
func (b *BlockBed) NBDUnix() error { return b.nbd("unix") }

// NBDTCP is the same over TCP on the loopback interface.
func (b *BlockBed) NBDTCP() error { return b.nbd("tcp") }

func (b *BlockBed) nbd(name string) error {
	uri, pid, err := b.nbdServer(name)
	if err != nil {
		return err
	}
	f := BlockPeer{Name: "fio-" + name, NBD: uri, Server: pid}
	if err := fill(f); err != nil {
		return err
	}
	if err := b.own("shunt-"+name, drivertest.EngineOptions{NBD: uri}); err != nil {
		return err
	}
	b.Peers[len(b.Peers)-1].Server = pid
	b.Peers = append(b.Peers, BlockPeer{Name: "store-" + name, NBD: uri, Store: true, Server: pid}, f)
	return nil
}

// nbdRig opens an export in this process.
func nbdRig(ctx context.Context, o BlockOptions, p BlockPeer) (*blockRig, error) {
	s, err := nbd.Open(ctx, nbd.Options{URI: p.NBD})
	if err != nil {
		return nil, err
	}
	r, err := newStoreRig(s, o.WorkerCPU, o.Cells)
	return &blockRig{peer: p, store: r}, err
}

// fill writes all of an export, whose server has no memory for what was never written.
func fill(p BlockPeer) error {
	cell := BlockCell{Write: true, Sequential: true, Bytes: 1 << 20, Depth: 4}
	_, _, err := runFio(context.Background(), BlockOptions{Duration: time.Minute}, cell, p, "--number_ios="+strconv.Itoa(blockImage/cell.Bytes), &BlockResult{})
	return err
}

// nbdServer starts a server, and waits until it accepts connections.
func (b *BlockBed) nbdServer(name string) (uri string, pid int, err error) {
	ready := filepath.Join(b.dir, name+".pid")
	socket := filepath.Join(b.dir, name+".sock")
	args := []string{"-f", "-P", ready}
	if name == "tcp" {
		port, err := freePort()
		if err != nil {
			return "", 0, err
		}
		args = append(args, "-i", "127.0.0.1", "-p", port)
		uri = "nbd://127.0.0.1:" + port
	} else {
		args = append(args, "-U", socket)
		uri = "nbd+unix:///?socket=" + socket
	}
	cmd := exec.Command(NBDServerProgram, append(args, "memory", strconv.Itoa(blockImage))...)
	var said bytes.Buffer // read when it has ended
	cmd.Stdout, cmd.Stderr = &said, &said
	gone, err := startTied(cmd)
	if err != nil {
		return "", 0, fmt.Errorf("start %s: %w", NBDServerProgram, err)
	}
	b.kill = append(b.kill, func() error {
		err := cmd.Process.Kill()
		<-gone
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return err
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if p, err := os.ReadFile(ready); err == nil && bytes.HasSuffix(p, []byte("\n")) {
			return uri, cmd.Process.Pid, nil
		}
		select {
		case <-gone:
			return "", 0, fmt.Errorf("%s has ended: %s", cmd, said.Bytes())
		default:
		}
		if time.Now().After(end) {
			return "", 0, fmt.Errorf("%s accepts no connections", cmd)
		}
	}
}

// startTied starts a program that dies with this process, however that ends. The kernel kills it when the thread ends that has started it, so that
// thread waits for it.
func startTied(cmd *exec.Cmd) (gone <-chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(ended)
	}()
	return ended, <-started
}

// freePort is one that nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}
