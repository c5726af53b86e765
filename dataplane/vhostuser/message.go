package vhostuser

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Request is the type of a message from front-end to back-end.
type Request uint32

// Requests, numbered by the specification (docs/interop/vhost-user.rst in QEMU).
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFD            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SendRARP            Request = 19
	NetSetMTU           Request = 20
	SetBackendReqFD     Request = 21
	IOTLBMsg            Request = 22
	SetVringEndian      Request = 23
	GetConfig           Request = 24
	SetConfig           Request = 25
	CreateCryptoSession Request = 26
	CloseCryptoSession  Request = 27
	PostcopyAdvise      Request = 28
	PostcopyListen      Request = 29
	PostcopyEnd         Request = 30
	GetInflightFD       Request = 31
	SetInflightFD       Request = 32
	GPUSetSocket        Request = 33
	ResetDevice         Request = 34
	VringKick           Request = 35
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40
	GetSharedObject     Request = 41
	SetDeviceStateFD    Request = 42
	CheckDeviceState    Request = 43
)

var requestNames = [...]string{
	GetFeatures: "GET_FEATURES", SetFeatures: "SET_FEATURES", SetOwner: "SET_OWNER", ResetOwner: "RESET_OWNER",
	SetMemTable: "SET_MEM_TABLE", SetLogBase: "SET_LOG_BASE", SetLogFD: "SET_LOG_FD", SetVringNum: "SET_VRING_NUM",
	SetVringAddr: "SET_VRING_ADDR", SetVringBase: "SET_VRING_BASE", GetVringBase: "GET_VRING_BASE",
	SetVringKick: "SET_VRING_KICK", SetVringCall: "SET_VRING_CALL", SetVringErr: "SET_VRING_ERR",
	GetProtocolFeatures: "GET_PROTOCOL_FEATURES", SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	GetQueueNum: "GET_QUEUE_NUM", SetVringEnable: "SET_VRING_ENABLE", SendRARP: "SEND_RARP", NetSetMTU: "NET_SET_MTU",
	SetBackendReqFD: "SET_BACKEND_REQ_FD", IOTLBMsg: "IOTLB_MSG", SetVringEndian: "SET_VRING_ENDIAN",
	GetConfig: "GET_CONFIG", SetConfig: "SET_CONFIG", CreateCryptoSession: "CREATE_CRYPTO_SESSION",
	CloseCryptoSession: "CLOSE_CRYPTO_SESSION", PostcopyAdvise: "POSTCOPY_ADVISE", PostcopyListen: "POSTCOPY_LISTEN",
	PostcopyEnd: "POSTCOPY_END", GetInflightFD: "GET_INFLIGHT_FD", SetInflightFD: "SET_INFLIGHT_FD",
	GPUSetSocket: "GPU_SET_SOCKET", ResetDevice: "RESET_DEVICE", VringKick: "VRING_KICK",
	GetMaxMemSlots: "GET_MAX_MEM_SLOTS", AddMemReg: "ADD_MEM_REG", RemMemReg: "REM_MEM_REG", SetStatus: "SET_STATUS",
	GetStatus: "GET_STATUS", GetSharedObject: "GET_SHARED_OBJECT", SetDeviceStateFD: "SET_DEVICE_STATE_FD",
	CheckDeviceState: "CHECK_DEVICE_STATE",
}

// String is the request's name in the specification, without its prefix.
func (r Request) String() string {
	if r == 0 || int(r) >= len(requestNames) {
		return fmt.Sprintf("request %d", uint32(r))
	}
	return requestNames[r]
}

// FeatureProtocol (VHOST_USER_F_PROTOCOL_FEATURES) is the feature bit that says: protocol features can be negotiated.
// It is the back-end's own; a Device neither offers nor sees it.
const FeatureProtocol uint64 = 1 << 30

// FeatureLogAll (VHOST_F_LOG_ALL) is the feature bit that says: what the device writes to the guest's memory is to be marked in the log.
// The only one that may change while rings run. The Backend offers it for a Device that is a Logger.
const FeatureLogAll uint64 = 1 << 26

// Virtio features that change the shape of a ring.
const (
	featureEventIdx uint64 = 1 << 29
	featurePacked   uint64 = 1 << 34
)

