package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"strings"
	"unicode"

	"github.com/shuntio/shunt/blk"
)

// Errors that callers test.
var (
	// ErrProtocol is wrapped where a server does not keep to the protocol.
	ErrProtocol = errors.New("the server breaks the NBD protocol, so another one is needed")
	// ErrRefused is wrapped where a server does not want what it was asked for.
	ErrRefused = errors.New("the server refuses")
	// ErrNoExport says that the server has no export of that name.
	ErrNoExport = errors.New("the server has no such export: name one that it lists (shuntctl volume exports)")
)

// export is what a server says of an export when it is opened.
type export struct {
	size                  uint64
	flags                 uint16
	minimum, preferred    uint32
	maximum               uint32 // payload of a request
	structured, encrypted bool
}

func (e *export) has(flag uint16) bool { return e.flags&flag != 0 }

// session is a connection during the handshake. Every read is of exactly what is due, so that nothing of the transmission phase is taken from the lane.
type session struct {
	net.Conn
	encrypted bool
	noZeroes  bool
	entered   bool // the transmission phase has begun, where the server knows no other way to tell of an export
}

// optionReply is the server's answer to an option.
type optionReply struct {
	kind uint32
	data []byte
}

// maxReply bounds the data of one reply to an option: an export's name with its description, and their lengths.
const maxReply = 2*maxString + 16

// maxReplies bounds how many replies one option has, of which only lists have many.
const maxReplies = 10000

// maxList bounds how much of a list is kept.
const maxList = 4 << 20

// greet does what comes before options: newstyle, and TLS if it is wanted.
func greet(ctx context.Context, c net.Conn, secure *tls.Config) (*session, error) {
	s := &session{Conn: c}
	var hello [18]byte
	if _, err := io.ReadFull(c, hello[:16]); err != nil {
		return nil, fmt.Errorf("no NBD server answers: %w: correct host and port, or look into the server's log", ended(err))
	}
	switch {
	case binary.BigEndian.Uint64(hello[:]) != initMagic:
		return nil, fmt.Errorf("%w: what answers is not an NBD server; correct host and port", ErrProtocol)
	case binary.BigEndian.Uint64(hello[8:]) == oldstyleMagic:
		return nil, fmt.Errorf("%w: it has the oldstyle handshake, which nothing can be asked in; use a newer server", ErrProtocol)
	case binary.BigEndian.Uint64(hello[8:]) != optionMagic:
		return nil, fmt.Errorf("%w: its second magic number is %#x", ErrProtocol, binary.BigEndian.Uint64(hello[8:]))
	}
	if _, err := io.ReadFull(c, hello[16:]); err != nil {
		return nil, fmt.Errorf("greeting: %w", ended(err))
	}
	flags := binary.BigEndian.Uint16(hello[16:])
	if flags&flagFixedNewstyle == 0 {
		return nil, fmt.Errorf("%w: it has no fixed newstyle handshake; use a newer server", ErrProtocol)
	}
	s.noZeroes = flags&flagNoZeroes != 0
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))); err != nil {
		return nil, fmt.Errorf("greeting: %w", err)
	}
	if secure != nil {
		if err := s.startTLS(ctx, secure); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// ended makes a sentence of the end of a stream.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it closed the connection")
	}
	return blk.Reason(err)
}

// ended adds what is likely of TLS, where a server says what it thinks of a client's certificate only afterwards.
func (s *session) ended(err error) error {
	if err = ended(err); s.encrypted {
		return fmt.Errorf("%w, behind TLS: it may not accept our certificate", err)
	}
	return err
}

// option sends one.
func (s *session) option(option uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16+len(data)), optionMagic)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	if _, err := s.Write(append(b, data...)); err != nil {
		return fmt.Errorf("NBD option %d: %w", option, s.ended(err))
	}
	return nil
}

// reply receives one of the replies to an option.
func (s *session) reply(option uint32) (r optionReply, err error) {
	var head [20]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return r, fmt.Errorf("reply to NBD option %d: %w", option, s.ended(err))
	}
	magic, to := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint32(head[8:])
	length := binary.BigEndian.Uint32(head[16:])
	switch {
	case magic != optReplyMagic:
		return r, fmt.Errorf("%w: a reply to an option begins with %#x", ErrProtocol, magic)
	case to != option:
		return r, fmt.Errorf("%w: it answers option %d when asked option %d", ErrProtocol, to, option)
	case length > maxReply:
		return r, fmt.Errorf("%w: its reply to option %d has %d bytes, at most %d are possible", ErrProtocol, option, length, maxReply)
	}
	r.kind, r.data = binary.BigEndian.Uint32(head[12:]), make([]byte, length)
	if _, err := io.ReadFull(s, r.data); err != nil {
		return r, fmt.Errorf("reply to NBD option %d: %w", option, s.ended(err))
	}
	return r, nil
}

