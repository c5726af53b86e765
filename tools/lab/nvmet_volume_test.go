package lab

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver"
	"github.com/shuntio/shunt/blk/driver/verify"
	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// nvmeVolumes has shuntd serve namespaces of the target at an address to drivers that do what guests may, where a relay can lose the way between:
//
//	driver ─ vhost-user ─ shuntd ─ io_uring, TCP ─ relay ─ TCP, QEMU ─ nvmet
func nvmeVolumes(t *testing.T, g *guest.Guest, at string) {
	rounds := 8
	if need.Soak() {
		rounds = 1000
	}
	limit := time.Minute + time.Duration(rounds)*200*time.Millisecond
	r, own := relay(t, "tcp", "127.0.0.1:0", at), relay(t, "tcp", "127.0.0.1:0", at)
	const source = "nvme+tcp://%s/" + nvmetName + "?kato=%s&nsid=%d"
	const patient, quick = "10s", "1s" // a guest may stand still for the one on a busy machine, and a fence takes the other
	s := newShelf(t, "[1]")
	s.volume("digests", fmt.Sprintf(source, r.Addr(), patient, 1), ", digests: {header: true, data: true}")
	s.volume("plain", fmt.Sprintf(source, r.Addr(), patient, 1), "")
	s.volume("fenced", fmt.Sprintf(source, own.Addr(), quick, 1), "")
	s.volume("neighbour", fmt.Sprintf(source, r.Addr(), patient, 7), ", digests: {data: true}")
	d := start(t, nil, "shuntd", s.config.String())

	t.Run("rewritten", func(t *testing.T) {
		ctx := within(t, limit)
		o := verify.Options{MaxBytes: 64 << 10, Mix: verify.Mix{Read: 45, Write: 50, Flush: 5}}
		neighbour := s.user(t, "neighbour", ringForms["split"], o)
		neighbour.begin(t)
		for _, volume := range []string{"digests", "plain"} {
			disk := s.dial(t, volume, driver.Options{Memory: rewriterMemory})
			w := newRewriter(t, disk)
			w.run(t, ctx, rounds)
			w.check(t)
			unnoticed(t, d, volume)
			must(t, disk.Close())
		}
		must(t, moves(ctx, 1, neighbour))
		neighbour.end(t)
		neighbour.check(t)
		unnoticed(t, d, "neighbour")
		must(t, neighbour.disk.Close())
	})
	t.Run("memory removed", func(t *testing.T) {
		ctx := within(t, limit)
		removed := &answered{name: "removal of memory"}
		for _, volume := range []string{"digests", "plain"} {
			for _, passes := range []int64{0, 10, 300 << 10} {
				s.takenAway(t, ctx, volume, r, removed, passes)
			}
		}
		removed.judge(t)
	})
	t.Run("fenced", func(t *testing.T) { s.fenced(t, within(t, time.Minute), g, "fenced", own) })
}

// fenced: a write is on its way when its connection breaks, and arrives after it was done again and a newer one was acknowledged. The target has fenced the association
// that it is of before there was another, so the newer one stays.
func (s *shelf) fenced(t *testing.T, ctx context.Context, g *guest.Guest, name string, r *peer.Relay) {
	y, err := s.dial(t, name, driver.Options{}).NewSync(0, 4096)
	must(t, err)
	_, err = y.WriteAt(make([]byte, 4096), 0)
	must(t, err)
	must(t, y.Flush())
	r.Now().Requests.Hold(0)
	began, acked := time.Now(), make(chan error, 1)
	go func() {
		_, err := y.WriteAt(bytes.Repeat([]byte{'A'}, 4096), 0)
		acked <- err
	}()
	eventually(t, ctx, "nothing is sent", func() bool { return r.Now().Requests.Held() >= 4096 })
	old := r.Cut()
	must(t, <-acked)
	took := time.Since(began)
	over := old.Over()
	_, err = y.WriteAt(bytes.Repeat([]byte{'B'}, 4096), 0)
	must(t, err)
	must(t, y.Flush())
	old.Requests.LetGo()
	eventually(t, ctx, "the target keeps connections of the old association", func() bool { return old.Over() == old.Connections() })
	out, err := g.Shell(ctx, "dd if=/dev/loop0 bs=4096 count=1 iflag=direct 2>/dev/null")
	if err != nil || out != strings.Repeat("B", 4096) {
		t.Errorf("the disk has %.8q at the end: %v", out, err)
	}
	t.Logf("the write was done again and acknowledged after %v; of %d old connections the target had ended %d by then", took.Round(time.Millisecond), old.Connections(), over)
}
