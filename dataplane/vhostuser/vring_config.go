package vhostuser

// VringConfig is a ring that a front-end handed over, complete. Addresses are the front-end's own (user addresses of the
// memory regions); each part was checked to be aligned and to lie inside one region.
type VringConfig struct {
	Index int
	// Size in descriptors; a power of two for a split ring.
	Size uint32
	// DescAddr, AvailAddr and UsedAddr are descriptor table, avail and used ring; of a packed ring the
	// descriptor ring, driver and device event suppression.
	DescAddr, AvailAddr, UsedAddr uint64
	// Base is where to go on, in the form StopVring returns it. That of a packed ring is taken apart by PackedBase.
	Base uint32
	// Kick is signalled by the driver, Call by the device, Err by the device when the ring is broken. Each is an
	// eventfd, or -1: none was given, and that side polls. The front-end shares the file's flags: O_NONBLOCK was set
	// here, and it can be cleared there at any time.
	Kick, Call, Err int
	// Flags holds VringLog if writes to the used ring are to be marked in the log, at the guest-physical address LogAddr.
	Flags   uint32
	LogAddr uint64
}

// PackedBase takes the base of a packed ring apart: the next index of the avail and of the used side, each with its wrap counter in
// bit 15. DPDK knows one position for both and leaves the upper half zero, which so means that no chain is under way.
func (c *VringConfig) PackedBase() (avail, used uint16) {
	if avail, used = uint16(c.Base), uint16(c.Base>>16); used == 0 {
		used = avail
	}
	return avail, used
}
