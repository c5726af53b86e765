package nbd

import (
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/tools/need"
)

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
		before := blktest.Hold(t)
		reconnect(times)
		now := blktest.Hold(t)
		for end := time.Now().Add(patient); !now.Back(before) && time.Now().Before(end); now = blktest.Hold(t) {
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("%d reconnects: %+v, then %+v", times, before, now)
		if !now.Back(before) {
			t.Error("they left something behind")
		}
	}
}