// refusal makes an error of a reply that is one.
func (s *session) refusal(r optionReply) error {
	var why string
	switch r.kind {
	case repErrUnsup:
		why = "it does not know the option"
	case repErrPolicy:
		why = "its policy forbids it"
	case repErrInvalid:
		why = "it finds the option invalid"
	case repErrPlatform:
		why = "it was built without that"
	case repErrTLSReqd:
		why = "it demands TLS; use nbds:// and name the certificates"
	case repErrUnknown:
		return s.explain(ErrNoExport, r.data)
	case repErrShutdown:
		why = "it is shutting down"
	case repErrBlockSize:
		why = "it demands that its block sizes are kept"
	case repErrTooBig:
		why = "the option is too long for it"
	default:
		why = fmt.Sprintf("error %#x", r.kind)
	}
	return s.explain(fmt.Errorf("%w: %s", ErrRefused, why), r.data)
}

// explain adds what a server says for people.
func (s *session) explain(err error, message []byte) error {
	if len(message) == 0 {
		return err
	}
	return fmt.Errorf("%w (%q)", err, clean(message, 200))
}

// clean makes a string of a server's fit to be quoted.
func clean(b []byte, most int) string {
	b = b[:min(len(b), most)]
	return strings.ToValidUTF8(string(b), "?")
}

// printable makes one fit to print as it is, on a terminal as well.
func printable(b []byte, most int) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, string(b[:min(len(b), most)]))
}

// startTLS goes over to TLS.
func (s *session) startTLS(ctx context.Context, config *tls.Config) error {
	if err := s.option(optStartTLS, nil); err != nil {
		return err
	}
	r, err := s.reply(optStartTLS)
	if err != nil {
		return err
	}
	if r.kind != repAck {
		if r.kind&repError == 0 {
			return fmt.Errorf("%w: it answers STARTTLS with %d", ErrProtocol, r.kind)
		}
		return fmt.Errorf("TLS: %w", s.refusal(r))
	}
	c := tls.Client(s.Conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return distrust(err, config.ServerName)
	}
	s.Conn, s.encrypted = c, true
	return nil
}

// structured asks for structured replies, and tells whether there will be any.
func (s *session) structured() (bool, error) {
	if err := s.option(optStructuredReply, nil); err != nil {
		return false, err
	}
	r, err := s.reply(optStructuredReply)
	switch {
	case err != nil:
		return false, err
	case r.kind == repAck:
		return true, nil
	case r.kind == repErrTLSReqd:
		return false, s.refusal(r)
	case r.kind&repError == 0:
		return false, fmt.Errorf("%w: it answers STRUCTURED_REPLY with %d", ErrProtocol, r.kind)
	}
	return false, nil
}

// enter begins the transmission phase (optGo), or only asks what it would be like (optInfo).
func (s *session) enter(option uint32, name string) (*export, error) {
	structured, err := s.structured()
	if err != nil {
		return nil, err
	}
	e := &export{structured: structured, encrypted: s.encrypted, minimum: sector, preferred: 4096, maximum: defaultMax}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	data = append(data, name...)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	if err := s.option(option, data); err != nil {
		return nil, err
	}
	for known, i := false, 0; i < maxReplies; i++ {
		r, err := s.reply(option)
		switch {
		case err != nil:
			return nil, err
		case r.kind == repInfo:
			is, err := e.learn(r.data)
			if err != nil {
				return nil, err
			}
			known = known || is
		case r.kind == repAck && !known:
			return nil, fmt.Errorf("%w: it does not say how large the export is", ErrProtocol)
		case r.kind == repAck:
			return e, e.check()
		case r.kind == repErrUnsup:
			return e, s.enterOld(e, name)
		case r.kind&repError != 0:
			return nil, s.refusal(r)
		default:
			return nil, fmt.Errorf("%w: it answers option %d with %d", ErrProtocol, option, r.kind)
		}
	}
	return nil, fmt.Errorf("%w: it does not come to an end with an export's properties", ErrProtocol)
}

