package vhostuser

import "fmt"

// ring finds the ring a message is about.
func (s *session) ring(index uint64) (*vring, error) {
	if index >= uint64(len(s.rings)) {
		return nil, fmt.Errorf("there is no ring %d: the device has %d", index, len(s.rings))
	}
	return &s.rings[index], nil
}

// idle finds a ring for a message that must not come while the device works on it.
func (s *session) idle(index uint64) (*vring, error) {
	r, err := s.ring(index)
	if err == nil && r.running {
		err = fmt.Errorf("ring %d is running", index)
	}
	return r, err
}

func (s *session) setVringNum(m *message) ([]byte, error) {
	r, err := s.idle(uint64(m.u32(0)))
	if err != nil {
		return nil, err
	}
	size := m.u32(4)
	if size == 0 || size > uint32(s.offer.MaxRingSize) {
		return nil, fmt.Errorf("ring %d: size %d is not between 1 and %d", r.config.Index, size, s.offer.MaxRingSize)
	}
	r.config.Size = size
	return nil, s.start(r.config.Index)
}

// setVringAddr places a ring. While it runs only the log may change: so a migration begins and ends.
func (s *session) setVringAddr(m *message) ([]byte, error) {
	r, err := s.ring(uint64(m.u32(0)))
	if err != nil {
		return nil, err
	}
	c := r.config
	c.Flags = m.u32(4)
	c.DescAddr, c.UsedAddr, c.AvailAddr, c.LogAddr = m.u64(8), m.u64(16), m.u64(24), m.u64(32)
	if c.Flags&^VringLog != 0 {
		return nil, fmt.Errorf("ring %d: flags %#x are unknown", c.Index, c.Flags)
	}
	if !r.running {
		r.config, r.placed = c, true
		return nil, s.start(c.Index)
	}
	if c.DescAddr != r.config.DescAddr || c.UsedAddr != r.config.UsedAddr || c.AvailAddr != r.config.AvailAddr {
		return nil, fmt.Errorf("ring %d is running and cannot move", c.Index)
	}
	return nil, s.update(r, c)
}

func (s *session) setVringBase(m *message) ([]byte, error) {
	r, err := s.idle(uint64(m.u32(0)))
	if err != nil {
		return nil, err
	}
	r.config.Base = m.u32(4)
	return nil, s.start(r.config.Index)
}

// getVringBase stops a ring. The answer is what the front-end waits for before it lets go of the guest's memory.
func (s *session) getVringBase(m *message) ([]byte, error) {
	index := m.u32(0)
	r, err := s.ring(uint64(index))
	if err != nil {
		return nil, err
	}
	if err := s.stop(int(index)); err != nil {
		return nil, err
	}
	s.unkick(int(index))
	return appendState(s.reply(m.request), index, r.config.Base), nil
}

// setVringKick starts a ring, or gives a running one another descriptor.
func (s *session) setVringKick(m *message) ([]byte, error) {
	r, fd, err := s.eventfd(m)
	if err != nil {
		return nil, err
	}
	r.started = true
	if err := s.replace(r, func(c *VringConfig) *int { return &c.Kick }, fd); err != nil {
		return nil, err
	}
	return nil, s.start(r.config.Index)
}

// setVringCall comes at any time: QEMU exchanges the descriptor whenever the guest masks the interrupt.
func (s *session) setVringCall(m *message) ([]byte, error) {
	r, fd, err := s.eventfd(m)
	if err != nil {
		return nil, err
	}
	return nil, s.replace(r, func(c *VringConfig) *int { return &c.Call }, fd)
}

func (s *session) setVringErr(m *message) ([]byte, error) {
	r, fd, err := s.eventfd(m)
	if err != nil {
		return nil, err
	}
	s.showError(r.config.Index, -1) // not while its number may be closed
	err = s.replace(r, func(c *VringConfig) *int { return &c.Err }, fd)
	s.showError(r.config.Index, r.config.Err)
	return nil, err
}

// eventfd takes ring and descriptor out of a KICK, CALL or ERR message; -1 where the front-end says there is none.
func (s *session) eventfd(m *message) (*vring, int, error) {
	v := m.u64(0)
	r, err := s.ring(v & vringIndex)
	if err != nil {
		return nil, -1, err
	}
	want := 1
	if v&vringNoFD != 0 {
		want = 0
	}
	if len(m.fds) != want {
		return nil, -1, fmt.Errorf("ring %d: %d descriptors came with it instead of %d", r.config.Index, len(m.fds), want)
	}
	if want == 0 {
		return r, -1, nil
	}
	if err := CheckEventfd(m.fds[0]); err != nil {
		return nil, -1, fmt.Errorf("ring %d: %w", r.config.Index, err)
	}
	return r, m.takeFD(0), nil
}

// replace puts fd where field points, first in the device's view of a running ring, and closes what was there.
func (s *session) replace(r *vring, field func(*VringConfig) *int, fd int) error {
	c := r.config
	*field(&c) = fd
	old := *field(&r.config)
	if err := s.update(r, c); err != nil {
		closeFD(fd)
		return err
	}
	closeFD(old)
	return nil
}

// update makes c the ring's configuration, with the device's consent where it runs. A device that refuses has the ring taken
// from it, since it may use either configuration by then, and the session ends.
func (s *session) update(r *vring, c VringConfig) error {
	if r.running {
		if err := s.device.UpdateVring(c); err != nil {
			if stop := s.stop(c.Index); stop != nil {
				err = fmt.Errorf("%w; and then %w", err, stop)
			}
			return fatal{fmt.Errorf("ring %d: update: %w", c.Index, err)}
		}
	}
	r.config = c
	return nil
}

// setVringEnable makes a ring run or rest; whether it is started is not touched.
func (s *session) setVringEnable(m *message) ([]byte, error) {
	r, err := s.ring(uint64(m.u32(0)))
	if err != nil {
		return nil, err
	}
	enable := m.u32(4)
	if enable > 1 {
		return nil, fmt.Errorf("ring %d: %d is neither 0 nor 1", r.config.Index, enable)
	}
	r.enabled = enable == 1
	if r.enabled || s.enabled(r.config.Index) {
		return nil, s.start(r.config.Index)
	}
	return nil, s.stop(r.config.Index)
}
