package nbd

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// listen begins to receive, while answers are due.
func (l *lane) listen() {
	if l.dropping != nil {
		return
	}
	if !l.hung && !l.poll.Busy() && !l.host.Ring.PollAdd(&l.poll, l.file, unix.POLLRDHUP) {
		l.later()
	}
	if l.recv.Busy() || l.inflight == 0 || l.replies.gap > 0 {
		return
	}
	l.incoming.Reset()
	flags := int32(0)
	if l.replies.aim(l.incoming) {
		flags = unix.MSG_WAITALL
	}
	if !l.host.Ring.Recv(&l.recv, l.file, l.incoming, flags) {
		l.later()
	}
}

// received hears how a receive ended.
func (l *lane) received(n int) {
	switch {
	case n > 0:
		l.stir(n)
		if err := l.replies.arrived(n); err != nil {
			l.drop(err)
		}
	case n == -int(unix.EFAULT):
		l.replies.fault()
	case n == -int(unix.ECANCELED), n == -int(unix.EINTR), n == -int(unix.EAGAIN):
	case n == 0:
		l.drop(errHungUp)
	default:
		l.drop(fmt.Errorf("receive: %w", unix.Errno(-n)))
	}
	l.replies.aimed = 0
	l.released()
}
