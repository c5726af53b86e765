package nbd

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// TestTLSEnds: the server's end comes through the pump.
func TestTLSEnds(t *testing.T) {
	c := newCertificates(t)
	server, o := nbdkit(t, "--tls=require", "--tls-certificates="+c.dir, "memory", "16M")
	o.URI = strings.Replace(o.URI, "nbd+", "nbds+", 1)
	o.TLS = TLS{CA: c.file("ca-cert.pem"), ServerName: "localhost"}
	u := newBench(t).use(open(t, o))
	server.kill()
	u.await("that it is down", func() bool { return len(u.why) > 0 })
}

// pumps is how many goroutines carry bytes between lanes and TLS connections.
func pumps() int {
	stacks := make([]byte, 4<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "nbd.(*pump)")
}

// TestTLSClogged: a server reads nothing any more, nor does it end the connections that we give up. What stands between such a connection and its lane ends all the same, and sends it
// nothing of old writes when it goes on.
func TestTLSClogged(t *testing.T) {
	c := newCertificates(t)
	m := newMock(t)
	m.secure = c.server(t)
	m.serve()
	o := m.options()
	o.URI = strings.Replace(o.URI, "nbd+", "nbds+", 1)
	o.TLS, o.Timeout = TLS{CA: c.file("ca-cert.pem"), ServerName: "localhost"}, 100*time.Millisecond
	before := pumps()
	u := newBench(t).use(open(t, o))
	for i := range 4 {
		u.await("the lane", func() bool { return len(u.ups) == i+1 })
		client := m.client().Conn.(*tls.Conn).NetConn()
		t.Cleanup(func() { client.Close() })
		a := ask(blk.OpWrite, 0, u.memory[:4<<20])
		u.submit(a)
		u.ends(a, blk.Lost)
		if i < 2 {
			continue // for ever
		}
		has, end := unread(t, client), time.Now().Add(patient)
		_ = client.SetReadDeadline(end)
		if n, err := io.Copy(io.Discard, client); err != nil || n > int64(has) {
			t.Errorf("a server that had %d bytes to read when the connection was given up got %d (%v)", has, n, err)
		}
	}
	for end := time.Now().Add(patient); pumps() > before+2; time.Sleep(10 * time.Millisecond) { // the last connection's
		if time.Now().After(end) {
			t.Fatalf("%d goroutines stand between lanes and connections that were given up", pumps()-before)
		}
	}
}

// secureMock is a mock that speaks TLS, and what its clients want.
func secureMock(t *testing.T) (*mock, Options) {
	t.Helper()
	c := newCertificates(t)
	m := newMock(t)
	m.secure = c.server(t)
	o := m.options()
	o.URI = strings.Replace(o.URI, "nbd+", "nbds+", 1)
	o.TLS = TLS{CA: c.file("ca-cert.pem"), ServerName: "localhost"}
	return m, o
}

// gone waits until all but so many goroutines of pumps have ended, which takes no longer than a limit, on a machine that is not busy.
func gone(t *testing.T, but int, limit time.Duration) {
	t.Helper()
	for began := time.Now(); pumps() > but; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > limit+5*time.Second {
			t.Fatalf("%d goroutines of pumps are left after %v", pumps()-but, time.Since(began))
		}
	}
}

// TestTLSFarewell: a lane says goodbye on a connection whose server reads nothing, which one can do that has answered all it was asked: it guesses the cookies. Where our goodbye does
// not get through the connection is ended nonetheless.
func TestTLSFarewell(t *testing.T) {
	m, o := secureMock(t)
	m.serve()
	before := pumps()
	s := open(t, o).(*Store)
	server := m.client().Conn.(*tls.Conn).NetConn()
	t.Cleanup(func() { server.Close() })
	c := s.spare
	for sent := true; sent; { // the server's socket, the pump and the socketpair
		n, err := unix.SendmsgN(c.fd, make([]byte, 64<<10), nil, nil, unix.MSG_DONTWAIT)
		if sent = n > 0; !sent && err == unix.EAGAIN {
			time.Sleep(50 * time.Millisecond) // it may have gone on
			n, _ = unix.SendmsgN(c.fd, make([]byte, 64<<10), nil, nil, unix.MSG_DONTWAIT)
			sent = n > 0
		}
	}
	c.behind.leave() // as lane.drop does
	unix.Shutdown(c.fd, unix.SHUT_RDWR)
	gone(t, before, farewell)
}

