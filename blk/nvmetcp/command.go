package nvmetcp

// Opcodes of the admin and NVM command sets, and of Fabrics.
const (
	opGetLogPage  = 0x02
	opIdentify    = 0x06
	opAbort       = 0x08
	opSetFeatures = 0x09
	opAsyncEvent  = 0x0c
	opKeepAlive   = 0x18
	opFabrics     = 0x7f

	opFlush       = 0x00
	opWrite       = 0x01
	opRead        = 0x02
	opWriteZeroes = 0x08
	opDSM         = 0x09
)

// Fabrics command types.
const (
	fabricsPropertySet = 0x00
	fabricsConnect     = 0x01
	fabricsPropertyGet = 0x04
)

// Properties: what are registers on PCI Express.
const (
	propertyCAP  = 0x00
	propertyVS   = 0x08
	propertyCC   = 0x14
	propertyCSTS = 0x1c
)

// Fields of CC and CSTS.
const (
	ccEnable     = 1 << 0
	ccNormalStop = 1 << 14 // SHN: normal shutdown
	ccEntrySizes = 6<<16 | 4<<20

	cstsReady    = 1 << 0
	cstsFatal    = 1 << 1
	cstsShutdown = 3 << 2
	cstsStopped  = 2 << 2
)

// Identify: CNS.
const (
	cnsNamespace   = 0x00
	cnsController  = 0x01
	cnsActive      = 0x02
	cnsDescriptors = 0x03
	cnsSetSpecific = 0x06 // controller, of the NVM command set
	cnsIndependent = 0x08 // namespace, independent of the command set
)

// Log pages.
const (
	logHealth    = 0x02
	logChanged   = 0x04
	logANA       = 0x0c
	logDiscovery = 0x70
)

// Features, and the asynchronous events that one of them enables.
const (
	featureQueues = 0x07
	featureEvents = 0x0b

	eventNamespace = 1 << 8
	eventANA       = 1 << 11
)

// Bits of the third command dword 12 and its neighbours.
const (
	rwFUA          = 1 << 30
	zeroDeallocate = 1 << 25
	dsmDeallocate  = 1 << 2
)

// sqe is a submission queue entry. Fabrics has SGLs only:
//
//	0 opcode  1 flags (PSDT)  2 CID  4 NSID  24 SGL1 (16)  40 CDW10 ... CDW15
type sqe []byte

const sqeLength = 64

func (e sqe) begin(opcode byte, nsid uint32) {
	clear(e)
	e[0] = opcode
	e[1] = 1 << 6 // PSDT: SGLs
	le.PutUint32(e[4:], nsid)
}

func (e sqe) setCID(cid uint16)       { le.PutUint16(e[2:], cid) }
func (e sqe) cid() uint16             { return le.Uint16(e[2:]) }
func (e sqe) setCDW(n int, v uint32)  { le.PutUint32(e[4*n:], v) }
func (e sqe) setCDW64(n int, v int64) { le.PutUint64(e[4*n:], uint64(v)) }

// inCapsule says that length bytes follow in the capsule: a data block at an offset, which is 0 since ICDOFF is.
func (e sqe) inCapsule(length uint32) {
	le.PutUint64(e[24:], 0)
	le.PutUint32(e[32:], length)
	e[39] = 0x01
}

// transport says that length bytes move in data PDUs: a transport data block.
func (e sqe) transport(length uint32) {
	le.PutUint64(e[24:], 0)
	le.PutUint32(e[32:], length)
	e[39] = 0x5a
}

// cqe is a completion queue entry:
//
//	0 result (8)  8 SQHD  10 SQID  12 CID  14 status
type cqe struct {
	result uint64
	cid    uint16
	status status
}

func parseCQE(b []byte) cqe {
	return cqe{le.Uint64(b), le.Uint16(b[12:]), status(le.Uint16(b[14:]))}
}
