// Package nvmetcptest is an NVMe/TCP target for tests: one subsystem with one namespace in memory, and a discovery service. It is small but does
// what it does as the specifications say, and shares no code with the host it tests.
//
//	Target ── listener ─▶ Queue (a connection): ICReq, Connect ─▶ controller: properties, keep-alive timer, events
//	                       │
//	                       └─ commands ─▶ Intercept? ─▶ held? ─▶ executed on the namespace ─▶ C2HData, R2T, CapsuleResp
//
// Beside working it can be told to misbehave: Intercept gives a test every command before it is executed, and Queue.Raw lets it answer
// whatever it likes. Hold keeps commands back, to be executed later, or never.
package nvmetcptest

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var le = binary.LittleEndian

// NQN is the subsystem's name.
const NQN = "nqn.2026-11.io.shunt:target"

// Options of a Target.
type Options struct {
	// Blocks of the namespace, of 1<<Shift bytes. Zero: 64 Ki blocks, of 512 bytes.
	Blocks uint64
	Shift  uint
	// InCapsule is how many bytes of data an IO capsule may carry. Zero: none.
	InCapsule int
	// MaxH2CData is the most data in an H2CData PDU. Zero: 128 KiB.
	MaxH2CData int
	// MaxC2HData is the most data in a C2HData PDU. Zero: all of a command's.
	MaxC2HData int
	// MaxR2T is the most data asked for by one R2T. Zero: all of a command's.
	MaxR2T int
	// CPDA is the alignment of data the host must keep, in dwords, less one.
	CPDA byte
	// MDTS bounds a command to 4 KiB << MDTS; zero: not at all.
	MDTS byte
	// Entries of a queue, less one (MQES). Zero: 127.
	Entries uint16
	// Single makes that 0: a queue of one entry, which is none.
	Single bool
	// Queues is how many IO queues there are. Zero: 4.
	Queues int
	// NoSuccess makes reads end with a response capsule instead of the SUCCESS flag.
	NoSuccess bool
	// Cache makes the controller say that it has a volatile write cache; Restart then loses what was not flushed.
	Cache bool
	// ANA makes the controller report asymmetric access.
	ANA bool
	// NoOptional: neither Dataset Management nor Write Zeroes.
	NoOptional bool
	// CRDT is command retry delay 1, in units of 100 ms.
	CRDT uint16
	// Authenticate makes Connect ask for authentication.
	Authenticate bool
	// NoDigests refuses digests in the handshake.
	NoDigests bool
	// Lingers makes a reset (CC.EN = 0) leave IO queues and what they execute alone, as Linux' target does: a queue ends when the host has ended its connection, which is
	// closed here when all of the queue's commands have been executed.
	Lingers bool
	// Health is the health log; nil: all zeroes, as of a target that is software.
	Health []byte
}

// Target is a subsystem that listens.
type Target struct {
	TB       testing.TB
	o        Options
	listener net.Listener

	// Intercept sees every command of an IO queue, as it came; true: it has been dealt with. Set it with Do.
	intercept func(q *Queue, e []byte) bool

	mu          sync.Mutex
	disk        []byte
	stable      []byte // what a restart leaves, with Options.Cache
	uuid        [16]byte
	ana         byte
	generation  uint64
	controllers map[uint16]*controller
	lastID      uint16
	queues      map[*Queue]bool
	paused      chan struct{} // closed: go on
	hold        func(e []byte) bool
	held        []func()
	stopping    bool
	wait        sync.WaitGroup

	// Commands counts by opcode what IO queues were asked; Admin what admin queues were; Aborts of the latter; Expired controllers that ended by their
	// keep-alive timer; Data H2CData PDUs; Terminated connections that the host ended with a TermReq, the last one's status in TermStatus.
	Commands                                    [256]atomic.Uint64
	Admin                                       [256]atomic.Uint64
	Expired, Data, Connects, Terminated, KeptUp atomic.Uint64
	TermStatus                                  atomic.Uint32
}

// New starts a target, which ends with the test.
func New(tb testing.TB, o Options) *Target {
	if o.Shift == 0 {
		o.Shift = 9
	}
	if o.Blocks == 0 {
		o.Blocks = 64 << 10
	}
	if o.MaxH2CData == 0 {
		o.MaxH2CData = 128 << 10
	}
	if o.Entries == 0 && !o.Single {
		o.Entries = 127
	}
	if o.Queues == 0 {
		o.Queues = 4
	}
	t := &Target{TB: tb, o: o, ana: 1, uuid: [16]byte{0x42, 15: 1}, controllers: map[uint16]*controller{}, queues: map[*Queue]bool{}, paused: make(chan struct{})}
	close(t.paused)
	t.disk = make([]byte, o.Blocks<<o.Shift)
	t.stable = make([]byte, len(t.disk))
	if err := t.listen("127.0.0.1:0"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(t.Close)
	return t
}

func (t *Target) listen(address string) (err error) {
	for range 100 {
		if t.listener, err = net.Listen("tcp", address); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond) // the port of the one before
	}
	if err != nil {
		return err
	}
	l := t.listener
	t.Do(func() { t.stopping = false })
	t.wait.Go(func() {
		for {
			n, err := l.Accept()
			if err != nil {
				return
			}
			q := &Queue{Target: t, Conn: n}
			t.mu.Lock()
			t.queues[q] = true
			t.mu.Unlock()
			t.wait.Go(q.serve)
		}
	})
	return nil
}

// Address is where it listens.
func (t *Target) Address() string { return t.listener.Addr().String() }

// URL names the namespace.
func (t *Target) URL() string { return fmt.Sprintf("nvme+tcp://%s/%s?nsid=1", t.Address(), NQN) }

// Do runs fn while no command is executed.
func (t *Target) Do(fn func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fn()
}

