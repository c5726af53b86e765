package blk

import (
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/virtq"
)

// recorder is a store that does not answer, and notes when it was asked for its requests back.
type recorder struct {
	ram
	when time.Time
}

func (g *recorder) Withdraw() {
	if g.when.IsZero() {
		g.when = time.Now()
	}
	g.ram.Withdraw()
}

// TestRemoveMemoryOfMany: a front-end waits once for the store, however many queues have requests in the memory that it removes.
func TestRemoveMemoryOfMany(t *testing.T) {
	const queues = 3
	b := bare(t, modern, bedQueue)
	var gates []*recorder
	var all []*Queue
	for range queues {
		g := &recorder{ram: ram{disk: make([]byte, bedSize), hold: true, deaf: true}}
		gates = append(gates, g)
		all = append(all, &Queue{worker: b.worker, gate: g})
	}
	b.dev = newDevice(bedInfo, "a-disk", all...)
	b.dev.failed = func(error) {}
	b.connect()
	t.Cleanup(func() {
		for i := range all {
			_, _ = b.dev.StopVring(i)
		}
		b.dev.Disconnected()
	})
	for i := range all {
		at := i * 0x5000 // each ring's tables
		var err error
		b.driver, err = virtq.NewDriver(virtq.DriverOptions{
			Layout: virtq.Layout{Desc: b.memory[at:], Avail: b.memory[at+0x2000:], Used: b.memory[at+0x4000:]}, Size: b.size,
		})
		b.must(err)
		c := b.vring(nil)
		c.Index, c.DescAddr, c.AvailAddr, c.UsedAddr = i, c.DescAddr+uint64(at), c.AvailAddr+uint64(at), c.UsedAddr+uint64(at)
		b.must(b.dev.StartVring(c))
		request := b.buffers(16, 512)
		b.put(header(1, 0), request)
		b.add(request, b.buffers(1))
	}
	b.worker.Do(func() {
		for _, q := range all[1:] {
			b.worker.Add(q)
		}
	})
	b.run()
	b.await("requests at the store", func() bool {
		return len(gates[0].waiting)+len(gates[1].waiting)+len(gates[2].waiting) == queues
	})
	b.must(b.dev.RemoveMemory(b.regions()[1]))
	if apart := gates[queues-1].when.Sub(gates[0].when); gates[queues-1].when.IsZero() || apart >= withdrawTime {
		t.Errorf("the last queue's requests are called back %v after the first one's", apart)
	}
	b.worker.Do(func() {
		for _, g := range gates {
			g.end(0, OK)
		}
	})
}
