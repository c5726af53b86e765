package main

import (
	"encoding/binary"
	"io"
)

// pcapng writes a capture file (draft-ietf-opsawg-pcapng) as a stream: a section header, an interface description before the interface's first packet,
// enhanced packets, and interface statistics at the end. It allocates nothing per packet; blocks are collected until Flush, or until
// there are many.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------------------------------------------------------+
//	|                          Block Type                           |
//	+---------------------------------------------------------------+
//	|                      Block Total Length                       |
//	+---------------------------------------------------------------+
//	/                Block Body, padded to 32 bits                  /
//	/   Options: Code (16 bits), Length (16 bits), Value, padded    /
//	+---------------------------------------------------------------+
//	|                      Block Total Length                       |
//	+---------------------------------------------------------------+
type pcapng struct {
	out        io.Writer
	buf        []byte
	interfaces uint32
}

// The blocks and options that are written.
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6

	optionEnd     = 0
	optionComment = 1

	sectionApplication = 4

	interfaceName        = 2
	interfaceDescription = 3
	interfaceResolution  = 9
	interfaceFilter      = 11

	packetFlags = 2
	packetQueue = 6

	statisticsStart   = 2
	statisticsEnd     = 3
	statisticsSeen    = 4 // "received": that the capture was to get
	statisticsDropped = 5 // by the capture, not by the engine
)

// Directions of a packet, as its flags say.
const (
	pcapngInbound  = 1
	pcapngOutbound = 2
)

// pcapngFlush is how much is collected at most.
const pcapngFlush = 64 << 10

var le = binary.LittleEndian

// begin opens a block; end closes it.
func (p *pcapng) begin(kind uint32) (at int) {
	at = len(p.buf)
	p.buf = le.AppendUint32(p.buf, kind)
	p.buf = le.AppendUint32(p.buf, 0)
	return at
}

func (p *pcapng) end(at int) error {
	length := uint32(len(p.buf) - at + 4)
	p.buf = le.AppendUint32(p.buf, length)
	le.PutUint32(p.buf[at+4:], length)
	if len(p.buf) >= pcapngFlush {
		return p.Flush()
	}
	return nil
}

// Flush writes what was collected.
func (p *pcapng) Flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	_, err := p.out.Write(p.buf)
	p.buf = p.buf[:0]
	return err
}

func (p *pcapng) pad() {
	for len(p.buf)%4 != 0 {
		p.buf = append(p.buf, 0)
	}
}

func (p *pcapng) text(code uint16, text string) {
	if text = text[:min(len(text), 0xffff)]; text == "" {
		return
	}
	p.option(code, len(text))
	p.buf = append(p.buf, text...)
	p.pad()
}

// option begins one, whose value the caller appends.
func (p *pcapng) option(code uint16, length int) {
	p.buf = le.AppendUint16(p.buf, code)
	p.buf = le.AppendUint16(p.buf, uint16(length))
}

func (p *pcapng) number(code uint16, v uint32) {
	p.option(code, 4)
	p.buf = le.AppendUint32(p.buf, v)
}

func (p *pcapng) count(code uint16, v uint64) {
	p.option(code, 8)
	p.buf = le.AppendUint64(p.buf, v)
}

// time is written with its upper half first.
func (p *pcapng) time(ns int64) {
	p.buf = le.AppendUint32(p.buf, uint32(ns>>32))
	p.buf = le.AppendUint32(p.buf, uint32(ns))
}

// section begins the file.
func (p *pcapng) section(application string) error {
	at := p.begin(blockSection)
	p.buf = le.AppendUint32(p.buf, 0x1a2b3c4d) // tells the byte order
	p.buf = le.AppendUint16(p.buf, 1)          // version 1.0
	p.buf = le.AppendUint16(p.buf, 0)
	p.buf = le.AppendUint64(p.buf, ^uint64(0)) // as long as it will be
	p.text(sectionApplication, application)
	p.option(optionEnd, 0)
	return p.end(at)
}

// addInterface describes the next interface; they are numbered from 0.
func (p *pcapng) addInterface(name, description, filter string, snaplen int) error {
	at := p.begin(blockInterface)
	p.buf = le.AppendUint16(p.buf, 1) // Ethernet
	p.buf = le.AppendUint16(p.buf, 0)
	p.buf = le.AppendUint32(p.buf, uint32(snaplen)) // 0: no limit
	p.text(interfaceName, name)
	p.text(interfaceDescription, description)
	p.option(interfaceResolution, 1)
	p.buf = append(p.buf, 9) // nanoseconds
	p.pad()
	if filter != "" {
		p.text(interfaceFilter, "\x00"+filter) // 0: a text
	}
	p.option(optionEnd, 0)
	p.interfaces++
	return p.end(at)
}

// capturedPacket is what is known of a packet beside its bytes.
type capturedPacket struct {
	iface, queue uint32
	time         int64
	length       int // of the whole packet
	flags        uint32
	comment      string
}

func (p *pcapng) packet(c capturedPacket, data []byte) error {
	at := p.begin(blockPacket)
	p.buf = le.AppendUint32(p.buf, c.iface)
	p.time(c.time)
	p.buf = le.AppendUint32(p.buf, uint32(len(data)))
	p.buf = le.AppendUint32(p.buf, uint32(c.length))
	p.buf = append(p.buf, data...)
	p.pad()
	p.number(packetFlags, c.flags)
	if c.queue != 0 {
		p.number(packetQueue, c.queue)
	}
	p.text(optionComment, c.comment)
	p.option(optionEnd, 0)
	return p.end(at)
}

// statistics tell, at the end, what there was to be captured of an interface and what was missed of it.
func (p *pcapng) statistics(iface uint32, begin, now int64, seen, missed uint64) error {
	at := p.begin(blockStatistics)
	p.buf = le.AppendUint32(p.buf, iface)
	p.time(now)
	p.option(statisticsStart, 8)
	p.time(begin)
	p.option(statisticsEnd, 8)
	p.time(now)
	p.count(statisticsSeen, seen)
	p.count(statisticsDropped, missed)
	p.option(optionEnd, 0)
	return p.end(at)
}
