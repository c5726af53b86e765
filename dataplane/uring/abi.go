package uring

// What linux/io_uring.h says, as far as we use it.

// sqe is struct io_uring_sqe. Several fields have a meaning per opcode; the names here are of the commonest.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16 // recv: its flags
	fd       int32
	off      uint64 // connect: the address's length
	addr     uint64 // fallocate: the length; cancel: whose user_data
	len      uint32 // fallocate: the mode
	opFlags  uint32
	userData uint64
	bufIndex uint16 // or the group of provided buffers
	_        uint16
	_        uint32
	addr3    uint64 // a command to a block device: the length
	_        uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32

	sqOff struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		_                                                           uint64
	}
	cqOff struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		_                                                           uint64
	}
}

const (
	sizeofSQE = 64
	sizeofCQE = 16

	offSQRing = 0
	offSQEs   = 0x10000000
)

// Opcodes.
const (
	opNop         = 0
	opReadv       = 1
	opWritev      = 2
	opFsync       = 3
	opReadFixed   = 4
	opWriteFixed  = 5
	opPollAdd     = 6
	opSendmsg     = 9
	opRecvmsg     = 10
	opCancel      = 14
	opConnect     = 16
	opFallocate   = 17
	opRead        = 22
	opWrite       = 23
	opSend        = 26
	opRecv        = 27
	opShutdown    = 34
	opURingCmd    = 46
	opReadvFixed  = 60 // 6.15
	opWritevFixed = 61
)

// Flags of an SQE, and of its operation.
const (
	sqeFixedFile    = 1 << 0
	sqeAsync        = 1 << 4
	sqeBufferSelect = 1 << 5
	sqeSkipSuccess  = 1 << 6

	blockDiscard = 0x12 << 8 // BLOCK_URING_CMD_DISCARD (6.12)

	fsyncDatasync = 1 << 0
	recvMultishot = 1 << 1
	cancelAll     = 1 << 0
	cancelAny     = 1 << 2
)

// Flags of io_uring_setup.
const (
	setupCQSize       = 1 << 3
	setupDisabled     = 1 << 6
	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupTaskrunFlag  = 1 << 9
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	setupNoSQArray    = 1 << 16
)

// Flags of io_uring_enter, and those the kernel shows in the SQ.
const (
	enterGetEvents = 1 << 0
	enterExtArg    = 1 << 3

	sqCQOverflow = 1 << 1
	sqTaskrun    = 1 << 2

	cqEventFDDisabled = 1 << 0 // ours to set, in the CQ
)

// Opcodes of io_uring_register, and their arguments.
const (
	registerEventFD        = 4
	registerFilesUpdate    = 6
	registerProbe          = 8
	registerEnableRings    = 12
	registerFiles2         = 13
	registerBuffers2       = 15
	registerBuffersUpdate  = 16
	registerIOWQAff        = 17
	registerIOWQMaxWorkers = 19
	registerPbufRing       = 22
	unregisterPbufRing     = 23
	registerSparse         = 1 << 0
	probeSupported         = 1 << 0
	probeOps               = 64
	maxBuffer              = 1 << 30 // the longest memory that can be registered as one
)

// rsrcRegister is struct io_uring_rsrc_register.
type rsrcRegister struct {
	nr, flags uint32
	_         uint64
	data      uint64
	tags      uint64
}

// probe is struct io_uring_probe with its array.
type probe struct {
	lastOp, opsLen uint8
	_              uint16
	_              [3]uint32
	ops            [probeOps]struct {
		op    uint8
		_     uint8
		flags uint16
		_     uint32
	}
}

// bufReg is struct io_uring_buf_reg; bufEntry is struct io_uring_buf, whose last field is the ring's tail in the first one.
type bufReg struct {
	ringAddr    uint64
	ringEntries uint32
	bgid, flags uint16
	_           [3]uint64
}

type bufEntry struct {
	addr uint64
	len  uint32
	bid  uint16
	_    uint16
}

// iovec is struct iovec, msghdr struct msghdr, of 64 bits.
type iovec struct{ base, len uint64 }

type msghdr struct {
	_, _        uint64 // no address: what we send on is connected
	iov, iovlen uint64
	_, _, _     uint64 // no control messages
}
