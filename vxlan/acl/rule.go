package acl

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Direction is a packet's way, as the guest sees it.
type Direction uint8

// In: to the guest. Out: from the guest.
const (
	In Direction = iota
	Out
)

func (d Direction) String() string { return [...]string{"in", "out"}[d&1] }

// Opposite is the direction of a reply.
func (d Direction) Opposite() Direction { return d ^ 1 }

// MarshalText writes in or out.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads in or out.
func (d *Direction) UnmarshalText(text []byte) error {
	switch string(text) {
	case "in":
		*d = In
	case "out":
		*d = Out
	default:
		return fmt.Errorf("%s is no direction: give in (to the guest) or out (from it)", quote(string(text)))
	}
	return nil
}

// Verdict is what a rule, or a default, says.
type Verdict uint8

// The verdicts. The zero value denies.
const (
	Deny Verdict = iota
	Allow
)

func (v Verdict) String() string { return [...]string{"deny", "allow"}[v&1] }

// MarshalText writes allow or deny.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads allow or deny.
func (v *Verdict) UnmarshalText(text []byte) error {
	switch string(text) {
	case "allow":
		*v = Allow
	case "deny":
		*v = Deny
	default:
		return fmt.Errorf("%s is neither allow nor deny", quote(string(text)))
	}
	return nil
}

// Subject is what kind of packets a rule speaks of.
type Subject uint8

// The subjects.
const (
	AnyIP      Subject = iota // IPv4 and IPv6, whatever they carry
	OfProtocol                // IP with the protocol Rule.Number; 1 is IPv4's ICMP, 58 is IPv6's
	OfEther                   // the EtherType Rule.Number, which is not IP's
	AnyEther                  // everything but IP
)

// Ports is a range of port numbers, both ends in it. The zero value is every port, and no port at all.
type Ports struct{ First, Last uint16 }

// IsAny reports whether the rule does not ask for a port.
func (p Ports) IsAny() bool { return p == Ports{} }

// ICMP is what a rule asks of an ICMP message. The zero value asks nothing.
type ICMP struct {
	HasType, HasCode bool // a code only with a type
	Type, Code       uint8
}

// Rule is one line of a policy. The zero value denies all that is IP and goes to the guest. Two rules are the same if they are equal by ==.
type Rule struct {
	Verdict   Verdict
	Direction Direction
	Subject   Subject
	// Number is a protocol's or an EtherType, as Subject says.
	Number uint16
	// From and To are the source's and destination's addresses, of one IP version. The zero value is any of both versions.
	From, To netip.Prefix
	// FromPort and ToPort are for protocols that have ports.
	FromPort, ToPort Ports
	// ICMP is for ICMP, of either version.
	ICMP ICMP
}

// Protocol numbers (IANA) that a rule treats in a way of their own.
const (
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoDCCP    = 33
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
)

// hasPorts reports whether a protocol's header begins with two ports.
func hasPorts(protocol uint16) bool {
	switch protocol {
	case protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPLite:
		return true
	}
	return false
}

// speaksOf reports whether the rule is about packets of an IP version.
func (r *Rule) speaksOf(v6 bool) bool {
	switch {
	case r.Subject == OfEther || r.Subject == AnyEther:
		return false
	case r.From.IsValid():
		return r.From.Addr().Is6() == v6
	case r.To.IsValid():
		return r.To.Addr().Is6() == v6
	case r.Subject == OfProtocol && r.Number == protoICMP:
		return !v6
	case r.Subject == OfProtocol && r.Number == protoICMPv6:
		return v6
	}
	return true
}

// isTransport reports whether the rule asks for what only a transport header shows.
func (r *Rule) isTransport() bool {
	return !r.FromPort.IsAny() || !r.ToPort.IsAny() || r.ICMP.HasType
}

// String writes the rule as ParseRule reads it.
func (r Rule) String() string {
	var b strings.Builder
	b.WriteString(r.Verdict.String() + " " + r.Direction.String() + " " + r.subject())
	end := func(word string, p netip.Prefix, ports Ports) {
		if !p.IsValid() && ports.IsAny() {
			return
		}
		address := "any"
		if p.IsValid() {
			address = p.String()
		}
		b.WriteString(" " + word + " " + address)
		if !ports.IsAny() {
			b.WriteString(" port " + ports.String())
		}
	}
	end("from", r.From, r.FromPort)
	end("to", r.To, r.ToPort)
	if r.ICMP.HasType {
		fmt.Fprintf(&b, " type %d", r.ICMP.Type)
	}
	if r.ICMP.HasCode {
		fmt.Fprintf(&b, " code %d", r.ICMP.Code)
	}
	return b.String()
}

func (r *Rule) subject() string {
	switch r.Subject {
	case OfProtocol:
		return protocolName(r.Number)
	case OfEther:
		return fmt.Sprintf("ether 0x%04x", r.Number)
	case AnyEther:
		return "ether any"
	}
	return "any"
}

// protocolName is how rules and packets are written: protocols with a word of their own by that.
func protocolName(n uint16) string {
	for _, p := range protocols {
		if p.number == n {
			return p.name
		}
	}
	return "proto " + strconv.Itoa(int(n))
}

var protocols = []struct {
	name   string
	number uint16
}{{"tcp", protoTCP}, {"udp", protoUDP}, {"icmp", protoICMP}, {"icmpv6", protoICMPv6}}

func (p Ports) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// MarshalText writes the rule as ParseRule reads it.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParseRule.
func (r *Rule) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRule(string(text))
	return err
}