// learn takes one piece of information, and tells whether it was the export's size and flags.
func (e *export) learn(data []byte) (known bool, err error) {
	if len(data) < 2 {
		return false, fmt.Errorf("%w: information of %d bytes", ErrProtocol, len(data))
	}
	switch kind := binary.BigEndian.Uint16(data); {
	case kind == infoExport && len(data) == lengthInfoExport:
		e.size, e.flags = binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:])
		return true, nil
	case kind == infoBlockSize && len(data) == lengthInfoBlocks:
		e.minimum, e.preferred = binary.BigEndian.Uint32(data[2:]), binary.BigEndian.Uint32(data[6:])
		e.maximum = binary.BigEndian.Uint32(data[10:])
	case kind == infoExport || kind == infoBlockSize:
		return false, fmt.Errorf("%w: information %d has %d bytes", ErrProtocol, kind, len(data))
	}
	return false, nil
}

// enterOld is how one opened an export before there was GO. A server that does not want to can but hang up.
func (s *session) enterOld(e *export, name string) error {
	if err := s.option(optExportName, []byte(name)); err != nil {
		return err
	}
	data := make([]byte, lengthExportReply+lengthExportZeroes)
	if s.noZeroes {
		data = data[:lengthExportReply]
	}
	if _, err := io.ReadFull(s, data); err != nil {
		return fmt.Errorf("%w: it says nothing about an export of that name, and %w", ErrNoExport, ended(err))
	}
	s.entered = true
	e.size, e.flags = binary.BigEndian.Uint64(data), binary.BigEndian.Uint16(data[8:])
	return e.check()
}

// check refuses what cannot be, and brings block sizes into the range that we use.
func (e *export) check() error {
	power := func(n uint32) bool { return bits.OnesCount32(n) == 1 }
	switch {
	case e.size > 1<<63-1:
		return fmt.Errorf("%w: an export of %d bytes", ErrProtocol, e.size)
	case !power(e.minimum) || e.minimum > maxMinimum || !power(e.preferred) || e.preferred < e.minimum:
		return fmt.Errorf("%w: block sizes of %d and %d bytes", ErrProtocol, e.minimum, e.preferred)
	}
	e.minimum = max(e.minimum, sector)
	e.preferred = max(e.preferred, e.minimum)
	if e.maximum < e.minimum {
		return fmt.Errorf("%w: requests of at most %d bytes, where a block has %d", ErrProtocol, e.maximum, e.minimum)
	}
	e.maximum = min(e.maximum, defaultMax) &^ (e.minimum - 1)
	if e.flags&flagHasFlags == 0 {
		e.flags = 0
	}
	return nil
}

// list asks for the names of all exports.
func (s *session) list() (exports []Export, err error) {
	if err := s.option(optList, nil); err != nil {
		return nil, err
	}
	for i, size := 0, 0; i < maxReplies && size <= maxList; i++ {
		r, err := s.reply(optList)
		size += len(r.data)
		switch {
		case err != nil:
			return nil, err
		case r.kind == repAck:
			return exports, nil
		case r.kind&repError != 0:
			return nil, s.refusal(r)
		case r.kind != repServer || len(r.data) < 4:
			return nil, fmt.Errorf("%w: an entry of its list has type %d and %d bytes", ErrProtocol, r.kind, len(r.data))
		}
		n, text := binary.BigEndian.Uint32(r.data), r.data[4:]
		if uint64(n) > uint64(len(text)) || n > maxString {
			return nil, fmt.Errorf("%w: a name in its list has %d bytes in a reply of %d", ErrProtocol, n, len(r.data))
		}
		exports = append(exports, Export{Name: string(text[:n]), Description: printable(text[n:], maxString)})
	}
	return nil, fmt.Errorf("%w: its list of exports has more than %d entries, or %d bytes", ErrProtocol, maxReplies, maxList)
}

// leave ends a session that was only to ask something, as softly as the protocol wants it.
func (s *session) leave() {
	c := s.Conn
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(-1) //nolint:errcheck // the goodbye arrives most of the time
	}
	if s.entered {
		goodbye := make(request, requestSize)
		goodbye.put(0, cmdDisc, 0, 0, 0)
		s.Write(goodbye) //nolint:errcheck // it is over either way
	} else {
		s.option(optAbort, nil) //nolint:errcheck // as above
	}
	s.Close()
}
