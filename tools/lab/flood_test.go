package lab

import (
	"context"
	"encoding/binary"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// sendFrames sends raw frames out of a device and returns how many the device
// was given: a frame that its socket had no room for is tried again. It calls
// pace before each frame.
func sendFrames(ctx context.Context, ns *netlab.Namespace, device string, count int, frame func(n int) []byte, pace func(n int)) (sent int, err error) {
	err = ns.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(socket)
		to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
		for sent < count && ctx.Err() == nil {
			pace(sent)
			switch err := unix.Sendto(socket, frame(sent), 0, to); err {
			case nil:
				sent++
			case unix.ENOBUFS, unix.EINTR:
			default:
				return err
			}
		}
		return ctx.Err()
	})
	return sent, err
}

// testFrame is a UDP datagram between addresses for benchmarks, numbered in
// its payload, with right checksums, of at least 64 bytes.
func testFrame(from, to string, length int) []byte {
	frame := make([]byte, max(64, length))
	source, _ := net.ParseMAC(from)
	destination, _ := net.ParseMAC(to)
	copy(frame, destination)
	copy(frame[6:], source)
	binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IP)
	ip := frame[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], net.IPv4(198, 18, 0, 1).To4())
	copy(ip[16:], net.IPv4(198, 18, 0, 2).To4())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	udp := ip[20:]
	binary.BigEndian.PutUint16(udp, 9)
	binary.BigEndian.PutUint16(udp[2:], 9)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp))) // without a checksum
	return frame
}

// flows varies a frame's UDP source port, so that it is not all one flow.
func flows(frame []byte) func(n int) []byte {
	return func(n int) []byte {
		binary.BigEndian.PutUint16(frame[34:], uint16(1024+n%256))
		return frame
	}
}

func TestTestFrame(t *testing.T) {
	f := testFrame("02:00:00:00:00:01", "02:00:00:00:00:02", 0)
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	if sum = sum&0xffff + sum>>16; len(f) != 64 || sum != 0xffff {
		t.Errorf("%d bytes, header adds up to %#x", len(f), sum)
	}
}
