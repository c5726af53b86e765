package acl

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// Options of Compile. The zero value is usable.
type Options struct {
	// Workers is how many workers count. Zero: one.
	Workers int
	// Previous is what the policy takes the place of: counters of the same rules, and of the default, go on. Both may be in use meanwhile:
	// what a worker still counts for Previous is counted for the new one, too. Nil: all begin at zero.
	Previous *Compiled
}

// Compiled is a policy made ready for judging. It never changes, but for its counters.
type Compiled struct {
	policy Policy
	tables [2][2][]table // by direction and IP version, IPv4 first: one for each maxRules rules, in their order
	ether  [2]etherTable // by direction
	hits   [][]*cell     // by worker, then by rule counted from Always
}

// Compile makes a policy ready. The policy must not be changed any more.
func Compile(p Policy, o Options) *Compiled {
	c := &Compiled{policy: p}
	for _, d := range []Direction{In, Out} {
		for version, v6 := range []bool{false, true} {
			var mine []int32
			for i := range p.Rules {
				if r := &p.Rules[i]; r.Direction == d && r.speaksOf(v6) {
					mine = append(mine, int32(i))
				}
			}
			for part := range slices.Chunk(mine, maxRules) {
				c.tables[d][version] = append(c.tables[d][version], newTable(p.Rules, part, v6))
			}
		}
		c.ether[d] = newEtherTable(p.Rules, d)
	}
	c.hits = newHits(p.Rules, max(o.Workers, 1), o.Previous)
	return c
}

// Policy returns what was compiled. It must not be changed.
func (c *Compiled) Policy() Policy { return c.policy }

// maxRules of one table: as many as its sets' summaries have bits for words of 64.
const maxRules = 64 * 64

// table judges the packets of one direction and IP version.
type table struct {
	v6    bool
	rules []int32 // of a bit, the rule's index in the policy

	// Each field's value leads to a class, which is a set of rules.
	from, to         addresses
	protocol         [256]uint16
	fromPort, toPort ports

	sets  []set    // by class
	words []uint64 // of all sets
}

// addresses are those of one IP version, split into intervals. Only one of the lists is used: narrow for IPv4, wide for IPv6.
type addresses struct {
	narrow []uint32 // where each interval begins, the first at zero
	wide   []Address
	class  []uint16 // of each interval
}

// ports are split like addresses. An ICMP message's type and code stand where other packets have their destination port.
type ports struct {
	begin []uint32
	class []uint16
	bare  uint16 // of packets without a transport header
}

// set is a set of rules: the words of 64 that are not zero, one behind the other from words[at] on. A bit of summary says for each word whether
// it is among them.
type set struct {
	summary uint64
	at      uint32
}

func newTable(all []Rule, mine []int32, v6 bool) table {
	t := table{v6: v6, rules: mine}
	s := newSplitter(&t, all)
	t.from = s.addresses(func(r *Rule) netip.Prefix { return r.From })
	t.to = s.addresses(func(r *Rule) netip.Prefix { return r.To })
	t.fromPort = s.ports(func(r *Rule) span[uint32] { return portSpan(r.FromPort) })
	t.toPort = s.ports(func(r *Rule) span[uint32] {
		if r.ICMP.HasType {
			return icmpSpan(r.ICMP)
		}
		return portSpan(r.ToPort)
	})
	begin, class := split(s, cmp.Compare, func(r *Rule) span[uint32] {
		if r.Subject == AnyIP {
			return span[uint32]{open: true}
		}
		return span[uint32]{first: uint32(r.Number), end: uint32(r.Number) + 1}
	})
	for number := range t.protocol { // there are few, so that an index is better than a search
		t.protocol[number] = class[find(begin, uint32(number))]
	}
	return t
}

// splitter makes classes of the values of one field after the other.
type splitter struct {
	table *table
	all   []Rule
	known map[string]uint16 // class of a set
	bits  []uint64          // a set, before it is put away
	key   []byte
}

func newSplitter(t *table, all []Rule) *splitter {
	return &splitter{table: t, all: all, known: map[string]uint16{}, bits: make([]uint64, (len(t.rules)+63)/64)}
}

// class finds the class of the set that is in bits. There are fewer than 65536: two for each rule and field.
func (s *splitter) class() uint16 {
	s.key = s.key[:0]
	for _, w := range s.bits {
		s.key = binary.LittleEndian.AppendUint64(s.key, w)
	}
	class, known := s.known[string(s.key)]
	if known {
		return class
	}
	t := s.table
	class = uint16(len(t.sets))
	one := set{at: uint32(len(t.words))}
	for i, w := range s.bits {
		if w != 0 {
			one.summary |= 1 << i
			t.words = append(t.words, w)
		}
	}
	t.sets = append(t.sets, one)
	s.known[string(s.key)] = class
	return class
}

