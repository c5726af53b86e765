package lab

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// ring is a kind of front-end that DPDK's virtio-user can be.
type ring struct {
	packed bool
	// path is how the driver works with its rings.
	path string
	// pairs of queues.
	pairs int
	// listens: the front-end makes the socket, and shuntd connects.
	listens bool
}

// The ways DPDK's driver has. Without mergeable buffers those that are in order have code of their own again, and the vectorised one needs that; packed, it
// needs them in order, too.
const (
	mergeable       = "mergeable"
	notMergeable    = "not mergeable"
	inOrder         = "in order"
	inOrderNoMerges = "in order, not mergeable"
	vectorised      = "vectorised"
)

func (r ring) String() string {
	words := []string{"split", r.path, fmt.Sprintf("%d pairs", r.pairs), "connects"}
	if r.packed {
		words[0] = "packed"
	}
	if r.listens {
		words[3] = "listens"
	}
	return strings.Join(words, ", ")
}

// port is the daemon's that fits the ring, one of the two of a kind: a or b.
func (r ring) port(which string) string {
	if r.listens {
		return fmt.Sprintf("%s%d-client", which, r.pairs)
	}
	return fmt.Sprintf("%s%d", which, r.pairs)
}

// rings lists all kinds, in an order in which any two neighbours differ in the format, and any four have each number of pairs and each role.
func rings() (all []ring) {
	for i, path := range []string{mergeable, vectorised, inOrder, notMergeable, inOrderNoMerges} {
		for j := range 4 {
			pairs, listens := 1, j >= 2
			if (i+j)%2 == 1 {
				pairs = 4
			}
			for k, packed := range []bool{false, true} {
				all = append(all, ring{packed: packed, path: path, pairs: []int{pairs, 5 - pairs}[k], listens: listens})
			}
		}
	}
	return all
}

// matrix has two workers, and two ports for each kind of front-end that a port has to know of. The first worker shares its CPU with the testpmds. What
// comes from a is a flood, most of which is dropped; what comes from b is held back in its rings, and most of it arrives.
func matrix(s *scales) string {
	text := fmt.Sprintf(`
workers: {cpus: [0, 1]}
uplinks: [{name: up0, interface: up0, address: 192.0.2.1}]
networks:
  - {name: blue, vni: 100, uplink: up0, learning: false, entries: [{mac: %q, vtep: 192.0.2.2}]}
ports:
`, macFar)
	limits := []string{"", ", limits: {from-guest: {pps: 400000, burst: 1ms}}"}
	for i, which := range []string{"a", "b"} {
		for _, r := range []ring{{pairs: 1}, {pairs: 4}, {pairs: 1, listens: true}, {pairs: 4, listens: true}} {
			role, workers := "server", []string{"[1]", "[0]"}[i]
			if r.listens {
				role = "client"
			}
			if r.pairs > 1 {
				workers = "[1, 0]"
			}
			name := r.port(which)
			text += fmt.Sprintf("  - {name: %s, network: blue, socket: %q, mac: %q, queues: %d, role: %s, workers: %s%s}\n",
				name, s.socket(name), r.mac(which), r.pairs, role, workers, limits[i])
		}
	}
	return text
}

func (r ring) mac(which string) string {
	listens := 0
	if r.listens {
		listens = 1
	}
	return fmt.Sprintf("52:54:00:00:0%d:%d%s", listens, r.pairs, which)
}

