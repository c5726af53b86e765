package vhostuser

import "slices"

// Status is what a Backend can tell an operator.
type Status struct {
	Path string
	// Connections were served; TurnedAway were not, because another was.
	Connections, TurnedAway uint64
	// LastEnd says why the last connection ended, where that needs an explanation.
	LastEnd string
	// Session is the connection being served, or nil.
	Session *SessionStatus
}

// SessionStatus is one connection as its session saw it after the last message.
type SessionStatus struct {
	// PID and UID of the front-end when it connected; -1 where the kernel does not tell.
	PID, UID int
	// Features and ProtocolFeatures as accepted; DeviceStatus as the driver last wrote it, 0 where it is not told.
	Features, ProtocolFeatures uint64
	DeviceStatus               uint8
	// Regions of guest memory and their sum.
	Regions     int
	MemoryBytes uint64
	// Refused messages and the reason of the last.
	Refused     uint64
	LastRefusal string
	Vrings      []VringStatus
}

// VringStatus is a ring as the protocol sees it; Running rings are the device's.
type VringStatus struct {
	Size                      uint32
	Started, Enabled, Running bool
}

// publish makes the session's state visible to Status.
func (s *session) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.published
	p.Features, p.ProtocolFeatures, p.DeviceStatus = s.features, s.protocol, s.status
	p.Regions, p.MemoryBytes = len(s.memory), s.memory.bytes()
	p.Refused, p.LastRefusal = s.refused, s.lastRefusal
	p.Vrings = slices.Grow(p.Vrings[:0], len(s.rings))[:len(s.rings)]
	for i := range s.rings {
		r := &s.rings[i]
		p.Vrings[i] = VringStatus{Size: r.config.Size, Started: r.started, Enabled: s.enabled(i), Running: r.running}
	}
}

// snapshot copies the published state; safe on any goroutine.
func (s *session) snapshot() *SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.published
	p.Vrings = slices.Clone(p.Vrings)
	return &p
}
