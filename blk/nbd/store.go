package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk"
)

// Options say which export is opened, and how. URI must be set.
type Options struct {
	// URI names server and export: nbd://host[:port]/export, nbds:// with TLS, nbd+unix:///export?socket=/path, nbds+unix://.
	URI string
	// TLS says how to speak it; see there for when it is spoken.
	TLS TLS
	// ReadOnly: nothing will be written, so an export that cannot be written to will do.
	ReadOnly bool
	// Timeout is how long a server may be silent while it owes answers, and a quarter of how long it may owe a single one, before the connection is given
	// up. Zero: 30 s.
	Timeout time.Duration
	// Quiesce is how long after a connection broke that had writes on their way a lane takes requests again at the earliest. Where the server did not end it, it may have stopped:
	// then it counts from when it goes on. After the end of a process that had some the next one waits as long (blk.Info). NBD cannot tell a server to
	// forget what it was asked on another connection: one that is alive, and has kept a write for longer than this, could still carry it out
	// after newer ones. So it is to be longer than the server ever takes for a request. Zero: 2 s; negative: none.
	Quiesce time.Duration
	// Watcher hears of changes; nil: nobody does.
	Watcher blk.Watcher
}

// The defaults of Options, and what follows from them.
const (
	defaultTimeout = 30 * time.Second
	defaultQuiesce = 2 * time.Second
	// patience is how many times Timeout one answer may take while others come.
	patience = 4
)

// Errors that callers test.
var (
	// ErrReadOnly says that an export cannot be written to and the volume wants to.
	ErrReadOnly = errors.New("the server has the export read-only; make the volume read-only, too")
	// ErrSize says that an export is not a whole number of blocks, or has none.
	ErrSize = errors.New("the export's size does not fit")
	// ErrChanged says that a server has come back with an export that lacks what guests were told it has.
	ErrChanged = errors.New("the export is not what it was")
	// ErrLanes says that a second worker wants to use an export whose server offers no multi-conn.
	ErrLanes = errors.New("the server allows one connection (no CAN_MULTI_CONN); give all queues of the volume to one worker")
)

// Store is an NBD export.
type Store struct {
	options Options
	address address
	ctx     context.Context // ends all keepers
	cancel  context.CancelFunc

	// withdrawn is how many commands servers may still carry out although they were withdrawn, of all lanes. Written and read by workers.
	withdrawn atomic.Int64
	// reconnects counts.
	reconnects atomic.Uint64

	mu     sync.Mutex // of what follows; no worker ever takes it but to end a lane
	told   blk.Info   // what guests were told
	sized  time.Time  // when they were told another size last
	spare  *link      // the connection that Open made, for the first lane
	lanes  []*lane
	closed bool
}

