package nvmetcp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/blk"
)

// association is a controller that we are connected with: its admin queue, and what it said of itself.
type association struct {
	o      *Options
	admin  *admin
	cntlid uint16

	ready      time.Duration // within it the controller becomes ready, or not (CAP.TO)
	entries    int           // of an IO queue, at most (CAP.MQES)
	page       uint          // log2 of the unit of MDTS
	kato       time.Duration
	controller controllerData
	namespace  namespaceData
	lifetime   *blk.Lifetime
	queues     int // IO queues we may have

	carried atomic.Bool // a lane's command has succeeded
	over    atomic.Bool // it ends: set before the first request of any lane comes back, and from then on no lane takes one

	access atomic.Pointer[anaState] // how the controller reaches the namespace; nil: it knows no such thing
	aborts chan abort               // by lanes, which do not wait for room
	ana    chan struct{}            // somebody should look at the ANA log; has room for one

	learning chan struct{} // has a token while one asks what the namespace is, so that no older answer comes after a newer one

	ctx  context.Context // ends with the association, its cause why
	stop context.CancelCauseFunc
}

// associate makes an association: connect the admin queue, enable the controller, learn what it is. With a kato of zero it is one without keep-alive.
func associate(ctx context.Context, o *Options, kato time.Duration) (*association, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.ConnectTimeout, fmt.Errorf("%s was not ready within %v", o.Address, o.ConnectTimeout))
	defer cancel()
	c, err := dial(ctx, o)
	if err != nil {
		return nil, late(ctx, err)
	}
	a := &association{o: o, kato: kato, learning: make(chan struct{}, 1)}
	if err := a.begin(ctx, c); err != nil {
		c.Close()
		return nil, late(ctx, err)
	}
	a.ctx, a.stop = context.WithCancelCause(context.Background())
	return a, nil
}

// late names the timeout that ended an attempt, rather than what it broke.
func late(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		<-ctx.Done()
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

func (a *association) begin(ctx context.Context, c *conn) error {
	unbound := c.bounded(ctx)
	id, err := c.connect(a.o, 0, adminEntries, 0xffff, a.kato)
	unbound()
	if err != nil {
		return err
	}
	a.cntlid, a.admin = id, newAdmin(c)
	if err := a.enable(ctx); err != nil {
		return fmt.Errorf("enable the controller: %w", err)
	}
	b, err := a.admin.identify(ctx, "the controller", cnsController, 0)
	if err != nil {
		return err
	}
	a.controller = parseController(b)
	return nil
}

// enable reads what the controller is capable of, and sets CC.EN.
func (a *association) enable(ctx context.Context) error {
	capabilities, err := a.admin.property(ctx, propertyCAP, true)
	if err != nil {
		return err
	}
	a.entries = int(capabilities&0xffff) + 1
	a.ready = max(500*time.Millisecond*time.Duration(capabilities>>24&0xff), time.Second)
	a.page = 12 + uint(capabilities>>48&0xf)
	if a.entries < 2 {
		return errors.New("its queues have room for no command (CAP.MQES)")
	}
	if capabilities>>37&1 == 0 {
		return errors.New("it does not have the NVM command set (CAP.CSS)")
	}
	if _, err := a.admin.property(ctx, propertyVS, false); err != nil {
		return err
	}
	if err := a.admin.setProperty(ctx, propertyCC, ccEnable|ccEntrySizes|uint32(a.page-12)<<7); err != nil {
		return err
	}
	return a.await(ctx, cstsReady|cstsFatal, cstsReady)
}

// await polls CSTS until the bits of mask are as wanted.
func (a *association) await(ctx context.Context, mask, want uint64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.ready, fmt.Errorf("its status is not %#x within %v (CAP.TO)", want, a.ready))
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		v, err := a.admin.property(ctx, propertyCSTS, false)
		switch {
		case err != nil:
			return err
		case v&mask == want:
			return nil
		case v&cstsFatal != 0 && want&cstsReady != 0:
			return errors.New("it reports a fatal status (CSTS.CFS)")
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// open learns the namespace, asks for IO queues, and for events: what a discovery controller does not have.
func (a *association) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.o.ConnectTimeout, fmt.Errorf("%s did not answer within %v", a.o.Address, a.o.ConnectTimeout))
	defer cancel()
	if !a.controller.SGLs {
		return errors.New("the controller has no SGLs, which Fabrics needs")
	}
	if _, err := a.controller.inCapsule(); err != nil {
		return err
	}
	granted, err := a.admin.setFeature(ctx, "number of queues", featureQueues, uint32(a.o.Queues-1)*0x10001)
	if err != nil {
		return err
	}
	a.queues = min(a.o.Queues, int(granted&0xffff)+1, int(granted>>16)+1)
	if events := a.controller.OAES & (eventNamespace | eventANA); events != 0 {
		if _, err := a.admin.setFeature(ctx, "asynchronous events", featureEvents, events); err != nil {
			return err
		}
	}
	if a.namespace, err = a.learn(ctx); err != nil {
		return err
	}
	a.lifetime, err = a.health(ctx)
	return err
}

