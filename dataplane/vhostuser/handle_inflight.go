package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// inflightMessage is the payload of GET and SET_INFLIGHT_FD: bytes, offset, rings, descriptors of each. Front-ends in C add four bytes that
// align it.
const inflightMessage = 20

// getInflightFD makes an area and gives it to the front-end for keeps.
func (s *session) getInflightFD(m *message) ([]byte, error) {
	queues, size, err := s.inflightShape(m)
	if err != nil {
		return nil, err
	}
	packed := s.offer.Features
	if s.negotiated {
		packed = s.features
	}
	area, fd, err := NewInflight(queues, size, packed&featurePacked != 0)
	if err != nil {
		return nil, err
	}
	if err := s.exchangeInflight(area); err != nil {
		closeFD(fd)
		return nil, err
	}
	s.outFD = fd
	b := append(s.reply(m.request), m.payload...)
	binary.NativeEndian.PutUint64(b[headerSize:], uint64(len(area.bytes)))
	binary.NativeEndian.PutUint64(b[headerSize+8:], 0)
	return b, nil
}

// setInflightFD takes back what this back-end, or the one before it, wrote down.
func (s *session) setInflightFD(m *message) ([]byte, error) {
	queues, size, err := s.inflightShape(m)
	if err != nil {
		return nil, err
	}
	if len(m.fds) != 1 {
		return nil, errors.New("no descriptor came with it")
	}
	area, err := mapInflight(m.fds[0], m.u64(8), m.u64(0), queues, size)
	if err != nil {
		return nil, err
	}
	return nil, s.exchangeInflight(area)
}

// inflightShape is how many rings of what size a message is about.
func (s *session) inflightShape(m *message) (queues, size int, err error) {
	queues, size = int(m.u16(16)), int(m.u16(18))
	switch {
	case s.anyRunning():
		return 0, 0, errors.New("rings run")
	case queues == 0 || queues > len(s.rings) || size == 0 || size > s.offer.MaxRingSize:
		return 0, 0, fmt.Errorf("%d rings of %d descriptors; the device has %d of at most %d", queues, size, len(s.rings), s.offer.MaxRingSize)
	}
	return queues, size, nil
}

// exchangeInflight gives the device another area, or none, and frees the one before.
func (s *session) exchangeInflight(area *Inflight) error {
	if err := s.device.(InflightTracker).SetInflight(area); err != nil {
		area.Free()
		return fmt.Errorf("set inflight area: %w", err)
	}
	s.inflight.Free()
	s.inflight = area
	return nil
}

// endInflight takes the area back from the device and gives it up.
func (s *session) endInflight() {
	if s.inflight != nil {
		if err := s.device.(InflightTracker).SetInflight(nil); err == nil {
			s.inflight.Free()
		}
		s.inflight = nil
	}
}
