package nvmetcp

import (
	"bytes"
	"runtime/debug"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/uring"
)

// script is a lane without a socket: what it would receive is put into its buffer, and what it would send is thought of as sent.
type script struct {
	t      testing.TB
	lane   *lane
	memory []byte
	guard  []byte // as much
	jobs   []scripted
	over   bool
}

// scripted is a request of a script, in a part of the memory of its own.
type scripted struct {
	blk.Request
	s     *script
	ended int
	o     blk.Outcome
}

func (j *scripted) Done(_ *blk.Request, o blk.Outcome) { j.ended, j.o = j.ended+1, o }
func (s *script) Up(bool)                              {}
func (s *script) Down(error)                           { s.over = true }
func (s *script) Room()                                {}

const (
	scriptEdge  = 512
	scriptPart  = 8<<10 + 2*scriptEdge // of the memory, for each request, with a guard before and behind
	scriptGuard = 0x5a
)

// scriptSizes are what the requests are: reads of several lengths, writes that need R2Ts, one in its capsule, a flush, a discard that needs an R2T.
var scriptSizes = []struct {
	op   blk.Op
	size uint64
}{{blk.OpRead, 512}, {blk.OpRead, 1024}, {blk.OpRead, 4096}, {blk.OpWrite, 8192}, {blk.OpWrite, 512}, {blk.OpFlush, 0}, {blk.OpDiscard, 4096}, {blk.OpRead, 8192}}

func newScript(t testing.TB) *script {
	ring, err := uring.Open(uring.Options{Entries: 8})
	if err != nil {
		t.Fatal(err)
	}
	m, err := uring.NewMemory(scriptPart * len(scriptSizes))
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, memory: m.Bytes(), guard: bytes.Repeat([]byte{scriptGuard}, len(m.Bytes())), jobs: make([]scripted, len(scriptSizes))}
	store := &Store{o: Options{QueueDepth: 8, DataDigest: true}, lanes: make([]*lane, 1)}
	if s.lane, err = newLane(store, blk.Host{Worker: dataplanetest.NewWorker(t, 8), Ring: ring}, s); err != nil {
		t.Fatal(err)
	}
	s.lane.qid, store.lanes[0] = 1, s.lane
	s.lane.out, s.lane.in = ring.Vector(vectorSize), ring.Vector(vectorSize)
	t.Cleanup(func() {
		s.lane.release()
		ring.Close()
		m.Free()
	})
	return s
}

// begin submits the requests anew; CIDs are their index, then.
func (s *script) begin(t terms) {
	l := s.lane
	l.idle = l.idle[:0]
	for i := range l.tasks {
		l.idle = append(l.idle, int32(len(l.tasks)-1-i))
	}
	l.association, l.limits = newAssociation(), rigLimits()
	l.limits.terms, l.limits.depth, l.limits.inCapsule = t, 8, 0
	l.quiet, l.broken, l.why = make(chan struct{}), nil, nil
	l.reset()
	for i := range l.commands {
		l.commands[i].uses = 63 // the next CIDs are 0 to 7
	}
	l.state, l.pumping, s.over = laneUp, true, false
	copy(s.memory, s.guard)
	for i, k := range scriptSizes {
		j := &s.jobs[i]
		*j = scripted{Request: blk.Request{Op: k.op, Offset: uint64(i) << 20, Length: k.size}, s: s}
		j.Handler = j
		if k.op <= blk.OpWrite {
			part := s.memory[i*scriptPart+scriptEdge:][:k.size]
			j.Buffers = [][]byte{part[:100], part[100:101], part[101:]}
		}
		if !l.Submit(&j.Request) {
			s.t.Fatal("refused")
		}
	}
	s.pretend()
}

// pretend is what sending does, without a socket.
func (s *script) pretend() {
	l := s.lane
	for !l.line.empty() {
		c := &l.commands[l.line.pop()]
		c.queued = false
		if c.over {
			l.reclaim(c)
			continue
		}
		c.begun, c.granted = true, 0
	}
}

