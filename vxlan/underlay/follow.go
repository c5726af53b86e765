package underlay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/shuntio/shunt/vxlan"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// event is what a netlink message says, as far as it matters.
type event struct {
	kind  eventKind
	index int // of the interface, of linkChanged
	neigh netlink.Neigh
	gone  bool // the neighbour's entry, or the interface
}

type eventKind uint8

const (
	lost eventKind = iota // messages were lost: read everything again
	linkChanged
	routesChanged
	neighbourChanged
)

// listen turns netlink messages into events until the socket is closed.
func (u *Underlay) listen() {
	for {
		messages, from, err := u.socket.Receive()
		switch {
		case errors.Is(err, os.ErrClosed) || u.stopped():
			return
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil: // ENOBUFS, or a message that is none
			if !errors.Is(err, unix.ENOBUFS) {
				u.log.Warn("netlink", "error", err)
				time.Sleep(100 * time.Millisecond) // not to spin on an error that stays
			}
			u.tell(event{kind: lost})
			continue
		case from.Pid != nl.PidKernel:
			continue
		}
		for i := range messages {
			m := &messages[i]
			switch m.Header.Type {
			case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
				if len(m.Data) >= 8 { // ifinfomsg and ifaddrmsg have family and index at the same places
					gone := m.Header.Type == unix.RTM_DELLINK && m.Data[0] == unix.AF_UNSPEC // and not out of a bridge
					u.tell(event{kind: linkChanged, index: int(binary.NativeEndian.Uint32(m.Data[4:])), gone: gone})
				}
			case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
				u.tell(event{kind: routesChanged})
			case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
				if len(m.Data) < unix.SizeofNdMsg {
					continue
				}
				if n, err := netlink.NeighDeserialize(m.Data); err == nil {
					u.tell(event{kind: neighbourChanged, neigh: *n, gone: m.Header.Type == unix.RTM_DELNEIGH})
				}
			}
		}
	}
}

func (u *Underlay) stopped() bool {
	select {
	case <-u.stop:
		return true
	default:
		return false
	}
}

// tell waits for room: meanwhile messages wait in the socket, and if they are lost there, it says so.
func (u *Underlay) tell(e event) {
	select {
	case u.events <- e:
	case <-u.stop:
	}
}

// follower is the working state of follow, which alone touches it.
type follower struct {
	u          *Underlay
	index      int  // of the interface; 0: not there
	came       int  // how often it did
	left       bool // it went; one that is there now came anew, though with the same index, from another namespace
	up         bool
	local      vxlan.Local
	routes     map[netip.Addr]route // by VTEP
	gateways   map[netip.Addr]bool  // those in routes
	neighbours map[netip.Addr]neighbour
	wanted     []netip.Addr

	linkStale, routesStale, allStale bool
}

func newFollower(u *Underlay) *follower {
	return &follower{u: u, routes: map[netip.Addr]route{}, gateways: map[netip.Addr]bool{}, neighbours: map[netip.Addr]neighbour{}}
}

// How often follow works at most, and how often it tries again what the kernel has given up.
const (
	gather = 20 * time.Millisecond
	retry  = time.Second
)

// follow keeps the state true until Close. What happens within a short time is taken together: a routing daemon that changes
// thousands of routes costs one look at each VTEP's route per period.
func (f *follower) follow() {
	defer close(f.u.done)
	again := time.NewTimer(retry)
	defer again.Stop()
	waiting := true // for again
	for {
		select {
		case <-f.u.stop:
			return
		case <-f.u.wake:
			f.readWanted()
		case e := <-f.u.events:
			f.take(e)
		case <-again.C:
			waiting = false
			f.retryFailed()
		}
		f.takeWaiting()
		f.refresh()
		f.publish()
		if !waiting && f.unresolved() {
			again.Reset(retry)
			waiting = true
		}
		select {
		case <-f.u.stop:
			return
		case <-time.After(gather):
		}
	}
}

// takeWaiting takes what has come together.
func (f *follower) takeWaiting() {
	for range cap(f.u.events) {
		select {
		case e := <-f.u.events:
			f.take(e)
		default:
			return
		}
	}
}

// take notes what an event changes. A neighbour's entry is in the event; for the rest the tables are read when events
// have been taken together.
func (f *follower) take(e event) {
	switch e.kind {
	case lost:
		f.allStale = true
	case linkChanged:
		// Also when ours is not there: the new one may be it.
		f.linkStale = f.linkStale || e.index == f.index || f.index == 0
		f.left = f.left || e.gone && e.index == f.index
	case routesChanged:
		f.routesStale = true
	case neighbourChanged:
		if e.gone {
			f.leave(&e.neigh)
		} else {
			f.enter(&e.neigh)
		}
	}
}

