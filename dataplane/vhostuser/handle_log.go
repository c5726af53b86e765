package vhostuser

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/guestmem"
)

// The dirty log of a live migration. QEMU begins one with
//
//	SET_LOG_BASE ─▶ SET_FEATURES with VHOST_F_LOG_ALL ─▶ SET_VRING_ADDR with VHOST_VRING_F_LOG, for each ring
//
// while everything runs, sends another SET_LOG_BASE when the guest's memory grows, and takes the two flags back if the migration is given up.

// setLogBase exchanges the log. The front-end takes the last marks from the old one when it has the answer. That is awaited
// whether or not acknowledgements were asked for; only where they were a front-end looks what it says.
func (s *session) setLogBase(m *message) ([]byte, error) {
	err := s.openLog(m)
	switch {
	case err == nil:
		return appendU64(s.reply(m.request), 0), nil
	case m.flags&flagNeedReply != 0 && s.protocol&ProtocolReplyAck != 0:
		return appendU64(s.reply(m.request), 1), err
	}
	return nil, err
}

func (s *session) openLog(m *message) error {
	if len(m.fds) != 1 {
		return errors.New("no descriptor came with it")
	}
	if _, _, err := checkMemory(m.fds[0]); err != nil {
		return fmt.Errorf("dirty log: %w", err)
	}
	log, err := guestmem.OpenLog(guestmem.LogOptions{FD: m.fds[0], Size: m.u64(0), Offset: m.u64(8)})
	if err != nil {
		return err
	}
	log.SetEvent(s.logEvent)
	return s.exchangeLog(log)
}

// exchangeLog gives the device another log, or none, and frees the one before, which is out of use then.
func (s *session) exchangeLog(log *guestmem.Log) error {
	if err := s.device.(Logger).SetLog(log); err != nil {
		if log != nil {
			_ = log.Free()
		}
		return fmt.Errorf("set log: %w", err)
	}
	old := s.memoryLog
	s.memoryLog = log
	if old != nil {
		_ = old.Free()
	}
	return nil
}

// setLogFD takes an eventfd that is signalled when pages become dirty.
func (s *session) setLogFD(m *message) ([]byte, error) {
	if len(m.fds) != 1 {
		return nil, errors.New("no descriptor came with it")
	}
	if err := CheckEventfd(m.fds[0]); err != nil {
		return nil, err
	}
	old := s.logEvent
	s.logEvent = m.takeFD(0)
	if s.memoryLog != nil {
		s.memoryLog.SetEvent(s.logEvent)
		// The same log once more: when the call returns, nobody is about to signal the old descriptor.
		if err := s.device.(Logger).SetLog(s.memoryLog); err != nil {
			return nil, fatal{fmt.Errorf("set log: %w", err)}
		}
	}
	closeFD(old)
	return nil, nil
}

// endLog takes the log back from the device and gives it up. What the device would not let go of stays mapped.
func (s *session) endLog() {
	if s.memoryLog != nil {
		if err := s.device.(Logger).SetLog(nil); err == nil {
			_ = s.memoryLog.Free()
		}
		s.memoryLog = nil
	}
	closeFD(s.logEvent)
	s.logEvent = -1
}
