package vxlan

import (
	"encoding/binary"
	"net/netip"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/wire"
)

// snapshot is the configuration as the workers see it. Nothing in it changes after it was published, but what networks
// and ports point to for each worker: that is the worker's.
type snapshot struct {
	ports    []*port    // by slot; nil: free
	networks []*network // by slot; nil: free
	uplinks  []*uplink  // by slot; nil: free
	vteps    []*tunnel  // by index; nil: free
}

// network as the workers see it.
type network struct {
	slot int
	// serial tells what was learned in the network from what is forgotten.
	serial uint32
	// maxFrame is the MTU with the Ethernet header.
	maxFrame   int
	learning   bool
	dropTagged bool
	flat       bool
	tosMask    uint8 // what of the packets' DSCP and ECN goes into the outer header
	vni        uint32
	uplink     *uplink // nil: none
	// static holds the ports' own addresses and the configured entries. They win over what was learned.
	static   table
	learned  []*learned // by worker
	known    known
	noAnswer bool // known is for messages alone
	// flows are what was decided of flows from the wire, by worker. generation tells it from what was decided by another configuration.
	flows      []*flows
	generation uint32
	// members are the network's ports; strangers those of them that may use addresses we have not been told, and so
	// the only ones that unknown unicast is flooded to.
	members   []*port
	strangers []*port
	flood     []*tunnel
}

// port as the workers see it.
type port struct {
	slot      int
	serial    uint32
	ways      []way // by worker
	network   *network
	mac       wire.MAC
	antiSpoof bool
	ip4       []uint32   // big-endian, as numbers
	ip6       [][16]byte // with the link-local address made of mac
	checkIP   bool
	rings     []*ring          // by worker; nil: the port teaches nothing
	flows     []*flows         // by worker
	filter    *filter          // nil: none
	pace      *pace            // of messages about packets that are too long
	floods    *dataplane.Limit // of frames that go to several places; nil: none
}

// uplink as the workers see it.
type uplink struct {
	slot           int
	ways           []way // by worker
	mac            wire.MAC
	port           uint16
	is4, is6       bool // neither while there is no address
	address        address
	trustChecksums bool
	vnis           vniTable
	flat           *network // nil: none
	endpoints      endpoints
}

// endpoints finds the index of a VTEP by its address. It is asked only when an address has moved or is new.
type endpoints map[address]int

// address is a tunnel endpoint's as outer headers are read: in two registers, since comparing bytes just copied waits for the
// store. All addresses of an uplink are of one IP version; IPv4's are in low.
type address struct{ high, low uint64 }

func address4(b []byte) address { return address{low: uint64(binary.BigEndian.Uint32(b))} }

func address6(b []byte) address {
	return address{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func addressOf(a netip.Addr) address {
	if a.Is4() {
		b := a.As4()
		return address4(b[:])
	}
	b := a.As16()
	return address6(b[:])
}

// ip is the reverse of addressOf.
func (a address) ip(is4 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], a.high)
	binary.BigEndian.PutUint64(b[8:], a.low)
	if is4 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

// vniTable finds the network of a VNI: open addressing, at most half full.
type vniTable struct {
	slots []vniSlot
}

type vniSlot struct {
	vni     uint32
	network *network
}

func newVNITable(networks []*network) vniTable {
	n := 4
	for n < 2*len(networks) {
		n *= 2
	}
	t := vniTable{slots: make([]vniSlot, n)}
	for _, nw := range networks {
		i := vniStart(nw.vni) % uint32(n)
		for t.slots[i].network != nil {
			i = (i + 1) % uint32(n)
		}
		t.slots[i] = vniSlot{nw.vni, nw}
	}
	return t
}

func vniStart(vni uint32) uint32 { return vni * 0x9e37_79b1 >> 7 }

// find returns the VNI's network; nil if there is none.
func (t *vniTable) find(vni uint32) *network {
	i := vniStart(vni)
	for range t.slots {
		s := &t.slots[i&uint32(len(t.slots)-1)]
		if s.network == nil || s.vni == vni {
			return s.network
		}
		i++
	}
	return nil
}
