package blk_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
)

// model is what a guest knows of its disk. Each write of a block has a number, higher than those before, and fills the block with it; a block is written by one
// request at a time.
type model struct {
	*rig
	t       *rapid.T
	version uint64
	blocks  [modelBlocks]struct {
		busy  bool
		acked uint64 // the last write that was acknowledged, or is known to be what is left
	}
	asks   []*ask
	told   uint64 // volume's LossesTold, as of the last look
	stable bool   // durability: fua
	fail   bool   // errors are among what is to be expected
	down   []bool // lanes that know they are
	dead   []bool // lanes whose store is another one by now
}

const modelBlocks = 12

func (m *model) content(block int) uint64 {
	return binary.LittleEndian.Uint64(m.store.Content(block*512, 8))
}

func (m *model) onStable(block int) uint64 {
	return binary.LittleEndian.Uint64(m.store.Stable(block*512, 8))
}

func (m *model) gate() int { return rapid.IntRange(0, len(m.gates)-1).Draw(m.t, "gate") }

func (m *model) lane() int { return rapid.IntRange(0, len(m.down)-1).Draw(m.t, "lane") }

func (m *model) track(a *ask, gate int) {
	m.asks = append(m.asks, a)
	m.send(gate, a)
}

func (m *model) write(*rapid.T) {
	block := rapid.IntRange(0, modelBlocks-1).Draw(m.t, "block")
	b := &m.blocks[block]
	if b.busy {
		return
	}
	b.busy = true
	m.version++
	version, data := m.version, bytes.Repeat(binary.LittleEndian.AppendUint64(nil, m.version), 64)
	a := &ask{Request: blk.Request{Op: blk.OpWrite, Offset: uint64(block * 512), Length: 512, Buffers: [][]byte{data}}}
	a.then = func(a *ask) {
		b.busy = false
		clear(data) // from here on nobody looks at it
		if a.o != blk.OK {
			return
		}
		b.acked = version
		if m.stable && m.onStable(block) != version {
			m.t.Fatalf("block %d: version %d was acknowledged, and %d is on stable storage", block, version, m.onStable(block))
		}
	}
	m.track(a, m.gate())
}

func (m *model) read(*rapid.T) {
	block := rapid.IntRange(0, modelBlocks-1).Draw(m.t, "block")
	b := &m.blocks[block]
	if b.busy {
		return
	}
	into, at, told := make([]byte, 512), b.acked, m.told
	a := &ask{Request: blk.Request{Op: blk.OpRead, Offset: uint64(block * 512), Length: 512, Buffers: [][]byte{into[:100], into[100:]}}}
	a.then = func(a *ask) {
		if a.o != blk.OK || told != m.losses() || m.volume.State().Doubt || m.hidden() {
			return
		}
		if got := binary.LittleEndian.Uint64(into); got < at {
			m.t.Fatalf("block %d: version %d was acknowledged before the read of %d", block, at, got)
		}
	}
	m.track(a, m.gate())
}

// hidden: the store has been another one for a while, and not every lane knows.
func (m *model) hidden() bool {
	for i := range m.dead {
		if m.dead[i] {
			return true
		}
	}
	return false
}

func (m *model) losses() uint64 { return m.volume.State().LossesTold }

// flush: what was acknowledged before it was submitted is stable when it is done well. When one fails for what was lost, the guest takes what it finds.
func (m *model) flush(*rapid.T) {
	var before [modelBlocks]uint64
	for i := range m.blocks {
		before[i] = m.blocks[i].acked
	}
	a := &ask{Request: blk.Request{Op: blk.OpFlush}}
	a.then = func(a *ask) {
		if a.o == blk.OK {
			for i, version := range before {
				if got := m.onStable(i); got < version {
					m.t.Fatalf("block %d: a flush went well after version %d was acknowledged, and %d is on stable storage", i, version, got)
				}
			}
			return
		}
		if told := m.losses(); told != m.told {
			m.told = told
			for i := range m.blocks {
				m.blocks[i].acked = min(m.blocks[i].acked, m.content(i))
			}
		}
	}
	m.track(a, m.gate())
}

func (m *model) brk(*rapid.T) {
	m.store.Break(errCable)
	for i := range m.down {
		m.down[i] = true
	}
}

func (m *model) restore(*rapid.T) {
	for i := range m.down {
		if !m.down[i] || m.dead[i] {
			return
		}
	}
	m.store.Restore(rapid.Bool().Draw(m.t, "kept"))
	clear(m.down)
}

func (m *model) fall(*rapid.T) {
	i := m.lane()
	m.store.Fall(i, errCable)
	m.down[i] = true
}

func (m *model) rise(*rapid.T) {
	if i := m.lane(); m.down[i] {
		m.store.Rise(i, !m.dead[i] && rapid.Bool().Draw(m.t, "kept"))
		m.down[i], m.dead[i] = false, false
	}
}

