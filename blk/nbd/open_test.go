package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// refused opens what must not open, and holds that it is said in one sentence.
func refused(t *testing.T, o Options, is error, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	s, err := Open(ctx, o)
	switch {
	case err == nil:
		s.Close()
		t.Errorf("%s is opened", o.URI)
	case is != nil && !errors.Is(err, is), !strings.Contains(err.Error(), want):
		t.Errorf("it says %q, which has no %q", err, want)
	case strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), o.URI):
		t.Errorf("%q is not one sentence that names the URI", err)
	}
	t.Log(err)
}

func TestRefused(t *testing.T) {
	t.Run("scheme", func(t *testing.T) { refused(t, Options{URI: "nvme+tcp://h/x"}, ErrURI, "nvme+tcp") })
	t.Run("connection", func(t *testing.T) {
		refused(t, Options{URI: "nbd://127.0.0.1:" + freePort(t)}, syscall.ECONNREFUSED, "connection refused")
	})
	t.Run("socket", func(t *testing.T) {
		refused(t, Options{URI: "nbd+unix:///?socket=" + socketPath(t, "none")}, syscall.ENOENT, "no such file")
	})
	t.Run("host", func(t *testing.T) { refused(t, Options{URI: "nbd://host.invalid/x"}, nil, "host.invalid") })
	t.Run("export of nbd-server", func(t *testing.T) {
		o := nbdServer(t, image(t), "")
		o.URI += "2"
		refused(t, o, ErrNoExport, "no such export")
	})
	t.Run("export of qemu-nbd", func(t *testing.T) {
		o := qemuNBD(t, image(t), "-x", "disk")
		o.URI = strings.Replace(o.URI, "///?", "///other?", 1)
		refused(t, o, ErrNoExport, "no such export")
	})
	t.Run("export of nbdkit", func(t *testing.T) {
		_, o := nbdkit(t, "--filter=exportname", "memory", "16M", "exportname=a", "exportname-strict=true")
		o.URI = strings.Replace(o.URI, "///?", "///b?", 1)
		refused(t, o, nil, "")
	})
	t.Run("read-only", func(t *testing.T) {
		_, o := nbdkit(t, "-r", "memory", "16M")
		refused(t, o, ErrReadOnly, "read-only")
	})
	t.Run("size", func(t *testing.T) {
		_, o := nbdkit(t, "memory", "1000")
		refused(t, o, ErrSize, "1000 bytes are no multiple of the block size, 512")
	})
	t.Run("no size", func(t *testing.T) {
		_, o := nbdkit(t, "memory", "0")
		refused(t, o, ErrSize, "empty")
	})
	t.Run("TLS is demanded", func(t *testing.T) {
		c := newCertificates(t)
		_, o := nbdkit(t, "--tls=require", "--tls-certificates="+c.dir, "memory", "16M")
		refused(t, o, ErrRefused, "it demands TLS")
	})
	t.Run("TLS is not there", func(t *testing.T) {
		c := newCertificates(t)
		_, o := nbdkit(t, "memory", "16M")
		o.URI = strings.Replace(o.URI, "nbd+", "nbds+", 1)
		o.TLS = TLS{CA: c.file("ca-cert.pem"), ServerName: "localhost"}
		refused(t, o, ErrRefused, "TLS")
	})
}

