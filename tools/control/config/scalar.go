package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// DefaultBurst is the burst of a limited port that names none.
const DefaultBurst = Duration(10 * time.Millisecond)

// DefaultFlood is how many frames of a guest a second go to several places, where its port names no other number: more than the questions and announcements of
// any guest come to, and as much as a multicast stream of 100 Mbit/s. With a hundred places each, the copies take a fifth of a worker's time.
const DefaultFlood = 10_000

// Idle is what a worker does when there is no work.
type Idle string

// The idle policies: spin for ever; spin, then sleep on the file descriptors; sleep at once.
const (
	IdlePoll      Idle = "poll"
	IdleAdaptive  Idle = "adaptive"
	IdleInterrupt Idle = "interrupt"
)

// UnmarshalText accepts the policies by name.
func (i *Idle) UnmarshalText(text []byte) error {
	return word(i, text, IdlePoll, IdleAdaptive, IdleInterrupt)
}

// BindMode is how an AF_XDP socket is bound.
type BindMode string

// The bind modes: zero copy where the driver has it and else copy, or strictly one of them.
const (
	BindAuto     BindMode = "auto"
	BindZeroCopy BindMode = "zerocopy"
	BindCopy     BindMode = "copy"
)

// UnmarshalText accepts the modes by name.
func (m *BindMode) UnmarshalText(text []byte) error {
	return word(m, text, BindAuto, BindZeroCopy, BindCopy)
}

// XDPMode is where an XDP program runs.
type XDPMode string

// The attach modes: in the driver where it can and else in the kernel's generic hook, or strictly one of them.
const (
	XDPAuto    XDPMode = "auto"
	XDPNative  XDPMode = "native"
	XDPGeneric XDPMode = "generic"
)

// UnmarshalText accepts the modes by name.
func (m *XDPMode) UnmarshalText(text []byte) error {
	return word(m, text, XDPAuto, XDPNative, XDPGeneric)
}

// DSCP is what becomes of a guest's differentiated services outside the tunnel.
type DSCP string

// Copied into the outer header, or zero there. Congestion (ECN) is always told, both ways.
const (
	DSCPCopy DSCP = "copy"
	DSCPZero DSCP = "zero"
)

// UnmarshalText accepts either by name.
func (d *DSCP) UnmarshalText(text []byte) error { return word(d, text, DSCPCopy, DSCPZero) }

// Toggle is whether something optional is used.
type Toggle string

// The toggles: use it where it is to be had, demand it, do without it.
const (
	ToggleAuto Toggle = "auto"
	ToggleOn   Toggle = "on"
	ToggleOff  Toggle = "off"
)

// UnmarshalText accepts the toggles by name.
func (t *Toggle) UnmarshalText(text []byte) error {
	return word(t, text, ToggleAuto, ToggleOn, ToggleOff)
}

// Role says which side of a vhost-user socket listens.
type Role string

// As server the daemon listens and the guest's VMM connects; as client the other way round.
const (
	RoleServer Role = "server"
	RoleClient Role = "client"
)

// UnmarshalText accepts the roles by name.
func (r *Role) UnmarshalText(text []byte) error { return word(r, text, RoleServer, RoleClient) }

func word[T ~string](to *T, text []byte, words ...T) error {
	for _, w := range words {
		if string(text) == string(w) {
			*to = w
			return nil
		}
	}
	list := make([]string, len(words))
	for i, w := range words {
		list[i] = string(w)
	}
	return fmt.Errorf("%s is none of %s", quote(string(text)), strings.Join(list, ", "))
}

// MAC is an Ethernet address, written 52:54:00:00:00:01. All zeroes stands for none.
type MAC [6]byte

// UnmarshalText accepts six pairs of hexadecimal digits with colons between them.
func (m *MAC) UnmarshalText(text []byte) error {
	hw, err := net.ParseMAC(string(text))
	if err != nil || len(hw) != 6 || strings.Count(string(text), ":") != 5 {
		return fmt.Errorf("%s is not a MAC address: write it as 52:54:00:00:00:01", quote(string(text)))
	}
	*m = MAC(hw)
	return nil
}

