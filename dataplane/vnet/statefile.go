package vnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// stateFile holds a record for each ring of a device, mapped:
//
//	0                 4096                               4096 + slotBytes
//	├ magic, owner ───┼ record │ undo, 8 B × MaxSize ────┼ record │ undo ...
//
// The owner is whoever may find that nobody will ask for the file again (RemoveState), a text with zeros behind it.
//
// It lies in memory, so that a store is all it takes to keep something beyond the end of the process, and no page fault waits for a disk. It has holes where
// nothing was ever written: a ring of 256 descriptors takes a page.
//
// The worker that owns a ring writes its record and undo, between two rounds the control side. The next process reads them once its
// lock on the file says that there is no other.
type stateFile struct {
	path    string
	fd      int
	mapping *shm.Mapping
	rings   int
}

const (
	stateMagic  = 0x31_76_74_6e_75_68_73_76 // another layout gets another number
	stateHeader = 4096
	ownerAt     = 8
	recordBytes = 64
	slotBytes   = 4096 + 8*virtq.MaxSize
)

// record is where one packed ring stands.
type record struct {
	span     uint64 // from in bits 0-15, to in 16-31, spanSet; 0: nothing is known
	identity identity
}

const spanSet = 1 << 63

// identity tells a ring from others that the same port had.
type identity struct {
	desc, driver, device uint64 // addresses in the front-end
	dev, ino             uint64 // of the file that is the memory
	size                 uint32
	_                    uint32
}

func (r *record) set(from, to cursor) { shm.Release64(&r.span, spanSet|uint64(from)|uint64(to)<<16) }

func (r *record) get() (from, to cursor, ok bool) {
	span := shm.Load64(&r.span)
	return cursor(span), cursor(span >> 16), span&spanSet != 0
}

func (r *record) forget() { shm.Release64(&r.span, 0) }

// openStateFile opens or makes the file, for an owner. What is in it stays if it is one of ours with as many rings.
func openStateFile(path, owner string, rings int) (*stateFile, error) {
	if len(owner) >= stateHeader-ownerAt {
		return nil, fmt.Errorf("state file %s: its owner's name has %d bytes, and at most %d fit", path, len(owner), stateHeader-ownerAt-1)
	}
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		f := &stateFile{path: path, fd: fd, rings: rings}
		if err == nil {
			if err = f.open(owner); err == nil {
				return f, nil
			}
			_ = unix.Close(fd)
		}
		switch {
		case errors.Is(err, errGone):
		case errors.Is(err, unix.ENOSPC):
			return nil, fmt.Errorf("state file %s: %w: make room on its file system, which is in memory", path, err)
		default:
			return nil, fmt.Errorf("state file %s: %w", path, err)
		}
	}
}

// errGone says that whoever had the file until now removed it.
var errGone = errors.New("it was just removed")

func (f *stateFile) open(owner string) error {
	size, err := shm.CheckBacking(f.fd)
	if errors.Is(err, shm.ErrBacking) {
		return fmt.Errorf("%w: put it on a file system in memory, such as /run", err)
	}
	if err != nil {
		return err
	}
	if err := lockFile(f.fd, f.path); err != nil {
		return err
	}
	want := int64(stateHeader + f.rings*slotBytes)
	if size != want {
		if err := errors.Join(unix.Ftruncate(f.fd, 0), unix.Ftruncate(f.fd, want)); err != nil {
			return err
		}
	}
	if err := unix.Fallocate(f.fd, unix.FALLOC_FL_KEEP_SIZE, 0, stateHeader); err != nil {
		return err
	}
	if f.mapping, err = shm.Map(shm.MapOptions{FD: f.fd, Length: int(want)}); err != nil {
		return err
	}
	head, err := shm.View[uint64](f.mapping.Bytes(), 1)
	if err != nil {
		return err
	}
	if head[0] != stateMagic {
		if err := errors.Join(unix.Ftruncate(f.fd, stateHeader), unix.Ftruncate(f.fd, want)); err != nil {
			return err
		}
		head[0] = stateMagic
	}
	clear(f.mapping.Bytes()[ownerAt+copy(f.mapping.Bytes()[ownerAt:stateHeader], owner) : stateHeader])
	return nil
}

