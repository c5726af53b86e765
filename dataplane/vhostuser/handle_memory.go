package vhostuser

import (
	"errors"
	"fmt"
)

// maxMemory bounds what one front-end may have mapped here, in bytes: files can be sparse, and all ports share the address
// space of this process, 128 TiB on most machines.
const maxMemory = 4 << 40

// roomFor tells whether a table may become the session's.
func roomFor(t regionTable) error {
	if len(t) > MaxMemSlots {
		return fmt.Errorf("all %d memory slots are in use", MaxMemSlots)
	}
	if sum := t.bytes(); sum > maxMemory {
		return fmt.Errorf("%w: it would make %#x bytes of memory, at most %#x may be mapped", ErrRegion, sum, int64(maxMemory))
	}
	return nil
}

// setMemTable replaces all memory. Rings do not run meanwhile, so a device never sees one between two tables.
func (s *session) setMemTable(m *message) ([]byte, error) {
	n := int(m.u32(0))
	if n > maxTable || len(m.payload) != 8+n*regionSize || len(m.fds) != n {
		return nil, fmt.Errorf("%d regions in %d bytes with %d descriptors; at most %d regions with a descriptor each",
			uint32(n), len(m.payload), len(m.fds), maxTable)
	}
	var table regionTable
	var regions [maxTable]Region
	for i := range n {
		regions[i] = m.region(8+i*regionSize, m.fds[i])
		entry, err := checkRegion(regions[i])
		if err != nil {
			return nil, err
		}
		if table, err = table.add(entry); err != nil {
			return nil, err
		}
	}
	if err := roomFor(table); err != nil {
		return nil, err
	}
	if err := s.stopAll(every); err != nil {
		return nil, err
	}
	if err := s.device.SetMemory(regions[:n]); err != nil {
		return nil, s.resume(fmt.Errorf("set memory: %w", err))
	}
	s.memory = table
	return nil, s.startAll()
}

// resume starts the rings again after a refused change, which comes first among the reasons.
func (s *session) resume(failure error) error {
	if err := s.startAll(); err != nil {
		return fatal{fmt.Errorf("%w; and after that %w", failure, err)}
	}
	return failure
}

func (s *session) getMaxMemSlots(m *message) ([]byte, error) {
	return appendU64(s.reply(m.request), MaxMemSlots), nil
}

// addMemReg adds a region. QEMU 7.2 keeps a table per queue pair and sends every region once for each;
// what is there already is no error.
func (s *session) addMemReg(m *message) ([]byte, error) {
	if len(m.fds) != 1 {
		return nil, errors.New("no descriptor came with it")
	}
	r := m.region(8, m.fds[0])
	entry, err := checkRegion(r)
	if err != nil {
		return nil, err
	}
	if i := s.memory.find(r); i >= 0 && s.memory[i].file == entry.file && s.memory[i].MmapOffset == r.MmapOffset {
		return nil, nil
	}
	table, err := s.memory.add(entry)
	if err != nil {
		return nil, err
	}
	if err := roomFor(table); err != nil {
		return nil, err
	}
	if err := s.device.AddMemory(r); err != nil {
		return nil, fmt.Errorf("add memory %v: %w", r, err)
	}
	s.memory = table
	return nil, s.startAll()
}

// remMemReg removes a region. One that is not there is gone as asked (QEMU 7.2 asks once per queue pair). A descriptor
// that comes along, as some front-ends believe it must, is closed like any other.
func (s *session) remMemReg(m *message) ([]byte, error) {
	i := s.memory.find(m.region(8, -1))
	if i < 0 {
		return nil, nil
	}
	gone, table := s.memory[i], s.memory.without(i)
	if err := s.stopAll(func(r *vring) bool { return r.missing(s.features, table) != "" }); err != nil {
		return nil, err
	}
	gone.FD = -1
	if err := s.device.RemoveMemory(gone.Region); err != nil {
		return nil, s.resume(fmt.Errorf("remove memory %v: %w", gone.Region, err))
	}
	s.memory = table
	return nil, nil
}
