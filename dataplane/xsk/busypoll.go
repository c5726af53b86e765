package xsk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Busy polling. Usually a packet raises an interrupt, and the driver handles what came in a softirq: on whatever CPU the interrupt goes
// to, if need be by taking turns with the worker there. With busy polling the worker calls the driver when it has nothing
// left to do, and the interrupt stays masked as long as it keeps calling:
//
//	Port.Receive: rx is empty ──▶ recvfrom ──▶ the driver's NAPI poll, on this thread ──▶ rx
//
// For interrupts to stay masked between two calls the device must be told to defer them (Defer). Who stops calling, because he sleeps, gets them back
// after the deferral's timeout.
//
// The kernel knows which driver's queue to call from the first packet on, or from the driver in zero copy. Some never say (generic XDP; veth
// in 6.18), and then a call does nothing: with the first packet that is found out, and polling ends.
//
// In copy mode the same copying is merely done elsewhere, and a packet that is passed on to the kernel costs the worker its whole way there. So
// BusyPollAuto takes it for zero copy alone.

// BusyPoll says whether a socket uses busy polling.
type BusyPoll uint8

const (
	// BusyPollOff leaves receiving to interrupts.
	BusyPollOff BusyPoll = iota
	// BusyPollAuto is on with zero copy, if the kernel has it and we may.
	BusyPollAuto
	// BusyPollOn is on, or an error.
	BusyPollOn
)

// String is the setting's name in the configuration.
func (b BusyPoll) String() string {
	switch b {
	case BusyPollOff:
		return "off"
	case BusyPollAuto:
		return "auto"
	case BusyPollOn:
		return "on"
	}
	return fmt.Sprintf("busy-poll-%d", uint8(b))
}

const (
	// busyPollBudget is a round's worth of packets: what a call handles, the next rounds forward. It bounds a call to some 50 us in copy mode.
	busyPollBudget = 64
	// busyPollMicros is SO_BUSY_POLL. Our calls never wait, so it only has to be other than zero.
	busyPollMicros = 20
)

// setBusyPoll turns it on where that was asked for, after bind.
func (s *Socket) setBusyPoll() error {
	switch {
	case s.o.BusyPoll == BusyPollOff, s.o.BusyPoll == BusyPollAuto && !s.zeroCopy:
		return nil
	case s.o.Owner != nil:
		return errors.New("busy polling is for the socket that owns the queue")
	}
	err := BusyPolling.Check()
	for _, o := range []struct{ option, value int }{
		{unix.SO_PREFER_BUSY_POLL, 1}, {unix.SO_BUSY_POLL, busyPollMicros}, {unix.SO_BUSY_POLL_BUDGET, s.o.BusyPollBudget},
	} {
		if err == nil {
			err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o.option, o.value)
		}
	}
	switch {
	case err == nil:
		s.busyPoll.Store(true)
	case s.o.BusyPoll == BusyPollAuto:
		return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_BUSY_POLL, 0)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("busy polling: %w; run as root or with CAP_NET_ADMIN", ErrPermission)
	default:
		return fmt.Errorf("busy polling: %w", err)
	}
	return nil
}

// poll runs the driver's receiving.
func (p *Port) poll() {
	p.stats.Polls.Add(1)
	p.s.receive(p.s.fd)
}

// settleBusyPoll ends polling if the packet that has come was from nowhere that can be polled.
func (s *Socket) settleBusyPoll() {
	s.settled = true
	s.busyPoll.Store(s.napi(s.fd) != 0)
}

// incomingNAPI is the kernel's number of the driver's queue that the socket receives from; 0: unknown.
func incomingNAPI(fd int) int {
	id, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID)
	if err != nil {
		return 0
	}
	return id
}

// DeferOptions say for which device, and how, interrupts are deferred. Where busy polling is not in force a deferral only delays packets.
type DeferOptions struct {
	// Interface is the device's name.
	Interface string
	// HardIRQs is how many times in a row the driver must find nothing before its interrupt is allowed again (napi_defer_hard_irqs). Zero: 2.
	HardIRQs int
	// FlushTimeout in ns is after how long without a call the kernel looks by itself (gro_flush_timeout). Zero: 200000. Much
	// less has been seen to leave queues stuck.
	FlushTimeout int
	// Sysfs is where sysfs of the device's network namespace is mounted. Empty: /sys.
	Sysfs string
}

// Deferral is what Defer changed.
type Deferral struct {
	was [2]setting
}

type setting struct{ path, value string }

// Defer makes a device defer its interrupts, for busy polling. It concerns all its queues, and all who use the device.
func Defer(o DeferOptions) (*Deferral, error) {
	if o.HardIRQs == 0 {
		o.HardIRQs = 2
	}
	if o.FlushTimeout == 0 {
		o.FlushTimeout = 200_000
	}
	if o.Sysfs == "" {
		o.Sysfs = "/sys"
	}
	if o.Interface != filepath.Base(o.Interface) {
		return nil, fmt.Errorf("interface %q: %w", o.Interface, ErrNoDevice)
	}
	var d Deferral
	for i, s := range []struct {
		name  string
		value int
	}{{"gro_flush_timeout", o.FlushTimeout}, {"napi_defer_hard_irqs", o.HardIRQs}} { // the timeout first: without it a deferred interrupt never comes
		path := filepath.Join(o.Sysfs, "class/net", o.Interface, s.name)
		was, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, []byte(strconv.Itoa(s.value)), 0)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("defer interrupts of %s: %w; leave busy polling off, or set it as root", o.Interface, err), d.Restore())
		}
		d.was[i] = setting{path, strings.TrimSpace(string(was))}
	}
	return &d, nil
}

// Restore makes it what it was before. A device that is gone is as it should be.
func (d *Deferral) Restore() (err error) {
	for i := len(d.was) - 1; i >= 0; i-- {
		s := &d.was[i]
		if s.path == "" {
			continue
		}
		if e := os.WriteFile(s.path, []byte(s.value), 0); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("restore %s to %s: %w", s.path, s.value, e))
		}
		s.path = ""
	}
	return err
}
