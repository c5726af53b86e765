package blk

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/shm"
)

// run has the worker poll the bed's queue by itself, and returns when it does.
func (b *bed) run() {
	b.Helper()
	b.worker.Do(func() { b.worker.Add(b.queue()) })
	done := make(chan error)
	go func() { done <- b.worker.Run() }()
	b.Cleanup(func() {
		b.worker.Stop()
		b.must(<-done)
	})
	b.worker.Do(func() {})
}

// await waits for a condition that is looked at on the worker.
func (b *bed) await(what string, ok func() bool) {
	b.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		var is bool
		b.worker.Do(func() { is = ok() })
		if is {
			return
		}
		if time.Now().After(deadline) {
			b.Fatal("waited for: " + what)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// inTime runs what a front-end waits for under its big lock.
func (b *bed) inTime(what string, fn func()) {
	b.Helper()
	const promise, busyMachine = 100 * time.Millisecond, 200 * time.Millisecond
	if drainTime+withdrawTime > promise*8/10 {
		b.Errorf("%s may take %v", what, drainTime+withdrawTime)
	}
	began := time.Now()
	fn()
	if took := time.Since(began); took > promise+busyMachine {
		b.Errorf("%s took %v", what, took)
	}
}

func mapped() int {
	maps, _ := os.ReadFile("/proc/self/maps")
	return strings.Count(string(maps), "memfd:shunt-test-guest")
}

// TestStopWaits: what ends by itself soon is waited for, and answered.
func TestStopWaits(t *testing.T) {
	for ring, bit := range rings {
		b := newBed(t, bedInfo, modern|bit)
		b.dev.drain = time.Minute
		b.gate.hold = true
		request := b.buffers(16, 512)
		b.put(header(1, 0), request)
		b.add(request, b.buffers(1))
		b.run()
		b.await("a request at the store", func() bool { return len(b.gate.waiting) == 1 })
		go b.worker.Do(func() {
			b.gate.hold = false
			b.gate.Flush()
		})
		_, err := b.dev.StopVring(0)
		b.must(err)
		if _, n, ok, err := b.driver.Used(); !ok || n != 1 || err != nil {
			t.Errorf("%s: the request was not answered: %v", ring, err)
		}
		if b.gate.called != 0 || b.queue().stats.GivenBack.Load() != 0 {
			t.Errorf("%s: called back", ring)
		}
	}
}

// TestStopCallsBack: a store that does not answer is asked for its requests, which the ring then has once more.
func TestStopCallsBack(t *testing.T) {
	for ring, bit := range rings {
		b := newBed(t, bedInfo, modern|bit)
		b.dev.drain = drainTime
		b.gate.hold = true
		request := b.buffers(16, 512)
		b.put(header(1, 0), request)
		b.add(request, b.buffers(1))
		b.run()
		b.await("a request at the store", func() bool { return len(b.gate.waiting) == 1 })
		var base uint32
		var err error
		b.inTime("StopVring", func() { base, err = b.dev.StopVring(0) })
		b.must(err)
		if b.gate.called != 1 {
			t.Errorf("%s: called back %d times", ring, b.gate.called)
		}
		if _, _, ok, _ := b.driver.Used(); ok {
			t.Errorf("%s: answered", ring)
		}
		began := time.Now()
		b.start(&base)
		b.await("the request once more", func() bool { return len(b.gate.waiting) == 1 })
		_, err = b.dev.StopVring(0) // which knows by now that there is no use in waiting
		b.must(err)
		if took := time.Since(began); took > drainTime {
			t.Logf("%s: the next stop took %v", ring, took)
		}
	}
}

// TestStopLeaves: a request that nobody can end does not keep the front-end waiting, and when it ends at last it touches nothing. Until then the addresses of its
// memory belong to nobody else.
func TestStopLeaves(t *testing.T) {
	for ring, bit := range rings {
		before := mapped()
		b := newBed(t, bedInfo, modern|bit)
		b.dev.drain = drainTime
		b.gate.hold, b.gate.deaf = true, true
		request := b.buffers(16, 512)
		b.put(header(1, 0), request)
		b.add(request, b.buffers(1))
		b.run()
		b.await("a request at the store", func() bool { return len(b.gate.waiting) == 1 })
		var base uint32
		var err error
		b.inTime("StopVring", func() { base, err = b.dev.StopVring(0) })
		b.must(err)

		// The same ring again, on the same queue, while the other request is where it was: an old write must not come behind a new one.
		b.start(&base)
		for range 3 {
			b.worker.Do(func() {
				if n := b.queue().Poll(); n != 0 || len(b.gate.waiting) != 1 || b.queue().Pending() {
					t.Errorf("%s: %d taken while a request of before is under way", ring, n)
				}
			})
		}
		b.worker.Do(func() { b.gate.answer(OK) })
		b.await("the request once more", func() bool { return len(b.gate.waiting) == 1 })
		b.worker.Do(func() { b.gate.answer(OK) })
		b.await("an answer", func() bool { return b.driver.Pending() })
		if _, _, ok, err := b.driver.Used(); !ok || err != nil {
			t.Errorf("%s: %v, %v", ring, ok, err)
		}

		// And without a ring: all memory is given up.
		b.add(request, b.buffers(1))
		b.await("a third request", func() bool { return len(b.gate.waiting) == 1 })
		b.inTime("StopVring", func() { _, err = b.dev.StopVring(0) })
		b.must(err)
		b.dev.Disconnected()
		if n := mapped() - before; n != 1 { // the test's own
			t.Errorf("%s: %d mappings are in reach", ring, n)
		}
		b.worker.Do(func() { b.gate.end(0, OK) })
		if _, _, ok, _ := b.driver.Used(); ok {
			t.Errorf("%s: answered after the end", ring)
		}
		if len(b.failed) > 0 {
			t.Errorf("%s: %v", ring, b.failed)
		}
	}
}

// TestRemoveMemoryInTime: as for rings, with a store that never answers.
func TestRemoveMemoryInTime(t *testing.T) {
	b := newBed(t, bedInfo, modern)
	b.dev.drain = drainTime
	b.gate.hold, b.gate.deaf = true, true
	request := b.buffers(16, 512)
	b.put(header(1, 0), request)
	b.add(request, b.buffers(1))
	b.run()
	b.await("a request at the store", func() bool { return len(b.gate.waiting) == 1 })
	at := fmt.Sprintf("%x-", shm.Address(b.gate.waiting[0].Buffers[0])&^0xfff)
	b.inTime("RemoveMemory", func() { b.must(b.dev.RemoveMemory(b.regions()[1])) })
	// The kernel may be about to write there.
	kept := func() bool {
		maps, _ := os.ReadFile("/proc/self/maps")
		_, line, found := strings.Cut("\n"+string(maps), "\n"+at)
		return found && strings.HasPrefix(line[strings.Index(line, " ")+1:], "---p")
	}
	if !kept() {
		t.Error("addresses that a request under way has are free")
	}
	b.worker.Do(func() { b.gate.end(0, OK) }) // its status is gone
	b.await("the end of the queue", func() bool { return len(b.failed) == 1 })
	b.await("the end of the addresses", func() bool { return !kept() })
}

// TestRemoveMemoryOfFailed: the same where the ring has failed before.
func TestRemoveMemoryOfFailed(t *testing.T) {
	b := newBed(t, bedInfo, modern)
	b.gate.hold, b.gate.deaf = true, true
	request := b.buffers(16, 512)
	b.put(header(1, 0), request)
	b.add(request, b.buffers(1))
	b.round()
	b.add(b.buffers(16), nil) // without a status
	b.round()
	if len(b.failed) != 1 || len(b.gate.waiting) != 1 {
		t.Fatal(b.failed, len(b.gate.waiting))
	}
	at := fmt.Sprintf("\n%x-", shm.Address(b.gate.waiting[0].Buffers[0])&^0xfff)
	b.must(b.dev.RemoveMemory(b.regions()[1]))
	if maps, _ := os.ReadFile("/proc/self/maps"); !strings.Contains(string(maps), at) {
		t.Error("addresses that a request under way has are free")
	}
	b.worker.Do(func() { b.gate.end(0, OK) })
}

// TestWake: a kick wakes a sleeping worker, and a driver without kicks is looked at.
func TestWake(t *testing.T) {
	for _, polled := range []bool{false, true} {
		b := newBed(t, bedInfo, modern)
		_, err := b.dev.StopVring(0)
		b.must(err)
		kick := eventfd(t)
		b.drive()
		c := b.vring(nil)
		if c.Kick = kick; polled {
			c.Kick = -1
		}
		b.must(b.dev.StartVring(c))
		b.run()
		for deadline := time.Now().Add(10 * time.Second); b.worker.Stats().Sleeps.Load() == 0; {
			if time.Now().After(deadline) {
				t.Fatal("the worker does not sleep")
			}
			time.Sleep(time.Millisecond)
		}
		readable, writable := b.buffers(16), b.buffers(1)
		b.put(header(4, 0), readable)
		if _, ok := b.driver.Add(readable, writable); !ok {
			t.Fatal("no room")
		}
		if b.driver.Publish() && !polled {
			signal(t, kick)
		}
		b.await("an answer", b.driver.Pending)
		if !signalled(b.call) {
			t.Error("the driver was not called")
		}
		if n := b.worker.Stats().Late.Load(); n > 0 && !polled {
			t.Errorf("%d wakeups were late", n)
		}
	}
}

// TestFailedSiblings: what one queue's guest does to its memory ends the device's queues, and no other device on the same worker.
func TestFailedSiblings(t *testing.T) {
	b, other := newBed(t, bedInfo, modern), newBed(t, bedInfo, modern)
	b.must(truncate(b.fd))
	b.round()
	if len(b.failed) != 1 || len(other.failed) != 0 {
		t.Errorf("%v, %v", b.failed, other.failed)
	}
	if st, _ := other.do(header(1, 0), counting(512), 0); st != 0 {
		t.Errorf("status %d", st)
	}
	if d := b.queue().Arm(); d != dataplane.Forever {
		t.Errorf("a failed queue has the worker sleep %v", d)
	}
}
