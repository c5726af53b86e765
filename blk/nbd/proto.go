package nbd

import (
	"encoding/binary"
	"fmt"
)

// Magic numbers, all of them as the protocol's document (proto.md) names and numbers them.
const (
	initMagic       = 0x4e42444d41474943 // NBDMAGIC
	optionMagic     = 0x49484156454f5054 // IHAVEOPT
	oldstyleMagic   = 0x00420281861253
	optReplyMagic   = 0x3e889045565a9
	requestMagic    = 0x25609513
	simpleMagic     = 0x67446698
	structuredMagic = 0x668e33ef
)

// Handshake flags of the server, and with the same numbers those of the client.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags    = 1 << 0
	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagFUA         = 1 << 3
	flagRotational  = 1 << 4
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6
	flagMultiConn   = 1 << 8
	flagFastZero    = 1 << 11
)

// Options, and the types of their replies.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8

	repAck    = 1
	repServer = 2
	repInfo   = 3

	repError           = 1 << 31
	repErrUnsup        = repError + 1
	repErrPolicy       = repError + 2
	repErrInvalid      = repError + 3
	repErrPlatform     = repError + 4
	repErrTLSReqd      = repError + 5
	repErrUnknown      = repError + 6
	repErrShutdown     = repError + 7
	repErrBlockSize    = repError + 8
	repErrTooBig       = repError + 9
	infoExport         = 0
	infoBlockSize      = 3
	lengthInfoExport   = 12
	lengthInfoBlocks   = 14
	lengthExportReply  = 10  // of EXPORT_NAME, without the zeroes
	lengthExportZeroes = 124 // behind it
)

// Commands and their flags.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagFastZero = 1 << 4
)

// Flags and types of a chunk.
const (
	chunkDone = 1 << 0

	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkErrorBit    = 1 << 15
	chunkErrorOffset = chunkErrorBit + 2
)

// Error values that mean something to us. All others are a failure.
const (
	errnoNotSupported = 95
	errnoShutdown     = 108
)

// Bounds of what a server may say, and of what is asked of it where it names none.
const (
	maxString  = 4096    // of any string, by the protocol
	defaultMax = 1 << 25 // payload of a request
	maxMinimum = 1 << 16 // minimum block size
	sector     = 512     // the smallest unit virtio-blk has
)

// request is a command's header:
//
//	 0       4      6      8                16               24      28
//	+-------+------+------+----------------+----------------+-------+
//	| magic | flags| type | cookie         | offset         | length|
//	+-------+------+------+----------------+----------------+-------+
type request []byte

const requestSize = 28

func (r request) put(flags, command uint16, cookie, offset uint64, length uint32) {
	_ = r[requestSize-1]
	binary.BigEndian.PutUint32(r, requestMagic)
	binary.BigEndian.PutUint16(r[4:], flags)
	binary.BigEndian.PutUint16(r[6:], command)
	binary.BigEndian.PutUint64(r[8:], cookie)
	binary.BigEndian.PutUint64(r[16:], offset)
	binary.BigEndian.PutUint32(r[24:], length)
}

// simple is a simple reply:
//
//	 0       4       8                16
//	+-------+-------+----------------+- - - - - - - - - - - - - - - - - - +
//	| magic | error | cookie         | data, of a read that has no error |
//	+-------+-------+----------------+- - - - - - - - - - - - - - - - - - +
type simple []byte

const simpleSize = 16

func (s simple) errno() uint32  { return binary.BigEndian.Uint32(s[4:]) }
func (s simple) cookie() uint64 { return binary.BigEndian.Uint64(s[8:]) }

// chunk is a structured reply chunk:
//
//	 0       4      6      8                16      20               28
//	+-------+------+------+----------------+-------+----------------+- - - +
//	| magic | flags| type | cookie         | length| offset         | data |    OFFSET_DATA
//	+-------+------+------+----------------+-------+----------------+-----+
//	                                               | offset         | size|     OFFSET_HOLE
//	                                               +-------+----+---+-----+
//	                                               | error | n  | message  . . . ERROR, with an offset behind: ERROR_OFFSET
//	                                               +-------+----+----------
type chunk []byte

const (
	chunkSize       = 20
	chunkDataSize   = 28
	chunkHoleSize   = 32
	errorSize       = 6  // of the payload of ERROR without its message
	errorOffsetSize = 14 // the same of ERROR_OFFSET
	// maxErrorSize is the longest payload of any error that is listened to: the longest message, and fields that later types may have.
	maxErrorSize = maxString + 256
)

func (c chunk) flags() uint16  { return binary.BigEndian.Uint16(c[4:]) }
func (c chunk) kind() uint16   { return binary.BigEndian.Uint16(c[6:]) }
func (c chunk) cookie() uint64 { return binary.BigEndian.Uint64(c[8:]) }
func (c chunk) length() uint32 { return binary.BigEndian.Uint32(c[16:]) }

// offset and hole need a chunkDataSize and a chunkHoleSize.
func (c chunk) offset() uint64 { return binary.BigEndian.Uint64(c[20:]) }
func (c chunk) hole() uint32   { return binary.BigEndian.Uint32(c[28:]) }

// errno and message need errorSize bytes of payload.
func (c chunk) errno() uint32   { return binary.BigEndian.Uint32(c[20:]) }
func (c chunk) message() uint16 { return binary.BigEndian.Uint16(c[24:]) }

// commandName is for people.
func commandName(command uint16) string {
	switch command {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdFlush:
		return "flush"
	case cmdTrim:
		return "trim"
	case cmdWriteZeroes:
		return "write-zeroes"
	}
	return fmt.Sprintf("command %d", command)
}
