package blk

import (
	"testing"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/virtq"
)

// A request is as long as a firmware's may be, and no longer, however many gigabytes its descriptors claim: it fails, and nothing of its length is lost on the way.
func TestLongestRequest(t *testing.T) {
	m, err := shm.Map(shm.MapOptions{FD: -1, Length: 4 << 30}) // of which little is ever touched
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	memory := m.Bytes()
	l := limitsOf(&Info{Size: 1 << 50, BlockSize: 512}, "")
	for name, c := range map[string]struct {
		pieces []int
		want   status
		length uint64
	}{
		"the longest":           {[]int{1 << 30}, handOn, 1 << 30},
		"the longest, in parts": {[]int{1 << 29, 512, 1<<29 - 512}, handOn, 1 << 30},
		"a sector more":         {[]int{1 << 30, 512}, statusIOErr, 0},
		"4 GiB":                 {[]int{4<<30 - 512, 512}, statusIOErr, 0},
		"4 GiB and a sector":    {[]int{4<<30 - 512, 1024}, statusIOErr, 0}, // which 32 bits would call a sector
		"500 GiB": {func() (all []int) {
			for range SegMax {
				all = append(all, 4<<30-512)
			}
			return all
		}(), statusIOErr, 0},
	} {
		for kind, op := range map[uint32]Op{typeIn: OpRead, typeOut: OpWrite} {
			s := slot{chain: virtq.NewChain(maxBuffers)}
			s.chain.Readable, s.chain.Writable = [][]byte{header(kind, 8)}, [][]byte{{0xff}}
			for _, n := range c.pieces {
				if op == OpWrite {
					s.chain.Readable = append(s.chain.Readable, memory[:n])
				} else {
					s.chain.Writable = append([][]byte{memory[:n]}, s.chain.Writable...)
				}
			}
			got, err := s.parse(l, false)
			if err != nil || got != c.want || s.Length != c.length {
				t.Errorf("%v, %s: status %d, %d bytes; %v", op, name, got, s.Length, err)
			}
		}
	}
}

// The whole of a long request counts under a limit.
func TestLongRequestCounts(t *testing.T) {
	const second = 1e9
	l := NewLimit(LimitOptions{BPS: 1 << 27})
	if from := l.reserve(0, &Request{Op: OpRead, Length: maxRequest}); from > 0 {
		t.Errorf("the first one waits for %d ns", from)
	}
	if from := l.reserve(0, &Request{Op: OpRead, Length: 512}); from < 7.8*second || from > 8*second {
		t.Errorf("behind 1 GiB, at an eighth of that a second, the next one waits for %d ns", from)
	}
}