// Protocol features (VHOST_USER_PROTOCOL_F_*), as bits.
const (
	ProtocolMQ          uint64 = 1 << 0
	ProtocolLogShmfd    uint64 = 1 << 1
	ProtocolRARP        uint64 = 1 << 2
	ProtocolReplyAck    uint64 = 1 << 3
	ProtocolNetMTU      uint64 = 1 << 4
	ProtocolBackendReq  uint64 = 1 << 5
	ProtocolConfig      uint64 = 1 << 9
	ProtocolInflight    uint64 = 1 << 12
	ProtocolResetDevice uint64 = 1 << 13
	ProtocolInband      uint64 = 1 << 14
	ProtocolMemSlots    uint64 = 1 << 15
	ProtocolStatus      uint64 = 1 << 16
)

// protocolNames are the names of the bits, from 0 on.
var protocolNames = [...]string{"MQ", "LOG_SHMFD", "RARP", "REPLY_ACK", "NET_MTU", "BACKEND_REQ", "CROSS_ENDIAN", "CRYPTO_SESSION",
	"PAGEFAULT", "CONFIG", "BACKEND_SEND_FD", "HOST_NOTIFIER", "INFLIGHT_SHMFD", "RESET_DEVICE", "INBAND_NOTIFICATIONS",
	"CONFIGURE_MEM_SLOTS", "STATUS"}

// ProtocolNames lists the protocol features in set by their names, for logs and status output.
func ProtocolNames(set uint64) []string {
	var out []string
	for ; set != 0; set &= set - 1 {
		if bit := bits.TrailingZeros64(set); bit < len(protocolNames) {
			out = append(out, protocolNames[bit])
		} else {
			out = append(out, fmt.Sprintf("bit %d", bit))
		}
	}
	return out
}

// Sizes and limits of a message.
//
//	 0       4       8       12                  12+size
//	┌───────┬───────┬───────┬─────────────────────┐
//	│request│ flags │ size  │ payload             │  + descriptors in ancillary data
//	└───────┴───────┴───────┴─────────────────────┘
const (
	headerSize = 12

	flagVersion     = 0x1
	flagVersionMask = 0x3
	flagReply       = 0x4
	flagNeedReply   = 0x8

	regionSize = 32  // guest address, size, user address, mmap offset
	maxTable   = 8   // regions in one SET_MEM_TABLE
	maxFDs     = 8   // descriptors in one message: those of a table
	configHead = 12  // offset, size, flags
	maxConfig  = 256 // bytes of a device's configuration space

	// maxPayload is the largest payload known to us, a whole configuration space. A memory table takes 8 + 8*32 = 264.
	maxPayload = configHead + maxConfig

	vringIndex = 0xff   // in the u64 of KICK, CALL and ERR: the ring
	vringNoFD  = 1 << 8 // there too: no descriptor comes along
)

// MaxMemSlots is how many memory regions a front-end may have mapped here at a time, the number KVM gives a machine.
const MaxMemSlots = 509

// message is one received message. Its payload is valid until the next is read; its descriptors are closed after it
// was handled, except those taken out with takeFD.
type message struct {
	request Request
	flags   uint32
	payload []byte
	fds     []int
	stored  [maxFDs]int
	buffer  [headerSize + maxPayload]byte
}

// takeFD hands the i-th descriptor to the caller, who closes it from now on.
func (m *message) takeFD(i int) int {
	fd := m.fds[i]
	m.fds[i] = -1
	return fd
}

func (m *message) closeFDs() {
	for _, fd := range m.fds {
		closeFD(fd)
	}
	m.fds = m.stored[:0]
}

func (m *message) u16(at int) uint16 { return binary.NativeEndian.Uint16(m.payload[at:]) }
func (m *message) u32(at int) uint32 { return binary.NativeEndian.Uint32(m.payload[at:]) }
func (m *message) u64(at int) uint64 { return binary.NativeEndian.Uint64(m.payload[at:]) }

func (m *message) region(at, fd int) Region {
	return Region{GuestAddr: m.u64(at), Size: m.u64(at + 8), UserAddr: m.u64(at + 16), MmapOffset: m.u64(at + 24), FD: fd}
}

// appendHeader, appendU64 and their siblings build messages; the payload's size is set by seal.
func appendHeader(b []byte, r Request, flags uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(r))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, 0)
}

func seal(b []byte) []byte {
	binary.NativeEndian.PutUint32(b[8:], uint32(len(b)-headerSize))
	return b
}

func appendU64(b []byte, v uint64) []byte { return binary.NativeEndian.AppendUint64(b, v) }

func appendState(b []byte, index, num uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, index)
	return binary.NativeEndian.AppendUint32(b, num)
}

func appendRegion(b []byte, r Region) []byte {
	return appendU64(appendU64(appendU64(appendU64(b, r.GuestAddr), r.Size), r.UserAddr), r.MmapOffset)
}
