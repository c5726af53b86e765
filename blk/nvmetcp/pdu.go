package nvmetcp

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

var le = binary.LittleEndian

// castagnoli is CRC32C, the digest of NVMe/TCP (TCP transport specification, section 3.3.1.1).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc32c(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// PDU types. Those to the host are odd.
const (
	pduICReq       = 0x00
	pduICResp      = 0x01
	pduH2CTermReq  = 0x02
	pduC2HTermReq  = 0x03
	pduCapsuleCmd  = 0x04
	pduCapsuleResp = 0x05
	pduH2CData     = 0x06
	pduC2HData     = 0x07
	pduR2T         = 0x09
)

// Flags of the common header.
const (
	flagHeaderDigest = 1 << 0
	flagDataDigest   = 1 << 1
	flagLast         = 1 << 2
	flagSuccess      = 1 << 3
)

// Lengths, in bytes.
const (
	commonLength  = 8
	initLength    = 128 // ICReq, ICResp
	commandLength = 72  // CapsuleCmd: the common header and a submission queue entry
	headerLength  = 24  // every other
	digestLength  = 4
	maxTermLength = headerLength + 128 // the header at fault follows
	maxDataOffset = 128                // PDO at the largest CPDA
	minH2CData    = 4096
)

// Fatal error status of a TermReq.
const (
	fesInvalidHeader = 0x01
	fesSequence      = 0x02
	fesHeaderDigest  = 0x03
	fesOutOfRange    = 0x04
	fesLimit         = 0x05 // more data or R2Ts than agreed on
	fesUnsupported   = 0x06
)

// header is a PDU's header:
//
//	 0        1        2        3        4                                8
//	┌────────┬────────┬────────┬────────┬────────────────────────────────┐
//	│  type  │ flags  │  HLEN  │  PDO   │  PLEN: the PDU with all of it   │
//	├────────┴────────┼────────┴────────┼────────────────┬───────────────┤
//	│      CCCID      │      TTAG       │  DATAO, R2TO   │  DATAL, R2TL  │   C2HData, H2CData, R2T
//	├─────────────────┴─────────────────┴────────────────┴───────────────┤
//	│  a completion queue entry                                          │   CapsuleResp
//	└────────────────────────────────────────────────────────────────────┘
type header []byte

func (h header) kind() byte     { return h[0] }
func (h header) flags() byte    { return h[1] }
func (h header) hlen() int      { return int(h[2]) }
func (h header) pdo() int       { return int(h[3]) }
func (h header) plen() uint32   { return le.Uint32(h[4:]) }
func (h header) cccid() uint16  { return le.Uint16(h[8:]) }
func (h header) ttag() uint16   { return le.Uint16(h[10:]) }
func (h header) offset() uint32 { return le.Uint32(h[12:]) }
func (h header) length() uint32 { return le.Uint32(h[16:]) }

// Of a TermReq.
func (h header) fes() uint16 { return le.Uint16(h[8:]) }
func (h header) fei() uint32 { return le.Uint32(h[10:]) }

func (h header) common(kind, flags byte, hlen, pdo int, plen uint32) {
	h[0], h[1], h[2], h[3] = kind, flags, byte(hlen), byte(pdo)
	le.PutUint32(h[4:], plen)
}

// violation is a controller's breach of the protocol; the connection ends with a TermReq that says so.
type violation struct {
	fes  uint16
	fei  uint32
	head []byte // of the PDU at fault
	text string
}

func (v *violation) Error() string { return "the controller broke the NVMe/TCP protocol: " + v.text }

func breach(fes uint16, fei uint32, head []byte, format string, args ...any) *violation {
	return &violation{fes, fei, append([]byte(nil), head...), fmt.Sprintf(format, args...)}
}

// termReq is the PDU that ends a connection for a violation.
func (v *violation) termReq() []byte {
	b := make([]byte, headerLength, maxTermLength)
	le.PutUint16(b[8:], v.fes)
	le.PutUint32(b[10:], v.fei)
	b = append(b, v.head[:min(len(v.head), maxTermLength-headerLength)]...)
	header(b).common(pduH2CTermReq, 0, headerLength, 0, uint32(len(b)))
	return b
}

// terminated is the error of a C2HTermReq.
func terminated(h header) error {
	names := [...]string{fesInvalidHeader: "invalid PDU header", fesSequence: "PDU sequence error", fesHeaderDigest: "header digest error",
		fesOutOfRange: "data transfer out of range", fesLimit: "data transfer limit exceeded", fesUnsupported: "unsupported parameter"}
	name := "unknown reason"
	if n := int(h.fes()); n > 0 && n < len(names) {
		name = names[n]
	}
	return fmt.Errorf("the controller ended the connection (C2HTermReq): %s, status %#x, information %#x", name, h.fes(), h.fei())
}