// feed gives the lane bytes, in pieces of a size.
func (s *script) feed(b []byte, piece int) {
	l := s.lane
	for len(b) > 0 && l.connected() && l.broken == nil {
		copy(l.buffer, l.buffer[l.r:l.w])
		l.r, l.w = 0, l.w-l.r
		n := copy(l.buffer[l.w:], b[:min(piece, len(b))])
		if n == 0 {
			s.t.Fatal("the lane's buffer is full, and it waits for more")
		}
		l.w += n
		b = b[n:]
		l.consume()
		s.pretend()
	}
}

// end takes the connection away, and looks whether everything is in order.
func (s *script) end() {
	l := s.lane
	l.fail(errGone)
	for i := range s.jobs {
		j := &s.jobs[i]
		if j.ended != 1 {
			s.t.Errorf("%v %d ended %d times", j.Op, i, j.ended)
		}
		part, untouched := s.memory[i*scriptPart:][:scriptPart], [2]int{scriptPart, scriptPart}
		if j.Op == blk.OpRead {
			untouched = [2]int{scriptEdge, scriptEdge + int(j.Length)}
		}
		if !bytes.Equal(part[:untouched[0]], s.guard[:untouched[0]]) || !bytes.Equal(part[untouched[1]:], s.guard[untouched[1]:scriptPart]) {
			s.t.Fatalf("memory beside %v %d was touched", j.Op, i)
		}
	}
	if len(l.idle) != len(l.tasks) || !l.waiting.empty() || l.state != laneDown {
		s.t.Errorf("%d of %d tasks are free, %d wait, state %d", len(l.idle), len(l.tasks), l.waiting.n, l.state)
	}
}

// scripts are streams to begin with: what a good controller says, and what others may.
func scripts() (streams [][]byte) {
	pdu := func(kind, flags byte, cid uint16, offset, length uint32, data int) []byte {
		b := make([]byte, headerLength, headerLength+data)
		header(b).common(kind, flags, headerLength, 0, uint32(headerLength+data))
		le.PutUint16(b[8:], cid)
		le.PutUint32(b[12:], offset)
		le.PutUint32(b[16:], length)
		if data > 0 {
			b[3] = headerLength
			for i := range data {
				b = append(b, byte(i))
			}
		}
		return b
	}
	response := func(cid, status uint16) []byte {
		b := pdu(pduCapsuleResp, 0, 0, 0, 0, 0)
		le.PutUint16(b[20:], cid)
		le.PutUint16(b[22:], status)
		return b
	}
	sealed := func(b []byte, header, data bool) []byte {
		t := terms{headerDigest: header, dataDigest: data, align: 4}
		h := make([]byte, maxDataOffset)
		copy(h, b[:headerLength])
		payload := b[headerLength:]
		n := t.seal(h, b[0], b[1], headerLength, uint32(len(payload)))
		out := append(append([]byte(nil), h[:n]...), payload...)
		if data && len(payload) > 0 {
			out = le.AppendUint32(out, crc32c(payload))
		}
		return out
	}
	const both = flagLast | flagSuccess
	good := [][]byte{pdu(pduC2HData, both, 0, 0, 512, 512), pdu(pduC2HData, 0, 1, 0, 512, 512), pdu(pduC2HData, flagLast, 1, 512, 512, 512), response(1, 0),
		pdu(pduR2T, 0, 3, 0, 8192, 0), response(5, 0), pdu(pduR2T, 0, 4, 0, 512, 0), pdu(pduR2T, 0, 6, 0, 16, 0), response(2, 0x281<<1|1<<15)}
	for digests := range 4 {
		all := []byte{byte(digests), 63}
		for _, b := range good {
			all = append(all, sealed(b, digests&1 != 0, digests&2 != 0)...)
		}
		streams = append(streams, all)
	}
	for _, bad := range [][]byte{response(0, 0), response(9, 0), response(2, 0x281<<1|1<<15), pdu(pduC2HData, both, 2, 0, 4096, 1000), pdu(pduC2HTermReq, 0, 4, 0, 0, 0),
		pdu(pduR2T, 0, 0, 0, 512, 0), pdu(pduC2HData, 0, 0, 512, 512, 512)} {
		streams = append(streams, append([]byte{0, 7}, bad...))
	}
	return streams
}

