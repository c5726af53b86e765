package nvmetcp

import (
	"bytes"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/shuntio/shunt/blk"
)

const pageLength = 4096 // of Identify data

// controllerData is what we use of Identify Controller (NVM Express base specification, figure "Identify Controller Data Structure").
type controllerData struct {
	Serial, Model, Firmware string
	CNTLID                  uint16
	MDTS                    uint8
	OAES                    uint32
	CRDT                    [4]time.Duration // by the status' CRD
	KAS                     time.Duration    // granularity of the keep-alive timeout; 0: no keep-alive
	Traffic                 bool             // traffic restarts the keep-alive timer (CTRATT.TBKAS)
	CQT                     time.Duration
	ANA                     bool
	ANAGroups               uint32 // NANAGRPID
	WriteZeroes, DSM        bool
	VolatileCache           bool
	IOCCSZ                  uint32
	ICDOFF                  uint16
	SGLs                    bool
	SubNQN                  string
}

func parseController(b []byte) controllerData {
	c := controllerData{
		Serial: text(b[4:24]), Model: text(b[24:64]), Firmware: text(b[64:72]),
		CNTLID: le.Uint16(b[78:]), MDTS: b[77], OAES: le.Uint32(b[92:]),
		KAS: time.Duration(le.Uint16(b[320:])) * 100 * time.Millisecond, Traffic: le.Uint32(b[96:])&(1<<6) != 0,
		CQT: time.Duration(le.Uint16(b[386:])) * time.Millisecond, ANA: b[76]&(1<<3) != 0,
		ANAGroups: le.Uint32(b[348:]), VolatileCache: b[525]&1 != 0, IOCCSZ: le.Uint32(b[1792:]), ICDOFF: le.Uint16(b[1800:]),
		SGLs: le.Uint32(b[536:])&3 != 0, SubNQN: text(b[768:1024]),
	}
	for i := range 3 {
		c.CRDT[i+1] = time.Duration(le.Uint16(b[128+2*i:])) * 100 * time.Millisecond
	}
	oncs := le.Uint16(b[520:])
	c.DSM, c.WriteZeroes = oncs&(1<<2) != 0, oncs&(1<<3) != 0
	return c
}

// inCapsule is how many bytes of data a command capsule may carry.
func (c controllerData) inCapsule() (uint32, error) {
	if c.ICDOFF != 0 {
		return 0, fmt.Errorf("the controller wants data at an offset in capsules (ICDOFF %d), which NVMe/TCP does not have", c.ICDOFF)
	}
	if c.IOCCSZ < sqeLength/16 {
		return 0, fmt.Errorf("the controller's capsules (IOCCSZ %d) have no room for a command", c.IOCCSZ)
	}
	return min(c.IOCCSZ, maxTransfer/16)*16 - sqeLength, nil
}

// namespaceData is what we use of Identify Namespace, and of the identifications beside it.
type namespaceData struct {
	Blocks     uint64
	Shift      uint // of a block
	Metadata   uint16
	ANAGroup   uint32
	ReadOnly   bool
	Rotational bool
	Physical   uint32 // bytes; 0: not said
	Optimal    uint32
	Granule    uint32
	Deallocate bool // Write Zeroes may give blocks back, and they read as zeroes

	// From the identification by descriptors.
	identity identity

	// From Identify Controller of the NVM command set: at most so many blocks in one command; 0 any number.
	mostZeroes, mostDiscard uint64
}

func parseNamespace(b []byte) (namespaceData, error) {
	n := namespaceData{Blocks: le.Uint64(b), ANAGroup: le.Uint32(b[92:]), ReadOnly: b[99]&1 != 0}
	format := b[26]&0xf | b[26]>>5&3<<4
	n.Shift, n.Metadata = uint(b[128+4*int(format)+2]), le.Uint16(b[128+4*int(format):])
	if n.Blocks == 0 {
		return n, fmt.Errorf("the namespace has no size: it is not there, or not attached to this controller")
	}
	if n.Metadata != 0 {
		return n, fmt.Errorf("the namespace is formatted with %d bytes of metadata a block; format it without", n.Metadata)
	}
	if n.Shift < 9 || n.Shift > 16 {
		return n, fmt.Errorf("the namespace has blocks of 2^%d bytes; 512 B to 64 KiB can be used", n.Shift)
	}
	if bits.LeadingZeros64(n.Blocks) <= int(n.Shift) {
		return n, fmt.Errorf("the namespace claims %d blocks of %d bytes, more than there are addresses", n.Blocks, 1<<n.Shift)
	}
	n.Deallocate = b[33]&0xf == 1<<3|1 // DLFEAT
	if b[24]&(1<<4) != 0 {             // NSFEAT.OPTPERF
		n.Physical = uint32(n.power(b[64:]))
		n.Granule = uint32(n.power(b[68:]))
		n.Optimal = uint32(n.power(b[72:]))
	}
	copy(n.identity.nguid[:], b[104:120])
	copy(n.identity.eui64[:], b[120:128])
	return n, nil
}

