package nvmetcp

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// guesser is a controller that says anything about a lane's commands, sent or not.
type guesser struct {
	*blktest.Guess
	rig    *rig
	limits limits
}

func (g *guesser) Connected() bool     { return g.rig.lane.state != laneDown }
func (g *guesser) Connect()            { g.rig.attach(g.Pair(true), g.limits) }
func (g *guesser) Dear(op blk.Op) bool { return op != blk.OpRead }
func (g *guesser) Look()               {}

func (g *guesser) Disconnected() {
	if fd := g.rig.lane.bury(); fd >= 0 {
		unix.Close(fd)
	}
	if l := g.rig.lane; len(l.idle) != len(l.tasks) || !l.waiting.empty() {
		g.Errorf("%d of %d tasks are free, %d wait", len(l.idle), len(l.tasks), l.waiting.n)
	}
}

// guess is a command to speak of; nil: none is found.
func (g *guesser) guess() *command {
	l := g.rig.lane
	for range 100 {
		if c := &l.commands[g.IntN(l.limits.depth)]; c.begun && !c.answered {
			return c
		}
	}
	if g.IntN(500) > 0 {
		return nil
	}
	return &l.commands[g.IntN(l.limits.depth)] // of which there is none
}

// Say makes a PDU about a command.
func (g *guesser) Say() (b []byte, about func() *blk.Request) {
	l, t := g.rig.lane, &g.rig.lane.limits.terms
	c := g.guess()
	if c == nil || !l.connected() {
		return nil, nil
	}
	about = func() *blk.Request {
		if !c.begun || c.task == nobody {
			return nil
		}
		return l.tasks[c.task].request
	}
	h, data, flags := make([]byte, maxDataOffset), []byte(nil), byte(0)
	le.PutUint16(h[8:], c.cid)
	wrong := g.IntN(200) == 0
	some := func(left uint32) uint32 { // of what is left
		switch {
		case wrong:
			return uint32(g.IntN(40 << 10))
		case g.IntN(2) == 0 && left > 4:
			return 1 + uint32(g.IntN(int(left)))
		}
		return left
	}
	kind := byte(pduCapsuleResp)
	switch n := g.IntN(6); {
	case c.op == blk.OpRead && n < 4 && (wrong || c.received < c.length):
		kind = pduC2HData
		data = make([]byte, some(c.length-c.received))
		le.PutUint32(h[12:], c.received)
		if c.received+uint32(len(data)) == c.length {
			flags = [3]byte{0, flagLast, flagLast | flagSuccess}[g.IntN(3)]
		}
		le.PutUint32(h[16:], uint32(len(data)))
	case c.sends() && n < 4 && (wrong || c.capsule == 0 && c.asked < c.length):
		kind = pduR2T
		le.PutUint16(h[10:], uint16(g.Uint32()))
		le.PutUint32(h[12:], c.asked)
		le.PutUint32(h[16:], some(c.length-c.asked))
	default:
		clear(h[8:])
		le.PutUint32(h[8:], g.Uint32())
		le.PutUint16(h[16:], uint16(g.Uint32())) // SQHD
		le.PutUint16(h[20:], c.cid)
		if g.IntN(4) == 0 || !wrong && (c.received < c.length && c.op == blk.OpRead || c.sends() && c.capsule == 0 && c.asked < c.length) {
			le.PutUint16(h[22:], []uint16{0x281, 0x082, 0x001, 0x080}[g.IntN(4)]<<1|1<<15*uint16(g.IntN(2)))
		}
	}
	n := t.seal(h, kind, flags, headerLength, uint32(len(data)))
	b = append(h[:n:n], data...)
	if t.dataDigest && len(data) > 0 {
		b = le.AppendUint32(b, crc32c(data)^uint32(g.IntN(20)/19))
	}
	return b, about
}

// TestGuesses: each request ends once, whatever a controller says when, and from then on not a byte of its memory changes.
func TestGuesses(t *testing.T) {
	limit := time.Second
	if need.Soak() {
		limit = time.Minute
	}
	for _, digest := range []bool{false, true} {
		r := newRig(t, digest)
		g := &guesser{rig: r, limits: rigLimits()}
		g.limits.terms.dataDigest, g.limits.most, g.limits.terms.maxH2CData = digest, 32<<10, 4096
		g.Guess = blktest.NewGuess(r.Rig, r.lane, g, 20<<10)
		g.Run(limit / 2)
	}
}