// health is how much of the device is used up, if the controller tells.
func (a *association) health(ctx context.Context) (*blk.Lifetime, error) {
	b, err := a.admin.logPage(ctx, "of health", logHealth, 0xffffffff, 0, 512)
	switch {
	case err == nil:
		return parseHealth(b), nil
	case refusedOnly(err):
		return nil, nil
	}
	return nil, err
}

// refusedOnly tells an answer that says no from a connection that broke: what is optional may be refused.
func refusedOnly(err error) bool {
	var c *commandError
	return errors.As(err, &c)
}

// learn identifies the namespace.
func (a *association) learn(ctx context.Context) (n namespaceData, err error) {
	if err := a.active(ctx); err != nil {
		return n, err
	}
	b, err := a.admin.identify(ctx, "the namespace", cnsNamespace, a.o.NSID)
	if err != nil {
		return n, err
	}
	if n, err = parseNamespace(b); err != nil {
		return n, fmt.Errorf("namespace %d of %s: %w", a.o.NSID, a.o.NQN, err)
	}
	b, err = a.admin.identify(ctx, "the namespace's descriptors", cnsDescriptors, a.o.NSID)
	switch {
	case err == nil:
		if csi := n.identity.descriptors(b); csi != 0 {
			return n, fmt.Errorf("namespace %d of %s has command set %#x; only the NVM command set (0) is a disk", a.o.NSID, a.o.NQN, csi)
		}
	case !refusedOnly(err): // before NVMe 1.3
		return n, err
	}
	return n, a.more(ctx, &n)
}

// more asks for what only newer controllers know.
func (a *association) more(ctx context.Context, n *namespaceData) error {
	b, err := a.admin.identify(ctx, "the NVM command set's limits", cnsSetSpecific, 0)
	switch {
	case err == nil:
		n.bound(b, a.page)
	case !refusedOnly(err):
		return err
	}
	b, err = a.admin.identify(ctx, "the namespace, whatever its command set", cnsIndependent, a.o.NSID)
	switch {
	case err == nil:
		n.Rotational = b[0]&(1<<4) != 0
	case !refusedOnly(err):
		return err
	}
	return nil
}

// active refuses a namespace that is not in the active list, with a sentence that says which are.
func (a *association) active(ctx context.Context) error {
	b, err := a.admin.identify(ctx, "the active namespaces", cnsActive, 0)
	if refusedOnly(err) { // before NVMe 1.1
		return nil
	}
	if err != nil {
		return err
	}
	var there []uint32
	for ; len(b) >= 4 && le.Uint32(b) != 0; b = b[4:] {
		if le.Uint32(b) == a.o.NSID {
			return nil
		}
		if len(there) < 16 {
			there = append(there, le.Uint32(b))
		}
	}
	if len(there) == 0 && a.o.NSID > 1024 {
		return nil // beyond the first list
	}
	return fmt.Errorf("%s has no namespace %d for this host; it has %v", a.o.NQN, a.o.NSID, there)
}

// info is the store's face.
func (a *association) info() blk.Info {
	i := a.namespace.info(a.controller)
	i.Lifetime, i.Quiesce = a.lifetime, max(a.grace(), a.o.Quiesce)
	if a.queues == 1 {
		i.Lanes = 1
	}
	var digests byte
	if a.o.HeaderDigest {
		digests |= 1
	}
	if a.o.DataDigest {
		digests |= 2
	}
	i.Describe = fmt.Sprintf("NVMe/TCP %s, %s namespace %d (%s), controller %d: %s %s %s, %d queues of %d, digests %s", a.o.Address, a.o.NQN, a.o.NSID,
		a.namespace.identity, a.cntlid, a.controller.Model, a.controller.Serial, a.controller.Firmware, a.queues, a.depth(), digestNames(digests))
	return i
}

