package file

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// Options say how a file is used.
type Options struct {
	// Direct bypasses the page cache (O_DIRECT).
	Direct bool
	// ReadOnly: nothing is written, and others may read the file, too.
	ReadOnly bool
	// Patience is how long Open waits for whoever else has the file locked. Zero: 10 s; negative: not at all.
	Patience time.Duration
	// Depth is how many requests a lane takes at once. Zero: 256.
	Depth int
}

const (
	defaultPatience = 10 * time.Second
	defaultDepth    = 256
)

// Errors that callers test.
var (
	// ErrLocked says that somebody else uses the file.
	ErrLocked = errors.New("it is in use: end the program that has it locked (lslocks shows which), or wait until its last writes have ended")
	// ErrReadOnly says that the file cannot be written to and the volume wants to.
	ErrReadOnly = errors.New("it cannot be written to: make the volume read-only, or allow writing to the file")
	// ErrSize says that the size is no whole number of blocks.
	ErrSize = errors.New("bad size")
	// ErrKind says that it is no disk.
	ErrKind = errors.New("it is neither a regular file nor a block device: name one of these")
	// ErrDoubtful says that no flush succeeds any more.
	ErrDoubtful = errors.New("what was written through the page cache could not be written to the disk, and may be lost: flushes fail until the volume is opened anew; look at the kernel's log")
	// ErrRemoved says that no name leads to the file any more.
	ErrRemoved = errors.New("the file was removed, though the guest goes on with it: what is in it is lost when the volume or the daemon ends; have the guest copy it to another volume before")
	// ErrDirect says that the file system has no O_DIRECT.
	ErrDirect = errors.New("its file system has no O_DIRECT: use the page cache (direct: false)")
)

// Store is a file as a disk.
type Store struct {
	path    string
	options Options
	fd      int
	shape   shape
	info    atomic.Pointer[blk.Info]
	since   time.Time

	// What the file system has refused, so that it is not asked again: by lanes, on their workers.
	noDiscard, noFree, noPunch, noRange atomic.Bool

	resident *residency // nil: nobody asks

	doubtful atomic.Bool // something could not be written back: by lanes, see lane.doubt
	removed  atomic.Bool // ErrRemoved, when it was measured last

	zeroes *uring.Memory // to write where nothing else makes zeroes

	mu     sync.Mutex // not held while a worker is waited for
	lanes  int
	closed bool
}

var _ blk.Store = (*Store)(nil)

// Open opens the file and locks it, or fails with ErrNoAnswer after a few seconds.
func Open(path string, o Options) (*Store, error) {
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	if o.Depth <= 0 {
		o.Depth = defaultDepth
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerTime+max(o.Patience, 0))
	defer cancel()
	s, err := ask(ctx, path, func() (*Store, error) {
		s := &Store{path: path, options: o, since: time.Now()}
		return s, s.open()
	}, func(s *Store) { _ = s.Close() })
	if err != nil {
		return nil, fmt.Errorf("file %s: %w", path, err)
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if s.fd, err = openFile(s.path, &s.options); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			unix.Close(s.fd)
		}
	}()
	if err := lock(s.fd, s.options.ReadOnly, s.options.Patience); err != nil {
		return err
	}
	if s.shape, err = inspect(s.fd, &s.options); err != nil {
		return err
	}
	if s.shape.cached {
		s.resident = &residency{fd: s.fd}
	}
	info, err := s.measure()
	if err != nil {
		return err
	}
	s.info.Store(&info)
	s.zeroes, err = zeroMemory()
	return err
}

// measure asks how large the file is by now.
func (s *Store) measure() (blk.Info, error) {
	info := s.shape.info
	size, err := unix.Seek(s.fd, 0, unix.SEEK_END)
	switch {
	case err != nil:
		return info, fmt.Errorf("ask for its size: %w", err)
	case size == 0:
		return info, fmt.Errorf("%w: it is empty: give it one (truncate -s)", ErrSize)
	case size%int64(info.BlockSize) != 0:
		return info, fmt.Errorf("%w: %d bytes are not a multiple of its blocks of %d: make it longer (truncate -s %%%d)", ErrSize, size, info.BlockSize, info.BlockSize)
	}
	info.Size = uint64(size)
	var st unix.Stat_t
	if err := unix.Fstat(s.fd, &st); err != nil {
		return info, fmt.Errorf("ask whether it was removed: %w", err)
	}
	s.removed.Store(!s.shape.device && st.Nlink == 0)
	return info, nil
}

// Info is what the file was when it was asked last.
func (s *Store) Info() blk.Info { return *s.info.Load() }

// Refresh asks how large the file is by now, or fails with ErrNoAnswer after a few seconds.
func (s *Store) Refresh(ctx context.Context) (blk.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	info, err := ask(ctx, s.path, s.measure, nil)
	if err != nil {
		return s.Info(), fmt.Errorf("file %s: %w", s.path, err)
	}
	s.info.Store(&info)
	return info, nil
}

// State: a file is always up, but may not be worth much.
func (s *Store) State() blk.State {
	state := blk.State{Up: true, Since: s.since}
	switch {
	case s.doubtful.Load():
		state.Why = fmt.Errorf("file %s: %w", s.path, ErrDoubtful)
	case s.removed.Load():
		state.Why = fmt.Errorf("file %s: %w", s.path, ErrRemoved)
	}
	return state
}

// Open makes a worker's way to the file.
func (s *Store) Open(h blk.Host, e blk.Events) (blk.Lane, error) {
	if !s.come() {
		return nil, fmt.Errorf("file %s: it is closed", s.path)
	}
	l, err := newLane(s, h, e)
	if err != nil {
		s.gone()
		return nil, fmt.Errorf("file %s: %w", s.path, err)
	}
	return l, nil
}

// come counts a lane, unless the file is closed.
func (s *Store) come() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.lanes++
	return true
}

// Close unlocks the file and closes it, after all its lanes were closed. The lock is given back by hand, since older kernels keep a file that an io_uring had for as
// long as anything else is under way there.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if s.lanes > 0 {
		return fmt.Errorf("file %s: %d lanes are still open", s.path, s.lanes)
	}
	s.closed = true
	done := make(chan error, 1)
	go func() { done <- errors.Join(unlock(s.fd), unix.Close(s.fd)) }()
	select {
	case err := <-done:
		return err
	case <-time.After(closeTime):
		return fmt.Errorf("close file %s: %w", s.path, ErrNoAnswer)
	}
}

// gone counts the end of a lane.
func (s *Store) gone() {
	s.mu.Lock()
	s.lanes--
	s.mu.Unlock()
}
