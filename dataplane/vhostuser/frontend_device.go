package vhostuser

import (
	"encoding/binary"
	"fmt"
)

// SetMemory replaces the whole table, of at most 8 regions. Their descriptors stay the caller's.
func (f *Frontend) SetMemory(regions ...Region) error {
	b := appendState(nil, uint32(len(regions)), 0) // number and padding
	fds := make([]int, 0, len(regions))
	for _, r := range regions {
		b, fds = appendRegion(b, r), append(fds, r.FD)
	}
	return f.Do(SetMemTable, b, fds...)
}

// AddMemory adds a region (protocol feature CONFIGURE_MEM_SLOTS).
func (f *Frontend) AddMemory(r Region) error {
	return f.Do(AddMemReg, appendRegion(appendU64(nil, 0), r), r.FD)
}

// RemoveMemory removes a region (protocol feature CONFIGURE_MEM_SLOTS).
func (f *Frontend) RemoveMemory(r Region) error {
	return f.Do(RemMemReg, appendRegion(appendU64(nil, 0), r))
}

// MaxMemSlots asks how many regions there may be.
func (f *Frontend) MaxMemSlots() (uint64, error) { return f.getU64(GetMaxMemSlots) }

// QueueNum asks how many queues the device has: pairs for a network device.
func (f *Frontend) QueueNum() (uint64, error) { return f.getU64(GetQueueNum) }

// StartVring tells everything about a ring in QEMU's order, and enables it where that was negotiated.
func (f *Frontend) StartVring(c VringConfig) error {
	index := uint32(c.Index)
	if err := f.SetCall(c.Index, c.Call); err != nil {
		return err
	}
	if c.Err >= 0 {
		if err := f.setFile(SetVringErr, c.Index, c.Err); err != nil {
			return err
		}
	}
	if err := f.Do(SetVringNum, appendState(nil, index, c.Size)); err != nil {
		return err
	}
	if err := f.Do(SetVringBase, appendState(nil, index, c.Base)); err != nil {
		return err
	}
	if err := f.Do(SetVringAddr, appendAddr(nil, c)); err != nil {
		return err
	}
	if err := f.SetKick(c.Index, c.Kick); err != nil {
		return err
	}
	if f.features&FeatureProtocol == 0 {
		return nil
	}
	return f.Enable(c.Index, true)
}

func appendAddr(b []byte, c VringConfig) []byte {
	b = appendState(b, uint32(c.Index), c.Flags)
	return appendU64(appendU64(appendU64(appendU64(b, c.DescAddr), c.UsedAddr), c.AvailAddr), c.LogAddr)
}

// SetKick starts a ring, or exchanges its kick descriptor. Negative: the back-end shall poll.
func (f *Frontend) SetKick(index, fd int) error { return f.setFile(SetVringKick, index, fd) }

// SetCall gives or exchanges the call descriptor. Negative: none, the driver polls.
func (f *Frontend) SetCall(index, fd int) error { return f.setFile(SetVringCall, index, fd) }

func (f *Frontend) setFile(r Request, index, fd int) error {
	if fd < 0 {
		return f.Do(r, appendU64(nil, uint64(index)|vringNoFD))
	}
	return f.Do(r, appendU64(nil, uint64(index)), fd)
}

// Enable or disable a ring.
func (f *Frontend) Enable(index int, on bool) error {
	var num uint32
	if on {
		num = 1
	}
	return f.Do(SetVringEnable, appendState(nil, uint32(index), num))
}

// StopVring stops a ring and returns where it stands.
func (f *Frontend) StopVring(index int) (base uint32, err error) {
	reply, err := f.Ask(GetVringBase, appendState(nil, uint32(index), 0))
	if err != nil {
		return 0, err
	}
	if len(reply) != 8 || binary.NativeEndian.Uint32(reply) != uint32(index) {
		return 0, fmt.Errorf("%v of ring %d: reply % x", GetVringBase, index, reply)
	}
	return binary.NativeEndian.Uint32(reply[4:]), nil
}

// Config reads n bytes of the device's configuration (protocol feature CONFIG).
func (f *Frontend) Config(offset, n int) ([]byte, error) {
	b := appendConfigHead(nil, uint32(offset), uint32(n), 0)
	reply, err := f.Ask(GetConfig, append(b, make([]byte, n)...))
	if err != nil {
		return nil, err
	}
	if len(reply) == 0 {
		return nil, fmt.Errorf("%v: %w", GetConfig, ErrRefused)
	}
	if len(reply) != configHead+n {
		return nil, fmt.Errorf("%v: reply of %d bytes instead of %d", GetConfig, len(reply), configHead+n)
	}
	return append([]byte(nil), reply[configHead:]...), nil
}

// SetConfig writes to the device's configuration as a driver, or for a migration.
func (f *Frontend) SetConfig(offset int, p []byte, migration bool) error {
	var flags uint32
	if migration {
		flags = 1
	}
	return f.Do(SetConfig, append(appendConfigHead(nil, uint32(offset), uint32(len(p)), flags), p...))
}

// Status reads the device status.
func (f *Frontend) Status() (uint64, error) { return f.getU64(GetStatus) }

// SetStatus writes the device status; 0 resets the device.
func (f *Frontend) SetStatus(v uint8) error { return f.Do(SetStatus, appendU64(nil, uint64(v))) }

// SetMTU tells the guest's MTU.
func (f *Frontend) SetMTU(mtu uint16) error { return f.Do(NetSetMTU, appendU64(nil, uint64(mtu))) }

// Reset resets the device; memory stays.
func (f *Frontend) Reset() error { return f.Do(ResetDevice, nil) }
