package vhostuser

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var errBroken = errors.New("the guest's avail index jumped")

// TestFailure: the front-end hears of a device that gave up in every way there is, until the driver begins anew.
func TestFailure(t *testing.T) {
	for name, again := range map[string]func(*testing.T, *Frontend, *guest){
		"reset":         func(t *testing.T, f *Frontend, g *guest) { must(t, f.Reset()) },
		"status 0":      func(t *testing.T, f *Frontend, g *guest) { must(t, f.SetStatus(0)) },
		"rings restart": restart,
	} {
		t.Run(name, func(t *testing.T) {
			d := newFake(t)
			b, f, g := started(t, d)
			must(t, f.SetStatus(15))
			c, err := f.OpenChannel()
			must(t, err)
			defer c.Close()
			b.Fail(errBroken)
			if r := next(t, c); r != BackendConfigChange {
				t.Errorf("request %d", r)
			}
			if n := count(t, g.e); n != 1 {
				t.Errorf("error descriptor signalled %d times", n)
			}
			if v, err := f.Status(); err != nil || v != 15|statusNeedsReset {
				t.Errorf("status %d, %v", v, err)
			}
			if s := b.Status().Session; s.Failure != errBroken.Error() {
				t.Errorf("%+v", s)
			}
			late := b.current().begun.Load()
			b.Fail(errBroken) // again: nothing new
			again(t, f, g)
			if b.current().fail(late, errBroken) {
				t.Error("a driver that had begun anew is told of a failure before that")
			}
			if v, err := f.Status(); err != nil || v&statusNeedsReset != 0 {
				t.Errorf("status %d, %v", v, err)
			}
			if s := b.Status().Session; s.Failure != "" || count(t, g.e) != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func restart(t *testing.T, f *Frontend, g *guest) {
	_, err := f.StopVring(0)
	must(t, err)
	must(t, f.StartVring(g.ring(0)))
}

// TestFailureOfNobody: a device may fail when no front-end, ring or descriptor is there to be told.
func TestFailureOfNobody(t *testing.T) {
	b := listenFake(t, newFake(t), Options{})
	b.Fail(errBroken)
	f := dial(t, b)
	must(t, f.Negotiate(wantAll, wantAll))
	b.Fail(errBroken)
	eventually(t, "failure", func() bool { return b.Status().Session.Failure != "" })
	must(t, f.Reset())
}

// TestFailuresAndDescriptors: error descriptors come and go while the device fails all the time; only eventfds of rings are signalled.
func TestFailuresAndDescriptors(t *testing.T) {
	d := newFake(t)
	b, f, g := started(t, d)
	stop := make(chan struct{})
	var failing sync.WaitGroup
	failing.Add(2)
	go func() {
		defer failing.Done()
		for {
			select {
			case <-stop:
				return
			default:
				if s := b.current(); s != nil {
					s.fail(s.begun.Load(), errBroken)
					s.begin()
				}
			}
		}
	}()
	signalled := 0
	go func() { // whose eventfds get the numbers that were just given up
		defer failing.Done()
		for {
			select {
			case <-stop:
				return
			default:
				fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
				if err == nil {
					_, err = unix.Read(fd, make([]byte, 8))
					unix.Close(fd)
				}
				if err != unix.EAGAIN {
					signalled++
				}
			}
		}
	}()
	for range 1000 {
		must(t, f.setFile(SetVringErr, 0, g.e))
		must(t, f.setFile(SetVringErr, 0, -1))
	}
	close(stop)
	failing.Wait()
	if count(t, g.e) == 0 {
		t.Error("the error descriptor was never signalled")
	}
	if signalled != 0 {
		t.Errorf("%d eventfds of others were signalled", signalled)
	}
}

// TestAbandonedOnce: who connects anew at once is not taken for who was abandoned.
func TestAbandonedOnce(t *testing.T) {
	d := newFake(t)
	b := listenFake(t, d, Options{})
	for i := range 5 {
		f := dial(t, b)
		must(t, f.Barrier())
		b.Abandon(errors.New("broken"), 20*time.Millisecond)
		f.Close()
		again := dial(t, b)
		must(t, again.Negotiate(wantAll, wantAll))
		time.Sleep(30 * time.Millisecond)
		must(t, again.Barrier())
		if s := b.Status().Session; s == nil || s.Failure != "" {
			t.Fatalf("round %d: %+v", i, s)
		}
		again.Close()
	}
	f := dial(t, b)
	must(t, f.Barrier())
	b.Abandon(errors.New("broken"), 20*time.Millisecond)
	if _, err := f.Receive(GetFeatures); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on: %v", err)
	}
}