// lockFile takes the lock of a file that is still at its path.
func lockFile(fd int, path string) error {
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another process has it, which serves the same socket (%w): end that, or choose another socket", err)
	}
	var had, is unix.Stat_t
	if err := unix.Fstat(fd, &had); err != nil {
		return err
	}
	if err := unix.Lstat(path, &is); err != nil || had.Ino != is.Ino || had.Dev != is.Dev {
		return errGone
	}
	return nil
}

// place is the record of a ring, with the ring's memory.
func (f *stateFile) place(index int, l virtq.Layout, size int) (*place, error) {
	at := stateHeader + index*slotBytes
	// Now, and not when the worker first writes there, it must turn out that there is no memory left.
	if err := unix.Fallocate(f.fd, unix.FALLOC_FL_KEEP_SIZE, int64(at), int64(recordBytes+8*size)); err != nil {
		return nil, fmt.Errorf("room in state file %s: %w: make some on its file system, which is in memory", f.path, err)
	}
	b := f.mapping.Bytes()[at:]
	records, err := shm.View[record](b, 1)
	if err != nil {
		return nil, err
	}
	s := &place{record: &records[0]}
	if s.undo, err = shm.View[uint64](b[recordBytes:], size); err != nil {
		return nil, err
	}
	if s.ring, err = shm.View[uint64](l.Desc, 2*size); err != nil {
		return nil, err
	}
	event, err := shm.View[uint32](l.Used, 1)
	if err != nil {
		return nil, err
	}
	s.event = &event[0]
	return s, nil
}

// forget clears what is known of a ring: it is a split one now.
func (f *stateFile) forget(index int) {
	if f == nil || !f.knows(index) {
		return
	}
	if records, err := shm.View[record](f.mapping.Bytes()[stateHeader+index*slotBytes:], 1); err == nil {
		records[0].forget()
	}
}

// knows tells whether a ring's place is in the file. It reads, since to look into the mapping where nothing was ever written takes memory, of which the file system
// may have no more: then it is a fault.
func (f *stateFile) knows(index int) bool {
	var span [8]byte
	n, err := unix.Pread(f.fd, span[:], int64(stateHeader+index*slotBytes))
	return err != nil || n == len(span) && span != [8]byte{}
}

// close gives the file up. Nobody may keep anything in it any more. One that holds no ring's place is of use to nobody, and goes.
func (f *stateFile) close() error {
	if f == nil {
		return nil
	}
	known := false
	for i := range f.rings {
		known = known || f.knows(i)
	}
	var err error
	if !known {
		err = unix.Unlink(f.path) // while it is locked
	}
	return errors.Join(err, f.mapping.Free(), unix.Close(f.fd))
}

// RemoveState removes a state file, if it is an owner's and no device has it.
func RemoveState(path, owner string) (removed bool, err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("state file %s: %w", path, err)
	}
	defer unix.Close(fd)
	var b [stateHeader]byte
	if n, err := unix.Pread(fd, b[:], 0); err != nil || n < len(b) || binary.NativeEndian.Uint64(b[:]) != stateMagic {
		return false, nil // not one of ours
	}
	name, _, _ := bytes.Cut(b[ownerAt:], []byte{0})
	if string(name) != owner || lockFile(fd, path) != nil {
		return false, nil
	}
	if err := unix.Unlink(path); err != nil {
		return false, fmt.Errorf("state file %s: %w", path, err)
	}
	return true, nil
}

// memoryFile is the file behind a region of the guest's memory.
type memoryFile struct{ user, size, dev, ino uint64 }

func fileOf(r vhostuser.Region) memoryFile {
	f := memoryFile{user: r.UserAddr, size: r.Size}
	var st unix.Stat_t
	if unix.Fstat(r.FD, &st) == nil {
		f.dev, f.ino = st.Dev, st.Ino
	}
	return f
}