// span is what a rule asks of a field: first and all before end, or all from first on if it is open.
type span[K comparable] struct {
	first, end K
	open       bool
}

// split returns where the intervals of a field begin in which the same rules match, and the class of each.
func split[K comparable](s *splitter, compare func(a, b K) int, of func(*Rule) span[K]) (begin []K, class []uint16) {
	spans := make([]span[K], len(s.table.rules))
	begin = make([]K, 1, 1+2*len(spans)) // from the smallest value on
	var starts, ends []int
	for i, rule := range s.table.rules {
		spans[i] = of(&s.all[rule])
		begin = append(begin, spans[i].first)
		starts = append(starts, i)
		if !spans[i].open {
			begin = append(begin, spans[i].end)
			ends = append(ends, i)
		}
	}
	slices.SortFunc(begin, compare)
	begin = slices.Compact(begin)
	slices.SortFunc(starts, func(a, b int) int { return compare(spans[a].first, spans[b].first) })
	slices.SortFunc(ends, func(a, b int) int { return compare(spans[a].end, spans[b].end) })
	clear(s.bits)
	for _, at := range begin {
		for ; len(ends) > 0 && spans[ends[0]].end == at; ends = ends[1:] {
			s.bits[ends[0]/64] &^= 1 << (ends[0] % 64)
		}
		for ; len(starts) > 0 && spans[starts[0]].first == at; starts = starts[1:] {
			s.bits[starts[0]/64] |= 1 << (starts[0] % 64)
		}
		class = append(class, s.class())
	}
	return slices.Clip(begin), slices.Clip(class)
}

func (s *splitter) addresses(of func(*Rule) netip.Prefix) (a addresses) {
	if s.table.v6 {
		a.wide, a.class = split(s, compareAddresses, func(r *Rule) span[Address] { return wideSpan(of(r)) })
	} else {
		a.narrow, a.class = split(s, cmp.Compare, func(r *Rule) span[uint32] { return narrowSpan(of(r)) })
	}
	return a
}

func (s *splitter) ports(of func(*Rule) span[uint32]) (p ports) {
	p.begin, p.class = split(s, cmp.Compare, of)
	clear(s.bits)
	for i, rule := range s.table.rules {
		if !s.all[rule].isTransport() {
			s.bits[i/64] |= 1 << (i % 64)
		}
	}
	p.bare = s.class()
	return p
}

func compareAddresses(a, b Address) int {
	return cmp.Or(cmp.Compare(a.Hi, b.Hi), cmp.Compare(a.Lo, b.Lo))
}

func narrowSpan(p netip.Prefix) span[uint32] {
	if !p.IsValid() {
		return span[uint32]{open: true}
	}
	first := uint32(addressOf(p.Addr()).Lo)
	end := uint64(first) + 1<<(32-p.Bits())
	return span[uint32]{first, uint32(end), end > 1<<32-1}
}

func wideSpan(p netip.Prefix) span[Address] {
	if !p.IsValid() {
		return span[Address]{open: true}
	}
	first := addressOf(p.Addr())
	end := first
	var over uint64
	if host := 128 - p.Bits(); host < 64 {
		end.Lo, over = bits.Add64(first.Lo, 1<<host, 0)
		end.Hi, over = bits.Add64(first.Hi, 0, over)
	} else if host < 128 {
		end.Hi, over = bits.Add64(first.Hi, 1<<(host-64), 0)
	} else {
		over = 1
	}
	return span[Address]{first, end, over != 0}
}

func portSpan(p Ports) span[uint32] {
	if p.IsAny() {
		return span[uint32]{open: true}
	}
	return span[uint32]{first: uint32(p.First), end: uint32(p.Last) + 1}
}

func icmpSpan(m ICMP) span[uint32] {
	first := uint32(m.Type) << 8
	if m.HasCode {
		first |= uint32(m.Code)
		return span[uint32]{first: first, end: first + 1}
	}
	return span[uint32]{first: first, end: first + 1<<8}
}

// etherTable judges what is not IP.
type etherTable struct {
	types []uint16 // those that rules name, in order
	rules []int32  // the first rule about each
	any   int32    // the first rule about all, or Default
}

func newEtherTable(all []Rule, d Direction) etherTable {
	t := etherTable{any: Default}
	for i := range all {
		switch r := &all[i]; {
		case r.Direction != d:
		case r.Subject == AnyEther && t.any == Default:
			t.any = int32(i)
		case r.Subject == OfEther:
			if at, there := slices.BinarySearch(t.types, r.Number); !there {
				t.types = slices.Insert(t.types, at, r.Number)
				t.rules = slices.Insert(t.rules, at, int32(i))
			}
		}
	}
	return t
}
