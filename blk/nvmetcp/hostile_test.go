package nvmetcp

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/nvmetcp/nvmetcptest"
)

// trick is what a hostile target answers to the first command of a kind.
type trick struct {
	name   string
	op     blk.Op
	size   uint64
	answer func(q *nvmetcptest.Queue, cid uint16) []byte
	want   string // of why the lane goes down; empty: it does not
	term   uint32 // the status of the TermReq that we send; 0: none
	ends   blk.Outcome
}

func pdu(b ...byte) []byte { return append(b, make([]byte, max(0, 24-len(b)))...) }

func tricks() []trick {
	type q = *nvmetcptest.Queue
	block := make([]byte, 4096)
	long := make([]byte, 64<<10)
	const both = flagLast | flagSuccess
	lost := func(name string, op blk.Op, size uint64, term uint32, want string, answer func(q q, cid uint16) []byte) trick {
		return trick{name, op, size, answer, want, term, blk.Lost}
	}
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	return []trick{
		lost("answer to nothing", blk.OpRead, 4096, fesSequence, "which is not under way", func(q q, cid uint16) []byte { return q.Response(cid+1, 0, 0) }),
		lost("answer to a former use of the CID", blk.OpRead, 4096, fesSequence, "which is not under way", func(q q, cid uint16) []byte { return q.Response(cid-1<<indexBits, 0, 0) }),
		lost("answer beyond the queue", blk.OpRead, 4096, fesSequence, "which is not under way", func(q q, cid uint16) []byte { return q.Response(cid|1<<indexBits-1, 0, 0) }),
		lost("data for nothing", blk.OpRead, 4096, fesSequence, "data for command", func(q q, cid uint16) []byte { return q.Data(cid+1, 0, block, both) }),
		lost("data beyond the request", blk.OpRead, 4096, fesOutOfRange, "bytes of data at", func(q q, cid uint16) []byte { return q.Data(cid, 0, long, both) }),
		lost("data at an offset beyond", blk.OpRead, 4096, fesOutOfRange, "bytes of data at", func(q q, cid uint16) []byte { return q.Data(cid, 4096, block, both) }),
		lost("data at an offset that wraps", blk.OpRead, 4096, fesOutOfRange, "bytes of data at", func(q q, cid uint16) []byte { return q.Data(cid, -4096, block, both) }),
		lost("data in the wrong order", blk.OpRead, 64<<10, fesOutOfRange, "where 0 is next", func(q q, cid uint16) []byte { return q.Data(cid, 32<<10, long[:32<<10], flagLast) }),
		lost("data twice", blk.OpRead, 8192, fesOutOfRange, "where 4096 is next", func(q q, cid uint16) []byte {
			return join(q.Data(cid, 0, block, 0), q.Data(cid, 0, block, 0))
		}),
		lost("data after the last", blk.OpRead, 4096, fesSequence, "data for command", func(q q, cid uint16) []byte {
			return join(q.Data(cid, 0, block, both), q.Data(cid, 0, block, both))
		}),
		lost("no data in a data PDU", blk.OpRead, 4096, fesInvalidHeader, "C2HData without data", func(q q, cid uint16) []byte { return q.Data(cid, 0, []byte{}, 0) }),
		lost("the last data too early", blk.OpRead, 8192, fesSequence, "bytes missing", func(q q, cid uint16) []byte { return q.Data(cid, 0, block, flagLast) }),
		lost("SUCCESS without LAST", blk.OpRead, 4096, fesInvalidHeader, "SUCCESS but not LAST", func(q q, cid uint16) []byte { return q.Data(cid, 0, block, flagSuccess) }),
		lost("success without data", blk.OpRead, 4096, fesSequence, "succeeded with 0 of 4096", func(q q, cid uint16) []byte { return q.Response(cid, 0, 0) }),
		lost("success with half the data", blk.OpRead, 8192, fesSequence, "succeeded with 4096 of 8192", func(q q, cid uint16) []byte {
			return join(q.Data(cid, 0, block, 0), q.Response(cid, 0, 0))
		}),
		lost("data for a flush", blk.OpFlush, 0, fesSequence, "data for a flush", func(q q, cid uint16) []byte { return q.Data(cid, 0, block, both) }),
		lost("data for a write", blk.OpWrite, 4096, fesSequence, "data for a write", func(q q, cid uint16) []byte { return q.Data(cid, 0, block, both) }),
		lost("R2T for a read", blk.OpRead, 4096, fesSequence, "R2T for a read", func(q q, cid uint16) []byte { return q.R2T(cid, 1, 0, 4096) }),
		lost("R2T for nothing", blk.OpWrite, 64<<10, fesSequence, "R2T for command", func(q q, cid uint16) []byte { return q.R2T(cid+1, 1, 0, 4096) }),
		lost("R2T beyond the request", blk.OpWrite, 64<<10, fesOutOfRange, "R2T for", func(q q, cid uint16) []byte { return q.R2T(cid, 1, 0, 64<<10+4) }),
		lost("R2T that wraps", blk.OpWrite, 64<<10, fesOutOfRange, "R2T for", func(q q, cid uint16) []byte { return q.R2T(cid, 1, -4096, 8192) }),
		lost("R2T for what lies before", blk.OpWrite, 64<<10, fesOutOfRange, "where 0 is next", func(q q, cid uint16) []byte { return q.R2T(cid, 1, 4096, 4096) }),
		lost("R2T for nothing at all", blk.OpWrite, 64<<10, fesOutOfRange, "R2T for 0 bytes", func(q q, cid uint16) []byte { return q.R2T(cid, 1, 0, 0) }),
		lost("two R2Ts at once", blk.OpWrite, 64<<10, fesLimit, "a second R2T", func(q q, cid uint16) []byte {
			return join(q.R2T(cid, 1, 0, 4096), q.R2T(cid, 2, 4096, 4096))
		}),
		lost("a write that needed no data", blk.OpWrite, 64<<10, fesSequence, "without 65536 bytes of its data", func(q q, cid uint16) []byte { return q.Response(cid, 0, 0) }),
		lost("unknown type", blk.OpRead, 4096, fesInvalidHeader, "PDU type 0xb", func(q, uint16) []byte { return pdu(0xb, 0, 24, 0, 24) }),
		lost("ICResp again", blk.OpRead, 4096, fesInvalidHeader, "PDU type 0x1", func(q, uint16) []byte { return pdu(1, 0, 128, 0, 128) }),
		lost("a command capsule", blk.OpRead, 4096, fesInvalidHeader, "PDU type 0x4", func(q, uint16) []byte { return pdu(4, 0, 72, 0, 72) }),
		lost("HLEN 0", blk.OpRead, 4096, fesInvalidHeader, "HLEN 0", func(q, uint16) []byte { return pdu(5, 0, 0, 0, 24) }),
		lost("HLEN 255", blk.OpRead, 4096, fesInvalidHeader, "HLEN 255", func(q, uint16) []byte { return pdu(7, 0, 255, 24, 24) }),
		lost("PLEN of 4 GiB", blk.OpRead, 4096, fesInvalidHeader, "PLEN 4294967295", func(q, uint16) []byte { return pdu(5, 0, 24, 0, 255, 255, 255, 255) }),
		lost("PLEN beyond the data", blk.OpRead, 4096, fesInvalidHeader, "PLEN", func(q q, cid uint16) []byte {
			b := q.Data(cid, 0, block, both)
			le.PutUint32(b[4:], uint32(len(b)+512))
			return b
		}),
		lost("PDO within the header", blk.OpRead, 4096, fesInvalidHeader, "PDO 8", func(q q, cid uint16) []byte {
			b := q.Data(cid, 0, block, both)
			b[3] = 8
			return b
		}),
		lost("PDO that is odd", blk.OpRead, 4096, fesInvalidHeader, "PDO 25", func(q q, cid uint16) []byte {
			b := q.Data(cid, 0, block, both)
			b[3] = 25
			return b
		}),
		lost("a digest nobody agreed on", blk.OpRead, 4096, fesInvalidHeader, "header digest flag true", func(q q, cid uint16) []byte {
			b := q.Response(cid, 0, 0)
			b[1] |= flagHeaderDigest
			return b
		}),
		lost("garbage", blk.OpRead, 4096, fesInvalidHeader, "PDU type 0xff", func(q, uint16) []byte { return bytes.Repeat([]byte{0xff}, 100<<10) }),
		lost("end of the connection, asked for", blk.OpRead, 4096, 0, "data transfer out of range", func(q, uint16) []byte {
			return pdu(3, 0, 24, 0, 24, 0, 0, 0, 4, 0, 7)
		}),
		{"an error", blk.OpRead, 4096, func(q q, cid uint16) []byte { return q.Response(cid, 0, 0x281|1<<14) }, "", 0, blk.Failed},
		{"an error after half the data", blk.OpRead, 64 << 10, func(q q, cid uint16) []byte {
			return join(q.Data(cid, 0, long[:32<<10], 0), q.Response(cid, 0, 0x281|1<<14))
		}, "", 0, blk.Failed},
		{"an error instead of the rest of a write", blk.OpWrite, 64 << 10, func(q q, cid uint16) []byte { return q.Response(cid, 0, 0x280|1<<14) }, "", 0, blk.Failed},
		{"padding before data", blk.OpRead, 4096, func(q q, cid uint16) []byte {
			b := q.Data(cid, 0, block, both)
			b[3] = 64
			le.PutUint32(b[4:], uint32(64+len(block)))
			return join(b[:24], make([]byte, 40), b[24:])
		}, "", 0, blk.OK},
	}
}