// terms are what ICReq and ICResp agreed on for a connection.
type terms struct {
	headerDigest, dataDigest bool
	align                    int    // of data in what we send: (CPDA + 1) * 4
	maxH2CData               uint32 // bytes in an H2CData PDU
}

// flags are the digest flags of a PDU we send.
func (t terms) flags(data bool) (f byte) {
	if t.headerDigest {
		f |= flagHeaderDigest
	}
	if t.dataDigest && data {
		f |= flagDataDigest
	}
	return f
}

// seal finishes a PDU's header of hlen bytes that data bytes follow: PDO, PLEN, header digest, padding. h has room up to maxDataOffset, zero behind the header. It returns
// how many bytes go before the data.
func (t terms) seal(h []byte, kind, flags byte, hlen int, data uint32) int {
	end, pdo, plen := hlen, 0, uint32(0)
	if t.headerDigest {
		end += digestLength
	}
	if data > 0 {
		end = (end + t.align - 1) &^ (t.align - 1)
		pdo = end
		if t.dataDigest {
			plen = digestLength
		}
	}
	header(h).common(kind, flags|t.flags(data > 0), hlen, pdo, uint32(end)+data+plen)
	if t.headerDigest {
		le.PutUint32(h[hlen:], crc32c(h[:hlen]))
		clear(h[hlen+digestLength : max(end, hlen+digestLength)])
	} else {
		clear(h[hlen:end])
	}
	return end
}

// expect tells how many bytes belong to the header of the PDU that begins with h, digest included, from its first commonLength bytes; and refuses what a
// controller may not send on an established connection.
func (t terms) expect(h header) (n int, bad *violation) {
	h = h[:commonLength]
	switch h.kind() {
	case pduC2HTermReq:
		if h.hlen() != headerLength || h.plen() < headerLength || h.plen() > maxTermLength {
			return 0, breach(fesInvalidHeader, 2, h, "a C2HTermReq with HLEN %d and PLEN %d", h.hlen(), h.plen())
		}
		return headerLength, nil
	case pduCapsuleResp, pduC2HData, pduR2T:
	default:
		return 0, breach(fesInvalidHeader, 0, h, "PDU type %#x", h.kind())
	}
	if h.hlen() != headerLength {
		return 0, breach(fesInvalidHeader, 2, h, "HLEN %d in a PDU of type %#x", h.hlen(), h.kind())
	}
	if digest := h.flags()&flagHeaderDigest != 0; digest != t.headerDigest {
		return 0, breach(fesInvalidHeader, 1, h, "header digest flag %v, agreed on was %v", digest, t.headerDigest)
	}
	if t.headerDigest {
		return headerLength + digestLength, nil
	}
	return headerLength, nil
}

// check judges a whole header that expect has measured: its digest, then what its lengths say. It returns the bytes of padding before data.
func (t terms) check(h header) (padding int, bad *violation) {
	if h.kind() == pduC2HTermReq {
		return 0, nil
	}
	end := headerLength
	if t.headerDigest {
		if sum, want := crc32c(h[:headerLength]), le.Uint32(h[headerLength:]); sum != want {
			return 0, breach(fesHeaderDigest, sum, h[:headerLength], "header digest %#x, the header's is %#x", want, sum)
		}
		end += digestLength
	}
	h = h[:headerLength]
	if h.kind() != pduC2HData {
		if h.plen() != uint32(end) {
			return 0, breach(fesInvalidHeader, 4, h, "PLEN %d in a PDU of type %#x", h.plen(), h.kind())
		}
		return 0, nil
	}
	if h.length() == 0 {
		return 0, breach(fesInvalidHeader, 16, h, "C2HData without data")
	}
	if digest := h.flags()&flagDataDigest != 0; digest != t.dataDigest {
		return 0, breach(fesInvalidHeader, 1, h, "data digest flag %v, agreed on was %v", digest, t.dataDigest)
	}
	if h.pdo() < end || h.pdo() > maxDataOffset || h.pdo()%4 != 0 {
		return 0, breach(fesInvalidHeader, 3, h, "PDO %d", h.pdo())
	}
	plen := uint64(h.pdo()) + uint64(h.length())
	if t.dataDigest {
		plen += digestLength
	}
	if uint64(h.plen()) != plen {
		return 0, breach(fesInvalidHeader, 4, h, "PLEN %d of C2HData with PDO %d and %d bytes", h.plen(), h.pdo(), h.length())
	}
	if h.flags()&(flagSuccess|flagLast) == flagSuccess {
		return 0, breach(fesInvalidHeader, 1, h, "C2HData with SUCCESS but not LAST_PDU")
	}
	return h.pdo() - end, nil
}
