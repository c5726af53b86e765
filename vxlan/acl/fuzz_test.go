package acl

import (
	"math/bits"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sentence judges a refusal: one line, and a place in the text.
func sentence(t *testing.T, text string, err error) {
	syntax, ours := err.(*SyntaxError)
	if !ours || syntax.Reason == "" || strings.ContainsAny(syntax.Reason, "\n\r") || syntax.Column < 1 || syntax.Column > len(text)+1 {
		t.Fatalf("%q is refused with %v", text, err)
	}
}

// FuzzRule reads arbitrary text. A rule that is taken must be the same after it was written and read again, and the compiled rule must judge a
// packet that it was made for.
func FuzzRule(f *testing.F) {
	for _, seed := range []string{
		"allow in tcp from 10.0.0.0/8 to any port 80-443", "deny out any", "allow in icmpv6 from fe80::/10 type 134 code 0",
		"deny out ether 0x88cc", "allow out ether any", "allow in proto 132 from ::/0 port 1-65535", "allow in icmp type 3 code 4", "allow in icmp type 3",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRule(text)
		if err != nil {
			sentence(t, text, err)
			return
		}
		if again, err := ParseRule(r.String()); err != nil || again != r {
			t.Fatalf("%q is read as %q, and that as %q, %v", text, r, again, err)
		}
		p := Policy{Rules: []Rule{r}, Default: r.Verdict ^ 1}
		c := Compile(p, Options{})
		for _, packet := range matching(&r) {
			rule, allow := c.Judge(r.Direction, &packet)
			if want := Explain(p, &packet, r.Direction); rule != want.Rule || allow != (want.Verdict == Allow) || rule != 0 && rule != Always {
				t.Fatalf("%q: rule %d decides about %s, %+v is right", r, rule, packet, want)
			}
			if rule, _ := c.Judge(r.Direction.Opposite(), &packet); rule >= 0 {
				t.Fatalf("%q decides about the other direction", r)
			}
			for _, beside := range neighbours(packet) {
				rule, _ := c.Judge(r.Direction, &beside)
				if want := Explain(p, &beside, r.Direction); rule != want.Rule {
					t.Fatalf("%q: rule %d decides about %s, %+v is right", r, rule, beside, want)
				}
			}
		}
	})
}

// matching makes the packets at the corners of a rule.
func matching(r *Rule) (packets []Tuple) {
	switch r.Subject {
	case OfEther:
		return []Tuple{{EtherType: r.Number}}
	case AnyEther:
		return []Tuple{{EtherType: 0x26}, {EtherType: 0x88cc}, {EtherType: 0xffff}}
	}
	for _, ether := range []uint16{etherIPv4, etherIPv6} {
		if !r.speaksOf(ether == etherIPv6) {
			continue
		}
		t := Tuple{EtherType: ether, Protocol: uint8(r.Number), Bare: !r.isTransport()}
		if r.From.IsValid() {
			t.Source = addressOf(r.From.Addr())
		}
		if r.To.IsValid() {
			t.Destination = addressOf(r.To.Addr())
		}
		t.SourcePort, t.DestinationPort, t.Type, t.Code = r.FromPort.First, r.ToPort.First, r.ICMP.Type, r.ICMP.Code
		end := t
		end.SourcePort, end.DestinationPort = r.FromPort.Last, r.ToPort.Last
		if r.From.IsValid() {
			end.Source = addressOf(last(r.From))
		}
		if r.To.IsValid() {
			end.Destination = addressOf(last(r.To))
		}
		if r.ICMP.HasType && !r.ICMP.HasCode {
			end.Code = 255
		}
		packets = append(packets, t, end)
	}
	return packets
}

// refusal is line, column and reason.
var refusal = regexp.MustCompile(`^[1-9]\d*:[1-9]\d*: .`)

// neighbours are the packets one step beside a corner.
func neighbours(t Tuple) (packets []Tuple) {
	for _, step := range []uint64{1, 1<<64 - 1} {
		for _, change := range []func(*Tuple){
			func(t *Tuple) { t.Source = t.Source.plus(step) }, func(t *Tuple) { t.Destination = t.Destination.plus(step) },
			func(t *Tuple) { t.SourcePort += uint16(step) }, func(t *Tuple) { t.DestinationPort += uint16(step) },
			func(t *Tuple) { t.Type += uint8(step) }, func(t *Tuple) { t.Code += uint8(step) },
			func(t *Tuple) { t.Protocol += uint8(step) }, func(t *Tuple) { t.Bare = !t.Bare },
		} {
			beside := t
			change(&beside)
			if beside.EtherType == etherIPv4 {
				beside.Source, beside.Destination = Address{Lo: uint64(uint32(beside.Source.Lo))}, Address{Lo: uint64(uint32(beside.Destination.Lo))}
			}
			packets = append(packets, beside)
		}
	}
	return packets
}

// plus adds one, or takes one away where step is the largest number.
func (a Address) plus(step uint64) Address {
	lo, carry := bits.Add64(a.Lo, step, 0)
	if step == 1 {
		return Address{a.Hi + carry, lo}
	}
	return Address{a.Hi + carry - 1, lo}
}

// FuzzPolicy reads whole policies.
func FuzzPolicy(f *testing.F) {
	f.Add("# a web server\nallow in tcp to any port 443\r\ndefault deny\n")
	f.Add("default allow\ndeny out any to 169.254.169.254 # metadata\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePolicy(text)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !refusal.MatchString(line) {
					t.Fatalf("%q is refused with %q", text, line)
				}
			}
			return
		}
		again, err := ParsePolicy(p.String())
		if err != nil || again.Default != p.Default || !slices.Equal(again.Rules, p.Rules) {
			t.Fatalf("%q is read as %q, and that as %q, %v", text, p, again, err)
		}
	})
}

// FuzzTuple reads packets.
func FuzzTuple(f *testing.F) {
	for _, seed := range []string{
		"tcp 10.0.0.1:1234 > 10.0.0.2:80", "udp [fd00::1]:53 > [fd00::2]:0", "icmp 10.0.0.1 > 10.0.0.2 type 3 code 4", "icmpv6 fd00::1 > fd00::2",
		"proto 47 10.0.0.1 > 10.0.0.2", "tcp 10.0.0.1 > 10.0.0.2 fragment", "arp", "ether 0x88cc",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseTuple(text)
		if err != nil {
			sentence(t, text, err)
			return
		}
		if again, err := ParseTuple(p.String()); err != nil || again != p {
			t.Fatalf("%q is read as %q, and that as %q, %v", text, p, again, err)
		}
		if asked, ok := p.Answers(); ok {
			if back, again := asked.Answers(); again && asked.Type == 0 && back != p {
				t.Fatalf("%s answers %s, which answers %s", p, asked, back)
			}
		}
	})
}
