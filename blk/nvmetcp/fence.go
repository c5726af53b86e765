package nvmetcp

import (
	"context"
	"fmt"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// What makes sure that nothing which an association's queues carried is executed any more when there is another one:
//
//	lanes are quiet, their connections ended on our side ─▶ CC.EN = 0 ─┬▶ CSTS.RDY = 0 ─▶ the controller hangs up on them, too
//	                                                                   └▶ no answer ─▶ cut them ─▶ until the keep-alive timeout has run out at the other end
//
// By the specification a controller that says it is disabled executes nothing of its queues. Linux' target says so at once, and what its queues have given to a disk goes on;
// but it closes a queue's connection only when all of that has ended. So that is waited for, where a queue had something that changes the disk: but not for ever, since a target need
// not hang up. A disk that hangs for longer than Options.Quiesce is told of, since what it was given may be carried out after newer writes.

// silence is after how long without an answer what the lanes' sockets still hold is thrown away: a controller that has stopped could come to it at any time.
const silence = time.Second

// fence returns when nothing that the association's queues carried can be executed any more; alive: since the controller said so. An error means that the store
// was closed.
func (s *Store) fence(a *association, left sockets, why error) (alive bool, err error) {
	open, closed := s.whileOpen()
	defer closed()
	ctx, cancel := context.WithTimeout(open, s.o.ConnectTimeout)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- a.reset(ctx) }()
	waiting := false
	select {
	case err = <-answer:
	case <-time.After(silence):
		waiting = true
	}
	risky := len(left) > 0
	if !waiting && err == nil {
		if s.outlast(a, left, why) {
			return true, nil
		}
		left, err = nil, errGone
	}
	left.cut()
	silent := time.Now() // the lanes send nothing any more
	if waiting {
		err = <-answer
	}
	if last := a.admin.lastSent(); last.After(silent) {
		silent = last
	}
	rest := a.grace()
	if risky {
		rest = max(rest, s.o.Quiesce)
	}
	return err == nil, pause(context.Background(), time.Until(silent.Add(rest)), s.closing)
}

// outlast waits until a controller that is disabled has ended what it was given, and says so meanwhile, and afterwards where it has not. False: it has fallen silent, and
// hangs up on everything then, whatever it still does.
func (s *Store) outlast(a *association, left sockets, why error) bool {
	n := len(left)
	if n == 0 {
		return true
	}
	limit := max(a.grace(), s.o.CommandTimeout, s.o.Quiesce)
	s.set(func(st *blk.State) {
		st.Why = fmt.Errorf("%w; the controller is disabled, and has not ended the writes of %d IO queues: its disk may hang, which is waited for, at most %v (quiesce)", why, n, limit)
	})
	open, closed := s.whileOpen()
	defer closed()
	ctx, silent := context.WithCancel(open)
	go func() {
		defer silent()
		a.outlive(ctx)
	}()
	n = left.hungUp(time.Now().Add(limit), ctx.Done())
	switch {
	case n == 0:
		return a.answers()
	case ctx.Err() != nil:
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unended = fmt.Errorf("on %s a controller was disabled and did not end the writes of %d IO queues within %v (quiesce): they may yet be carried out, over newer ones",
		time.Now().Format(time.DateTime), n, limit)
	return true
}

// outlive gives a controller that is disabled, and takes no keep-alives, signs of life until it does not answer, or ctx ends: Linux' target would otherwise hang up on everything when the
// keep-alive timeout has run out.
func (a *association) outlive(ctx context.Context) {
	for pause(ctx, a.kato/3, nil) == nil {
		answer, cancel := context.WithTimeout(ctx, a.kato)
		_, err := a.admin.property(answer, propertyCSTS, false)
		cancel()
		if err != nil {
			return
		}
	}
}

// grace is after how long without a word from us the controller has ended the association, and what it carried.
func (a *association) grace() time.Duration {
	kato := a.kato
	if unit := a.controller.KAS; unit > 0 {
		kato = (kato + unit - 1) / unit * unit
	}
	if a.controller.Traffic {
		kato *= 2 // a timer that finds there was traffic begins anew
	}
	return kato + a.controller.CQT + 100*time.Millisecond
}

// sockets are those of lanes that are out of service and had commands that change the disk, which only the other side sends on.
type sockets []int

// hungUp waits until the other side has ended them all, but no longer than until a time or stop, and closes them. It returns how many have not ended by then.
func (left sockets) hungUp(until time.Time, stop <-chan struct{}) int {
	defer func() { left.cut() }()
	scratch := make([]byte, 64<<10)
	for {
		var poll []unix.PollFd
		for i := 0; i < len(left); {
			if fd := left[i]; ended(fd, scratch) {
				cut(fd)
				left = append(left[:i], left[i+1:]...)
			} else {
				poll = append(poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP})
				i++
			}
		}
		select {
		case <-stop:
			return 0
		default:
		}
		if len(left) == 0 || time.Now().After(until) {
			return len(left)
		}
		unix.Poll(poll, pollTime)
	}
}

// pollTime is between two looks at what has come, in milliseconds. With dropMost it bounds what a controller that sends for ever can make us do.
const (
	pollTime = 5
	dropMost = 16
)

// ended drops what has come on a socket, some of it at least, and tells whether the other side has ended it.
func ended(fd int, scratch []byte) bool {
	for range dropMost {
		n, _, err := unix.Recvfrom(fd, scratch, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return false
		case err == unix.EINTR:
		case err != nil || n == 0:
			return true
		}
	}
	return false
}

func (left sockets) cut() {
	for _, fd := range left {
		cut(fd)
	}
}

// cut closes a socket. Before Linux 6.4 a registered file may outlive its slot for long, so closing is not enough.
func cut(fd int) {
	unix.Shutdown(fd, unix.SHUT_RDWR)
	unix.Close(fd)
}