// bound takes what Identify Controller of the NVM command set says of the length of single commands, in units of 2^page bytes.
func (n *namespaceData) bound(b []byte, page uint) {
	if wzsl := uint(b[1]); wzsl != 0 && wzsl+page < 64 {
		n.mostZeroes = max(uint64(1)<<(wzsl+page)>>n.Shift, 1)
	}
	n.mostDiscard = uint64(le.Uint32(b[4:]))                                                            // DMRSL: of a range, of which we give one
	if all := min(le.Uint64(b[8:]), 1<<32-1); all != 0 && (n.mostDiscard == 0 || all < n.mostDiscard) { // DMSL: of all ranges
		n.mostDiscard = all
	}
}

// power is a count of blocks, 0's based, in bytes if that is a power of two.
func (n namespaceData) power(b []byte) uint64 {
	v := (uint64(le.Uint16(b)) + 1) << n.Shift
	if bits.OnesCount64(v) != 1 {
		return 0
	}
	return v
}

// identity is what names a namespace worldwide, as long as it is there; what a controller does not tell is zero.
type identity struct {
	eui64       [8]byte
	nguid, uuid [16]byte
}

// descriptors adds what the namespace identification descriptor list has: type, length, two reserved bytes, the identifier.
func (id *identity) descriptors(b []byte) (csi byte) {
	for len(b) >= 4 && b[1] != 0 && len(b) >= 4+int(b[1]) {
		end := 4 + int(b[1])
		v := b[4:end]
		switch {
		case b[0] == 1 && len(v) == 8:
			copy(id.eui64[:], v)
		case b[0] == 2 && len(v) == 16:
			copy(id.nguid[:], v)
		case b[0] == 3 && len(v) == 16:
			copy(id.uuid[:], v)
		case b[0] == 4 && len(v) == 1:
			csi = v[0]
		}
		b = b[end:]
	}
	return csi
}

func (id identity) String() string {
	switch {
	case id.uuid != [16]byte{}:
		return "uuid " + formatUUID(id.uuid)
	case id.nguid != [16]byte{}:
		return fmt.Sprintf("nguid %x", id.nguid)
	case id.eui64 != [8]byte{}:
		return fmt.Sprintf("eui64 %x", id.eui64)
	}
	return "without identifiers"
}

func formatUUID(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// info is the store's face of a namespace.
func (n namespaceData) info(c controllerData) blk.Info {
	block := uint32(1) << n.Shift
	name := ""
	if n.identity != (identity{}) {
		name = n.identity.String()
	}
	return blk.Info{
		Identity: name, Size: n.Blocks << n.Shift, BlockSize: block, PhysicalBlock: max(n.Physical, block), OptimalIO: max(n.Optimal, block),
		DiscardGranularity: max(n.Granule, block), Flush: c.VolatileCache, FUA: true, Discard: c.DSM, WriteZeroes: c.WriteZeroes,
		ReadOnly: n.ReadOnly, Rotational: n.Rotational,
	}
}

// anaState is how a controller reaches the namespaces of an ANA group.
type anaState uint8

const (
	anaOptimized    anaState = 0x1
	anaNonOptimized anaState = 0x2
	anaInaccessible anaState = 0x3
	anaLost         anaState = 0x4
	anaChange       anaState = 0xf
)

func (s anaState) accessible() bool { return s == anaOptimized || s == anaNonOptimized }

func (s anaState) String() string {
	switch s {
	case anaOptimized:
		return "optimized"
	case anaNonOptimized:
		return "non-optimized"
	case anaInaccessible:
		return "inaccessible"
	case anaLost:
		return "persistent loss"
	case anaChange:
		return "change"
	}
	return fmt.Sprintf("state %#x", uint8(s))
}

// parseANA finds in an ANA log page the state of the group that a namespace belongs to: by the namespace where the descriptors list them, else by the group.
func parseANA(b []byte, nsid, group uint32) (state anaState, ok bool) {
	if len(b) < 16 {
		return 0, false
	}
	groups := int(le.Uint16(b[8:]))
	b = b[16:]
	for range groups {
		if len(b) < 32 {
			break
		}
		id, count := le.Uint32(b), uint64(le.Uint32(b[4:]))
		of := anaState(b[16] & 0xf)
		if b = b[32:]; uint64(len(b)) < 4*count {
			break
		}
		for i := range count {
			if le.Uint32(b[4*i:]) == nsid {
				return of, true
			}
		}
		if id == group && count == 0 {
			state, ok = of, true
		}
		b = b[4*count:]
	}
	return state, ok
}

// parseHealth is the lifetime that the health log tells; nil where it tells nothing, as software targets do.
func parseHealth(b []byte) *blk.Lifetime {
	warning, spare, used := b[0], b[3], uint16(b[5])
	if spare == 0 && used == 0 {
		return nil
	}
	l := &blk.Lifetime{PreEOL: 1, TypeA: min(used/10+1, 11)}
	l.TypeB = l.TypeA
	switch {
	case warning&1 != 0:
		l.PreEOL = 3
	case used >= 90:
		l.PreEOL = 2
	}
	return l
}

// text is an ASCII field, padded with spaces or zeroes, made printable: it comes from the wire and goes to people.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.TrimSpace(string(b)))
}