// depth is how many commands an IO queue may have under way: one less than it has entries.
func (a *association) depth() int { return min(a.o.QueueDepth, a.entries-1) }

// limits are what a lane must know of an association.
type limits struct {
	terms       terms
	nsid        uint32
	shift       uint
	depth       int
	inCapsule   uint32
	most        uint64 // bytes of a read or write
	mostZeroes  uint64 // bytes
	mostDiscard uint64
	deallocate  bool
	crdt        [4]time.Duration
	timeout     time.Duration
	can         [blk.Ops]bool
}

// maxTransfer bounds a command where the controller does not: a longer request is several commands, which move at the same time.
const maxTransfer = 1 << 20

func (a *association) limits(t terms) limits {
	n := &a.namespace
	l := limits{terms: t, nsid: a.o.NSID, shift: n.Shift, depth: a.depth(), deallocate: n.Deallocate, crdt: a.controller.CRDT, timeout: a.o.CommandTimeout}
	l.inCapsule, _ = a.controller.inCapsule()
	l.most = min(maxTransfer, uint64(1)<<16<<n.Shift)
	if a.controller.MDTS != 0 && a.controller.MDTS < 20 {
		l.most = min(l.most, uint64(1)<<(uint(a.controller.MDTS)+a.page))
	}
	l.most = max(l.most, uint64(1)<<n.Shift)
	l.mostZeroes, l.mostDiscard = uint64(1)<<16<<n.Shift, uint64(1<<32-1)<<n.Shift
	if n.mostZeroes != 0 {
		l.mostZeroes = min(l.mostZeroes, n.mostZeroes<<n.Shift)
	} else if a.controller.MDTS != 0 {
		l.mostZeroes = l.most // by the specification MDTS is about data that moves, but there are controllers that take it for zeroes as well
	}
	if n.mostDiscard != 0 {
		l.mostDiscard = min(l.mostDiscard, n.mostDiscard<<n.Shift)
	}
	l.can = [blk.Ops]bool{blk.OpRead: true, blk.OpWrite: true, blk.OpFlush: true, blk.OpDiscard: a.controller.DSM, blk.OpWriteZeroes: a.controller.WriteZeroes}
	return l
}

// queue connects an IO queue.
func (a *association) queue(ctx context.Context, qid uint16) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.o.ConnectTimeout, fmt.Errorf("queue %d was not connected within %v", qid, a.o.ConnectTimeout))
	defer cancel()
	c, err := dial(ctx, a.o)
	if err != nil {
		return nil, late(ctx, err)
	}
	defer c.bounded(ctx)()
	if _, err := c.connect(a.o, qid, a.depth()+1, a.cntlid, 0); err != nil {
		c.Close()
		return nil, late(ctx, err)
	}
	return c, nil
}

// disable ends what the controller is doing, and tells whether that is certain: the admin queue answers, and says that it is no longer ready.
func (a *association) disable(ctx context.Context, cc uint32, mask, want uint64) error {
	if err := a.admin.setProperty(ctx, propertyCC, cc); err != nil {
		return err
	}
	return a.await(ctx, mask, want)
}

// reset is a controller level reset: its IO queues are deleted and their commands end.
func (a *association) reset(ctx context.Context) error {
	return a.disable(ctx, ccEntrySizes|uint32(a.page-12)<<7, cstsReady, 0)
}

// shutdown tells the controller that we leave.
func (a *association) shutdown(ctx context.Context) error {
	return a.disable(ctx, ccEnable|ccNormalStop|ccEntrySizes|uint32(a.page-12)<<7, cstsShutdown, cstsStopped)
}

// fail ends the association, from any goroutine, once.
func (a *association) fail(why error) {
	a.over.Store(true)
	a.stop(why)
}

// close ends it without a word.
func (a *association) close() {
	a.stop(errGone)
	a.admin.end(nil)
}
