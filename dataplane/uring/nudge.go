package uring

import "golang.org/x/sys/unix"

// io-wq makes another thread when all it has wait and there is more to do, by a piece of work for the thread that entered. A signal that comes to this thread meanwhile, as the Go
// runtime sends them to whoever computes for 10 ms, makes that fail, a few times in a row for good. Then what there is to do waits for those threads that wait: for a file system
// that hangs. It is tried again only when there is yet more to do. So whoever waits for longer than usual gives io-wq something to do, which is nothing.
type nudges struct {
	ops  [2][2]Op // the last ones, and those before
	last int
}

// Nudge has io-wq look whether it needs another thread. It costs some microseconds.
func (r *Ring) Nudge() {
	n := &r.nudges
	for i := range n.ops[n.last] {
		r.Cancel(&n.ops[n.last][i]) // if io-wq has not come to it: they are not to become many
	}
	n.last ^= 1
	bounded, unbounded := &n.ops[n.last][0], &n.ops[n.last][1]
	bounded.Handler, unbounded.Handler = nobody{}, nobody{}
	if !bounded.Busy() {
		if s := r.push(bounded, opNop, 0); s != nil {
			s.flags = sqeAsync
		}
	}
	// The threads for what is no regular file, as which operations count whose file io-wq alone looks up, are counted apart.
	if !unbounded.Busy() {
		if s := r.push(unbounded, opPollAdd, 0); s != nil {
			s.flags, s.fd, s.opFlags = sqeAsync, int32(r.event), unix.POLLOUT // which is always so
		}
	}
}

type nobody struct{}

// Completed implements Handler.
func (nobody) Completed(*Op, int32, uint32) {}
