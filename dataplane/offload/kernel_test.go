package offload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernel cuts packets, too:
//
//	large, with a virtio-net header ──▶ tap0 ── bridge ── tap1 ──▶ segments, since this one takes no others
type kernel struct {
	t       *testing.T
	in, out int
}

func newKernel(t *testing.T) *kernel {
	need.Root(t)
	need.Device(t, "/dev/net/tun")
	ns, err := netlab.NewNamespace("tso")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	k := &kernel{t: t, in: -1, out: -1}
	err = ns.Do(func() (err error) {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
		if k.in, err = k.tap("tap0", unix.IFF_VNET_HDR, bridge); err != nil {
			return err
		}
		if k.out, err = k.tap("tap1", 0, bridge); err != nil {
			return err
		}
		return netlink.LinkSetUp(bridge)
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// tap makes a tap device on the bridge; frames are written to and read from the file.
func (k *kernel) tap(name string, flags uint16, bridge netlink.Link) (fd int, err error) {
	if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	k.t.Cleanup(func() { _ = unix.Close(fd) })
	request, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return -1, fmt.Errorf("%s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return -1, err
	}
	for _, set := range []func() error{
		func() error { return netlink.LinkSetMTU(link, 9000) }, func() error { return netlink.LinkSetMaster(link, bridge) }, func() error { return netlink.LinkSetUp(link) },
	} {
		if err := set(); err != nil {
			return -1, fmt.Errorf("%s: %w", name, err)
		}
	}
	return fd, nil
}

// cut has the kernel cut a frame into so many segments.
func (k *kernel) cut(f *frame.Frame, n int) (segments [][]byte) {
	k.t.Helper()
	types := map[frame.GSOType]byte{frame.GSOTCP4: 1, frame.GSOTCP6: 4}
	header := make([]byte, 10) // flags: NEEDS_CSUM; type; length of the headers, a hint; size; start and offset of the checksum
	header[0], header[1] = 1, types[f.GSO.Type]
	if f.GSO.ECN {
		header[1] |= 0x80
	}
	binary.LittleEndian.PutUint16(header[2:], uint16(f.HeadLen()))
	binary.LittleEndian.PutUint16(header[4:], f.GSO.Size)
	binary.LittleEndian.PutUint16(header[6:], f.Checksum.Start)
	binary.LittleEndian.PutUint16(header[8:], f.Checksum.Offset)
	packet := append(header, whole(f)...)
	if _, err := unix.Write(k.in, packet); err != nil {
		k.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); len(segments) < n; {
		b := make([]byte, 65536)
		got, err := unix.Read(k.out, b)
		switch {
		case err == nil && bytes.Equal(b[:12], packet[10:22]): // not what the bridge itself has to say
			segments = append(segments, b[:got])
		case err != nil && !errors.Is(err, unix.EAGAIN):
			k.t.Fatal(err)
		case time.Now().After(deadline):
			k.t.Fatalf("%d segments of %d came out of the kernel", len(segments), n)
		case err != nil:
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(k.out), Events: unix.POLLIN}}, 100)
		}
	}
	return segments
}

// TestAgainstKernel holds that the kernel cuts the same packet into the same segments; and that what the Coalescer makes of them is to the
// kernel, too, a packet that it cuts into the very same.
func TestAgainstKernel(t *testing.T) {
	k := newKernel(t)
	pool := newPool(t, 600)
	var s Segmenter
	var c Coalescer
	for _, is6 := range []bool{false, true} {
		for _, tags := range []int{0, 1} {
			for _, flags := range []uint8{0x10, 0x18, 0x19, 0xd0, 0x50} {
				for _, size := range []int{500, 1448, 8900} {
					name := fmt.Sprintf("IPv6 %v, %d tags, flags %#02x, size %d", is6, tags, flags, size)
					p := usual(is6, 15001)
					p.tags, p.flags, p.tos = tags, flags, 2
					f := p.large(t, pool, size, 256, 4000)
					ours := cut(t, &s, f, pool)
					theirs := k.cut(f, len(ours))
					equal(t, name, p.transport(), ours, theirs)
					if flags&(wire.TCPFin|wire.TCPCwr) == 0 && size < 8000 { // a chunk of jumbo segments has two pieces, but is one
						vector := ours
						if left := c.Merge(vector, pool, all); left != 1 {
							t.Fatalf("%s: %d frames are left", name, left)
						}
						again := k.cut(vector[0], len(theirs))
						for i := range theirs {
							if !same(again[i], theirs[i], p.transport()) {
								t.Errorf("%s: segment %d of what was merged differs", name, i)
							}
						}
					}
					pool.PutAll(ours)
					pool.Put(f)
				}
			}
		}
	}
}

func equal(t *testing.T, name string, transport int, ours []*frame.Frame, theirs [][]byte) {
	t.Helper()
	for i, g := range ours {
		if b := whole(g); !same(b, theirs[i], transport) {
			t.Fatalf("%s: segment %d\n% x\nthe kernel's\n% x", name, i, b[:100], theirs[i][:min(100, len(theirs[i]))])
		}
	}
}
