package vhostuser

import (
	"encoding/binary"
	"fmt"
)

// Negotiation, and what concerns the device as a whole.

// Bits of the virtio device status (virtio 1.2, 2.1).
const statusFeaturesOK = 8

func (s *session) getFeatures(m *message) ([]byte, error) {
	return appendU64(s.reply(m.request), s.offer.Features), nil
}

// setFeatures is sent again and again: by QEMU once for each queue pair, and while rings run to switch logging.
func (s *session) setFeatures(m *message) ([]byte, error) {
	features := m.u64(0)
	err := s.acceptFeatures(features)
	if s.badFeatures = err != nil; err != nil {
		return nil, err
	}
	s.features, s.negotiated = features, true
	return nil, s.startAll()
}

func (s *session) acceptFeatures(features uint64) error {
	if extra := features &^ (s.offer.Features | s.offer.Accepted); extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	changed := features ^ s.features
	if s.negotiated && changed == 0 {
		return nil
	}
	if s.anyRunning() && changed&^FeatureLogAll != 0 {
		return fmt.Errorf("features %#x change while rings run", changed)
	}
	return s.device.SetFeatures(features &^ FeatureProtocol)
}

func (s *session) getProtocolFeatures(m *message) ([]byte, error) {
	return appendU64(s.reply(m.request), s.offer.ProtocolFeatures), nil
}

func (s *session) setProtocolFeatures(m *message) ([]byte, error) {
	features := m.u64(0)
	if extra := features &^ s.offer.ProtocolFeatures; extra != 0 {
		return nil, fmt.Errorf("protocol features %v were not offered", ProtocolNames(extra))
	}
	s.protocol = features
	return nil, nil
}

func (s *session) getQueueNum(m *message) ([]byte, error) {
	return appendU64(s.reply(m.request), uint64(s.offer.QueueNum)), nil
}

// setOwner begins a session; the connection did that already.
func (s *session) setOwner(*message) ([]byte, error) { return nil, nil }

// resetOwner is deprecated, and back-ends differ in what they make of it. As the specification recommends, it disables
// all rings and discards nothing.
func (s *session) resetOwner(*message) ([]byte, error) {
	return nil, s.disableAll()
}

func (s *session) disableAll() error {
	for i := range s.rings {
		s.rings[i].enabled = false
	}
	return s.halt()
}

// resetDevice: memory stays, since front-ends with memory slots send only what changes.
func (s *session) resetDevice(*message) ([]byte, error) {
	if err := s.disableAll(); err != nil {
		return nil, err
	}
	return nil, s.reset()
}

func (s *session) reset() error {
	s.features, s.negotiated, s.badFeatures, s.status = 0, false, false, 0
	s.begin()
	return s.device.Reset()
}

func (s *session) getStatus(m *message) ([]byte, error) {
	status := s.status
	if s.failed() {
		status |= statusNeedsReset
	}
	return appendU64(s.reply(m.request), uint64(status)), nil
}

// setStatus: 0 is the driver's reset of the device, and what QEMU writes when it pauses a machine; 7.2 does so before it
// asks with GET_VRING_BASE where the rings stood, so they still know. Every other value is the driver's progress,
// which the rings' own state tells us better.
func (s *session) setStatus(m *message) ([]byte, error) {
	status := m.u64(0)
	if status > 0xff {
		return nil, fmt.Errorf("status %#x has more than 8 bits", status)
	}
	s.status = uint8(status)
	if s.badFeatures {
		s.status &^= statusFeaturesOK // virtio 1.2, 3.1.1: how a driver learns of it
	}
	if status != 0 {
		return nil, nil
	}
	if err := s.halt(); err != nil {
		return nil, err
	}
	return nil, s.reset()
}

func (s *session) netSetMTU(m *message) ([]byte, error) {
	mtu := m.u64(0)
	if mtu < 68 || mtu > 0xffff {
		return nil, fmt.Errorf("MTU %d is not between 68 and 65535", mtu)
	}
	return nil, s.device.(MTUSetter).SetMTU(uint16(mtu))
}

// sendRARP: the address lies in the first six bytes, as in a frame.
func (s *session) sendRARP(m *message) ([]byte, error) {
	mac := [6]byte(m.payload)
	if mac == [6]byte{} || mac[0]&1 != 0 {
		return nil, fmt.Errorf("%x is no address of a guest", mac)
	}
	return nil, s.device.(RARPSender).SendRARP(mac)
}

// getConfig answers with a payload of the request's size, or an empty one: that is how this reply says no.
func (s *session) getConfig(m *message) ([]byte, error) {
	offset, _, err := m.config()
	if err != nil {
		return s.reply(m.request), err
	}
	b := append(s.reply(m.request), m.payload...)
	p := b[headerSize+configHead:]
	clear(p)
	if err := s.device.(ConfigSpace).ReadConfig(offset, p); err != nil {
		return s.reply(m.request), fmt.Errorf("read configuration: %w", err)
	}
	return b, nil
}

func (s *session) setConfig(m *message) ([]byte, error) {
	offset, p, err := m.config()
	if err != nil {
		return nil, err
	}
	flags := m.u32(8)
	if flags > 1 {
		return nil, fmt.Errorf("flags %#x are unknown", flags)
	}
	return nil, s.device.(ConfigSpace).WriteConfig(offset, p, flags == 1)
}

// config cuts a payload of GET_CONFIG or SET_CONFIG: offset, size, flags, bytes.
func (m *message) config() (offset uint32, p []byte, err error) {
	offset, size := m.u32(0), m.u32(4)
	p = m.payload[configHead:]
	if uint64(size) != uint64(len(p)) || uint64(offset)+uint64(size) > maxConfig {
		return 0, nil, fmt.Errorf("%d bytes at offset %d, with %d in the message, are no part of a configuration space of %d bytes",
			size, offset, len(p), maxConfig)
	}
	return offset, p, nil
}

// appendConfigHead begins the payload of a configuration message, for the front-end's side.
func appendConfigHead(b []byte, offset, size, flags uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, offset)
	b = binary.NativeEndian.AppendUint32(b, size)
	return binary.NativeEndian.AppendUint32(b, flags)
}