// A target does what it must not. The connection ends with a TermReq that says why, requests come back lost, not a byte outside the request is touched, and
// when the target behaves again, all goes on.
func TestHostileTarget(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.KATO, o.ReconnectDelay = time.Minute, 10*time.Millisecond
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	for _, k := range tricks() {
		t.Run(k.name, func(t *testing.T) {
			c.t = t
			c.awaitUp()
			played := false
			target.Intercept(func(q *nvmetcptest.Queue, e []byte) bool {
				if played {
					return false
				}
				played = true
				q.Raw(k.answer(q, le.Uint16(e[2:])))
				return true
			})
			downs := len(c.downs)
			target.TermStatus.Store(0)
			for i := range c.memory[:1<<20] {
				c.memory[i] = 0xa5
			}
			j := c.job(k.op, 0, k.size, 256<<10, 100, 3000)
			c.submit(j)
			got := c.end(j)
			if got != k.ends && !(k.name == "data after the last" && got == blk.OK) {
				t.Errorf("outcome %d, want %d", got, k.ends)
			}
			for i, b := range c.memory[:1<<20] {
				if b != 0xa5 && (k.op != blk.OpRead || i < 256<<10 || i >= 256<<10+int(k.size)) {
					t.Fatalf("memory at %#x was touched, beyond the request", i)
				}
			}
			if k.want == "" {
				if len(c.downs) != downs {
					t.Errorf("the lane went down: %v", c.downs[downs:])
				}
				return
			}
			c.await("the lane goes down", func() bool { return len(c.downs) > downs })
			if why := c.downs[downs].Error(); !strings.Contains(why, k.want) {
				t.Errorf("why %q, want %q", why, k.want)
			}
			if k.term != 0 {
				c.await("the target was told", func() bool { return target.TermStatus.Load() == k.term })
			}
			c.awaitUp()
			c.must(c.job(blk.OpWrite, 0, 4096, 0))
		})
	}
}

