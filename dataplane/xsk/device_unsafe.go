package xsk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolChannels is struct ethtool_channels of linux/ethtool.h.
type ethtoolChannels struct {
	cmd                                    uint32
	maxRx, maxTx, maxOther, maxCombined    uint32
	rxCount, txCount, otherCount, combined uint32
}

// ifreqData is struct ifreq with its union used as a pointer.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// channels is how many receive queues the device uses (ETHTOOL_GCHANNELS), asked through any socket of its namespace.
func channels(fd int, name string) (int, error) {
	c := ethtoolChannels{cmd: unix.ETHTOOL_GCHANNELS}
	ifr := ifreqData{data: unsafe.Pointer(&c)}
	copy(ifr.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return 0, errno
	}
	return int(c.combined + c.rxCount), nil
}
