package main

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/vxlan"
	"github.com/vishvananda/netlink"
)

// resolver asks the kernel for next hops by polling. It stands in for vxlan/underlay, which follows changes.
type resolver struct {
	mu      sync.Mutex
	name    string
	address netip.Addr
	local   vxlan.Local
	up      bool
	want    []netip.Addr
	hops    map[netip.Addr]vxlan.NextHop
	changed func()
	quit    chan struct{}
}

func newResolver(name string, address netip.Addr) (*resolver, error) {
	r := &resolver{name: name, address: address, hops: map[netip.Addr]vxlan.NextHop{}, changed: func() {}, quit: make(chan struct{})}
	r.poll()
	go func() {
		for {
			select {
			case <-r.quit:
				return
			case <-time.After(200 * time.Millisecond):
				r.poll()
			}
		}
	}()
	return r, nil
}

func (r *resolver) poll() {
	link, err := netlink.LinkByName(r.name)
	if err != nil {
		return
	}
	r.mu.Lock()
	want := append([]netip.Addr(nil), r.want...)
	r.mu.Unlock()
	var m [6]byte
	copy(m[:], link.Attrs().HardwareAddr)
	local := vxlan.Local{Address: r.address, MAC: wire.MACFrom(m), MTU: link.Attrs().MTU}
	if !local.Address.IsValid() {
		addrs, _ := netlink.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLinkLocalUnicast() {
				local.Address = ip.Unmap()
				break
			}
		}
	}
	hops := map[netip.Addr]vxlan.NextHop{}
	neighs, _ := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	for _, v := range want {
		found := false
		for _, n := range neighs {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == v && len(n.HardwareAddr) == 6 && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
				var d [6]byte
				copy(d[:], n.HardwareAddr)
				hops[v] = vxlan.NextHop{Source: local.MAC, Destination: wire.MACFrom(d)}
				found = true
			}
		}
		if !found {
			if c, err := net.Dial("udp", netip.AddrPortFrom(v, 9).String()); err == nil {
				c.Write([]byte{0})
				c.Close()
			}
		}
	}
	r.mu.Lock()
	same := local == r.local && len(hops) == len(r.hops)
	for k, h := range hops {
		same = same && r.hops[k] == h
	}
	r.local, r.hops, r.up = local, hops, true
	changed := r.changed
	r.mu.Unlock()
	if !same {
		changed()
	}
}

func (r *resolver) Want(v []netip.Addr) {
	r.mu.Lock()
	r.want = append([]netip.Addr(nil), v...)
	r.mu.Unlock()
}
func (r *resolver) NextHop(v netip.Addr) (vxlan.NextHop, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hops[v]
	return h, ok
}
func (r *resolver) Local() vxlan.Local {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.local
}
func (r *resolver) Notify(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = f
}
func (r *resolver) Close() error { close(r.quit); return nil }
func (r *resolver) Known() int   { r.mu.Lock(); defer r.mu.Unlock(); return len(r.hops) }
func (r *resolver) Up() bool     { return true }
