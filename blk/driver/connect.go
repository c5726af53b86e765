package driver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// What happens on a connection, in QEMU's order:
//
//	dial ─▶ features ─▶ own channel ─▶ configuration ─▶ in-flight area ─▶ memory ─▶ rings ─▶ DRIVER_OK
//	                                                    made once, given always
//	keep: until it hangs up, and then all of it again

// Protocol features that are used where the back-end has them.
const protocol = vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck | vhostuser.ProtocolConfig | vhostuser.ProtocolBackendReq |
	vhostuser.ProtocolResetDevice | vhostuser.ProtocolStatus

// Device status (virtio 1.2, 2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
)

// kept is what outlives a connection. Who holds Disk.control has it, or the keeper while there is no connection.
type kept struct {
	inflight vhostuser.InflightFile
	bases    []uint32 // of packed rings, and of those that Stop stopped
}

var noInflight = vhostuser.InflightFile{FD: -1}

func (k *kept) dropInflight() {
	if k.inflight.FD >= 0 {
		_ = unix.Close(k.inflight.FD)
	}
	k.inflight = noInflight
}

// link is one connection.
type link struct {
	conn    *net.UnixConn
	front   *vhostuser.Frontend
	channel *vhostuser.FrontendChannel
	hearing sync.WaitGroup // the goroutine that hears the channel
	deaf    context.CancelFunc
}

// redial is how often the socket is looked for.
const redial = 10 * time.Millisecond

// dial connects, tries again while the back-end is not there or dies meanwhile, and starts the rings.
func (d *Disk) dial(ctx context.Context) (*link, error) {
	for {
		l, err := d.once(ctx)
		if err == nil || errors.Is(err, ErrLacks) || errors.Is(err, vhostuser.ErrRefused) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to %s: %w", d.path, errors.Join(err, ctx.Err()))
		case <-time.After(redial):
		}
	}
}

func (d *Disk) once(ctx context.Context) (_ *link, err error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", d.path)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UnixConn)
	l := &link{conn: conn, front: vhostuser.NewFrontend(conn), deaf: func() {}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if err := d.negotiate(l); err != nil {
		return nil, err
	}
	if l.front.Protocol()&vhostuser.ProtocolBackendReq != 0 {
		if l.channel, err = l.front.OpenChannel(); err != nil {
			return nil, err
		}
	}
	if err := d.readConfig(l); err != nil {
		return nil, err
	}
	if err := d.recover(); err != nil { // each time: the one before may have died when some rings ran
		return nil, err
	}
	if err := d.setUp(l); err != nil {
		return nil, err
	}
	if l.channel != nil {
		hears, deaf := context.WithCancel(context.Background())
		l.deaf = deaf
		l.hearing.Add(1)
		go d.hear(hears, l)
	}
	return l, nil
}

// negotiate agrees on features: at first on what both can, later on the same.
func (d *Disk) negotiate(l *link) error {
	must, may := d.options.features()
	if agreed := d.Features(); agreed != 0 {
		must, may = agreed, 0
	}
	wanted := uint64(protocol)
	if d.options.Inflight {
		wanted |= vhostuser.ProtocolInflight
	}
	if err := l.front.Negotiate(must|may|vhostuser.FeatureProtocol, wanted); err != nil {
		return err
	}
	have := l.front.Features() &^ vhostuser.FeatureProtocol
	switch {
	case must&^have != 0:
		return fmt.Errorf("%w: features %#x", ErrLacks, must&^have)
	case l.front.Protocol()&vhostuser.ProtocolConfig == 0:
		return fmt.Errorf("%w: a configuration (protocol feature CONFIG)", ErrLacks)
	case d.options.Inflight && l.front.Protocol()&vhostuser.ProtocolInflight == 0:
		return fmt.Errorf("%w: protocol feature INFLIGHT_SHMFD", ErrLacks)
	}
	if l.front.Protocol()&vhostuser.ProtocolMQ != 0 {
		n, err := l.front.QueueNum()
		if err != nil {
			return err
		}
		if n < uint64(d.options.Queues) {
			return fmt.Errorf("%w: it has %d queues, not %d", ErrLacks, n, d.options.Queues)
		}
	}
	d.features.Store(have)
	return l.status(statusAcknowledge | statusDriver | statusFeaturesOK)
}

// status writes the device status where the back-end wants to know.
func (l *link) status(v uint8) error {
	if l.front.Protocol()&vhostuser.ProtocolStatus == 0 {
		return nil
	}
	return l.front.SetStatus(v)
}

func (d *Disk) readConfig(l *link) error {
	b, err := l.front.Config(0, configBytes)
	if err != nil {
		return err
	}
	c := parseConfig(b)
	d.config.Store(&c)
	return nil
}

// setUp gives the back-end everything and starts the rings.
func (d *Disk) setUp(l *link) (err error) {
	if d.options.Inflight {
		if d.kept.inflight.FD < 0 {
			if d.kept.inflight, err = l.front.GetInflight(d.options.Queues, d.options.Size); err != nil {
				d.kept.inflight = noInflight
				return err
			}
		}
		if err := l.front.SetInflight(d.kept.inflight); err != nil {
			return err
		}
	}
	if err := l.front.SetMemory(d.memory.regions()...); err != nil {
		return err
	}
	if d.stopped {
		return nil
	}
	return d.startRings(l)
}

func (d *Disk) startRings(l *link) error {
	for i := range d.queues {
		if err := l.front.StartVring(d.vring(i)); err != nil {
			return err
		}
	}
	return l.status(statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK)
}

// vring is a queue as the back-end is told of it.
func (d *Disk) vring(i int) vhostuser.VringConfig {
	q := d.queues[i]
	user := func(b []byte) uint64 { return tablesUser + uint64(shm.Address(b)-shm.Address(d.memory.bytes)) }
	return vhostuser.VringConfig{
		Index: i, Size: uint32(d.options.Size), Base: d.kept.bases[i], Kick: q.kick, Call: q.call, Err: -1,
		DescAddr: user(q.layout.Desc), AvailAddr: user(q.layout.Avail), UsedAddr: user(q.layout.Used),
	}
}

// fresh are the bases of rings that have just begun.
func (d *Disk) fresh() {
	for i := range d.kept.bases {
		d.kept.bases[i] = 0
		if d.options.Packed {
			d.kept.bases[i] = virtq.PackedStart | virtq.PackedStart<<16
		}
	}
}

// keep watches over the connection until the disk is closed.
func (d *Disk) keep(ctx context.Context, l *link) {
	defer d.keeper.Done()
	for l.await(ctx) {
		d.control.Lock()
		d.hangUp()
		d.control.Unlock()
		if !d.options.Reconnect {
			d.fail(fmt.Errorf("%w: it hung up", ErrGone))
			return
		}
		var err error
		if l, err = d.again(ctx); err != nil {
			d.fail(fmt.Errorf("%w: %w", ErrGone, err))
			return
		}
		d.reconnects.Add(1)
	}
}

// again connects to the next back-end.
func (d *Disk) again(ctx context.Context) (*link, error) {
	if d.options.Patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.options.Patience)
		defer cancel()
	}
	l, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	d.control.Lock()
	d.now = l
	d.control.Unlock()
	if !d.options.Inflight {
		for _, q := range d.queues {
			q.Kick() // what was offered again
		}
	}
	return l, nil
}

