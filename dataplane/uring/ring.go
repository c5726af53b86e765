package uring

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// Options configure a Ring.
type Options struct {
	// Entries is how many operations may be under way at once, rounded up to a power of two. Zero: 1024.
	Entries int
	// Files is how many files may be registered at once. Zero: 256.
	Files int
	// Vectors is how many vectors of up to 18 buffers there are; there are half as many of up to 130, and an eighth of up to 1024. Zero: Entries.
	Vectors int
	// IOWorkers is how many io-wq threads the ring's worker may have for files, and how many for anything else. Zero: Entries, so that nobody waits for a thread
	// which a file system holds that hangs. The kernel makes another one only when all there are wait for something.
	IOWorkers int
	// Cores are where io-wq threads may run: not where the worker does. Empty: anywhere.
	Cores []int
}

// maxEntries is the kernel's IORING_MAX_ENTRIES.
const maxEntries = 32768

// ErrThread says that a ring was used on another thread than the one that enabled it.
var ErrThread = errors.New("io_uring was used on a thread that did not enable it: enable and use it on the worker (Worker.Do)")

// Ring is an io_uring. It is a dataplane.Source of the worker that enabled it, and all its methods but FD, InForce and Stats belong to
// that worker.
type Ring struct {
	options Options
	modes   Modes
	fd      int
	event   int // eventfd that ends the worker's sleep
	thread  int // that enabled it; 0: nobody yet
	maps    [2]*shm.Mapping
	closing bool

	// The SQ. We write entries and the tail, the kernel takes them while we are in io_uring_enter, never else, so we need not read its head. Its flags are the
	// kernel's to write, at any time.
	sqes    []sqe
	weights []uint32 // of what is in them; see opWeight
	sqTail  *uint32
	sqFlags *uint32
	tail    uint32   // pushed up to here
	taken   uint32   // and taken by the kernel up to here
	cancels []uint32 // slots whose operation is to be cancelled with the next enter, each once: never more than there are

	// The CQ. The kernel writes entries and the tail, we the head and the flags.
	cqes    []cqe
	cqHead  *uint32
	cqTail  *uint32
	cqFlags *uint32
	head    uint32
	seen    uint32 // the tail, as of when it was looked at last

	slots  []slot
	free   []uint32
	weight int // of what is under way; see short

	files   []file // by slot
	memory  registered
	vectors vectors
	groups  []*Buffers // by group
	timers  wheel
	nudges  nudges

	counts counts // as of now,
	shown  counts // and as others see them
	stats  Stats
}

// slot is where a completion finds its operation.
type slot struct {
	op         *Op
	generation uint32 // of the last operation that had the slot; never 0
	at         uint32 // of the SQ, where it was pushed
	listed     bool   // in cancels
}

// Open makes a ring, on any goroutine.
func Open(o Options) (_ *Ring, err error) {
	o.defaults()
	if o.Entries > maxEntries {
		return nil, fmt.Errorf("io_uring of %d entries: at most %d are possible", o.Entries, maxEntries)
	}
	r := &Ring{options: o, modes: wanted(), fd: -1, event: -1}
	defer func() {
		if err != nil {
			_ = r.release()
		}
	}()
	var p params
	if r.fd, p, err = create(uint32(o.Entries), &r.modes); err != nil {
		return nil, err
	}
	if err := r.mapRings(&p); err != nil {
		return nil, fmt.Errorf("rings of io_uring: %w", err)
	}
	if err := r.openEvent(); err != nil {
		return nil, fmt.Errorf("eventfd of io_uring: %w", err)
	}
	if r.modes.FixedVectors {
		known, err := probeOpcodes(r.fd)
		r.modes.FixedVectors = err == nil && known.ops[opReadvFixed].flags&probeSupported != 0
	}
	if err := r.tables(); err != nil {
		return nil, err
	}
	return r, r.vectors.open(o.Vectors)
}