// front starts a testpmd with a front-end of that kind, and wants the daemon to have negotiated it.
func (s *scales) front(t *testing.T, ctx context.Context, r ring, which string) *peer.Testpmd {
	t.Helper()
	name := r.port(which)
	front := peer.VirtioUser{
		Path: s.socket(name), MAC: r.mac(which), Queues: r.pairs, Server: r.listens, Packed: r.packed,
		NotMergeable: r.path == notMergeable || r.path == inOrderNoMerges || r.path == vectorised,
		InOrder:      r.path == inOrder || r.path == inOrderNoMerges || r.path == vectorised && r.packed,
		Vectorized:   r.path == vectorised,
	}
	if r.listens {
		_ = os.Remove(front.Path) // of the one before
	}
	p := pmd(t, peer.TestpmdOptions{Name: name, Devices: []string{front.String()}, Mode: "rxonly", MemoryMiB: 96,
		EAL:  []string{"--force-max-simd-bitwidth=512", "--log-level=pmd.net.virtio.init:info"},
		Args: []string{"--txonly-multi-flow", fmt.Sprintf("--rxq=%d", r.pairs), fmt.Sprintf("--txq=%d", r.pairs)}})
	if err := s.d.WaitPort(ctx, name, control.StateConnected); err != nil {
		t.Fatal(err)
	}
	var is control.PortStatus
	for ; is.Queues != r.pairs; time.Sleep(5 * time.Millisecond) {
		status, err := s.d.API().Status(ctx)
		if err != nil {
			t.Fatalf("%v, while %d of %d pairs run", err, is.Queues, r.pairs)
		}
		is = status.Ports[slices.IndexFunc(status.Ports, func(p control.PortStatus) bool { return p.Name == name })]
	}
	format := "split"
	if r.packed {
		format = "packed"
	}
	if is.Ring != format || slices.Contains(is.Features, "MRG_RXBUF") == front.NotMergeable || slices.Contains(is.Features, "IN_ORDER") != front.InOrder {
		t.Errorf("port %s has %s rings with %v, not %s", name, is.Ring, is.Features, r)
	}
	if front.Vectorized && !strings.Contains(p.Output(), "vectorized Rx path") {
		t.Errorf("testpmd does not say that it works with vectors")
	}
	return p
}

// Every kind of front-end that DPDK has: split and packed, mergeable and not, in order, vectorised, one and four pairs of queues, connecting and
// listening. Two at a time send each other packets, and to the wire and from there, and every one is accounted for. In the soak each kind sends and is sent
// ten million; else eight of the forty, which have each of those properties twice at least, a hundred thousand.
func TestRings(t *testing.T) {
	limit, kinds, local, remote := 3*time.Minute, covering(), uint64(100_000), uint64(20_000)
	if need.Soak() {
		limit, kinds, local, remote = 3*time.Hour, rings(), 10_000_000, 1_000_000
	}
	ctx := within(t, limit)
	s := setUp(t, ctx, matrix)
	far := pmd(t, peer.TestpmdOptions{Name: "wire", Namespace: s.far, Devices: []string{"net_af_packet0,iface=vx0"}, MemoryMiB: 64,
		Args: []string{"--txonly-multi-flow", "--total-num-mbufs=8192"}})
	for i := 0; i+1 < len(kinds); i += 2 {
		one, other := kinds[i], kinds[i+1]
		t.Run(fmt.Sprintf("%s; %s", one, other), func(t *testing.T) {
			a, b := s.front(t, ctx, one, "a"), s.front(t, ctx, other, "b")
			portA, portB := one.port("a"), other.port("b")
			s.weigh(t, ctx, a, b, other.mac("b"), 64, local, guestToGuest(portA, portB))
			s.weigh(t, ctx, b, a, one.mac("a"), 1400, local, guestToGuest(portB, portA))
			s.weigh(t, ctx, a, nil, macFar, 64, remote, guestToWire(portA))
			s.weigh(t, ctx, b, nil, macFar, 1400, remote, guestToWire(portB))
			s.weigh(t, ctx, far, a, one.mac("a"), 64, remote, wireToGuest(portA))
			s.weigh(t, ctx, far, b, other.mac("b"), 1400, remote, wireToGuest(portB))
			for _, p := range []*peer.Testpmd{a, b} {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// covering selects of rings: each format with each way of working, pairs and roles spread over them.
func covering() []ring {
	return []ring{
		{packed: false, path: mergeable, pairs: 1, listens: true}, {packed: true, path: mergeable, pairs: 4},
		{packed: false, path: vectorised, pairs: 4}, {packed: true, path: vectorised, pairs: 1, listens: true},
		{packed: false, path: inOrder, pairs: 4, listens: true}, {packed: true, path: inOrderNoMerges, pairs: 4},
		{packed: false, path: notMergeable, pairs: 1}, {packed: true, path: inOrder, pairs: 1},
	}
}