// Wrong digests: of a header, the connection ends; of data, the command is tried again, and fails if that goes on.
func TestHostileDigests(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.KATO, o.HeaderDigest, o.DataDigest = time.Minute, true, true
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	data := make([]byte, 4096)
	fillRandom(data, 1)
	target.Do(func() { copy(target.Disk(), data) })
	wrong := func(times, at int) {
		target.Intercept(func(q *nvmetcptest.Queue, e []byte) bool {
			if times--; times < 0 || e[0] != 0x02 {
				return false
			}
			b := q.Data(le.Uint16(e[2:]), 0, data, flagLast|flagSuccess)
			b[(at+len(b))%len(b)] ^= 4
			q.Raw(b)
			return true
		})
	}
	for _, k := range []struct {
		name      string
		times, at int
		want      blk.Outcome
	}{{"data digest", 1, -1, blk.OK}, {"data", 2, 100, blk.OK}, {"data, for ever", 1000, 100, blk.Failed}} {
		wrong(k.times, k.at)
		clear(c.memory[:4096])
		if o := c.run(c.job(blk.OpRead, 0, 4096, 0)); o != k.want || o == blk.OK && !bytes.Equal(c.memory[:4096], data) {
			t.Errorf("wrong %s: outcome %d, want %d", k.name, o, k.want)
		}
	}
	if len(c.downs) != 0 {
		t.Errorf("the lane went down: %v", c.downs)
	}
	wrong(1, 9)
	j := c.job(blk.OpRead, 0, 4096, 0)
	c.submit(j)
	if o := c.end(j); o != blk.Lost {
		t.Errorf("wrong header digest: outcome %d, want Lost", o)
	}
	c.await("the target was told", func() bool { return target.TermStatus.Load() == fesHeaderDigest })
	c.awaitUp()
	c.must(j)
}