func (o *Options) defaults() {
	for _, v := range []struct {
		field *int
		zero  int
	}{{&o.Entries, 1024}, {&o.Files, 256}} {
		if *v.field <= 0 {
			*v.field = v.zero
		}
	}
	o.Entries = 1 << bits.Len(uint(o.Entries-1))
	if o.Vectors <= 0 {
		o.Vectors = o.Entries
	}
	if o.IOWorkers <= 0 {
		o.IOWorkers = o.Entries
	}
}

// mapRings maps what the kernel made: both rings in one mapping (IORING_FEAT_SINGLE_MMAP, 5.4), the SQEs in another.
func (r *Ring) mapRings(p *params) (err error) {
	length := int(max(p.sqOff.array+p.sqEntries*4, p.cqOff.cqes+p.cqEntries*sizeofCQE))
	if r.maps[0], err = shm.Map(shm.MapOptions{FD: r.fd, Offset: offSQRing, Length: length, Populate: true}); err != nil {
		return err
	}
	if r.maps[1], err = shm.Map(shm.MapOptions{FD: r.fd, Offset: offSQEs, Length: int(p.sqEntries) * sizeofSQE, Populate: true}); err != nil {
		return err
	}
	rings := r.maps[0].Bytes()
	if r.sqes, err = shm.View[sqe](r.maps[1].Bytes(), int(p.sqEntries)); err != nil {
		return err
	}
	if r.cqes, err = shm.View[cqe](rings[p.cqOff.cqes:], int(p.cqEntries)); err != nil {
		return err
	}
	for _, f := range []struct {
		at  uint32
		ptr **uint32
	}{{p.sqOff.tail, &r.sqTail}, {p.sqOff.flags, &r.sqFlags}, {p.cqOff.head, &r.cqHead}, {p.cqOff.tail, &r.cqTail}, {p.cqOff.flags, &r.cqFlags}} {
		v, err := shm.View[uint32](rings[f.at:], 1)
		if err != nil {
			return err
		}
		*f.ptr = &v[0]
	}
	if r.modes.NoSQArray {
		return nil
	}
	array, err := shm.View[uint32](rings[p.sqOff.array:], int(p.sqEntries))
	for i := range array {
		array[i] = uint32(i)
	}
	return err
}

// openEvent makes what the worker sleeps on. The ring's own file will not do: with DEFER_TASKRUN it becomes readable when there is work for our thread, but
// wakes nobody who waits for that.
func (r *Ring) openEvent() (err error) {
	if r.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	shm.Store32(r.cqFlags, cqEventFDDisabled)
	return announce(r.fd, int32(r.event))
}

// tables makes what operations, files and memory are numbered by.
func (r *Ring) tables() error {
	n := r.options.Entries
	r.weights = make([]uint32, n)
	r.slots, r.free, r.cancels = make([]slot, n), make([]uint32, n), make([]uint32, 0, n)
	for i := range r.free {
		r.free[i] = uint32(n - 1 - i)
	}
	if err := sparse(r.fd, registerFiles2, r.options.Files); err != nil {
		return fmt.Errorf("table of %d files for io_uring: %w: it must not exceed the limit of open files", r.options.Files, err)
	}
	r.files = make([]file, r.options.Files)
	if err := sparse(r.fd, registerBuffers2, maxBuffers); err != nil {
		return fmt.Errorf("table of buffers for io_uring: %w", err)
	}
	return nil
}

