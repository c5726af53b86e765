package vhostuser

import (
	"log/slog"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
)

// statusNeedsReset is the bit of the device status that says: the device is broken, and the driver may reset it (virtio 1.2, 2.1.1).
const statusNeedsReset = 0x40

// Fail tells the front-end, in every way it gave us, that the device has given up on its driver and its rings are not looked at any more: the error
// eventfds of the rings are signalled, the device status says DEVICE_NEEDS_RESET, and the back-end's own channel has the driver look
// at it. That holds until the device is reset or its rings are started anew, and comes to nothing if that happens before the front-end could be told. The
// connection stays; Disconnect ends it.
//
// It may be called on a worker, and does not wait.
func (b *Backend) Fail(why error) {
	if s := b.current(); s != nil {
		begun := s.begun.Load()
		go b.fail(s, begun, why)
	}
}

func (b *Backend) fail(s *session, begun uint64, why error) {
	if s.fail(begun, why) {
		b.log.write(slog.LevelWarn, "vhost-user device needs a reset", "reason", why)
	}
}

// Abandon is Fail, and a while later Disconnect: of the connection there is at the call, not of the one that the front-end may have made anew by
// then.
//
// It may be called on a worker, and does not wait.
func (b *Backend) Abandon(why error, after time.Duration) {
	b.mu.Lock()
	s, c := b.session, b.conn
	b.mu.Unlock()
	if s == nil {
		return
	}
	begun := s.begun.Load()
	go func() {
		b.fail(s, begun, why)
		b.pause(after)
		_ = c.Close()
	}()
}

// fail runs beside the session's goroutine; what it uses is guarded by mu. The device gave up on the driver of that beginning: who has begun anew since
// has a device that works. It reports whether the device had not failed before.
func (s *session) fail(begun uint64, why error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.published.Failure != "" || s.begun.Load() != begun {
		return false
	}
	s.published.Failure = why.Error()
	for _, fd := range s.errors {
		if fd >= 0 {
			shm.Signal(fd)
		}
	}
	s.channel.notify()
	return true
}

// failed tells whether the device is out of service.
func (s *session) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.published.Failure != ""
}

// begin ends what fail began, for a driver that begins anew. No ring runs.
func (s *session) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun.Add(1)
	s.published.Failure = ""
}

// showError makes a ring's error descriptor known to fail, or -1 before it is closed.
func (s *session) showError(ring, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors[ring] = fd
}
