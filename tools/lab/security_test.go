package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
	"github.com/shuntio/shunt/vxlan/acl"
)

// Security groups of a guest with live traffic: what they allow and its answers pass, the rest does not; each rule counts, `acl test` tells
// beforehand, and other rules hold for flows that run.
func TestSecurityGroups(t *testing.T) {
	t.Parallel() // beside others of which most is waiting for a guest
	ctx := within(t, 3*time.Minute)
	need.Program(t, "iperf3")
	e := newEstate(t, ctx, false, false)
	e.shuntctl(t, "acl", "set", "a", "--rule", "allow out any", "--rule", "allow in icmpv6 to ff00::/8") // routers and listeners make themselves heard
	t.Run("answers", func(t *testing.T) { e.aclAnswers(t, ctx) })
	t.Run("test agrees", func(t *testing.T) { e.aclTest(t, ctx) })
	t.Run("running flows", func(t *testing.T) { e.aclChange(t, ctx) })
	e.shuntctl(t, "acl", "remove", "a")
	pings(t, ctx, e.far, over4.guest4, 56)
	t.Logf("dropped: %s", strings.Join(e.drops(t), "; "))
}

// hits are the packets that each rule of port a decided about; the default's are the last.
func (e *estate) hits(t *testing.T) (n []uint64) {
	t.Helper()
	var s control.ACLStatus
	if err := json.Unmarshal([]byte(e.shuntctl(t, "acl", "show", "a", "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.Rules {
		n = append(n, r.Packets)
	}
	return append(n, s.DefaultPackets)
}

// aclAnswers has the guest talk to whom it likes, and nobody to it.
func (e *estate) aclAnswers(t *testing.T, ctx context.Context) {
	since, before := e.since(t), e.hits(t)
	pings(t, ctx, e.a, over4.peer4, 56, 1400, 8000)
	pings(t, ctx, e.a, over4.peer6, 56, 1400, 8000)
	for _, reverse := range []bool{false, true} {
		e.tcp(t, ctx, e.far, e.a, over4.peer4, peer.IperfOptions{Rate: 20e6, Reverse: reverse})
	}
	datagrams(t, ctx, e.far, e.a, over4.peer4, 50, peer.IperfOptions{UDP: true, Rate: 1e6, Length: 1000, Reverse: true, Time: time.Second})
	answered := since()
	if answered["port a acl-denied-in"]+answered["port a acl-denied-out"] != 0 {
		t.Errorf("of what the guest asked for, %d answers were denied", answered["port a acl-denied-in"])
	}
	if e.pinged(t, ctx, e.far, over4.guest4) || e.pinged(t, ctx, e.far, over4.guest6) {
		t.Error("the peer can ping the guest")
	}
	after, denied := e.hits(t), since()["port a acl-denied-in"]
	if denied < 2 || after[2]-before[2] != denied || after[0]-before[0] < 1000 {
		t.Errorf("rule and default decided about %v packets, then %v; %d were denied", before, after, denied)
	}
	t.Logf("rule 0 decided about %d packets, the default about %d, %d denied", after[0]-before[0], after[2]-before[2], denied)
}

// aclTest asks what would become of packets, and sends them.
func (e *estate) aclTest(t *testing.T, ctx context.Context) {
	rules := []string{
		"deny out tcp to any port 25", "allow out tcp", "allow in icmp from 10.4.0.0/24 type 8", "allow in tcp from 10.4.0.2 to any port 5000-6000",
		"deny in tcp to any port 22", "allow in tcp from fd04::/64", "allow out udp to 10.4.0.2",
	}
	args := []string{"acl", "set", "a"}
	for _, r := range rules {
		args = append(args, "--rule", r)
	}
	e.shuntctl(t, args...)
	far, guest := over4.peer4, over4.guest4
	for _, c := range []struct {
		direction, packet string
		rule              int
		passes            func() bool
	}{
		{"in", "icmp 10.4.0.2 > 10.4.0.1 type 8", 2, func() bool { return e.pinged(t, ctx, e.far, guest) }},
		{"in", "tcp 10.4.0.2:40000 > 10.4.0.1:5500", 3, func() bool { return reached(t, e.far, guest, 5500) }},
		{"in", "tcp 10.4.0.2:40000 > 10.4.0.1:6001", acl.Default, func() bool { return reached(t, e.far, guest, 6001) }},
		{"in", "tcp 10.4.0.2:40000 > 10.4.0.1:22", 4, func() bool { return reached(t, e.far, guest, 22) }},
		{"in", "tcp [fd04::2]:40000 > [fd04::1]:22", 4, func() bool { return reached(t, e.far, over4.guest6, 22) }},
		{"in", "tcp [fd04::2]:40000 > [fd04::1]:80", 5, func() bool { return reached(t, e.far, over4.guest6, 80) }},
		{"out", "tcp 10.4.0.1:40000 > 10.4.0.2:25", 0, func() bool { return e.reaches(t, ctx, far, 25) }},
		{"out", "tcp 10.4.0.1:40000 > 10.4.0.2:26", 1, func() bool { return e.reaches(t, ctx, far, 26) }},
		{"out", "icmp 10.4.0.1 > 10.4.0.2 type 8", acl.Default, func() bool { return e.pinged(t, ctx, e.a, far) }},
		{"out", "icmpv6 fd04::1 > fd04::2 type 128", acl.Default, func() bool { return e.pinged(t, ctx, e.a, over4.peer6) }},
	} {
		var says control.ACLTest
		if err := json.Unmarshal([]byte(e.shuntctl(t, "acl", "test", "a", "--direction", c.direction, "--packet", c.packet, "-o", "json")), &says); err != nil {
			t.Fatal(err)
		}
		before := e.hits(t)
		index := c.rule
		if index == acl.Default {
			index = len(rules)
		}
		passed, after := c.passes(), e.hits(t)
		for n := 1; n < 5 && !(passed && says.Verdict != acl.Allow) && (!passed && says.Verdict == acl.Allow || after[index] == before[index]); n++ {
			passed, after = c.passes(), e.hits(t) // a busy machine's guest may not have come to send it
		}
		if says.Rule != c.rule || (says.Verdict == acl.Allow) != passed || after[index] == before[index] {
			t.Errorf("%s %s: told %v by rule %d, want rule %d; it passed: %v; hits before %v, after %v", c.direction, c.packet, says.Verdict, says.Rule, c.rule, passed, before, after)
		}
		t.Logf("%s %s: %v by rule %d, it passed: %v, hits +%d", c.direction, c.packet, says.Verdict, says.Rule, passed, after[index]-before[index])
	}
}

// deniedTime is how long to wait for an answer where none shall come.
const deniedTime = time.Second

func (e *estate) pinged(t *testing.T, ctx context.Context, from peer.Runner, to string) bool {
	t.Helper()
	p, err := peer.Ping(ctx, from, to, peer.PingOptions{Count: 1, Wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return p.Received == 1
}

// reached tells whether a segment to a port where nobody listens gets there, and is refused.
func reached(t *testing.T, from *netlab.Namespace, to string, port int) bool {
	t.Helper()
	var refused error
	err := from.Do(func() error {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(to, fmt.Sprint(port)), deniedTime)
		if err == nil {
			conn.Close()
			return fmt.Errorf("somebody listens at port %d", port)
		}
		refused = err
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return errors.Is(refused, syscall.ECONNREFUSED)
}

// reaches is reached from guest a.
func (e *estate) reaches(t *testing.T, ctx context.Context, to string, port int) bool {
	t.Helper()
	out, _ := e.a.Shell(ctx, fmt.Sprintf("nc -w 1 %s %d </dev/null", to, port))
	refused := strings.Contains(out, "refused")
	if !refused && !strings.Contains(out, "timed out") {
		t.Fatalf("nc says %q", out)
	}
	return refused
}

// aclChange stops and starts flows that run.
func (e *estate) aclChange(t *testing.T, ctx context.Context) {
	allow := []string{"acl", "set", "a", "--rule", "allow in tcp to any port 5201", "--rule", "allow in udp to any port 5201"}
	deny := []string{"acl", "set", "a", "--rule", "allow in tcp to any port 5201", "--rule", "deny in udp to any port 5201"}
	e.shuntctl(t, allow...)
	for n := 1; !e.aclSwitched(t, ctx, time.Duration(4*n)*time.Second, deny, allow); n++ {
		if n == 3 {
			t.Fatalf("rules do not hold before a flow of %d s has ended", 4*n)
		}
	}
}

// aclSwitched denies and allows a flow by turns while it runs, and reports whether it ran for long enough. From when a command has returned its rules hold,
// but for a vector of packets that a worker is about.
func (e *estate) aclSwitched(t *testing.T, ctx context.Context, length time.Duration, deny, allow []string) bool {
	const vector = 64
	type result struct {
		peer.Iperfed
		err error
	}
	done := make(chan result, 1)
	go func() {
		r, err := peer.Iperf(ctx, e.a, e.far, over4.guest4, peer.IperfOptions{UDP: true, Rate: 2e6, Length: 500, Time: length})
		done <- result{r, err}
	}()
	var r result
	// flows waits until more of the flow has passed, or was denied, and wants none of the other.
	flows := func(runs bool) (ended bool) {
		t.Helper()
		for since := e.since(t); ; time.Sleep(5 * time.Millisecond) {
			select {
			case r = <-done:
				return true
			default:
			}
			n := since()
			passed, denied := n["port a tx"], n["port a acl-denied-in"]
			if runs && denied > vector || !runs && passed > vector {
				t.Errorf("runs: %v; %d packets passed, %d were denied", runs, passed, denied)
			}
			if runs && passed > 2*vector || !runs && denied > 2*vector {
				return false
			}
		}
	}
	for first := e.since(t); first()["port a tx"] < vector; time.Sleep(5 * time.Millisecond) { // and its connection is made
		if ctx.Err() != nil {
			t.Fatal(context.Cause(ctx))
		}
	}
	before := e.hits(t)
	var took []time.Duration
	for _, step := range []struct {
		rules []string
		runs  bool
	}{{deny, false}, {allow, true}, {deny, false}, {allow, true}} {
		begin := time.Now()
		e.shuntctl(t, step.rules...)
		took = append(took, time.Since(begin).Round(time.Millisecond))
		if flows(step.runs) {
			t.Logf("the flow of %v ended after %v: %v", length, took, r.err)
			e.shuntctl(t, allow...)
			return false
		}
	}
	r, after := <-done, e.hits(t)
	t.Logf("the commands took %v; of %d datagrams %d did not arrive; hits %v, then %v", took, r.Packets, r.Lost, before, after)
	if r.err != nil || r.Lost == 0 || r.Lost == r.Packets {
		t.Errorf("%+v, %v", r.Iperfed, r.err)
	}
	return true
}
