package verify

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A block on the disk:
//
//	 0       4         8         16           24      32
//	┌───────┬─────────┬─────────┬────────────┬───────┬──────┐
//	│ magic │ CRC-32C │ sector  │ generation │ seed  │ body │  512 bytes
//	└───────┴─────────┴─────────┴────────────┴───────┴──────┘
//	         of all that follows

const (
	blockSize  = 512
	magic      = 0x53_48_4e_54
	bodyAt     = 32
	checksumAt = 4
	checkedAt  = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stamp is whose block it is.
type stamp struct{ sector, generation, seed uint64 }

// write fills a block.
func (s stamp) write(b []byte) {
	le := binary.LittleEndian
	_ = b[blockSize-1]
	le.PutUint32(b, magic)
	le.PutUint64(b[8:], s.sector)
	le.PutUint64(b[16:], s.generation)
	le.PutUint64(b[24:], s.seed)
	x := s.sector*0x9e3779b97f4a7c15 ^ s.generation<<32 ^ s.generation ^ s.seed | 1
	for at := bodyAt; at < blockSize; at += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		le.PutUint64(b[at:], x)
	}
	le.PutUint32(b[checksumAt:], crc32.Checksum(b[checkedAt:blockSize], castagnoli))
}

// found is what a block turned out to be.
type found uint8

const (
	foundData found = iota
	foundZero
	foundOther
)

// read judges a block.
func read(b []byte) (s stamp, f found) {
	le := binary.LittleEndian
	if le.Uint32(b) == magic && le.Uint32(b[checksumAt:]) == crc32.Checksum(b[checkedAt:blockSize], castagnoli) {
		return stamp{sector: le.Uint64(b[8:]), generation: le.Uint64(b[16:]), seed: le.Uint64(b[24:])}, foundData
	}
	for at := 0; at < blockSize; at += 8 {
		if le.Uint64(b[at:]) != 0 {
			return s, foundOther
		}
	}
	return s, foundZero
}

// describe is a block for people.
func describe(b []byte) string {
	switch s, f := read(b); f {
	case foundData:
		return fmt.Sprintf("generation %d of sector %d, seed %#x", s.generation, s.sector, s.seed)
	case foundZero:
		return "zeroes"
	}
	if le := binary.LittleEndian; le.Uint32(b) == magic {
		return fmt.Sprintf("a torn block: it begins as generation %d of sector %d, and its checksum is wrong", le.Uint64(b[16:]), le.Uint64(b[8:]))
	}
	return fmt.Sprintf("%x…", b[:16])
}

// poison spoils a block of a buffer, so that what was not read into it is noticed.
func poison(b []byte) { binary.LittleEndian.PutUint64(b, 0xdead_beef_dead_beef) }