// MarshalText writes the address, or nothing for none.
func (m MAC) MarshalText() ([]byte, error) {
	if m.IsZero() {
		return nil, nil
	}
	return []byte(m.String()), nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// IsZero reports whether there is no address.
func (m MAC) IsZero() bool { return m == MAC{} }

// IsMulticast reports whether the group bit is set: a broadcast or multicast address.
func (m MAC) IsMulticast() bool { return m[0]&1 != 0 }

// FileMode is a file's permission bits, written in octal with a leading zero: 0660.
type FileMode uint32

// UnmarshalText accepts octal digits behind a 0 or 0o. Without them 660 would be the decimal number in YAML and JSON,
// which nobody means.
func (m *FileMode) UnmarshalText(text []byte) error {
	digits, octal := strings.CutPrefix(string(text), "0")
	v, err := strconv.ParseUint(strings.TrimPrefix(digits, "o"), 8, 32)
	switch {
	case !octal || err != nil:
		return fmt.Errorf("%s is not a file mode: write it in octal with a leading zero, as 0660", quote(string(text)))
	case v > 0o777:
		return fmt.Errorf("mode %s has more than permission bits: 0777 is the largest", quote(string(text)))
	}
	*m = FileMode(v)
	return nil
}

// MarshalText writes the mode in octal with a leading zero.
func (m FileMode) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#04o", uint32(m)), nil }

// Duration is a length of time, written as 10ms.
type Duration time.Duration

// UnmarshalText accepts what time.ParseDuration does: a number with its unit.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%s is not a duration: write a number with its unit, as 10ms", quote(string(text)))
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the duration with its unit.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String writes the duration with its unit, and without units that are zero: 5m, not 5m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Account is a user or a group of this host, by name or number.
type Account string

// UnmarshalText accepts a login name as useradd(8) takes it, or a number.
func (a *Account) UnmarshalText(text []byte) error {
	s := string(text)
	if n, err := strconv.ParseUint(s, 10, 32); err == nil && n < 1<<32-1 && s == strconv.FormatUint(n, 10) {
		*a = Account(s)
		return nil
	}
	login := len(s) > 0 && len(s) <= 32
	for i, r := range []byte(s) {
		lower := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_'
		later := r >= '0' && r <= '9' || r == '-' || r == '.' || r == '$' && i == len(s)-1
		login = login && (lower || i > 0 && later)
	}
	if !login {
		return fmt.Errorf("%s is neither a name of a user or group nor its number: give one of those", quote(s))
	}
	*a = Account(s)
	return nil
}

// CPUs are the cores that workers run on, by the kernel's numbers. None at all stands for auto: the daemon chooses.
type CPUs []int

// MarshalJSON writes the list, or "auto".
func (c CPUs) MarshalJSON() ([]byte, error) {
	if len(c) == 0 {
		return []byte(`"auto"`), nil
	}
	return json.Marshal([]int(c))
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (c *CPUs) UnmarshalJSON(text []byte) error {
	if string(text) == `"auto"` {
		*c = nil
		return nil
	}
	return json.Unmarshal(text, (*[]int)(c))
}

func (c *CPUs) decodeNode(d *decoder, n *node, path string) {
	switch {
	case n.kind == kindString && n.text == "auto":
		*c = nil
	case n.kind != kindList:
		d.fail(path, n, errors.New("this is neither auto nor a list of cores: write auto, or [1]"))
	case len(n.items) == 0:
		d.fail(path, n, errors.New("the list is empty: write auto to let the daemon choose, or name a core"))
	default:
		d.value(n, (*[]int)(c), path)
	}
}

// quote shows a value of the user's in a message: it may be anything.
func quote(s string) string { return strconv.Quote(short(s)) }

func short(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}