// TestTLSHalf: a server says that it will send nothing more, and reads nothing. No goodbye is tried.
func TestTLSHalf(t *testing.T) {
	m, o := secureMock(t)
	m.serve()
	before := pumps()
	u := newBench(t).use(open(t, o))
	client := m.client()
	t.Cleanup(func() { client.Conn.(*tls.Conn).NetConn().Close() })
	m.listener.Close()
	a := ask(blk.OpWrite, 0, u.memory[:4<<20])
	u.submit(a)
	for end := time.Now().Add(patient); unread(t, client.Conn.(*tls.Conn).NetConn()) < 64<<10; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing comes")
		}
	}
	if err := client.Conn.(*tls.Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	u.ends(a, blk.Lost)
	gone(t, before, 0)
}

// TestTLSWithoutPump: where there is no file left for a pump the connection is not left behind.
func TestTLSWithoutPump(t *testing.T) {
	m, o := secureMock(t)
	m.serve()
	s, err := newStore(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	n, err := s.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.enter(optGo, ""); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: 0, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, _, err = n.detach()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("detached without a file: %v", err)
	}
	n.Close()
	client := m.client()
	client.SetReadDeadline(time.Now().Add(patient))
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still there: %v", err)
	}
}

// TestTLSPatience: a server begins TLS, and then says nothing, or goes on for ever without coming to an end.
func TestTLSPatience(t *testing.T) {
	for name, record := range map[string][]byte{
		"nothing":          nil,
		"alerts":           {21, 3, 3, 0, 2, 1, 90},                                            // warnings that a user cancels
		"a long handshake": append([]byte{22, 3, 3, 0, 8, 2, 0, 255, 255}, make([]byte, 4)...), // a server hello of 64 KiB, piece by piece
	} {
		t.Run(name, func(t *testing.T) {
			m, o := secureMock(t)
			go func() {
				c, err := m.listener.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				c.Write(hello(flagFixedNewstyle))
				io.CopyN(io.Discard, c, 4)
				if _, err := readOption(c); err != nil {
					return
				}
				c.Write(optReply(optStartTLS, repAck))
				for err == nil && record != nil {
					time.Sleep(time.Millisecond)
					_, err = c.Write(record)
				}
				io.Copy(io.Discard, c)
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err := Open(ctx, o)
			if err == nil || time.Since(began) > 5*time.Second {
				t.Errorf("after %v it says %v", time.Since(began), err)
			}
			t.Log(err)
		})
	}
}

// sealer is the sending half of a TLS 1.3 server (RFC 8446, 5.2 and 7.2), which can do what the library's does not. The library's receives.
type sealer struct {
	net.Conn
	raw    net.Conn
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func expand(t testing.TB, secret []byte, label string, n int) []byte {
	info := append([]byte{0, byte(n), byte(6 + len(label))}, "tls13 "+label...)
	key, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		t.Error(err)
	}
	return key
}

// seal shakes hands, and takes the sending over from the library; log is its key log.
func seal(t testing.TB, secure *tls.Conn, log *strings.Builder) net.Conn {
	log.Reset()
	if err := secure.Handshake(); err != nil {
		t.Error(err)
		return secure
	}
	if suite := secure.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Errorf("TLS is spoken with %s: there is no AES in hardware", tls.CipherSuiteName(suite))
		return secure
	}
	_, line, _ := strings.Cut(log.String(), "SERVER_TRAFFIC_SECRET_0 ")
	secret, err := hex.DecodeString(strings.Fields(line)[1])
	if err != nil {
		t.Error(err)
	}
	s := &sealer{Conn: secure, raw: secure.NetConn()}
	s.rekey(t, secret)
	return s
}