// A PDU that begins and never ends, and a connection that ends within one.
func TestHostileTruncation(t *testing.T) {
	t.Parallel()
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10})
	o := options(target)
	o.KATO, o.CommandTimeout = time.Minute, 100*time.Millisecond
	s := connect(t, o)
	c := newWorkbench(t).open(t, s)
	for _, size := range []uint64{4096, 64 << 10} {
		for _, cut := range []int{1, 8, 23, 24, 100, 5000, 20000} {
			for _, end := range []bool{true, false} {
				if !end && cut != 23 && cut != 5000 || cut > int(size) {
					continue
				}
				c.awaitUp()
				played := false
				target.Intercept(func(q *nvmetcptest.Queue, e []byte) bool {
					if played {
						return false
					}
					played = true
					q.Raw(q.Data(le.Uint16(e[2:]), 0, make([]byte, size), flagLast|flagSuccess)[:cut])
					if end {
						q.Conn.Close()
					}
					return true
				})
				j := c.job(blk.OpRead, 0, size, 0)
				c.submit(j)
				if o := c.end(j); o != blk.Lost {
					t.Errorf("%d of %d bytes: outcome %d, want Lost", cut, size, o)
				}
				c.awaitUp()
				c.must(j)
			}
		}
	}
}

// A controller that raises events without end costs no more than a log page now and then.
func TestHostileEvents(t *testing.T) {
	target := nvmetcptest.New(t, nvmetcptest.Options{InCapsule: 8 << 10, Blocks: 64})
	s := connect(t, options(target))
	c := newWorkbench(t).open(t, s)
	c.awaitUp()
	stop := make(chan bool)
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				target.Resize(64)
			}
		}
	}()
	began, before := time.Now(), target.Admin[0x0c].Load()
	for range 50 {
		c.must(c.job(blk.OpRead, 0, 4096, 0))
	}
	if n, most := target.Admin[0x0c].Load()-before, uint64(time.Since(began)/eventPause)+2; n > most {
		t.Errorf("%d events were taken in %v, at most %d should be", n, time.Since(began), most)
	}
}

// What listens is no controller, or none that can be talked to.
func TestHostileHandshake(t *testing.T) {
	response := func(change func(b []byte)) []byte {
		b := make([]byte, initLength)
		header(b).common(pduICResp, 0, initLength, 0, initLength)
		le.PutUint32(b[12:], 64<<10)
		change(b)
		return b
	}
	for _, k := range []struct {
		name   string
		answer []byte
		want   string
	}{
		{"nothing", nil, "the other side hung up"},
		{"half an answer", response(func([]byte) {})[:60], "the other side hung up"},
		{"another protocol", bytes.Repeat([]byte("HTTP/1.1 400 Bad Request\r\n"), 10), "is this an NVMe/TCP port?"},
		{"HLEN", response(func(b []byte) { b[2] = 24 }), "is this an NVMe/TCP port?"},
		{"PLEN", response(func(b []byte) { b[7] = 255 }), "is this an NVMe/TCP port?"},
		{"PFV", response(func(b []byte) { b[8] = 1 }), "speaks PDU format version 1"},
		{"CPDA", response(func(b []byte) { b[10] = 32 }), "aligned to 33 dwords"},
		{"digests", response(func(b []byte) { b[11] = 3 }), "answers digests header and data where none were asked for"},
		{"MAXH2CDATA", response(func(b []byte) { le.PutUint32(b[12:], 4095) }), "takes 4095 bytes in an H2CData PDU"},
		{"refusal", pdu(pduC2HTermReq, 0, 24, 0, 24, 0, 0, 0, fesUnsupported), "unsupported parameter"},
		{"garbage after", append(response(func([]byte) {}), bytes.Repeat([]byte{0xee}, 200)...), "PDU type 0xee"},
		{"no answer to Connect", append(response(func([]byte) {}), pdu(pduR2T, 0, 24, 0, 24)...), "in answer to a command without data"},
		{"another's answer", append(response(func([]byte) {}), pdu(pduCapsuleResp, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9)...), "answer to command 0x9, which is not under way"},
		{"success, and no more", append(response(func([]byte) {}), pdu(pduCapsuleResp, 0, 24, 0, 24)...), "the admin queue is gone"},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.ReadFull(c, make([]byte, initLength))
			c.Write(k.answer)
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
		}()
		o := Options{Address: l.Addr().String(), NQN: nvmetcptest.NQN, HostNQN: "nqn.2026-11.io.shunt:host", HostID: [16]byte{1}}
		s, err := Open(context.Background(), o)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: error %v, want %q", k.name, err, k.want)
		}
		l.Close()
	}
}

// A controller whose queues are too short for any command.
func TestHostileQueues(t *testing.T) {
	s, err := Open(t.Context(), options(nvmetcptest.New(t, nvmetcptest.Options{Single: true})))
	if err == nil {
		s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "its queues have room for no command") {
		t.Errorf("error %v", err)
	}
}