// TestHandshake has a server do one thing wrong.
func TestHandshake(t *testing.T) {
	go16 := func(size uint64, flags uint16) []byte { return optReply(optGo, repInfo, exportInfo(size, flags)...) }
	blocks := func(a, b, c uint32) []byte {
		data := binary.BigEndian.AppendUint16(nil, infoBlockSize)
		for _, v := range []uint32{a, b, c} {
			data = binary.BigEndian.AppendUint32(data, v)
		}
		return optReply(optGo, repInfo, data...)
	}
	ack := optReply(optGo, repAck)
	join := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	fine := hello(flagFixedNewstyle)
	for _, c := range []struct {
		name  string
		hello []byte
		reply func(option uint32) []byte // nil: what a server says
		want  string
	}{
		{"not NBD", []byte("SSH-2.0-OpenSSH_9.2p1\r\n"), nil, "not an NBD server"},
		{"half a greeting", fine[:11], nil, "closed the connection"},
		{"oldstyle", join(be64(initMagic), be64(oldstyleMagic), make([]byte, 136)), nil, "oldstyle"},
		{"unknown style", join(be64(initMagic), be64(1), make([]byte, 136)), nil, "second magic"},
		{"no fixed newstyle", hello(0), nil, "no fixed newstyle"},
		{"wrong magic", fine, func(uint32) []byte { return make([]byte, 20) }, "begins with"},
		{"wrong option", fine, func(uint32) []byte { return optReply(99, repAck) }, "answers option 99"},
		{"endless reply", fine, func(o uint32) []byte { b := optReply(o, repAck); b[16] = 0x7f; return b }, "at most"},
		{"strange ack", fine, func(o uint32) []byte { return optReply(o, 77) }, "with 77"},
		{"no size", fine, func(o uint32) []byte { return optReply(o, repAck) }, "how large"},
		{"short info", fine, func(o uint32) []byte { return join(optReply(optStructuredReply, repAck), optReply(optGo, repInfo, 0)) }, "information of 1 bytes"},
		{"wrong length", fine, func(o uint32) []byte { return optReply(o, repInfo, exportInfo(1<<20, 1)[:11]...) }, ""},
		{"huge", fine, func(o uint32) []byte { return join(go16(1<<63, 1), ack) }, "an export of"},
		{"odd blocks", fine, func(o uint32) []byte { return join(blocks(513, 4096, 1<<20), go16(1<<20, 1), ack) }, "block sizes"},
		{"no blocks", fine, func(o uint32) []byte { return join(blocks(0, 4096, 1<<20), go16(1<<20, 1), ack) }, "block sizes"},
		{"big blocks", fine, func(o uint32) []byte { return join(blocks(1<<17, 1<<17, 1<<20), go16(1<<20, 1), ack) }, "block sizes"},
		{"no payload", fine, func(o uint32) []byte { return join(blocks(512, 4096, 100), go16(1<<20, 1), ack) }, "at most 100"},
		{"never-ending information", fine, func(o uint32) []byte {
			var b []byte
			for range maxReplies + 10 {
				b = append(b, optReply(optGo, repInfo, 0, 9)...)
			}
			return b
		}, "come to an end"},
		{"error with text", fine, func(o uint32) []byte { return optReply(o, repErrUnknown, []byte("no \xff disk\n")...) }, `\n`},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("unix", socketPath(t, "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c0, err := l.Accept()
				if err != nil {
					return
				}
				defer c0.Close()
				c0.SetDeadline(time.Now().Add(patient))
				c0.Write(c.hello)
				if c.reply == nil {
					if len(c.hello) == len(fine) {
						readOption(c0)
					}
					return
				}
				var four [4]byte
				c0.Read(four[:])
				for {
					option, err := readOption(c0)
					if err != nil {
						return
					}
					reply := c.reply(option)
					if option == optStructuredReply && len(reply) >= 12 && binary.BigEndian.Uint32(reply[8:]) == optGo {
						reply = optReply(option, repErrUnsup)
					}
					c0.Write(reply)
				}
			}()
			refused(t, Options{URI: "nbd+unix:///?socket=" + l.Addr().String()}, nil, c.want)
		})
	}
}