// Enable makes the calling thread, a worker's, the ring's: once, before the first operation. The goroutine must be locked to its thread: Worker.Do will do once the
// worker runs, not before; WorkerOptions.Start always.
func (r *Ring) Enable() error {
	if err := enable(r.fd); errors.Is(err, unix.EBADFD) {
		return errors.New("io_uring is enabled already")
	} else if err != nil {
		return fmt.Errorf("enable io_uring: %w", err)
	}
	r.thread = unix.Gettid()
	if err := r.first(); err != nil {
		return fmt.Errorf("first operation of io_uring: %w", err)
	}
	// Only now does this thread have an io-wq.
	if _, err := limitWorkers(r.fd, uint32(r.options.IOWorkers), uint32(r.options.IOWorkers)); err != nil {
		return fmt.Errorf("limit io-wq to %d threads: %w", r.options.IOWorkers, err)
	}
	if len(r.options.Cores) == 0 {
		return nil
	}
	var cores unix.CPUSet
	for _, c := range r.options.Cores {
		// The kernel takes one that there is not, and then has none left to run on.
		if _, err := os.Stat(fmt.Sprintf("/sys/devices/system/cpu/cpu%d", c)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keep io-wq on cores %v: there is no core %d", r.options.Cores, c)
		}
		cores.Set(c)
	}
	if err := placeWorkers(r.fd, &cores); err != nil {
		return fmt.Errorf("keep io-wq on cores %v: %w: they must be among those that this process may use", r.options.Cores, err)
	}
	return nil
}

// first does nothing, by the ring.
func (r *Ring) first() error {
	var done firstOp
	op := Op{Handler: &done}
	r.Nop(&op)
	r.enter()
	r.reap()
	if op.Busy() || done != 0 {
		return fmt.Errorf("it has not ended: %v", unix.Errno(-done))
	}
	return nil
}

type firstOp int32

// Completed notes the result.
func (f *firstOp) Completed(_ *Op, res int32, _ uint32) { *f = firstOp(res) }

// FD is the file that the worker watches for POLLIN, at its edges: an eventfd, which is signalled between Arm and Disarm when Poll has something to do, and read by nobody.
func (r *Ring) FD() int { return r.event }

// InForce tells which modes are in force.
func (r *Ring) InForce() Modes { return r.modes }

// Busy is how many operations are under way.
func (r *Ring) Busy() int { return len(r.slots) - len(r.free) }

// closeLimit is how long Close waits for what is under way. What it waits for then hangs in the kernel, as on a disk that does not answer.
const closeLimit = time.Second

// Close cancels what is under way, waits for it, telling the handlers, and frees the ring with all its vectors and buffers. On the worker's thread
// after it has removed the ring, or anywhere once that thread is no more: then no handler hears anything.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	if r.thread != 0 && unix.Tgkill(unix.Getpid(), r.thread, 0) == nil {
		if unix.Gettid() != r.thread {
			return ErrThread
		}
		r.closing = true
		if err := r.finish(closeLimit); err != nil {
			_ = unix.Close(r.fd)
			r.fd = -1
			return err // with the memory: the kernel may still write there
		}
	}
	return r.release()
}

// finish cancels everything until nothing is under way.
func (r *Ring) finish(limit time.Duration) error {
	for end := time.Now().Add(limit); r.Busy() > 0; {
		if time.Now().After(end) {
			return fmt.Errorf("%d operations of io_uring have not ended %v after they were cancelled; their memory is kept", r.Busy(), limit)
		}
		r.enter()
		if r.tail-r.taken < uint32(len(r.sqes)) {
			s := r.next()
			s.opcode, s.fd, s.opFlags = opCancel, -1, cancelAll|cancelAny
		}
		shm.Release32(r.sqTail, r.tail)
		if n, errno := await(r.fd, r.tail-r.taken, 10*time.Millisecond); errno == 0 {
			r.taken += uint32(n)
		}
		for r.reap() > 0 {
		}
	}
	return nil
}

// release frees everything.
func (r *Ring) release() error {
	var errs []error
	for _, fd := range []*int{&r.fd, &r.event} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	for _, m := range r.maps {
		if m != nil {
			errs = append(errs, m.Free())
		}
	}
	for _, b := range r.groups {
		if b != nil {
			errs = append(errs, b.memory.Free())
		}
	}
	r.groups = nil
	return errors.Join(append(errs, r.vectors.close())...)
}
