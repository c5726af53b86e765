package acl

import "math/bits"

// Judge decides about a packet of the port that goes in or out. It returns the index of the rule that decided, or Default, or Always.
// It may be called by many goroutines, and allocates nothing.
func (c *Compiled) Judge(d Direction, t *Tuple) (rule int, allow bool) {
	d &= 1
	rule = Default
	switch {
	case t.always():
		return Always, true
	case t.EtherType == etherIPv4:
		rule = first(c.tables[d][0], t)
	case t.EtherType == etherIPv6:
		rule = first(c.tables[d][1], t)
	default:
		rule = c.ether[d].first(t.EtherType)
	}
	if rule == Default {
		return Default, c.policy.Default == Allow
	}
	return rule, c.policy.Rules[rule].Verdict == Allow
}

func first(tables []table, t *Tuple) int {
	for i := range tables {
		if rule := tables[i].first(t); rule != Default {
			return rule
		}
	}
	return Default
}

// first finds the first rule that matches: a set for each field, and the first bit that is in all of them.
func (x *table) first(t *Tuple) int {
	from, to := &x.sets[x.from.find(t.Source)], &x.sets[x.to.find(t.Destination)]
	live := from.summary & to.summary
	if live == 0 {
		return Default
	}
	protocol := &x.sets[x.protocol[t.Protocol]]
	toPort := uint32(t.DestinationPort)
	if t.Protocol == protoICMP || t.Protocol == protoICMPv6 {
		toPort = uint32(t.Type)<<8 | uint32(t.Code)
	}
	second, third := &x.sets[x.fromPort.find(uint32(t.SourcePort), t.Bare)], &x.sets[x.toPort.find(toPort, t.Bare)]
	for live &= protocol.summary & second.summary & third.summary; live != 0; live &= live - 1 {
		below := live&-live - 1
		all := x.word(from, below) & x.word(to, below) & x.word(protocol, below) & x.word(second, below) & x.word(third, below)
		if all != 0 {
			return int(x.rules[bits.TrailingZeros64(live)*64+bits.TrailingZeros64(all)])
		}
	}
	return Default
}

// word is the word of a set that has those of below before it, if the set has them.
func (x *table) word(s *set, below uint64) uint64 {
	return x.words[int(s.at)+bits.OnesCount64(s.summary&below)]
}

func (a *addresses) find(k Address) uint16 {
	if a.narrow != nil {
		return a.class[find(a.narrow, uint32(k.Lo))]
	}
	return a.class[findWide(a.wide, k)]
}

func (p *ports) find(k uint32, bare bool) uint16 {
	if bare {
		return p.bare
	}
	return p.class[find(p.begin, k)]
}

// find returns the last index whose value is not above k. The first value is zero.
func find(begin []uint32, k uint32) int {
	i := 0
	for n := len(begin); n > 1; {
		half := n / 2
		if begin[i+half] <= k {
			i += half
		}
		n -= half
	}
	return i
}

// findWide is find for IPv6's addresses.
func findWide(begin []Address, k Address) int {
	i := 0
	for n := len(begin); n > 1; {
		half := n / 2
		if !k.less(begin[i+half]) {
			i += half
		}
		n -= half
	}
	return i
}

func (t *etherTable) first(ether uint16) int {
	i := 0
	for n := len(t.types); n > 1; {
		half := n / 2
		if t.types[i+half] <= ether {
			i += half
		}
		n -= half
	}
	if i < len(t.types) && t.types[i] == ether {
		if named := t.rules[i]; t.any == Default || named < t.any {
			return int(named)
		}
	}
	return int(t.any)
}