// FuzzStream: whatever a controller sends, no memory beside a read is touched, every request ends once, and nothing panics or
// hangs.
func FuzzStream(f *testing.F) {
	for _, b := range scripts() {
		f.Add(b)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	s := newScript(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 2 {
			return
		}
		s.t = t
		s.begin(terms{headerDigest: b[0]&1 != 0, dataDigest: b[0]&2 != 0, align: 4, maxH2CData: 4096})
		s.feed(b[2:], int(b[1])*16+1)
		s.end()
	})
}

// The streams of a good controller bring the requests to their ends, however they are cut to pieces.
func TestStream(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	s := newScript(t)
	for _, b := range scripts()[:4] {
		for _, piece := range []int{1, 7, 24, 1000, 1 << 20} {
			s.begin(terms{headerDigest: b[0]&1 != 0, dataDigest: b[0]&2 != 0, align: 4, maxH2CData: 4096})
			s.feed(b[2:], piece)
			for i, want := range []int{1, 1, 1, 0, 0, 1, 0, 0} {
				if j := &s.jobs[i]; j.ended != want || want == 1 && j.o != blk.OK && i != 2 {
					t.Errorf("pieces of %d: %v %d ended %d times, outcome %d; %v", piece, j.Op, i, j.ended, j.o, s.lane.why)
				}
			}
			if !s.over {
				for _, cid := range []uint16{3, 4, 6} { // their data has been sent
					s.respond(cid)
				}
			}
			for _, i := range []int{3, 4, 6} {
				if j := &s.jobs[i]; j.ended != 1 || j.o != blk.OK {
					t.Errorf("pieces of %d: %v %d ended %d times, outcome %d; %v", piece, j.Op, i, j.ended, j.o, s.lane.why)
				}
			}
			s.end()
		}
	}
}

// respond feeds a response capsule.
func (s *script) respond(cid uint16) {
	h := make([]byte, maxDataOffset)
	le.PutUint16(h[20:], cid)
	s.feed(h[:s.lane.limits.terms.seal(h, pduCapsuleResp, 0, headerLength, 0)], 100)
}

// FuzzIdentify: what a controller says of itself and its namespaces.
func FuzzIdentify(f *testing.F) {
	page := make([]byte, pageLength)
	page[1], page[128+2] = 1, 9
	f.Add(page)
	f.Fuzz(func(t *testing.T, b []byte) {
		page := make([]byte, pageLength)
		copy(page, b)
		c := parseController(page)
		c.inCapsule()
		if n, err := parseNamespace(page); err == nil {
			n.bound(b256(b), 12)
			if i := n.info(c); i.Size%uint64(i.BlockSize) != 0 || i.Size == 0 || i.PhysicalBlock&(i.PhysicalBlock-1) != 0 {
				t.Errorf("info %+v", i)
			}
			a := &association{o: &Options{QueueDepth: 128}, entries: 128, page: 12, controller: c, namespace: n}
			if l := a.limits(terms{align: 4}); l.most == 0 || l.most%(1<<n.Shift) != 0 || l.mostZeroes == 0 || l.mostDiscard == 0 || l.inCapsule%4 != 0 {
				t.Errorf("limits %+v", l)
			}
		}
		var id identity
		id.descriptors(b)
		parseANA(b, 1, 1)
		parseHealth(page)
		parseDiscovery(page[:discoveryEntry])
	})
}

// b256 is the beginning of a page, whose rest nobody reads.
func b256(b []byte) []byte {
	page := make([]byte, 256)
	copy(page, b)
	return page
}
