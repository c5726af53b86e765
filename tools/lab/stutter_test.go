package lab

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/need"
)

// stutter stops processes by turns for a few milliseconds each, at any instruction, as a machine with too few CPUs does. It returns a function that ends it
// and tells how often it did.
func stutter(t *testing.T, pids ...int) (end func() (stops int)) {
	t.Helper()
	quit, ended, stops := make(chan struct{}), make(chan struct{}), 0
	upTo := func(d time.Duration) { time.Sleep(rand.N(d)) }
	go func() {
		defer close(ended)
		for {
			select {
			case <-quit:
				return
			default:
			}
			pid := pids[rand.N(len(pids))]
			if unix.Kill(pid, unix.SIGSTOP) != nil {
				return // the test has failed, and it is gone
			}
			upTo(4 * time.Millisecond)
			_ = unix.Kill(pid, unix.SIGCONT)
			stops++
			upTo(2 * time.Millisecond)
		}
	}()
	end = sync.OnceValue(func() int {
		close(quit)
		<-ended
		return stops
	})
	t.Cleanup(func() { end() })
	return end
}

// While the daemon and the two front-ends are stopped again and again at any instruction, each side falls asleep and is woken thousands of times between two
// others' steps. No wakeup is missed, which would end the flow for good, and no packet.
func TestStutter(t *testing.T) {
	limit, n := 2*time.Minute, uint64(200_000)
	if need.Soak() {
		limit, n = 20*time.Minute, 5_000_000
	}
	ctx := within(t, limit)
	s := setUp(t, ctx, matrix)
	for _, kinds := range [][2]ring{
		{{path: mergeable, pairs: 1}, {path: inOrder, pairs: 1}},
		{{packed: true, path: mergeable, pairs: 4}, {packed: true, path: inOrderNoMerges, pairs: 1}},
	} {
		t.Run(kinds[0].String()+"; "+kinds[1].String(), func(t *testing.T) {
			a, b := s.front(t, ctx, kinds[0], "a"), s.front(t, ctx, kinds[1], "b")
			end := stutter(t, s.d.PID(), a.PID(), b.PID())
			s.weigh(t, ctx, a, b, kinds[1].mac("b"), 64, n, guestToGuest(kinds[0].port("a"), kinds[1].port("b")))
			s.weigh(t, ctx, b, a, kinds[0].mac("a"), 64, n, guestToGuest(kinds[1].port("b"), kinds[0].port("a")))
			s.weigh(t, ctx, a, nil, macFar, 64, n/4, guestToWire(kinds[0].port("a")))
			t.Logf("they were stopped %d times", end())
			for _, p := range []interface{ Close() error }{a, b} {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
