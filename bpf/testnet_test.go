package bpf

import (
	"encoding/binary"
	"net"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

// namespace is removed with all that is in it when the test ends.
func namespace(t testing.TB, name string) *netlab.Namespace {
	t.Helper()
	need.Root(t)
	ns, err := netlab.NewNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// interfaceWithQueues makes an interface and returns its namespace and index.
func interfaceWithQueues(t testing.TB, queues int) (*netlab.Namespace, uint32) {
	t.Helper()
	ns := namespace(t, "queues")
	err := netlab.Veth(netlab.End{Namespace: ns, Name: "up0"}, netlab.End{Namespace: ns, Name: "peer0"}, queues)
	if err != nil {
		t.Fatal(err)
	}
	var index int
	err = ns.Do(func() error {
		dev, err := net.InterfaceByName("up0")
		if err == nil {
			index = dev.Index
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns, uint32(index)
}

// xdpSocket makes an AF_XDP socket with as much of it set up as an XSKMAP wants
// to see, and bound to nothing.
func xdpSocket(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("AF_XDP socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	const chunk, chunks = 4096, 16
	umem, err := unix.Mmap(-1, 0, chunks*chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(umem) })
	// struct xdp_umem_reg: address, length, chunk size, headroom.
	reg := binary.NativeEndian.AppendUint64(nil, uint64(reflect.ValueOf(umem).Pointer()))
	reg = binary.NativeEndian.AppendUint64(reg, uint64(len(umem)))
	reg = binary.NativeEndian.AppendUint32(reg, chunk)
	reg = binary.NativeEndian.AppendUint32(reg, 0)
	if err := unix.SetsockoptString(fd, unix.SOL_XDP, unix.XDP_UMEM_REG, string(reg)); err != nil {
		t.Fatalf("register a UMEM: %v", err)
	}
	for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_RX_RING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, ring, chunks); err != nil {
			t.Fatalf("make ring %d: %v", ring, err)
		}
	}
	return fd
}
