package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver/hostile"
	"github.com/shuntio/shunt/blk/driver/verify"
	"github.com/shuntio/shunt/tools/lab/daemon"
)

// TestHostileDisks: guests with rings of either format do to their disks whatever there is that a driver must not, while their neighbour on the same worker
// verifies its own. The daemon lives, what the hostile disks hold is as it was, the neighbour's load goes on and loses nothing, and the log says who it was.
func TestHostileDisks(t *testing.T) {
	ctx := within(t, 3*time.Minute)
	s := newShelf(t, "[1]")
	s.file(t, "neighbour", "")
	var villains []villain
	for ring, o := range ringForms {
		for i := range each {
			v := villain{name: fmt.Sprintf("villain-%s-%d", ring, i)}
			v.options = hostile.Options{Path: s.socket(v.name), Packed: o.Packed, Inflight: true, Silence: 30 * time.Millisecond}
			for at, a := range hostile.Attacks(o.Packed) {
				if at%each == i {
					v.attacks = append(v.attacks, a)
				}
			}
			s.file(t, v.name, "")
			villains = append(villains, v)
		}
	}
	d := start(t, namespace(t, "host"), "shuntd", s.config.String())
	pid := d.PID()
	u := s.user(t, "neighbour", ringForms["packed"], verify.Options{MaxBytes: 64 << 10})
	u.begin(t)
	var all sync.WaitGroup
	for _, v := range villains {
		all.Go(func() { v.run(t, ctx, u) })
	}
	all.Wait()
	if !d.Running() || d.PID() != pid {
		t.Fatal("the daemon has not lived through it")
	}
	r := u.end(t)
	u.check(t)
	u.checkImage(t, s.image("neighbour"))
	if strings.Contains(warnings(d, "neighbour"), "volume=") {
		t.Errorf("the log blames the neighbour:\n%s", warnings(d, "neighbour"))
	}
	attacks, reasons := 0, 0
	for _, v := range villains {
		attacks += len(v.attacks)
		n := strings.Count(warnings(d, v.name), "reason=")
		if reasons += n; n == 0 {
			t.Errorf("the log does not say what the guest of %s did", v.name)
		}
	}
	t.Logf("%d attacks, %d lines with a volume and a reason; the neighbour had %d requests", attacks, reasons, r.Requests())
}

// warnings are the log's lines about a volume, but for those that only inform.
func warnings(d *daemon.Daemon, volume string) string {
	var b strings.Builder
	for line := range strings.Lines(d.Log()) {
		if strings.Contains(line, "volume="+volume+" ") && !strings.Contains(line, "level=INFO") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// villain is a guest with its share of the attacks.
type villain struct {
	name    string
	options hostile.Options
	attacks []hostile.Attack
}

// each is how many there are for each format of ring.
const each = 4

// run carries them out; after each the neighbour must go on.
func (v *villain) run(t *testing.T, ctx context.Context, neighbour *user) {
	if err := hostile.Prepare(ctx, v.options); err != nil {
		t.Errorf("%s: %v", v.name, err)
		return
	}
	for _, a := range v.attacks {
		if err := attack(ctx, a, v.options); err != nil {
			t.Errorf("%s, %s: %v", v.name, a.Name, err)
		}
		if err := moves(ctx, 1, neighbour); err != nil {
			t.Errorf("%s, %s: %v", v.name, a.Name, err)
			return
		}
	}
}

// attack runs one with a bound of its own.
func attack(ctx context.Context, a hostile.Attack, o hostile.Options) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errors.New("it took too long"))
	defer cancel()
	return a.Run(ctx, o)
}