// restart: see ledger for what it cannot know.
func (m *model) restart(*rapid.T) {
	for i := range m.down {
		if m.down[i] || m.dead[i] {
			return
		}
	}
	m.store.Restart()
	for i := range m.dead {
		m.dead[i] = true
	}
}

func (m *model) time(*rapid.T) {
	m.pass(time.Duration(rapid.IntRange(1, 3000).Draw(m.t, "us")) * time.Microsecond)
}

func (m *model) round(*rapid.T) { m.rounds(1) }

func (m *model) half(*rapid.T) { m.workers[rapid.IntRange(0, 1).Draw(m.t, "worker")].Round() }

func (m *model) silence(*rapid.T) { m.store.Silence(rapid.Bool().Draw(m.t, "on")) }

func (m *model) narrow(*rapid.T) { m.store.SetDepth(rapid.IntRange(1, 8).Draw(m.t, "depth")) }

// withdraw: whatever the store does, requests are back when the lane lets them go.
func (m *model) withdraw(*rapid.T) {
	gate := m.gate()
	m.gates[gate].Withdraw()
	m.rounds(2)
	if n := m.gates[gate].Busy(); n != 0 {
		m.t.Fatalf("%d requests are still at a gate from which they were withdrawn", n)
	}
}

func (m *model) failing(*rapid.T) {
	if !m.fail {
		return
	}
	m.store.Fail(blk.Op(rapid.IntRange(0, 2).Draw(m.t, "op")), 0, blk.Failed)
}

// finish brings everything back and wants every request to be done once.
func (m *model) finish() {
	m.store.Silence(false)
	m.store.SetDepth(64)
	for i := range m.down {
		if m.dead[i] && !m.down[i] {
			m.store.Fall(i, errCable)
			m.down[i] = true
		}
	}
	for i := range m.down {
		if m.down[i] {
			m.store.Rise(i, !m.dead[i])
		}
	}
	clear(m.down)
	clear(m.dead)
	m.pass(2 * time.Second)
	for _, a := range m.asks {
		if a.done != 1 {
			m.t.Fatalf("a request of kind %v is done %d times", a.Op, a.done)
		}
	}
	if told := m.losses(); m.volume.State().Doubt || told != m.told {
		return
	}
	for i := range m.blocks {
		if got := m.content(i); got < m.blocks[i].acked {
			m.t.Fatalf("block %d: version %d was acknowledged, and %d is there", i, m.blocks[i].acked, got)
		}
	}
}

// Whatever a store does, each request is done once, what was acknowledged is there, and a flush that went well covers what it must.
func TestGateProperties(t *testing.T) {
	workers := dataplanetest.NewWorkers(t, 2, 16)
	rapid.Check(t, func(rt *rapid.T) {
		p := blk.Policy{
			OnError:    blk.OnError(rapid.IntRange(0, 1).Draw(rt, "on-error")),
			Timeout:    time.Duration(rapid.SampledFrom([]int{0, 1, 5}).Draw(rt, "timeout")) * time.Millisecond,
			Durability: blk.Durability(rapid.IntRange(0, 1).Draw(rt, "durability")),
		}
		if rapid.Bool().Draw(rt, "limited") {
			p.Limits = blk.LimitOptions{IOPS: 5000, BPS: 2_000_000, Burst: time.Millisecond}
		}
		r := openRig(t, workers, 3, blktest.Options{
			Size: modelBlocks * 512, Depth: 8, NoFUA: rapid.Bool().Draw(rt, "no FUA"), Seed: rapid.Uint64().Draw(rt, "seed"),
			Delay:  time.Duration(rapid.IntRange(0, 300).Draw(rt, "delay")) * time.Microsecond,
			Jitter: time.Duration(rapid.IntRange(0, 300).Draw(rt, "jitter")) * time.Microsecond,
		}, p)
		defer r.close()
		m := &model{rig: r, t: rt, stable: p.Durability == blk.DurabilityFUA, fail: rapid.Bool().Draw(rt, "failing")}
		m.down, m.dead = make([]bool, r.store.Lanes()), make([]bool, r.store.Lanes())
		rt.Repeat(map[string]func(*rapid.T){
			"write": m.write, "write more": m.write, "read": m.read, "flush": m.flush, "flush more": m.flush,
			"break": m.brk, "restore": m.restore, "restore again": m.restore, "fall": m.fall, "rise": m.rise, "rise again": m.rise, "restart": m.restart,
			"time": m.time, "round": m.round, "one worker": m.half, "silence": m.silence, "depth": m.narrow, "withdraw": m.withdraw, "fail": m.failing,
		})
		m.finish()
	})
}
