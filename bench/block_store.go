package bench

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/uring"
	"golang.org/x/sys/unix"
)

// storeRig is a store by itself: the lane of one worker, which the worker's own thread asks for more as soon as it is answered, as fio asks its engine. It is what a
// queue of the device does, without a guest.
type storeRig struct {
	engine *engine
	ring   *uring.Ring
	store  blk.Store
	lane   blk.Lane
	memory *shm.Mapping
	up     chan error

	// The load under way; all of it is the worker's.
	requests []blk.Request
	cell     BlockCell
	blocks   uint64
	next     uint64
	random   *rand.Rand
	end      int64
	under    int
	answered uint64
	wrong    int
	done     chan struct{}
}

// newStoreRig takes a store over, with a worker on a CPU of its own.
func newStoreRig(s blk.Store, cpu int, cells []BlockCell) (_ *storeRig, err error) {
	r := &storeRig{store: s, up: make(chan error, 1), random: rand.New(rand.NewPCG(1, 0))}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	room := 0
	for _, c := range cells {
		room = max(room, c.Bytes*c.Depth)
	}
	if r.memory, err = shm.Map(shm.MapOptions{FD: -1, Length: room, Populate: true}); err != nil {
		return nil, err
	}
	if r.ring, err = uring.Open(uring.Options{}); err != nil {
		return nil, err
	}
	if r.engine, err = newEngine(cpu, dataplane.Adaptive, r.ring.Enable); err != nil {
		return nil, err
	}
	r.engine.worker.Do(func() { // before it runs
		r.engine.worker.Watch(r.ring.FD(), unix.POLLIN, true)
		r.engine.worker.Add(r)
		r.engine.worker.Add(r.ring)
		r.lane, err = s.Open(blk.Host{Worker: r.engine.worker, Ring: r.ring}, r)
	})
	r.engine.start()
	if err != nil {
		return nil, err
	}
	select {
	case err = <-r.up:
	case <-time.After(10 * time.Second):
		err = errors.New("the store has not come up within 10 s")
	}
	return r, err
}

// Up, Down and Room implement blk.Events.
func (r *storeRig) Up(bool)        { r.tell(nil) }
func (r *storeRig) Down(why error) { r.tell(why) }
func (r *storeRig) Room()          {}

func (r *storeRig) tell(err error) {
	select {
	case r.up <- err:
	default:
	}
}

// Poll and the like implement dataplane.Source: what was submitted goes out at the end of a round.
func (r *storeRig) Poll() int { return 0 }

func (r *storeRig) Flush() {
	if r.lane != nil {
		r.lane.Flush()
	}
}

func (r *storeRig) Arm() time.Duration { return dataplane.Forever }
func (r *storeRig) Pending() bool      { return false }
func (r *storeRig) Disarm()            {}

// measure puts a load on for a while.
func (r *storeRig) measure(o BlockOptions, cell BlockCell, to *BlockResult) error {
	size := r.store.Info().Size
	if o.Span > 0 {
		size = min(size, uint64(o.Span))
	}
	var before, after time.Duration
	var began time.Time
	var err error
	answered := r.answered
	r.done = make(chan struct{})
	r.engine.worker.Do(func() {
		before, err = threadTime()
		began = time.Now()
		r.start(cell, size/uint64(cell.Bytes), dataplane.Clock()+int64(o.Duration))
	})
	<-r.done
	elapsed := time.Since(began)
	r.engine.worker.Do(func() {
		var failed error
		after, failed = threadTime()
		err = errors.Join(err, failed)
	})
	if r.wrong > 0 {
		err = errors.Join(err, fmt.Errorf("%d requests were not answered well", r.wrong))
	}
	to.Requests += r.answered - answered
	to.Elapsed += elapsed
	to.CPU += after - before
	return err
}

func (r *storeRig) start(cell BlockCell, blocks uint64, end int64) {
	r.cell, r.blocks, r.end, r.next, r.under, r.wrong = cell, blocks, end, 0, cell.Depth, 0
	op := blk.OpRead
	if cell.Write {
		op = blk.OpWrite
	}
	r.requests = make([]blk.Request, cell.Depth)
	for i := range r.requests {
		r.requests[i] = blk.Request{Op: op, Length: uint64(cell.Bytes), Buffers: [][]byte{r.memory.Bytes()[i*cell.Bytes:][:cell.Bytes]}, Handler: r}
		r.submit(&r.requests[i])
	}
}

func (r *storeRig) submit(q *blk.Request) {
	at := r.next
	if r.next++; r.next == r.blocks {
		r.next = 0
	}
	if !r.cell.Sequential {
		at = r.random.Uint64N(r.blocks)
	}
	q.Offset = at * uint64(r.cell.Bytes)
	if !r.lane.Submit(q) {
		r.wrong++
		r.ended()
	}
}

// Done implements blk.Handler.
func (r *storeRig) Done(q *blk.Request, o blk.Outcome) {
	if o != blk.OK {
		r.wrong++
	}
	r.answered++
	if r.wrong > 0 || r.engine.worker.Now() >= r.end {
		r.ended()
		return
	}
	r.submit(q)
}

func (r *storeRig) ended() {
	if r.under--; r.under == 0 {
		close(r.done)
	}
}

func (r *storeRig) close() error {
	var errs []error
	if r.engine != nil && r.ring != nil {
		w, busy := r.engine.worker, 0
		if r.lane != nil {
			w.Do(r.lane.Close)
		}
		for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) { // it says goodbye
			if w.Do(func() { busy = r.ring.Busy() }); busy == 0 {
				break
			}
		}
		w.Do(func() {
			w.Remove(r)
			w.Remove(r.ring)
			w.Unwatch(r.ring.FD())
			errs = append(errs, r.ring.Close())
		})
	}
	if r.engine != nil {
		r.engine.close()
	}
	if r.memory != nil {
		errs = append(errs, r.memory.Free())
	}
	return errors.Join(append(errs, r.store.Close())...)
}

// threadTime is the CPU time that the calling thread has used.
func threadTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, err
	}
	return time.Duration(t.Nano()), nil
}
