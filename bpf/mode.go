package bpf

import (
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
)

// Mode is where in the receive path a program runs.
type Mode uint8

const (
	// Auto asks for Native and, where the driver refuses, Generic. It is never
	// the mode in force.
	Auto Mode = iota
	// Native runs in the driver, before the kernel has made an skb.
	Native
	// Generic runs on the finished skb, for drivers without XDP.
	Generic
	// Offload runs on the device. It is reported, never asked for.
	Offload
)

var modeNames = [...]string{Auto: "auto", Native: "native", Generic: "generic", Offload: "offload"}

// ParseMode takes "auto", "native" or "generic".
func ParseMode(s string) (Mode, error) {
	for m := Auto; m <= Generic; m++ {
		if modeNames[m] == s {
			return m, nil
		}
	}
	return Auto, fmt.Errorf("%w: XDP mode %q is none of auto, native, generic", ErrInvalid, s)
}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// MarshalText implements [encoding.TextMarshaler].
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// tries returns the modes to attach in, in order.
func (m Mode) tries() []Mode {
	if m == Auto {
		return []Mode{Native, Generic}
	}
	return []Mode{m}
}

// flags are the attach flags of bpf_link and netlink alike.
func (m Mode) flags() link.XDPAttachFlags {
	switch m {
	case Native:
		return link.XDPDriverMode
	case Generic:
		return link.XDPGenericMode
	case Offload:
		return link.XDPOffloadMode
	}
	return 0
}

// modeInForce reads the kernel's IFLA_XDP_ATTACHED.
func modeInForce(attached uint32) Mode {
	switch attached {
	case nl.XDP_ATTACHED_SKB:
		return Generic
	case nl.XDP_ATTACHED_HW:
		return Offload
	}
	return Native
}

// masked tells whether the environment variable SHUNT_MASK hides something that
// a driver may lack: "xdp-native", "xdp-frags", or with "all" both. So the ways
// around it can be tested on a driver that has it.
func masked(feature string) bool {
	for m := range strings.SplitSeq(os.Getenv("SHUNT_MASK"), ",") {
		if m = strings.TrimSpace(m); m == "all" || m == feature {
			return true
		}
	}
	return false
}
