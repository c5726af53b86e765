package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/guestmem"
)

// ErrUnsupported says that a message is known to the protocol and not to us, or was not negotiated.
var ErrUnsupported = errors.New("not supported")

// fatal marks a failure after which the session cannot go on, whatever the front-end asked to be told.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// session is one connection: what the front-end told so far, and the device it is told to.
//
//	readMessage ─▶ rules (size, descriptors, negotiated?) ─▶ handler ─▶ Device
//	     ▲                                                      │
//	     └──────────── reply, acknowledgement or the end ◀──────┘
//
// Its goroutine alone touches it, but for the copy in published.
type session struct {
	link   transport
	device Device
	log    *logger

	offer       Offer
	features    uint64 // accepted with SET_FEATURES; with FeatureProtocol
	negotiated  bool   // SET_FEATURES was accepted since the last reset; no ring runs before
	badFeatures bool   // the last SET_FEATURES was refused
	protocol    uint64 // accepted with SET_PROTOCOL_FEATURES
	status      uint8  // device status of virtio, kept here for GET_STATUS
	memory      regionTable
	memoryLog   *guestmem.Log // the device has it, too; nil: none
	logEvent    int           // eventfd for it, or -1
	inflight    *Inflight     // the device has it, too; nil: none
	rings       []vring
	message     message
	out         []byte // the reply being built
	outFD       int    // that goes with it, or -1
	refused     uint64 // messages answered with a failure
	lastRefusal string

	begun atomic.Uint64 // how often a driver has; counted under mu, read by whoever finds that the device fails

	mu        sync.Mutex // guards the rest, which others than its goroutine use
	published SessionStatus
	errors    []int    // by ring: its error eventfd, or -1
	channel   *channel // to the front-end, or nil
}

func newSession(link transport, d Device, log *logger) *session {
	offer := d.Offer().resolve(d)
	s := &session{link: link, device: d, log: log, offer: offer, rings: newVrings(offer.Vrings), logEvent: -1, outFD: -1}
	for range s.rings {
		s.errors = append(s.errors, -1)
	}
	s.message.fds = s.message.stored[:0]
	s.publish()
	return s
}

// run serves until the front-end leaves, breaks the protocol or the link is closed. It returns the reason: io.EOF for
// a front-end that left in an orderly way. The device has been told Disconnected by then, and every descriptor is closed.
func (s *session) run() error {
	defer s.end()
	for {
		if err := readMessage(s.link, &s.message); err != nil {
			s.message.closeFDs()
			return err
		}
		err := s.serve(&s.message)
		s.message.closeFDs()
		if err != nil {
			return err
		}
	}
}

// serve handles one message and answers. An error ends the connection: the front-end could not be told in another way.
func (s *session) serve(m *message) error {
	reply, failure := s.dispatch(m)
	if reply == nil && m.flags&flagNeedReply != 0 && s.protocol&ProtocolReplyAck != 0 {
		reply = acknowledge(s.reply(m.request), failure)
	}
	if failure != nil {
		failure = fmt.Errorf("%v: %w", m.request, failure)
		s.refused++
		s.lastRefusal = failure.Error()
	}
	s.publish() // before the front-end knows: whoever it tells finds the new state
	if failure != nil && (reply == nil || errors.As(failure, new(fatal))) {
		return failure
	}
	if failure != nil {
		s.log.write(slog.LevelWarn, "vhost-user message refused", "reason", failure)
	}
	return s.send(reply)
}

func acknowledge(reply []byte, failure error) []byte {
	if failure != nil {
		return appendU64(reply, 1)
	}
	return appendU64(reply, 0)
}

// dispatch finds the rule for a message, applies it and calls the handler. A reply, where the request has one, is complete but
// for its size; beside an error it is the one that says no.
func (s *session) dispatch(m *message) (reply []byte, err error) {
	var r rule
	if int(m.request) < len(rules) {
		r = rules[m.request]
	}
	if m.flags&flagReply != 0 {
		return nil, fatal{errors.New("a front-end sends no replies here")}
	}
	if r.handle == nil {
		return nil, ErrUnsupported
	}
	if err = s.check(r, m); err == nil {
		reply, err = r.handle(s, m)
	}
	if err != nil && reply == nil && r.answers {
		err = fatal{err} // an acknowledgement would be taken for the answer
	}
	return reply, err
}

func (s *session) check(r rule, m *message) error {
	switch {
	case s.protocol&r.needs != r.needs:
		return fmt.Errorf("%w: protocol feature %v was not negotiated", ErrUnsupported, ProtocolNames(r.needs&^s.protocol))
	case len(m.payload) < r.min || len(m.payload) > r.max:
		return fmt.Errorf("payload of %d bytes instead of %d", len(m.payload), r.min)
	case len(m.fds) > r.fds:
		return fmt.Errorf("%d descriptors came with it, at most %d may", len(m.fds), r.fds)
	}
	return nil
}

