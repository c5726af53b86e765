package vxlan

import (
	"net/netip"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/wire"
)

// What goes to several places is bounded, and what does not is let alone, of the same guest too.
func TestFloodLimit(t *testing.T) {
	const burst = 10
	limit := dataplane.LimitOptions{PPS: 1, Burst: burst * time.Second}
	all, group, unknown := wire.Broadcast, wire.MAC(0x0100_5e00_0001), macX
	open := Port{Name: "c", Network: "blue", MAC: mac4} // which unknown frames go to
	for _, c := range []struct {
		name    string
		to      wire.MAC
		change  func(l *lab, a *Port)
		limited bool
	}{
		{"broadcast", all, nil, true},
		{"multicast", group, nil, true},
		{"unknown unicast", unknown, nil, true},
		{"known here", mac2, nil, false},
		{"known on the wire", mac3, nil, false},
		{"without limit", all, func(_ *lab, a *Port) { a.Flood = dataplane.LimitOptions{} }, false},
		{"unknown, with one place", unknown, func(l *lab, _ *Port) { l.detach("c") }, false},
		{"from one that unknown frames go to", unknown, func(l *lab, a *Port) {
			l.detach("c")
			a.AntiSpoof = false
		}, false},
		{"broadcast, with two places", all, func(l *lab, _ *Port) { l.detach("c") }, true},
		{"to a port alone", all, func(l *lab, _ *Port) {
			l.detach("c")
			l.network(Network{Name: "blue", VNI: 100, Uplink: "up0"})
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			up := l.uplink("up0", host4)
			l.network(Network{Name: "blue", VNI: 100, Uplink: "up0", Learning: true, Flood: []netip.Addr{peer4}, Entries: []Entry{{MAC: mac3, VTEP: peer4}}})
			config := Port{Name: "a", Network: "blue", MAC: mac1, AntiSpoof: true, Flood: limit}
			a := l.attach(config)
			b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2, AntiSpoof: true, Flood: limit})
			l.attach(open)
			if c.change != nil {
				c.change(l, &config)
				l.must(l.sw.SetPort(config))
			}
			const n = 200
			for range n {
				a.FeedBytes(ethernetFrame(c.to, mac1))
			}
			l.settle()
			dropped := a.Counters.Drops(DropFloodLimit)
			if c.limited && (dropped < n-burst-2 || dropped > n-burst) || !c.limited && dropped != 0 {
				t.Fatalf("%d of %d were dropped: %v", dropped, n, drops(a))
			}
			b.Sent()
			up.Sent()
			// The neighbour's own frames, and the guest's other ones, go on.
			l.send(b, ethernetFrame(mac1, mac2), ethernetFrame(wire.Broadcast, mac2))
			l.send(a, ethernetFrame(mac2, mac1))
			if got := len(b.Sent()); got != 1 {
				t.Errorf("the neighbour got %d of 1 frames", got)
			}
			if len(drops(b)) > 0 || a.Counters.Drops(DropFloodLimit) != dropped {
				t.Errorf("dropped %v, of the neighbour's %v", drops(a), drops(b))
			}
			l.balanced()
		})
	}
}

// A packet that is cut on its way to several places counts for its segments.
func TestFloodLimitCountsSegments(t *testing.T) {
	l := newLab(t)
	l.network(Network{Name: "blue"})
	a := l.attach(Port{Name: "a", Network: "blue", MAC: mac1, Flood: dataplane.LimitOptions{PPS: 1, Burst: 30 * time.Second}})
	b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2})
	l.attach(Port{Name: "c", Network: "blue", MAC: mac4})
	p := large(t, wire.Broadcast, mac1, 20_000, 1000)
	for range 10 {
		a.Feed(p)
	}
	l.settle()
	if n := len(b.Sent()); n != 2*20 { // the second one begins with room for nine
		t.Errorf("%d segments arrived, dropped %v", n, drops(a))
	}
	l.dropped(a, DropFloodLimit, 8)
	l.balanced()
}

// Another limit counts from then on, and the same one goes on as it is.
func TestFloodLimitChanges(t *testing.T) {
	l := newLab(t)
	l.network(Network{Name: "blue"})
	config := Port{Name: "a", Network: "blue", MAC: mac1, Flood: dataplane.LimitOptions{PPS: 1, Burst: 5 * time.Second}}
	a := l.attach(config)
	b := l.attach(Port{Name: "b", Network: "blue", MAC: mac2})
	l.attach(Port{Name: "c", Network: "blue", MAC: mac4})
	passes := func(what string, least, most int) {
		t.Helper()
		for range 50 {
			a.FeedBytes(ethernetFrame(wire.Broadcast, mac1))
		}
		l.settle()
		if n := len(b.Sent()); n < least || n > most {
			t.Errorf("%s: %d pass, want %d to %d", what, n, least, most)
		}
	}
	passes("at first", 5, 6)
	l.must(l.sw.SetPort(config))
	passes("as before", 0, 1)
	config.Flood.Burst = 20 * time.Second
	l.must(l.sw.SetPort(config))
	passes("more", 20, 21)
	config.Flood = dataplane.LimitOptions{}
	l.must(l.sw.SetPort(config))
	passes("all", 50, 50)
}
