package nbd

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/tools/need"
)

// holdings are what a process has of what reconnects could leave behind.
type holdings struct{ files, goroutines int }

func hold(t *testing.T) holdings {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return holdings{len(files), runtime.NumGoroutine()}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestReconnectsLeaveNothing has a server hang up again and again.
func TestReconnectsLeaveNothing(t *testing.T) {
	times := 20
	if need.Soak() {
		times = 1000
	}
	c := newCertificates(t)
	for _, secure := range []bool{false, true} {
		m := newMock(t)
		o := m.options()
		if secure {
			m.secure = c.server(t)
			o.URI, o.TLS = strings.Replace(o.URI, "nbd+", "nbds+", 1), TLS{CA: c.file("ca-cert.pem"), ServerName: "localhost"}
		}
		m.serve()
		u := newBench(t).use(open(t, o))
		ups := 1
		reconnect := func(n int) {
			for range n {
				u.await("the lane", func() bool { return len(u.ups) == ups })
				client := m.client()
				f := ask(blk.OpFlush, 0)
				u.submit(f)
				client.send(none(client.next()))
				u.ends(f, blk.OK)
				client.Close()
				ups++
			}
			u.await("the lane", func() bool { return len(u.ups) == ups })
		}
		reconnect(5)
		before, memory := hold(t), heap()
		reconnect(times)
		for end := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
			now := hold(t)
			if now.files <= before.files && now.goroutines <= before.goroutines {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%d reconnects: %+v, then %+v", times, before, now)
			}
		}
		t.Logf("%d reconnects: %+v, then %+v; heap %d, then %d bytes", times, before, hold(t), memory, heap())
		if now := heap(); now > memory+memory/4+256<<10 {
			t.Errorf("%d bytes of heap, %d before %d reconnects", now, memory, times)
		}
	}
}