// reply begins the answer to a request.
func (s *session) reply(r Request) []byte {
	return appendHeader(s.out[:0], r, flagVersion|flagReply)
}

// send completes a reply and sends it, with the descriptor that goes along; nil: there is none.
func (s *session) send(b []byte) error {
	if b == nil {
		return nil
	}
	var fds []int
	if s.outFD >= 0 {
		fds = []int{s.outFD}
		defer func() { closeFD(s.outFD); s.outFD = -1 }()
	}
	s.out = seal(b)
	s.link.deadline(time.Now().Add(messageTime))
	defer s.link.deadline(time.Time{})
	if err := s.link.send(s.out, fds); err != nil {
		return fmt.Errorf("send reply: %w", err)
	}
	return nil
}

// end takes everything back from the device.
func (s *session) end() {
	if err := s.stopAll(every); err != nil {
		s.log.write(slog.LevelWarn, "vhost-user rings did not stop cleanly", "reason", err)
	}
	for i := range s.rings {
		s.showError(i, -1)
		s.rings[i].closeFDs()
	}
	s.endLog()
	s.endInflight()
	s.device.Disconnected()
	s.exchangeChannel(nil)
}

// start hands ring i to the device if it is started, enabled and complete.
func (s *session) start(i int) error {
	r := &s.rings[i]
	if r.running || !r.started || !s.enabled(i) {
		return nil
	}
	lack := "features (SET_FEATURES)"
	if s.negotiated {
		lack = r.missing(s.features, s.memory)
	}
	if lack != "" && lack != r.lack {
		s.log.write(slog.LevelInfo, "vhost-user ring is started and waits", "ring", i, "for", lack)
	}
	if r.lack = lack; lack != "" {
		return nil
	}
	if why := r.wrong(s.features); why != "" {
		return fmt.Errorf("ring %d: %s", i, why)
	}
	if !s.anyRunning() {
		s.begin()
	}
	if err := s.device.StartVring(r.config); err != nil {
		return fmt.Errorf("ring %d: start: %w", i, err)
	}
	r.running = true
	return nil
}

// startAll starts every ring that can run, and returns the first failure.
func (s *session) startAll() (first error) {
	for i := range s.rings {
		if err := s.start(i); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// enabled: SET_VRING_ENABLE counts only where protocol features were negotiated.
func (s *session) enabled(i int) bool {
	return s.features&FeatureProtocol == 0 || s.rings[i].enabled
}

// stop takes those of the rings back from the device that it has, at once where it can do that. An error ends the session; none of them runs any more.
func (s *session) stop(indices ...int) error {
	indices = slices.DeleteFunc(indices, func(i int) bool { return !s.rings[i].running })
	if len(indices) == 0 {
		return nil
	}
	bases := make([]uint32, len(indices))
	err := s.stopVrings(indices, bases)
	for n, i := range indices {
		s.rings[i].running = false
		s.rings[i].config.Base = bases[n]
	}
	if err != nil {
		return fatal{err}
	}
	return nil
}

func (s *session) stopVrings(indices []int, bases []uint32) (err error) {
	if d, ok := s.device.(VringsStopper); ok {
		if err = d.StopVrings(indices, bases); err != nil {
			err = fmt.Errorf("rings %v: stop: %w", indices, err)
		}
		return err
	}
	for n, i := range indices {
		var lost error
		if bases[n], lost = s.device.StopVring(i); lost != nil {
			err = errors.Join(err, fmt.Errorf("ring %d: stop: %w", i, lost))
		}
	}
	return err
}

// stopAll stops the rings that are meant.
func (s *session) stopAll(meant func(*vring) bool) error {
	var indices []int
	for i := range s.rings {
		if meant(&s.rings[i]) {
			indices = append(indices, i)
		}
	}
	return s.stop(indices...)
}

// every is all rings.
func every(*vring) bool { return true }

// halt ends what SET_VRING_KICK began, for all rings. Sizes, places and call descriptors stay known: not every
// front-end repeats them.
func (s *session) halt() error {
	if err := s.stopAll(every); err != nil {
		return err
	}
	for i := range s.rings {
		s.unkick(i)
	}
	return nil
}

// unkick forgets that ring i was started.
func (s *session) unkick(i int) {
	r := &s.rings[i]
	r.started = false
	closeFD(r.config.Kick)
	r.config.Kick = -1
}

func (s *session) anyRunning() bool {
	for i := range s.rings {
		if s.rings[i].running {
			return true
		}
	}
	return false
}

// orderly tells whether a session's end needs no explanation: the front-end left, or was killed before it read a reply.
func orderly(err error) bool {
	return err == nil || err == io.EOF || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
