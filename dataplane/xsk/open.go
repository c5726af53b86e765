package xsk

import (
	"errors"
	"fmt"
	"time"

	"github.com/shuntio/shunt/dataplane/frame"
	"golang.org/x/sys/unix"
)

// Open opens a socket and binds it. The caller's thread must be in the device's network namespace.
func (u *UMEM) Open(o SocketOptions) (*Socket, error) {
	s := &Socket{umem: u, o: o, fd: -1, send: sendNow, receive: receiveNow, napi: incomingNAPI}
	s.o.setDefaults()
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("AF_XDP on %s queue %d: %w", o.Device.Name, o.Queue, err), s.Close())
	}
	return s, nil
}

func (o *SocketOptions) setDefaults() {
	for _, size := range []*int{&o.Rx, &o.Tx, &o.Fill, &o.Completion} {
		if *size == 0 {
			*size = RingSize
		}
	}
	if o.Owner != nil {
		o.Fill, o.Completion = -1, -1
	}
	if o.SendBuffer == 0 {
		o.SendBuffer = max(o.Tx, 0) * chargePerFrame
	}
	if o.BusyWait == 0 {
		o.BusyWait = busyWait
	}
	if o.BusyPollBudget == 0 {
		o.BusyPollBudget = busyPollBudget
	}
}

func (o *SocketOptions) check() error {
	if o.Queue < 0 || o.Queue >= o.Device.Queues {
		return fmt.Errorf("%w: %s has %d, numbered from 0", ErrQueue, o.Device.Name, o.Device.Queues)
	}
	if o.Owner != nil && (!o.Owner.o.Device.is(&o.Device) || o.Owner.o.Queue != o.Queue) {
		return fmt.Errorf("the owner's socket is bound to %s queue %d", o.Owner.o.Device.Name, o.Owner.o.Queue)
	}
	if o.Budget != 0 && (o.Budget < kernelBudget || o.Budget > o.Tx) {
		return fmt.Errorf("transmit budget %d: must be %d to the tx ring's %d", o.Budget, kernelBudget, o.Tx)
	}
	if o.Owner != nil && o.Owner.o.MultiBuffer != o.MultiBuffer {
		return fmt.Errorf("the owner's socket has multi-buffer %v: all of a queue have the same", o.Owner.o.MultiBuffer)
	}
	if o.MultiBuffer {
		return MultiBuffer.Check()
	}
	return nil
}

func (s *Socket) open() (err error) {
	if err := s.o.check(); err != nil {
		return err
	}
	s.fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return explainSocket(err)
	}
	if err := s.makeRings(); err != nil {
		return err
	}
	if err := s.setTransmit(); err != nil {
		return err
	}
	if err := s.bind(); err != nil {
		return err
	}
	var flags uint32
	if err := getsockopt(s.fd, unix.XDP_OPTIONS, &flags); err != nil {
		return fmt.Errorf("ask for the mode in force: %w", err)
	}
	s.zeroCopy = flags&unix.XDP_OPTIONS_ZEROCOPY != 0
	if err := s.setPieces(); err != nil {
		return err
	}
	return s.setBusyPoll()
}

// setPieces finds out how many descriptors a packet may have.
func (s *Socket) setPieces() (err error) {
	switch {
	case !s.o.MultiBuffer:
		s.pieces = 1
	case !s.zeroCopy:
		s.pieces = copyPieces
	default:
		s.pieces, err = zeroCopyPieces(&s.o.Device)
		s.pieces = min(s.pieces, frame.MaxBody)
	}
	return err
}