// TestPatience: a server that says nothing is given up by the time the caller has.
func TestPatience(t *testing.T) {
	l, err := net.Listen("unix", socketPath(t, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = Open(ctx, Options{URI: "nbd+unix:///?socket=" + l.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("it says %v", err)
	}
}

// TestExportName opens an export of a server that does not know GO, and asks it again: for that it must be opened once more, and is left as it is to be left then.
func TestExportName(t *testing.T) {
	for _, zeroes := range []bool{false, true} {
		l, err := net.Listen("unix", socketPath(t, "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		flags := uint16(flagFixedNewstyle | flagNoZeroes)
		if zeroes {
			flags = flagFixedNewstyle
		}
		ends := make(chan got, 8)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					g, err := exportNamed(c, flags)
					if err != nil {
						g.command = 0xffff
					}
					ends <- g
				}()
			}
		}()
		s := open(t, Options{URI: "nbd+unix:///old?socket=" + l.Addr().String()})
		if i := s.Info(); i.Size != 1<<20 || !i.FUA || i.BlockSize != 512 {
			t.Errorf("it is %+v", i)
		}
		if i, err := s.Refresh(t.Context()); err != nil || i.Size != 1<<20 {
			t.Errorf("asked again: %+v, %v", i, err)
		}
		if g := <-ends; g.command != cmdDisc {
			t.Errorf("it is left with %+v", g)
		}
	}
}

// exportNamed serves a connection of who knows nothing but EXPORT_NAME, and returns the first command.
func exportNamed(c net.Conn, flags uint16) (got, error) {
	defer c.Close()
	c.Write(hello(flags))
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		return got{}, err
	}
	for {
		option, err := readOption(c)
		if err != nil {
			return got{}, err
		}
		if option != optExportName {
			c.Write(optReply(option, repErrUnsup))
			continue
		}
		answer := binary.BigEndian.AppendUint16(be64(1<<20), mockFlags)
		if flags&flagNoZeroes == 0 {
			answer = append(answer, make([]byte, lengthExportZeroes)...)
		}
		c.Write(answer)
		return (&mockConn{Conn: c}).header()
	}
}

// TestListBounds: a list that does not end, of short names or of long ones, is not kept.
func TestListBounds(t *testing.T) {
	for _, name := range []int{1, maxString} {
		entry := optReply(optList, repServer, append(be32(uint32(name)), make([]byte, 2*name)...)...)
		n := min(maxReplies, maxList/len(entry)+1) + 1
		s := &session{Conn: &saying{rest: append(bytes.Repeat(entry, n), optReply(optList, repAck)...)}}
		if exports, err := s.list(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "its list of exports has more than") {
			t.Errorf("%d entries of %d bytes: %d are kept, %v", n, len(entry), len(exports), err)
		}
	}
}

func TestList(t *testing.T) {
	_, o := nbdkit(t, "--filter=exportname", "memory", "16M", "exportname=one", "exportname=two words", "exportname-list=explicit")
	exports, err := List(context.Background(), o)
	if err != nil || len(exports) != 2 || exports[0].Name != "one" || exports[1].Name != "two words" {
		t.Errorf("%q, %v", exports, err)
	}
	list := func(entry []byte) ([]Export, error) {
		m := newMock(t)
		go func() {
			c, err := m.listener.Accept()
			if err != nil {
				return
			}
			c.Write(hello(flagFixedNewstyle))
			var four [4]byte
			c.Read(four[:])
			readOption(c)
			c.Write(optReply(optList, repServer, entry...))
			c.Write(optReply(optList, repAck))
		}()
		return List(context.Background(), m.options())
	}
	if exports, err := list(append(be32(100), "short"...)); !errors.Is(err, ErrProtocol) {
		t.Errorf("%q, %v", exports, err)
	}
	exports, err = list(append(be32(1), "xa disk, \xff\x1b]0;title\a\nnbd://evil\ta \u202edisk"...))
	if want := "a disk, ??]0;title??nbd://evil?a ?disk"; err != nil || len(exports) != 1 || exports[0].Description != want {
		t.Errorf("%q, %v; what goes to a terminal should be %q", exports, err, want)
	}
}
