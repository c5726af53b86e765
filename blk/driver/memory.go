package driver

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// Where the two regions lie: in the guest's eyes, and in its front-end's. A gap is between them in either.
const (
	tablesGuest  = 0x0010_0000
	buffersGuest = 0x1_0000_0000
	tablesUser   = 0x7e00_0000_0000
	buffersUser  = 0x7f00_0000_0000
)

const pageSize = 4096

// memory is the guest's.
//
//	 0             tables                        len
//	┌─────────────┬─────────────────────────────┐
//	│ rings,slots │ buffers                     │   one memfd
//	└─────────────┴─────────────────────────────┘
type memory struct {
	fd      int
	mapping *shm.Mapping
	bytes   []byte
	tables  int // where the buffers begin
	free    int // where those begin that Alloc has not given away
}

func newMemory(tables, buffers int) (*memory, error) {
	tables, buffers = up(tables, pageSize), up(buffers, pageSize)
	fd, err := shm.NewMemFD("shunt-driver", int64(tables+buffers))
	if err != nil {
		return nil, err
	}
	mapping, err := shm.Map(shm.MapOptions{FD: fd, Length: tables + buffers, Populate: true})
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &memory{fd: fd, mapping: mapping, bytes: mapping.Bytes(), tables: tables, free: tables}, nil
}

// regions are what a back-end is told.
func (m *memory) regions() []vhostuser.Region {
	return []vhostuser.Region{
		{GuestAddr: tablesGuest, UserAddr: tablesUser, Size: uint64(m.tables), FD: m.fd},
		{GuestAddr: buffersGuest, UserAddr: buffersUser, Size: uint64(len(m.bytes) - m.tables), MmapOffset: uint64(m.tables), FD: m.fd},
	}
}

func (m *memory) close() error {
	return errors.Join(m.mapping.Free(), unix.Close(m.fd))
}

// Buffer is a piece of the guest's memory: its bytes, as we see them, and its address, as the device does.
type Buffer struct {
	Bytes []byte
	Addr  uint64
}

// Segment is a part of the buffer as a descriptor names it.
func (b Buffer) Segment(from, n int) virtq.Buffer {
	_ = b.Bytes[from : from+n]
	return virtq.Buffer{Addr: b.Addr + uint64(from), Len: uint32(n)}
}

func (m *memory) alloc(n int) (Buffer, error) {
	if n < 0 || n > len(m.bytes)-m.free {
		return Buffer{}, fmt.Errorf("allocate %d bytes of guest memory: %d are left; give Options.Memory more", n, len(m.bytes)-m.free)
	}
	at := m.free
	m.free = min(up(at+n, pageSize), len(m.bytes))
	return Buffer{Bytes: m.bytes[at : at+n : at+n], Addr: buffersGuest + uint64(at-m.tables)}, nil
}

func up(n, to int) int { return (n + to - 1) / to * to }
