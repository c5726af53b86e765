package nbd

import (
	"testing"

	"github.com/shuntio/shunt/blk"
)

// TestPieces: however small the pieces are that a large payload comes in, it costs the worker one receive for each 64 KiB.
func TestPieces(t *testing.T) {
	const length, piece = 128 << 10, 4 << 10
	m := newMock(t).serve()
	u := newBench(t).use(open(t, m.options()))
	client := m.client()
	data := make([]byte, length)
	for i := range data {
		data[i] = byte(i ^ i>>8)
	}
	before := u.b.ring.Stats().Operations.Load()
	a := ask(blk.OpRead, 0, u.memory[:length])
	u.submit(a)
	for answer := dataChunk(client.next(), chunkDone, 0, data); len(answer) > 0; {
		n := min(piece, len(answer))
		client.send(answer[:n])
		answer = answer[n:]
		u.settle(client)
	}
	u.ends(a, blk.OK)
	same(t, "the read", u.memory[:length], data)
	const most = 8 // polls, the send, the header with what came along, two pieces of 64 KiB, what is left of the first
	u.b.worker.Do(func() {})
	if n := u.b.ring.Stats().Operations.Load() - before; n > most {
		t.Errorf("%d operations for %d pieces, want at most %d", n, length/piece, most)
	} else {
		t.Logf("%d operations", n)
	}
}

// TestHoleInGoes: a hole that is zeroed in several goes comes to its end though nothing more comes from the server, and what is behind it is answered.
func TestHoleInGoes(t *testing.T) {
	const length = 8*mostZeroed + 512
	m := newMock(t).serve()
	u := newBench(t).use(open(t, m.options()))
	client := m.client()
	a, flush := ask(blk.OpRead, 0, u.memory[:length/2], u.memory[length/2:length]), ask(blk.OpFlush, 0)
	for i := range u.memory[:length] {
		u.memory[i] = 1
	}
	u.submit(a, flush)
	read := client.next()
	client.send(holeChunk(read, chunkDone, 0, length), simpleReply(client.next(), 0))
	u.ends(a, blk.OK)
	u.ends(flush, blk.OK)
	same(t, "the read", u.memory[:length], make([]byte, length))
}
