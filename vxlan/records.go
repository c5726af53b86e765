package vxlan

import (
	"net/netip"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/wire"
)

// What the control side knows of each object. All of it is guarded by Switch.mu; rings and learned tables are only carried around here,
// the workers read and write them.

type uplinkRecord struct {
	config Uplink
	out    []*dataplane.Link
	slot   int
	wanted []netip.Addr // what the resolver was told
}

// fill puts in what zero values stand for.
func (r *uplinkRecord) fill() {
	r.config.Address = r.config.Address.Unmap()
	if r.config.Port == 0 {
		r.config.Port = wire.VXLANPort
	}
	if r.config.TTL == 0 {
		r.config.TTL = 64
	}
}

// local is the uplink's own end: as configured, else as the resolver has it now.
func (r *uplinkRecord) local() Local {
	l := r.config.Resolver.Local()
	l.Address = l.Address.Unmap()
	if r.config.Address.IsValid() {
		l.Address = r.config.Address
	}
	if r.config.MAC != 0 {
		l.MAC = r.config.MAC
	}
	if r.config.MTU != 0 {
		l.MTU = r.config.MTU
	}
	return l
}

type networkRecord struct {
	config  Network
	slot    int
	learned []*learned // by worker
	serial  uint32     // of learned
	static  table
	known   known
	dirty   bool // something has changed: static is to be built anew, and flows to be decided again
	// flows are the caches for frames from the wire, by worker, and generation what is valid in all caches.
	flows      []*flows
	generation uint32
}

// teaches tells whether what was learned in the network as it was is true in the network as it is to be.
func (r *networkRecord) teaches(n *Network) bool {
	o := &r.config
	return o.Uplink == n.Uplink && o.Flat == n.Flat && o.VNI == n.VNI && o.Learning == n.Learning && o.Age == n.Age && o.LearnLimit == n.LearnLimit
}

// vteps are the addresses that the network names, each once.
func (n *Network) vteps() []netip.Addr {
	seen := make(map[netip.Addr]bool, len(n.Flood)+len(n.Entries))
	var all []netip.Addr
	add := func(a netip.Addr) {
		if !seen[a] {
			seen[a] = true
			all = append(all, a)
		}
	}
	for _, a := range n.Flood {
		add(a)
	}
	for _, e := range n.Entries {
		if e.VTEP.IsValid() { // else the network is flat
			add(e.VTEP)
		}
	}
	return all
}

type portRecord struct {
	config Port
	links  []*dataplane.Link
	slot   int
	serial uint32
	rings  []*ring  // by worker; nil: it teaches nothing
	flows  []*flows // by worker
	filter *filter  // nil: none
	pace   *pace
	flood  *dataplane.Limit // nil: none
}

// slots hands out small numbers.
type slots struct {
	n    int
	free []int
}

// take returns a free number, the smallest one never used if none was given back.
func (s *slots) take() int {
	if k := len(s.free); k > 0 {
		i := s.free[k-1]
		s.free = s.free[:k-1]
		return i
	}
	s.n++
	return s.n - 1
}

func (s *slots) give(i int) { s.free = append(s.free, i) }

// vtepKey names a VTEP: the same address on another uplink is another way.
type vtepKey struct {
	uplink  string
	address netip.Addr
}

type vtepRecord struct {
	vtepKey         // uplink empty: the index is free
	configured bool // a network names it; else the worker met it
	leaving    bool // not to be in the next snapshot
}

// vtepRecords numbers the VTEPs. An index stays the same as long as anything may refer to it.
type vtepRecords struct {
	records []vtepRecord
	index   map[vtepKey]int
	slots   slots
	learned int // how many are not configured
}

func (v *vtepRecords) used() int { return len(v.index) }

// add enters a VTEP, or notes that a network names it now; false if it was there already.
func (v *vtepRecords) add(k vtepKey, configured bool) bool {
	if i, ok := v.index[k]; ok {
		r := &v.records[i]
		if configured && !r.configured {
			r.configured = true
			v.learned--
		}
		return false
	}
	i := v.slots.take()
	if i == len(v.records) {
		v.records = append(v.records, vtepRecord{})
	}
	v.records[i] = vtepRecord{vtepKey: k, configured: configured}
	v.index[k] = i
	if !configured {
		v.learned++
	}
	return true
}

// remove frees an index that nothing refers to any more.
func (v *vtepRecords) remove(i int) {
	r := &v.records[i]
	if !r.configured {
		v.learned--
	}
	delete(v.index, r.vtepKey)
	*r = vtepRecord{}
	v.slots.give(i)
}

// dropUplink frees what is on an uplink that no network uses.
func (v *vtepRecords) dropUplink(name string) {
	for i := range v.records {
		if v.records[i].uplink == name {
			v.remove(i)
		}
	}
}

// configure makes the networks' VTEPs the configured ones. Those not named any more may still be what a learned entry leads to: they
// become like the ones the worker met, and go when they have been silent for long enough.
func (v *vtepRecords) configure(networks map[string]*networkRecord) {
	for i := range v.records {
		if r := &v.records[i]; r.uplink != "" && r.configured {
			r.configured = false
			v.learned++
		}
	}
	for _, n := range networks {
		for _, a := range n.config.vteps() {
			v.add(vtepKey{n.config.Uplink, a}, true)
		}
	}
}