// readWanted takes the VTEPs over that the switch wants now.
func (f *follower) readWanted() {
	f.u.mu.Lock()
	f.wanted = f.u.wanted
	f.u.mu.Unlock()
	f.routesStale = true
}

// refresh reads the tables again as far as something says so, and sees to the neighbours in use.
func (f *follower) refresh() {
	if f.linkStale || f.allStale {
		was, up := f.index, f.up
		if err := f.readLink(); err != nil && was != 0 {
			f.u.log.Error("lost the uplink's interface", "error", err)
		}
		f.allStale = f.allStale || f.index != was || f.up != up
		f.routesStale = true
		f.linkStale = false
	}
	if f.allStale {
		f.readAll()
	} else if f.routesStale {
		f.readRoutes()
	}
	f.allStale, f.routesStale = false, false
	f.useNeighbours()
}

// readAll reads neighbours and routes.
func (f *follower) readAll() {
	if f.index != 0 {
		f.readNeighbours()
	}
	f.readRoutes()
}

func (f *follower) readRoutes() {
	clear(f.routes)
	clear(f.gateways)
	for _, vtep := range f.wanted {
		if f.index == 0 || !f.up {
			f.routes[vtep] = route{problem: f.u.options.Interface + " is down"}
			continue
		}
		r := f.readRoute(vtep)
		f.routes[vtep] = r
		if r.problem == "" {
			f.gateways[r.gateway] = true
		}
	}
}

// useNeighbours asks the kernel for what has no entry, and to confirm what has become stale. An entry that failed waits for retry.
func (f *follower) useNeighbours() {
	if !f.up {
		return
	}
	for ip := range f.gateways {
		n, known := f.neighbours[ip]
		if known && n.state&(settled|netlink.NUD_FAILED) != 0 {
			continue
		}
		f.use(ip, known && n.state != netlink.NUD_NONE)
		if !known || n.state == netlink.NUD_NONE {
			n.state = netlink.NUD_INCOMPLETE
		} else {
			n.state = netlink.NUD_DELAY // what the kernel makes of it, without telling
		}
		f.neighbours[ip] = n
	}
}

// retryFailed asks for what the kernel has given up.
func (f *follower) retryFailed() {
	for ip := range f.gateways {
		if n := f.neighbours[ip]; n.mac == 0 {
			f.use(ip, n.state == netlink.NUD_FAILED)
		}
	}
}

func (f *follower) unresolved() bool {
	for ip := range f.gateways {
		if f.neighbours[ip].mac == 0 {
			return true
		}
	}
	return false
}

// next makes the state that the answers come from.
func (f *follower) next() *state {
	s := &state{local: f.local, presence: Presence{f.index, f.came}, up: f.up, hops: make(map[netip.Addr]Hop, len(f.routes))}
	for vtep, r := range f.routes {
		h := Hop{Gateway: r.gateway, Problem: r.problem}
		if r.problem == "" {
			h.Next = vxlan.NextHop{Source: f.local.MAC, Destination: f.neighbours[r.gateway].mac, MTU: r.mtu}
			if h.Next.Destination == 0 {
				h.Problem = "neighbour " + r.gateway.String() + " has not answered"
			}
		}
		s.hops[vtep] = h
	}
	return s
}

// publish swaps the state in if it is another one, and says so.
func (f *follower) publish() {
	next, old := f.next(), f.u.state.Load()
	if next.equal(old) {
		return
	}
	f.u.state.Store(next)
	f.report(old, next)
	f.u.mu.Lock()
	notify := f.u.notify
	f.u.mu.Unlock()
	notify()
}

// report logs what people want to know.
func (f *follower) report(old, next *state) {
	if old.up != next.up {
		f.u.log.Info("uplink interface", "up", next.up)
	}
	if old.local != next.local {
		f.u.log.Info("uplink", "address", next.local.Address, "mac", next.local.MAC, "mtu", next.local.MTU)
	}
	for vtep, h := range next.hops {
		if o, ok := old.hops[vtep]; ok && o == h {
			continue
		}
		if h.Problem != "" {
			f.u.log.Warn("no next hop", "vtep", vtep, "reason", h.Problem)
		} else {
			f.u.log.Info("next hop", "vtep", vtep, "gateway", h.Gateway, "mac", h.Next.Destination)
		}
	}
}