// makeRings creates and maps the rings; the kernel maps none any more once the socket is bound.
func (s *Socket) makeRings() error {
	for _, r := range []struct {
		name         string
		option, size int
	}{
		{"rx", unix.XDP_RX_RING, s.o.Rx},
		{"tx", unix.XDP_TX_RING, s.o.Tx},
		{"fill", unix.XDP_UMEM_FILL_RING, s.o.Fill},
		{"completion", unix.XDP_UMEM_COMPLETION_RING, s.o.Completion},
	} {
		if r.size < 0 {
			continue
		}
		if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, r.option, r.size); err != nil {
			if r.size&(r.size-1) != 0 {
				return fmt.Errorf("%s ring of %d entries: must be a power of two", r.name, r.size)
			}
			return fmt.Errorf("make the %s ring of %d entries: %w", r.name, r.size, err)
		}
	}
	var off unix.XDPMmapOffsets
	if err := getsockopt(s.fd, unix.XDP_MMAP_OFFSETS, &off); err != nil {
		return fmt.Errorf("ask for the rings' layout: %w", err)
	}
	return errors.Join(
		mapRing(s, unix.XDP_PGOFF_RX_RING, off.Rx, s.o.Rx, 16, newConsumer[Desc], &s.Rx),
		mapRing(s, unix.XDP_PGOFF_TX_RING, off.Tx, s.o.Tx, 16, newProducer[Desc], &s.Tx),
		mapRing(s, unix.XDP_UMEM_PGOFF_FILL_RING, off.Fr, s.o.Fill, 8, newProducer[uint64], &s.Fill),
		mapRing(s, unix.XDP_UMEM_PGOFF_COMPLETION_RING, off.Cr, s.o.Completion, 8, newConsumer[uint64], &s.Completion),
	)
}

// mapRing maps a ring of size entries, if the socket has it, and sets *into to what attach finds there.
func mapRing[R any](s *Socket, page int64, off unix.XDPRingOffset, size, entry int,
	attach func([]byte, unix.XDPRingOffset, int) (R, error), into *R) error {
	if size < 0 {
		return nil
	}
	b, err := unix.Mmap(s.fd, page, int(off.Desc)+size*entry, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map a ring: %w", err)
	}
	s.maps = append(s.maps, b)
	*into, err = attach(b, off, size)
	return err
}

// setTransmit sets what copy mode transmits by.
func (s *Socket) setTransmit() error {
	if s.o.Tx < 0 {
		return nil
	}
	// Beyond net.core.wmem_max only with CAP_NET_ADMIN; without it transmission pauses earlier, and nothing worse.
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, s.o.SendBuffer); err != nil {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, s.o.SendBuffer); err != nil {
			return fmt.Errorf("set SO_SNDBUF to %d: %w", s.o.SendBuffer, err)
		}
	}
	if s.o.Budget == 0 || s.o.Budget == kernelBudget {
		return nil
	}
	if err := TxBudget.Check(); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, s.o.Budget); err != nil {
		return fmt.Errorf("set the transmit budget to %d: %w", s.o.Budget, err)
	}
	return nil
}

// bind binds the socket, with a registration of its own or another's. It waits for a queue that is about to become free.
func (s *Socket) bind() error {
	u := s.umem
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.o.Owner == nil && u.owned(&s.o.Device, s.o.Queue) {
		return fmt.Errorf("%w, and it is one of ours; share the queue by naming it as Owner", ErrBusy)
	}
	address := unix.SockaddrXDP{Ifindex: uint32(s.o.Device.Index), QueueID: uint32(s.o.Queue)}
	donor := s.o.Owner
	if donor == nil {
		donor = u.donor(&s.o)
	}
	if donor != nil {
		address.Flags, address.SharedUmemFD = unix.XDP_SHARED_UMEM, uint32(donor.fd)
	} else {
		address.Flags = s.o.flags()
		if err := u.register(s.fd); err != nil {
			return err
		}
	}
	const pause = 5 * time.Millisecond
	err := unix.Bind(s.fd, &address)
	for waited := time.Duration(0); errors.Is(err, unix.EBUSY) && waited < s.o.BusyWait; waited += pause {
		time.Sleep(pause)
		err = unix.Bind(s.fd, &address)
	}
	if err != nil {
		return explainBind(err, &s.o)
	}
	u.sockets = append(u.sockets, s)
	return nil
}

// flags are those of a socket that registers the memory; who shares inherits them.
func (o *SocketOptions) flags() (flags uint16) {
	flags = unix.XDP_USE_NEED_WAKEUP
	switch o.Mode {
	case ModeCopy:
		flags |= unix.XDP_COPY
	case ModeZeroCopy:
		flags |= unix.XDP_ZEROCOPY
	}
	if o.MultiBuffer {
		flags |= unix.XDP_USE_SG
	}
	return flags
}
