package wire

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is the ones' complement of the ones' complement sum of 16-bit big-endian words. That sum
// has two properties used here: it may be taken over wider words and folded at the end, and taken over
// little-endian words it is the same number with its bytes swapped. So Sum adds 64 bits at a time as the machine loads
// them, and swaps once.

// Sum adds the bytes of b, as 16-bit big-endian words with an odd last byte padded by zero, to a sum. The checksum to be
// written is the complement, ^sum.
func Sum(sum uint16, b []byte) uint16 {
	return Add(sum, bits.ReverseBytes16(fold(sum64(b))))
}

// sum20 is Sum over a header of the usual length. Which notation of zero it returns is the same, too.
func sum20(b *[20]byte) uint16 {
	s := uint64(binary.LittleEndian.Uint32(b[0:4])) + uint64(binary.LittleEndian.Uint32(b[4:8])) +
		uint64(binary.LittleEndian.Uint32(b[8:12])) + uint64(binary.LittleEndian.Uint32(b[12:16])) +
		uint64(binary.LittleEndian.Uint32(b[16:20]))
	return bits.ReverseBytes16(fold(s))
}

// sum64 is the sum over little-endian words, in 64 bits.
func sum64(b []byte) uint64 {
	var s, c uint64
	for len(b) >= 64 {
		// One carry chain: the compiler keeps the carry in the flag.
		x := (*[64]byte)(b)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(x[0:8]), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(x[8:16]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(x[16:24]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(x[24:32]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(x[32:40]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(x[40:48]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(x[48:56]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(x[56:64]), c)
		s += c // cannot carry again: s is at most 2^64-2 after a carry
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	// At most seven bytes are left: put them in one word.
	var last uint64
	if len(b) >= 4 {
		last = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
		if len(b) >= 2 {
			last |= uint64(binary.LittleEndian.Uint16(b)) << 32
			b = b[2:]
			if len(b) == 1 {
				last |= uint64(b[0]) << 48
			}
		} else if len(b) == 1 {
			last |= uint64(b[0]) << 32
		}
	} else if len(b) >= 2 {
		last = uint64(binary.LittleEndian.Uint16(b))
		if len(b) == 3 {
			last |= uint64(b[2]) << 16
		}
	} else if len(b) == 1 {
		last = uint64(b[0])
	}
	s, c = bits.Add64(s, last, 0)
	return s + c
}

// fold adds the four 16-bit words of a sum, with the carries brought round.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffff_ffff // at most 33 bits
	s = s>>32 + s&0xffff_ffff // at most 32 bits
	s = s>>16 + s&0xffff      // at most 17 bits
	s = s>>16 + s&0xffff
	return uint16(s)
}

// Add adds two sums.
func Add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// SumPieces is Sum over the bytes of head and then of every piece, as if they lay in a row: the bytes of a piece that begins
// after an odd number of bytes have changed places.
func SumPieces(sum uint16, head []byte, body [][]byte) uint16 {
	sum = Sum(sum, head)
	odd := len(head)&1 != 0
	for _, piece := range body {
		part := Sum(0, piece)
		if odd {
			part = bits.ReverseBytes16(part)
		}
		sum = Add(sum, part)
		odd = odd != (len(piece)&1 != 0)
	}
	return sum
}

// SumPseudo is the sum of the pseudo header that TCP, UDP and ICMPv6 prepend (RFC 9293, 768, and 8200 section 8.1). The
// addresses are 4 or 16 bytes each; length is that of the transport header and its payload.
func SumPseudo(source, destination []byte, protocol uint8, length uint32) uint16 {
	sum := Sum(Sum(uint16(protocol), source), destination)
	return Add(sum, fold(uint64(length)))
}

// Update corrects a checksum after a 16-bit word that it covers, at an even offset, has changed (RFC 1624, equation 3).
func Update(checksum, from, to uint16) uint16 {
	return ^Add(Add(^checksum, ^from), to)
}

// Complete fills in a checksum that its sender left to us: the sum from start on, over head and then body, is written at
// start+offset, where the sender put the pseudo header's sum (virtio 1.2, 5.1.6.2). It reports false, and changes
// nothing, if that is not inside head: head is private, body may be the memory of a guest.
//
// A sum of zero is written as 0xffff. For UDP it must be (zero: no checksum, RFC 768); elsewhere the two mean the same.
func Complete(head []byte, body [][]byte, start, offset uint16) bool {
	at := int(start) + int(offset)
	if int(start) > len(head) || at+2 > len(head) {
		return false
	}
	sum := ^SumPieces(0, head[start:], body)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(head[at:], sum)
	return true
}