// Open connects, and learns what the export is. The connection is kept for the first lane.
func Open(ctx context.Context, o Options) (blk.Store, error) {
	s, err := newStore(o)
	if err != nil {
		return nil, err
	}
	c, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	if s.told, err = s.judge(c.export); err != nil {
		c.close()
		return nil, err
	}
	s.spare = c
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func newStore(o Options) (*Store, error) {
	a, err := parseURI(o.URI)
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Quiesce == 0 {
		o.Quiesce = defaultQuiesce
	}
	return &Store{options: o, address: a}, nil
}

// Export is an entry of a server's list.
type Export struct {
	// Name is what a URI's path is to say.
	Name string
	// Description is the server's own, for people; most have none.
	Description string
}

// List asks a server for its exports, whichever one the URI names.
func List(ctx context.Context, o Options) ([]Export, error) {
	s, err := newStore(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, greetingLimit)
	defer cancel()
	n, err := s.dial(ctx)
	if err != nil {
		return nil, s.say(ctx, err)
	}
	defer n.leave()
	exports, err := n.list()
	if err != nil {
		return nil, s.say(ctx, err)
	}
	return exports, nil
}

// judge makes of what a server says of an export what the block layer wants to know.
func (s *Store) judge(e *export) (blk.Info, error) {
	refuse := func(err error) (blk.Info, error) { return blk.Info{}, fmt.Errorf("%s: %w", s.options.URI, err) }
	switch {
	case e.has(flagReadOnly) && !s.options.ReadOnly:
		return refuse(ErrReadOnly)
	case e.size == 0:
		return refuse(fmt.Errorf("%w: it is empty", ErrSize))
	case e.size%uint64(e.minimum) != 0:
		return refuse(fmt.Errorf("%w: %d bytes are no multiple of the block size, %d", ErrSize, e.size, e.minimum))
	}
	i := blk.Info{
		Size:      e.size,
		BlockSize: e.minimum, PhysicalBlock: e.preferred, OptimalIO: e.preferred,
		Flush: e.has(flagFlush), FUA: e.has(flagFUA), Discard: e.has(flagTrim), WriteZeroes: e.has(flagWriteZeroes),
		ReadOnly: e.has(flagReadOnly), Rotational: e.has(flagRotational),
		Lanes:    1,
		Quiesce:  max(s.options.Quiesce, 0),
		Describe: s.describe(e),
	}
	if e.has(flagMultiConn) {
		i.Lanes = 0
	}
	return i, nil
}

// describe is for people.
func (s *Store) describe(e *export) string {
	d := fmt.Sprintf("%s: %d bytes, blocks of %d, requests of up to %d", s.options.URI, e.size, e.minimum, e.maximum)
	for _, f := range []struct {
		there bool
		name  string
	}{
		{e.encrypted, "TLS"}, {e.structured, "structured replies"}, {e.has(flagMultiConn), "multi-conn"}, {e.has(flagReadOnly), "read-only"},
		{e.has(flagFlush), "flush"}, {e.has(flagFUA), "fua"}, {e.has(flagTrim), "trim"}, {e.has(flagWriteZeroes), "write-zeroes"},
		{e.has(flagFastZero), "fast-zero"}, {e.has(flagRotational), "rotational"},
	} {
		if f.there {
			d += ", " + f.name
		}
	}
	return d
}

// Info is what the export was when it was asked last.
func (s *Store) Info() blk.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

// Open makes a worker's connection to the export.
func (s *Store) Open(h blk.Host, e blk.Events) (blk.Lane, error) {
	l, err := newLane(s, h, e)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		err = errors.New("the store is closed")
	case s.told.Lanes == 1 && len(s.lanes) > 0:
		err = ErrLanes
	}
	if err != nil {
		l.memory.Free() //nolint:errcheck // the other error counts
		return nil, fmt.Errorf("%s: %w", s.options.URI, err)
	}
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(s.ctx)
	l.ctx = ctx
	l.status.Store(&status{why: errNotYet, since: time.Now()})
	c := s.spare
	s.spare = nil
	s.lanes = append(s.lanes, l)
	s.keep(l, c, ending{})
	return l, nil
}

// suits judges an export that guests know already, and says what it is to them. A server in the place of another may have another size, and lack what requests
// can be answered without: discards and zeroes are refused then, and a flush takes the place of FUA. It is not taken where a guest would be lied to, or break.
func (s *Store) suits(e *export) (blk.Info, error) {
	i, err := s.judge(e)
	if err != nil {
		return i, err
	}
	s.mu.Lock()
	told, lanes := s.told, len(s.lanes)
	s.mu.Unlock()
	lacks := ""
	switch {
	case i.BlockSize > told.BlockSize:
		lacks = fmt.Sprintf("blocks of %d bytes", told.BlockSize)
	case i.Size%uint64(told.BlockSize) != 0:
		lacks = fmt.Sprintf("a size that is a multiple of %d", told.BlockSize)
	case told.Flush && !i.Flush:
		lacks = "flush"
	case i.Lanes == 1 && lanes > 1:
		lacks = "multi-conn"
	default:
		i.BlockSize = told.BlockSize
		i.PhysicalBlock, i.OptimalIO = max(i.PhysicalBlock, i.BlockSize), max(i.OptimalIO, i.BlockSize)
		return i, nil
	}
	return i, fmt.Errorf("%s: %w: it lacks %s", s.options.URI, ErrChanged, lacks)
}

// errHeldBack is why a store that is up sends nothing.
var errHeldBack = errors.New("the server has writes that were withdrawn and has not answered them: nothing is sent before that")

// State tells how the store fares.
func (s *Store) State() blk.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := blk.State{Up: true, Reconnects: s.reconnects.Load()}
	for _, l := range s.lanes {
		t := l.status.Load()
		switch {
		case state.Up && !t.up, state.Up == t.up && t.since.After(state.Since):
			state.Since = t.since
		}
		if !t.up && state.Up {
			state.Up, state.Why = false, t.why
		}
	}
	if state.Up && s.withdrawn.Load() != 0 {
		state.Why = errHeldBack
	}
	return state
}

// Close ends the store. A lane that waits for the end of what was withdrawn goes on alone.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.cancel()
	if s.spare != nil {
		s.spare.close()
		s.spare = nil
	}
	return nil
}

// forget takes a lane off the list that has ended.
func (s *Store) forget(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.lanes {
		if s.lanes[i] == l {
			s.lanes = append(s.lanes[:i], s.lanes[i+1:]...)
			return
		}
	}
}
