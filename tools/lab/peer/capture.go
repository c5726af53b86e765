package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// Capture writes what arrives at a device into a file, from the moment
// [StartCapture] returned. Only what arrives: the kernel leaves the checksums
// of what it sends to hardware, so they are not right yet where they are seen.
type Capture struct {
	path  string
	file  *os.File
	stop  [2]int // a pipe; closing the write end ends the loop
	once  sync.Once
	ended chan error
}

// StartCapture opens the device in a namespace and captures into the file at
// path, in the pcap format.
func StartCapture(ns *netlab.Namespace, device, path string) (*Capture, error) {
	var socket int
	err := ns.Do(func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		const allProtocols = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
		socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		const buffer = 64 << 20 // some seconds of bursts on a busy machine
		return errors.Join(
			unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
			unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: allProtocols & 0xffff, Ifindex: dev.Index}))
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", device, err)
	}
	c := &Capture{path: path, ended: make(chan error, 1)}
	if c.file, err = os.Create(path); err == nil {
		err = unix.Pipe2(c.stop[:], unix.O_CLOEXEC)
	}
	if err != nil {
		unix.Close(socket)
		return nil, fmt.Errorf("capture on %s: %w", device, err)
	}
	go func() { c.ended <- c.loop(socket) }()
	return c, nil
}

// loop writes packets until the pipe closes, and then what is still queued.
func (c *Capture) loop(socket int) error {
	defer unix.Close(socket)
	defer unix.Close(c.stop[0])
	const longest = 1 << 18 // a large packet the kernel has not segmented
	out := pcapgo.NewWriter(c.file)
	if err := out.WriteFileHeader(longest, layers.LinkTypeEthernet); err != nil {
		return err
	}
	packet := make([]byte, longest)
	for stopping := false; ; {
		n, _, err := unix.Recvfrom(socket, packet, 0)
		switch {
		case err == nil:
			info := gopacket.CaptureInfo{CaptureLength: n, Length: n}
			if err := out.WritePacket(info, packet[:n]); err != nil {
				return err
			}
		case err == unix.EINTR:
		case err != unix.EAGAIN:
			return err
		case stopping:
			return nil
		default:
			fds := []unix.PollFd{{Fd: int32(socket), Events: unix.POLLIN}, {Fd: int32(c.stop[0]), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				return err
			}
			stopping = fds[1].Revents != 0
		}
	}
}

// Stop ends the capture. A second call does nothing.
func (c *Capture) Stop() error {
	var err error
	c.once.Do(func() {
		unix.Close(c.stop[1])
		err = errors.Join(<-c.ended, c.file.Close())
	})
	return err
}

// Path of the file.
func (c *Capture) Path() string { return c.path }

// checks makes tshark verify checksums, which it does not by itself.
var checks = []string{
	"-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE",
	// Ports of ours may be anyone's; decode by the port registered.
	"-d", "udp.port==4789,vxlan",
}

// Decode lets tshark read a capture and returns the named fields of the
// packets that pass a display filter, one row a packet. Of a field that occurs
// in the outer and in the inner headers it is the outer one.
func Decode(ctx context.Context, path, filter string, fields ...string) ([][]string, error) {
	args := append([]string{"-r", path, "-n", "-T", "fields", "-E", "separator=|", "-E", "occurrence=f"}, checks...)
	if filter != "" {
		args = append(args, "-Y", filter)
	}
	for _, field := range fields {
		args = append(args, "-e", field)
	}
	cmd := exec.CommandContext(ctx, "tshark", args...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("tshark: %w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	} else if err != nil {
		return nil, fmt.Errorf("tshark: %w", err)
	}
	var rows [][]string
	for line := range strings.Lines(string(out)) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "|"))
	}
	return rows, nil
}

// badSums are the packets tshark finds a wrong checksum or a wrong length in, in outer or
// inner headers. It wants 0 where a TCP checksum is 0xffff, which adds up just the same:
// whoever completes a checksum without knowing the protocol, as Linux does for its own
// packets, writes what is right for UDP.
const badSums = `ip.checksum.status == "Bad" || udp.checksum.status == "Bad" || ` +
	`(tcp.checksum.status == "Bad" && tcp.checksum != 0xffff) || ` +
	`icmp.checksum.status == "Bad" || icmpv6.checksum.status == "Bad" || udp.length.bad`

// carriers are the protocols whose breaches count. Those above are tshark's guess from a port, which the
// kernel may have given to anybody, or from a look.
var carriers = []string{"eth", "ethertype", "vlan", "arp", "ip", "ipv6", "ipv6.fraghdr", "ipv6.hopopts", "icmp", "icmpv6", "igmp", "udp", "tcp", "vxlan", "data"}

// BadPackets returns a line for each packet of a capture that is not as its
// protocols want it.
func BadPackets(ctx context.Context, path string) ([]string, error) {
	rows, err := Decode(ctx, path, badSums+" || _ws.malformed", "frame.number", "frame.protocols", "_ws.col.Info")
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	sums, err := Decode(ctx, path, badSums, "frame.number")
	if err != nil {
		return nil, err
	}
	wrong := map[string]bool{}
	for _, row := range sums {
		wrong[row[0]] = true
	}
	var lines []string
	for _, row := range rows {
		protocols := strings.Split(row[1], ":")
		if wrong[row[0]] || slices.Contains(carriers, protocols[len(protocols)-1]) {
			lines = append(lines, strings.Join(row, " "))
		}
	}
	return lines, nil
}
