package acl

import (
	"fmt"
	"sync"
	"testing"
)

func policy(t testing.TB, text string) Policy {
	p, err := ParsePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tuple(t testing.TB, text string) *Tuple {
	p, err := ParseTuple(text)
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

const webServer = `
allow in tcp to any port 80-443
deny in tcp from 10.0.0.66
allow in tcp from 10.0.0.0/8 to any port 22
allow in icmp type 8
deny out any to 169.254.169.254
allow out tcp
allow out udp to any port 53
allow out ether 0x88cc
`

func TestExplain(t *testing.T) {
	p := policy(t, webServer)
	c := Compile(p, Options{})
	for _, test := range []struct {
		direction Direction
		packet    string
		allow     bool
		rule      int
		answers   string
	}{
		{In, "tcp 192.0.2.1:1000 > 10.0.0.2:80", true, 0, ""},
		{In, "tcp [fd00::1]:1000 > [fd00::2]:443", true, 0, ""},
		{In, "tcp 192.0.2.1:1000 > 10.0.0.2:444", false, Default, "tcp 10.0.0.2:444 > 192.0.2.1:1000"},
		{In, "tcp 10.0.0.66:1000 > 10.0.0.2:22", false, 1, "tcp 10.0.0.2:22 > 10.0.0.66:1000"},
		{In, "tcp 10.0.0.67:1000 > 10.0.0.2:22", true, 2, ""},
		{In, "tcp 192.0.2.1 > 10.0.0.2 fragment", false, Default, "tcp 10.0.0.2 > 192.0.2.1 fragment"}, // whose ports nobody knows
		{In, "tcp 10.0.0.66 > 10.0.0.2 fragment", false, 1, "tcp 10.0.0.2 > 10.0.0.66 fragment"},
		{In, "udp 192.0.2.1:53 > 10.0.0.2:9999", false, Default, "udp 10.0.0.2:9999 > 192.0.2.1:53"},
		{In, "udp 192.0.2.1:54 > 10.0.0.2:9999", false, Default, ""},
		{In, "icmp 192.0.2.1 > 10.0.0.2", true, 3, ""},
		{In, "icmp 192.0.2.1 > 10.0.0.2 type 0", false, Default, ""},
		{Out, "icmp 10.0.0.2 > 192.0.2.1 type 0", false, Default, "icmp 192.0.2.1 > 10.0.0.2 type 8 code 0"},
		{Out, "icmp 10.0.0.2 > 192.0.2.1 type 0 code 1", false, Default, "icmp 192.0.2.1 > 10.0.0.2 type 8 code 0"},
		{Out, "icmp 10.0.0.2 > 192.0.2.1 type 8", false, Default, ""}, // a request answers nothing
		{Out, "tcp 10.0.0.2:1 > 169.254.169.254:80", false, 4, ""},
		{Out, "tcp 10.0.0.2:1 > 169.254.169.253:80", true, 5, ""},
		{Out, "ether 0x88cc", true, 7, ""},
		{In, "ether 0x88cc", false, Default, ""},
		{In, "arp", true, Always, ""},
		{Out, "rarp", true, Always, ""},
		{In, "icmpv6 fe80::1 > ff02::1:ff00:1 type 135", true, Always, ""},
		{Out, "icmpv6 fe80::1 > fe80::2 type 136", true, Always, ""},
		{Out, "icmpv6 fe80::1 > ff02::2 type 133", false, Default, ""},
		{Out, "icmpv6 fe80::1 > fe80::2 fragment", false, Default, ""},
	} {
		packet := tuple(t, test.packet)
		e := Explain(p, packet, test.direction)
		answers := ""
		if e.Answers != nil {
			answers = e.Answers.Packet
		}
		if (e.Verdict == Allow) != test.allow || e.Rule != test.rule || answers != test.answers {
			t.Errorf("%s %s: %+v, answers %q; want %v by rule %d, answers %q", test.direction, packet, e, answers, test.allow, test.rule, test.answers)
		}
		if rule, allow := c.Judge(test.direction, packet); allow != test.allow || rule != test.rule {
			t.Errorf("%s %s is judged by rule %d: %v", test.direction, packet, rule, allow)
		}
	}
}

// TestICMPIsOfOneVersion: the protocol numbers of one version's ICMP are nothing of the kind in the other.
func TestICMPIsOfOneVersion(t *testing.T) {
	c := Compile(policy(t, "allow in icmp\nallow in icmpv6\ndeny in any"), Options{})
	for _, test := range []struct {
		ether    uint16
		protocol uint8
		rule     int
	}{{etherIPv4, protoICMP, 0}, {etherIPv4, protoICMPv6, 2}, {etherIPv6, protoICMP, 2}, {etherIPv6, protoICMPv6, 1}} {
		for _, bare := range []bool{false, true} {
			if rule, _ := c.Judge(In, &Tuple{EtherType: test.ether, Protocol: test.protocol, Bare: bare}); rule != test.rule {
				t.Errorf("protocol %d in EtherType %#04x: rule %d, want %d", test.protocol, test.ether, rule, test.rule)
			}
		}
	}
	fragment := Tuple{EtherType: etherIPv6, Protocol: protoICMPv6, Type: neighbourSolicitation, Bare: true} // whose type nobody knows
	if rule, _ := c.Judge(In, &fragment); rule != 1 {
		t.Errorf("a fragment is taken for neighbour discovery: rule %d", rule)
	}
}

// TestIsError: what belongs to a flow although it is neither of its packets.
func TestIsError(t *testing.T) {
	for packet, want := range map[string]bool{
		"icmp 10.0.0.1 > 10.0.0.2 type 3 code 4": true,
		"icmp 10.0.0.1 > 10.0.0.2 type 11":       true,
		"icmp 10.0.0.1 > 10.0.0.2 type 5":        false,
		"icmp 10.0.0.1 > 10.0.0.2 type 8":        false,
		"icmpv6 fd00::1 > fd00::2 type 2":        true,
		"icmpv6 fd00::1 > fd00::2 type 129":      false,
		"icmp 10.0.0.1 > 10.0.0.2 fragment":      false,
		"proto 1 10.0.0.1 > 10.0.0.2 type 3":     true,
		"tcp 10.0.0.1:1 > 10.0.0.2:3":            false,
		"arp":                                    false,
	} {
		if tuple(t, packet).IsError() != want {
			t.Errorf("%s: %v", packet, !want)
		}
	}
}

func TestHits(t *testing.T) {
	old := Compile(policy(t, "allow in tcp\nallow in udp\nallow in udp\ndeny in icmp\n"), Options{Workers: 2})
	for worker := range 2 {
		for rule := Always; rule < 4; rule++ {
			old.Count(worker, rule, 10*(rule+3))
		}
	}
	old.Count(0, 4, 1)
	old.Count(0, -3, 1)
	want := "{[60 80 100 120] 40 20}"
	if got := fmt.Sprint(old.Hits()); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	next := Compile(policy(t, "deny in icmp\nallow in udp\nallow in udp\nallow in udp\nallow out tcp\n"), Options{Workers: 3, Previous: old})
	old.Count(1, 3, 5) // by a worker that has not seen the change
	next.Count(2, 0, 1)
	next.Count(0, 4, 7)
	if got, want := fmt.Sprint(next.Hits()), "{[126 80 100 0 7] 40 20}"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestConcurrently lets workers judge and count while the policy is replaced and somebody reads. No packet may be lost to a counter.
func TestConcurrently(t *testing.T) {
	const workers, packets = 3, 20000
	p := policy(t, webServer)
	var mu sync.RWMutex
	current := Compile(p, Options{Workers: workers})
	var working sync.WaitGroup
	for w := range workers {
		working.Add(1)
		go func() {
			defer working.Done()
			web := tuple(t, "tcp 192.0.2.1:1000 > 10.0.0.2:80")
			for range packets {
				mu.RLock()
				c := current
				mu.RUnlock()
				rule, _ := c.Judge(In, web)
				c.Count(w, rule, 1)
			}
		}()
	}
	done := make(chan struct{})
	go func() { working.Wait(); close(done) }()
	for changed := false; ; changed = !changed {
		q := p
		if changed {
			q.Rules = q.Rules[:1]
		}
		mu.Lock()
		current = Compile(q, Options{Workers: workers, Previous: current})
		mu.Unlock()
		current.Hits()
		select {
		case <-done:
			if got := current.Hits().Rules[0]; got != workers*packets {
				t.Errorf("%d packets are counted of %d", got, workers*packets)
			}
			return
		default:
		}
	}
}

// thousand is a policy of the size that is promised to cost little: prefixes and ports in many combinations.
func thousand(version string) Policy {
	var p Policy
	for i := range 1000 {
		text := fmt.Sprintf("allow in tcp from 10.%d.%d.0/24 to any port %d-%d", i%10, i/10, 1000+i, 1000+2*i)
		if version == "6" {
			text = fmt.Sprintf("allow in udp from fd00:%x:%x::/48 to any port %d", i%10, i/10, 1000+i)
		}
		r, err := ParseRule(text)
		if err != nil {
			panic(err)
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

func TestNothingAllocated(t *testing.T) {
	c4, c6 := Compile(thousand("4"), Options{}), Compile(thousand("6"), Options{})
	web, dns, lldp := tuple(t, "tcp 10.9.99.1:1 > 10.0.0.2:2000"), tuple(t, "udp [fd00:9:63::1]:1 > [fd00::2]:2"), tuple(t, "ether 0x88cc")
	if rule, allow := c4.Judge(In, web); rule != 999 || !allow {
		t.Fatalf("%d %v", rule, allow)
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, c := range []*Compiled{c4, c6} {
			for _, p := range []*Tuple{web, dns, lldp} {
				rule, _ := c.Judge(In, p)
				c.Count(0, rule, 1)
				_, _ = p.Answers()
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestManyRules goes beyond what one table holds.
func TestManyRules(t *testing.T) {
	var p Policy
	for i := range 2*maxRules + 1 {
		r, err := ParseRule(fmt.Sprintf("allow in udp to any port %d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		p.Rules = append(p.Rules, r)
	}
	c := Compile(p, Options{})
	for _, port := range []uint16{1, maxRules, maxRules + 1, 2*maxRules + 1, 2*maxRules + 2} {
		want := int(port) - 1
		if want > 2*maxRules {
			want = Default
		}
		packet := Tuple{EtherType: etherIPv6, Protocol: protoUDP, DestinationPort: port}
		if rule, _ := c.Judge(In, &packet); rule != want {
			t.Errorf("port %d: rule %d", port, rule)
		}
	}
}

// BenchmarkJudge asks policies of 1000 rules: the last one matches, none does, and one that denies all.
func BenchmarkJudge(b *testing.B) {
	for _, version := range []string{"4", "6"} {
		c := Compile(thousand(version), Options{})
		for name, packet := range map[string]string{
			"4 last": "tcp 10.9.99.1:1 > 10.0.0.2:2000", "4 none": "tcp 10.9.99.1:1 > 10.0.0.2:80",
			"6 last": "udp [fd00:9:63::1]:1 > [fd00::2]:1999", "6 none": "udp [fd00:9:63::1]:1 > [fd00::2]:80",
		} {
			if name[:1] != version {
				continue
			}
			t := tuple(b, packet)
			b.Run("IPv"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					c.Judge(In, t)
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	p := thousand("4")
	for b.Loop() {
		Compile(p, Options{})
	}
}
