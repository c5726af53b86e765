package vhostuser

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// What a hypervisor does beside starting and stopping rings: live migration, in-flight areas, the back-end's own channel.

// SetLog gives the dirty log (protocol feature LOG_SHMFD): size bytes of a file from offset on, a bit for each 4 KiB of guest addresses. When it returns,
// the last marks are in the one before. The descriptor stays the caller's.
func (f *Frontend) SetLog(fd int, size, offset uint64) error {
	flags := uint32(flagVersion)
	if f.protocol&ProtocolReplyAck != 0 {
		flags |= flagNeedReply
	}
	if err := f.write(SetLogBase, flags, appendU64(appendU64(nil, size), offset), []int{fd}); err != nil {
		return err
	}
	reply, err := f.Receive(SetLogBase)
	if err == nil && len(reply) == 8 && binary.NativeEndian.Uint64(reply) != 0 {
		err = fmt.Errorf("%v: %w", SetLogBase, ErrRefused)
	}
	return err
}

// SetLogEvent gives an eventfd that is signalled when pages become dirty.
func (f *Frontend) SetLogEvent(fd int) error { return f.Do(SetLogFD, nil, fd) }

// LogAll turns logging on or off while everything runs: the feature first, then each ring's own flag. Rings log their used ring at the address in LogAddr.
func (f *Frontend) LogAll(on bool, rings ...VringConfig) error {
	features, flags := f.features&^FeatureLogAll, uint32(0)
	if on {
		features, flags = f.features|FeatureLogAll, VringLog
	}
	if err := f.AcceptFeatures(features); err != nil {
		return err
	}
	for _, c := range rings {
		c.Flags = flags
		if err := f.Do(SetVringAddr, appendAddr(nil, c)); err != nil {
			return err
		}
	}
	return nil
}

// RARP has the back-end announce a guest that arrived (protocol feature RARP).
func (f *Frontend) RARP(mac [6]byte) error { return f.Do(SendRARP, append(mac[:], 0, 0)) }

// InflightFile is an in-flight area as a front-end keeps it.
type InflightFile struct {
	Bytes, Offset uint64
	Queues, Size  int
	FD            int
}

func (i InflightFile) payload() []byte {
	b := appendU64(appendU64(nil, i.Bytes), i.Offset)
	b = binary.NativeEndian.AppendUint16(b, uint16(i.Queues))
	b = binary.NativeEndian.AppendUint16(b, uint16(i.Size))
	return append(b, 0, 0, 0, 0)
}

// GetInflight has the back-end make an area for that many rings of that size (protocol feature INFLIGHT_SHMFD). The caller closes its descriptor.
func (f *Frontend) GetInflight(queues, size int) (InflightFile, error) {
	reply, err := f.Ask(GetInflightFD, InflightFile{Queues: queues, Size: size}.payload())
	if err != nil {
		return InflightFile{}, err
	}
	if len(reply) != inflightMessage+4 || len(f.message.fds) != 1 {
		return InflightFile{}, fmt.Errorf("%v: reply of %d bytes with %d descriptors", GetInflightFD, len(reply), len(f.message.fds))
	}
	return InflightFile{
		Bytes: f.message.u64(0), Offset: f.message.u64(8), Queues: int(f.message.u16(16)), Size: int(f.message.u16(18)), FD: f.message.takeFD(0),
	}, nil
}

// SetInflight gives an area back that an earlier back-end made. The descriptor stays the caller's.
func (f *Frontend) SetInflight(i InflightFile) error { return f.Do(SetInflightFD, i.payload(), i.FD) }

// OpenChannel gives the back-end a way to make requests of its own (protocol feature BACKEND_REQ).
func (f *Frontend) OpenChannel() (*FrontendChannel, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pair of sockets: %w", err)
	}
	defer unix.Close(fds[1])
	c, err := connOf(fds[0])
	if err != nil {
		return nil, err
	}
	if err := f.Do(SetBackendReqFD, nil, fds[1]); err != nil {
		_ = c.Close()
		return nil, err
	}
	return &FrontendChannel{conn: c, link: newSocket(c)}, nil
}