func (s *sealer) rekey(t testing.TB, secret []byte) {
	block, err := aes.NewCipher(expand(t, secret, "key", 16))
	if err == nil {
		s.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		t.Error(err)
	}
	s.secret, s.iv, s.seq = secret, expand(t, secret, "iv", 12), 0
}

func (s *sealer) record(kind byte, data []byte) error {
	nonce := append([]byte(nil), s.iv...)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^s.seq)
	s.seq++
	head := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(data)+1+s.aead.Overhead()))
	_, err := s.raw.Write(s.aead.Seal(head, nonce, append(append([]byte(nil), data...), kind), head))
	return err
}

// Write is in records of one byte.
func (s *sealer) Write(b []byte) (int, error) {
	for i := range b {
		if err := s.record(23, b[i:i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// update takes new keys, and asks the other side to do so, too.
func (s *sealer) update(t testing.TB) error {
	err := s.record(22, []byte{24, 0, 0, 1, 1})
	s.rekey(t, expand(t, s.secret, "traffic upd", sha256.Size))
	return err
}

// TestTLSKeys has a server do what TLS allows and nobody does: new keys all the time, records of a byte, and of nothing. Where that makes no progress it comes to an end.
func TestTLSKeys(t *testing.T) {
	m, o := secureMock(t)
	var keys strings.Builder
	m.secure.KeyLogWriter, m.secure.SessionTicketsDisabled = &keys, true
	m.plain = true
	o.Timeout = time.Second
	m.seal = func(c *tls.Conn) net.Conn { return seal(t, c, &keys) }
	m.serve()
	before := pumps()
	u := newBench(t).use(open(t, o))
	client := m.client()
	s := client.Conn.(*sealer)
	for i := range 5 {
		if err := s.update(t); err != nil {
			t.Fatal(err)
		}
		r, w := ask(blk.OpRead, 0, u.memory[:512]), ask(blk.OpWrite, 512, u.memory[512:1024])
		u.submit(r, w)
		data := make([]byte, 512)
		data[i] = 7
		client.send(simpleReply(client.next(), 0, data...), simpleReply(client.next(), 0))
		u.ends(r, blk.OK)
		u.ends(w, blk.OK)
		same(t, "a read", u.memory[:512], data)
	}
	if len(u.downs()) > 0 {
		t.Fatalf("it broke: %v", u.downs())
	}
	for i, flood := range []func() error{
		func() error { return client.Conn.(*sealer).update(t) },
		func() error { return client.Conn.(*sealer).record(23, nil) },
	} {
		f := ask(blk.OpFlush, 0)
		u.submit(f)
		client.next()
		go io.Copy(io.Discard, client.Conn.(*sealer).raw)
		n := 0
		for flood() == nil {
			n++
		}
		t.Logf("after %d of them the connection is gone", n)
		u.ends(f, blk.Lost)
		u.await("the next connection", func() bool { return len(u.ups) == i+2 })
		client = m.client()
	}
	// Its last word is a wish for new keys while it reads nothing: that they are granted waits behind what is sent to it.
	w := ask(blk.OpWrite, 0, u.memory[:4<<20])
	u.submit(w)
	s = client.Conn.(*sealer)
	for end := time.Now().Add(patient); unread(t, s.raw) < 64<<10; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing comes")
		}
	}
	if err := s.update(t); err != nil {
		t.Fatal(err)
	}
	u.ends(w, blk.Lost)
	u.await("the next connection", func() bool { return len(u.ups) == 4 })
	gone(t, before+2, 0)
	s.raw.Close()
}