// recover makes rings ready for a back-end that has never seen them. Rings that Stop stopped are.
func (d *Disk) recover() error {
	if d.stopped {
		return nil
	}
	if d.options.Inflight {
		if !d.options.Packed {
			for i, q := range d.queues {
				d.kept.bases[i] = uint32(binary.LittleEndian.Uint16(q.layout.Used[2:])) // used.idx
			}
		}
		return nil
	}
	d.fresh()
	for _, q := range d.queues {
		if err := q.renew(); err != nil {
			return err
		}
	}
	return nil
}

// await waits until the back-end hangs up (true), or ctx is done. It asks for the end of the stream only, so it disturbs nobody who reads.
func (l *link) await(ctx context.Context) (hungUp bool) {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return true
	}
	own := -1
	if err := raw.Control(func(fd uintptr) { own, _ = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || own < 0 {
		return true
	}
	defer unix.Close(own)
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return true
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { shm.Signal(wake); close(woken) })
	defer func() {
		if !stop() {
			<-woken
		}
		unix.Close(wake)
	}()
	files := []unix.PollFd{{Fd: int32(own), Events: unix.POLLRDHUP}, {Fd: int32(wake), Events: unix.POLLIN}}
	for ctx.Err() == nil {
		if n, err := unix.Poll(files, -1); n > 0 && files[0].Revents != 0 || err != nil && err != unix.EINTR {
			return true
		}
	}
	return false
}

// hear takes what the back-end has to say.
func (d *Disk) hear(ctx context.Context, l *link) {
	defer l.hearing.Done()
	for {
		what, err := l.channel.Next(ctx, 0)
		if err != nil {
			return
		}
		if what != vhostuser.BackendConfigChange {
			continue
		}
		// The lock may be held by one who hangs up and waits for us.
		for !d.control.TryLock() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
		err = d.readConfig(l)
		d.control.Unlock()
		if err == nil && d.options.Changed != nil {
			d.options.Changed(d.Config())
		}
	}
}

// hangUp ends the connection, for one who holds the lock.
func (d *Disk) hangUp() {
	if d.now != nil {
		d.now.close()
		d.now = nil
	}
}

func (l *link) close() {
	l.deaf()
	l.hearing.Wait()
	if l.channel != nil {
		_ = l.channel.Close()
	}
	_ = l.front.Close()
}