// Disk is the namespace's contents; only within Do while there is traffic.
func (t *Target) Disk() []byte { return t.disk }

// Intercept gives fn every command of an IO queue first.
func (t *Target) Intercept(fn func(q *Queue, e []byte) bool) { t.Do(func() { t.intercept = fn }) }

// Close ends it.
func (t *Target) Close() {
	t.stop()
	t.wait.Wait()
}

func (t *Target) stop() {
	t.listener.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopping = true
	for q := range t.queues {
		q.Conn.Close()
	}
	for _, c := range t.controllers {
		c.end()
	}
	t.resume()
}

// Restart is what a crash and a new start do: connections and controllers are gone, and what was not flushed, if there is a cache. while runs in between.
func (t *Target) Restart(while func()) {
	address := t.Address()
	t.stop()
	t.wait.Wait()
	t.Do(func() {
		t.controllers, t.held, t.hold = map[uint16]*controller{}, nil, nil
		if t.o.Cache {
			copy(t.disk, t.stable)
		}
	})
	if while != nil {
		while()
	}
	if err := t.listen(address); err != nil {
		t.TB.Error(err)
	}
}

// Break closes the connections of IO queues, and of the admin queues too if admin is set, but nothing else.
func (t *Target) Break(admin bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for q := range t.queues {
		if q.ID != 0 || admin {
			q.Conn.Close()
		}
	}
}

// Pause makes the target deaf and mute, its connections open, until Resume. Its keep-alive timers go on.
func (t *Target) Pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resume()
	t.paused = make(chan struct{})
}

// Resume ends Pause.
func (t *Target) Resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resume()
}

func (t *Target) resume() {
	select {
	case <-t.paused:
	default:
		close(t.paused)
	}
}

func (t *Target) whilePaused() {
	t.mu.Lock()
	p := t.paused
	t.mu.Unlock()
	<-p
}

// Hold keeps back the execution of commands that which names, until Release.
func (t *Target) Hold(which func(e []byte) bool) { t.Do(func() { t.hold = which }) }

// Held is how many commands are held back.
func (t *Target) Held() (n int) {
	t.Do(func() { n = len(t.held) })
	return n
}

// Release executes what was held back, of controllers that may still execute; and holds nothing back any more.
func (t *Target) Release() {
	t.Do(func() {
		t.hold = nil
		for _, run := range t.held {
			run()
		}
		t.held = nil
	})
}

// Resize changes the number of blocks, and says so.
func (t *Target) Resize(blocks uint64) {
	t.Do(func() {
		now := make([]byte, blocks<<t.o.Shift)
		copy(now, t.disk)
		t.disk, t.o.Blocks = now, blocks
		t.stable = append([]byte(nil), now...)
		for _, c := range t.controllers {
			c.raise(2 | 0<<8 | 4<<16)
		}
	})
}

// Replace gives the namespace another identity.
func (t *Target) Replace() { t.Do(func() { t.uuid[15]++ }) }

// Forget takes the namespace's identifiers away.
func (t *Target) Forget() { t.Do(func() { t.uuid = [16]byte{} }) }

// SetHealth is what the health log says from now on; empty: there is none.
func (t *Target) SetHealth(log []byte) { t.Do(func() { t.o.Health = log }) }

// SetAccess changes the ANA state, and says so.
func (t *Target) SetAccess(state byte) {
	t.Do(func() {
		t.ana = state
		for _, c := range t.controllers {
			c.raise(2 | 3<<8 | 0xc<<16)
		}
	})
}

// Connections is how many there are.
func (t *Target) Connections() (n int) {
	t.Do(func() { n = len(t.queues) })
	return n
}

// Controllers is how many there are.
func (t *Target) Controllers() (n int) {
	t.Do(func() { n = len(t.controllers) })
	return n
}

// controller is one association's. Its fields are guarded by Target.mu.
type controller struct {
	t      *Target
	id     uint16
	cc     uint32
	csts   uint32
	kato   time.Duration
	timer  *time.Timer
	gone   bool
	queues []*Queue
	admin  *Queue
	aer    []uint16 // CIDs
	events []uint32
	mask   map[uint32]bool
	enable uint32
	disc   bool
}

func (t *Target) newController(q *Queue, kato time.Duration, discovery bool) *controller {
	t.lastID++
	c := &controller{t: t, id: t.lastID, kato: kato, admin: q, queues: []*Queue{q}, mask: map[uint32]bool{}, disc: discovery}
	t.controllers[c.id] = c
	if kato > 0 {
		c.timer = time.AfterFunc(kato, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if !c.gone {
				t.Expired.Add(1)
				c.end()
			}
		})
	}
	return c
}

// end is the association's: nothing of it is executed any more.
func (c *controller) end() {
	if c.gone {
		return
	}
	c.gone = true
	if c.timer != nil {
		c.timer.Stop()
	}
	delete(c.t.controllers, c.id)
	for _, q := range c.queues {
		q.Conn.Close()
	}
}

// alive restarts the keep-alive timer.
func (c *controller) alive() {
	if c.timer != nil && !c.gone {
		c.timer.Reset(c.kato)
	}
}

// raise tells the host of an event, if it wants to know, once until it has read the log page.
func (c *controller) raise(event uint32) {
	bit := map[uint32]uint32{0: 1 << 8, 3: 1 << 11}[event>>8&0xff]
	if c.enable&bit == 0 || c.mask[event>>16] {
		return
	}
	c.mask[event>>16] = true
	c.events = append(c.events, event)
	c.tell()
}

func (c *controller) tell() {
	for len(c.events) > 0 && len(c.aer) > 0 {
		c.admin.complete(c.aer[0], c.events[0], 0)
		c.aer, c.events = c.aer[1:], c.events[1:]
	}
}
