package underlay

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/shuntio/shunt/vxlan"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Options of an Underlay. Interface must be set.
type Options struct {
	// Interface is the uplink's name, in the network namespace of the thread that calls New.
	Interface string
	// Address is the local tunnel endpoint. Zero: the interface's first global one, IPv4 before IPv6, followed as it changes.
	Address netip.Addr
	// Log gets what happens to the uplink and its next hops. Nil: slog.Default().
	Log *slog.Logger
}

// ErrNoInterface says that the uplink's interface is not there.
var ErrNoInterface = errors.New("no such interface")

// Underlay is the vxlan.Resolver of one interface. It stays in the network namespace in which it was made.
type Underlay struct {
	options Options
	log     *slog.Logger
	handle  *netlink.Handle
	socket  *nl.NetlinkSocket

	// state is written by follow, read by anybody.
	state atomic.Pointer[state]

	mu     sync.Mutex // guards what follows
	wanted []netip.Addr
	notify func()

	wake       chan struct{} // wanted has changed
	events     chan event
	stop, done chan struct{}
	close      sync.Once
}

var _ vxlan.Resolver = (*Underlay)(nil)

// state is what is known, immutable.
type state struct {
	local    vxlan.Local
	presence Presence
	up       bool
	hops     map[netip.Addr]Hop
}

// Presence tells whether the interface is there, and whether it is still the one it was.
type Presence struct {
	// Index is the interface's, 0 while there is none.
	Index int
	// Came is how often an interface of the name came, the one that New found included: sockets and programs of an earlier one
	// have nothing to do with this one.
	Came int
}

func (s *state) equal(t *state) bool {
	return s.local == t.local && s.presence == t.presence && s.up == t.up && maps.Equal(s.hops, t.hops)
}

// Hop is the way to a VTEP, for people.
type Hop struct {
	// Gateway is the address whose MAC is used: a router's, or the VTEP itself.
	Gateway netip.Addr
	// Next is the answer for the switch; its Destination is zero as long as the neighbour is not resolved.
	Next vxlan.NextHop
	// Problem says why there is no next hop; empty if there is one.
	Problem string
}

// New looks the interface up and follows it until Close.
func New(o Options) (*Underlay, error) {
	u := &Underlay{
		options: o, log: o.Log, notify: func() {},
		wake: make(chan struct{}, 1), events: make(chan event, 256), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if u.log == nil {
		u.log = slog.Default()
	}
	u.log = u.log.With("interface", o.Interface)
	var err error
	// The subscription comes first: what changes after it and before the tables are read is read again, not missed.
	u.socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("interface %s: following the kernel's routes and neighbours: %w", o.Interface, err)
	}
	if u.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		u.socket.Close()
		return nil, fmt.Errorf("interface %s: netlink: %w", o.Interface, err)
	}
	f := newFollower(u)
	if err := f.readLink(); err != nil {
		u.socket.Close()
		u.handle.Close()
		return nil, err
	}
	f.readAll()
	u.state.Store(f.next())
	go u.listen()
	go f.follow()
	return u, nil
}

// Close ends following. The last answers stay.
func (u *Underlay) Close() {
	u.close.Do(func() {
		close(u.stop)
		u.socket.Close() // ends listen
		<-u.done
		u.handle.Close()
	})
}

// Want replaces the VTEPs that are resolved and kept resolved.
func (u *Underlay) Want(vteps []netip.Addr) {
	u.mu.Lock()
	u.wanted = slices.Clone(vteps)
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default: // one is waiting already
	}
}

// Notify sets the function that is called after an answer changed.
func (u *Underlay) Notify(changed func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.notify = changed
}

// NextHop is the way to a VTEP as of now.
func (u *Underlay) NextHop(vtep netip.Addr) (vxlan.NextHop, bool) {
	s := u.state.Load()
	h, ok := s.hops[vtep]
	return h.Next, ok && s.up && h.Next.Destination != 0
}

// Local is the interface's end as of now.
func (u *Underlay) Local() vxlan.Local { return u.state.Load().local }

// Presence is that of the interface as of now.
func (u *Underlay) Presence() Presence { return u.state.Load().presence }

// Up tells whether the interface is there, set up, and has a carrier.
func (u *Underlay) Up() bool { return u.state.Load().up }

// Hops are the ways to all wanted VTEPs as of now.
func (u *Underlay) Hops() map[netip.Addr]Hop { return maps.Clone(u.state.Load().hops) }
