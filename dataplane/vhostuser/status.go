package vhostuser

import "slices"

// State is what a Backend is doing.
type State string

// States of a Backend.
const (
	// Listening: no front-end is connected to our socket.
	Listening State = "listening"
	// Connecting: the front-end's socket is being tried, now and then.
	Connecting State = "connecting"
	// Connected: a front-end is being served.
	Connected State = "connected"
	// Closed for good.
	Closed State = "closed"
)

// Status is what a Backend can tell an operator.
type Status struct {
	Path string
	// Client: we connect, and the front-end listens.
	Client bool
	State  State
	// Attempts to connect failed since the last connection, the last of them because of Unreached. Of a client.
	Attempts  uint64
	Unreached string
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
	// Failure is why the device gave up on its driver, until that begins anew (Backend.Fail).
	Failure string
	// Logging: what the device writes to the guest's memory is being logged, for a live migration. LogMissed counts the writes beyond the log.
	Logging   bool
	LogMissed uint64
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
	p.Logging = s.memoryLog != nil && s.features&FeatureLogAll != 0
	if p.LogMissed = 0; s.memoryLog != nil {
		p.LogMissed = s.memoryLog.Missed()
	}
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
