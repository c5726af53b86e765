package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// TestInterfaceComesBack takes the uplink's interface away, and gives it back, alone and with a foreign program on it.
func TestInterfaceComesBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	before := counters(t, s.d, control.KindUplink, "up0")

	run(t, s.host, "ip", "link", "delete", "up0")
	s.status(t, "without interface", func(u control.UplinkStatus, _ control.NetworkStatus) bool {
		return u.State == control.StateDown && u.XDP == "" && u.Reason == "the interface is gone; when it is back it is taken into service again"
	})
	s.logs(t, `level=ERROR msg="uplink out of service until its interface is back" uplink=up0 interface=up0`)
	if answered, err := s.tunnelled.askOnce(0); answered || err != nil {
		t.Errorf("an answer came without interface: %v %v", answered, err)
	}
	if answered, err := s.untagged.askOnce(0); answered || err != nil {
		t.Errorf("an answer came without interface: %v %v", answered, err)
	}
	gone := counters(t, s.d, control.KindUplink, "up0")
	if gone.RxPackets < before.RxPackets || gone.TxPackets < before.TxPackets || gone.Drops["uplink-down"] == 0 {
		t.Errorf("counters were %+v, are %+v", before, gone)
	}
	s.whole(t)

	s.join(t, "up0")
	s.status(t, "with interface", func(u control.UplinkStatus, _ control.NetworkStatus) bool {
		return u.State == control.StateUp && u.XDP == xdpMode().String()
	})
	s.logs(t, `msg="uplink back in service" uplink=up0 interface=up0 xdp=`+xdpMode().String())
	s.goesOn(t)
	again := counters(t, s.d, control.KindUplink, "up0")
	if again.RxPackets <= gone.RxPackets || again.TxPackets <= gone.TxPackets || again.More["xdp-redirect-station"] <= gone.More["xdp-redirect-station"] {
		t.Errorf("counters were %+v, are %+v", gone, again)
	}

	// Somebody else's program on the interface that comes back: the status says so, until it goes.
	run(t, s.host, "ip", "link", "delete", "up0")
	s.status(t, "without interface", func(u control.UplinkStatus, _ control.NetworkStatus) bool { return u.State == control.StateDown })
	t.Run("taken", func(t *testing.T) {
		s.join(t, "other0")
		run(t, s.host, "ip", "link", "set", "other0", "down")
		foreignProgram(t, s.host, "other0")
		run(t, s.host, "ip", "link", "set", "other0", "name", "up0")
		run(t, s.host, "ip", "link", "set", "up0", "up")
		s.status(t, "with a foreign program", func(u control.UplinkStatus, _ control.NetworkStatus) bool {
			return u.State == control.StateFailed && strings.Contains(u.Reason, "interface up0 runs XDP program stranger")
		})
		s.whole(t)
	})
	s.status(t, "without a foreign program", func(u control.UplinkStatus, _ control.NetworkStatus) bool { return u.State == control.StateUp })
	s.goesOn(t)
	if n := strings.Count(s.d.Log(), "cannot take the uplink back into service"); n != 1 {
		t.Errorf("the log tells %d times why the uplink was not taken back, want once", n)
	}
}

// whole wants the daemon to hold its whole configuration.
func (s *site) whole(t *testing.T) {
	t.Helper()
	running, err := s.d.API().Config(t.Context())
	if err != nil || len(running.Uplinks) != 1 || len(running.Networks) != 2 || len(running.Ports) != 2 {
		t.Errorf("the running configuration is %+v, %v", running, err)
	}
}

// TestUplinkMTUShrinks leaves too little room for a network in service.
func TestUplinkMTUShrinks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx := t.Context()
	const full = 1450 + 14 // the longest frame of the network
	if err := s.tunnelled.ask(within(t, 20*time.Second), full); err != nil {
		t.Fatal(err)
	}
	run(t, s.host, "ip", "link", "set", "up0", "mtu", "1400")
	const problem = "packets of more than 1350 bytes are dropped, since the MTU of uplink up0 is 1400 now: raise that, or lower the network's from 1450"
	s.status(t, "with a lower MTU", func(u control.UplinkStatus, n control.NetworkStatus) bool {
		return u.MTU == 1400 && n.Problem == problem
	})
	s.logs(t, `level=WARN msg="network does not fit its uplink any more" network=blue`)
	was := counters(t, s.d, control.KindPort, "p1").Drops["over-mtu"]
	if answered, err := s.tunnelled.askOnce(full); answered || err != nil {
		t.Errorf("a frame that is too long: %v %v", answered, err)
	}
	if is := counters(t, s.d, control.KindPort, "p1").Drops["over-mtu"]; is <= was {
		t.Errorf("over-mtu counts %d, was %d", is, was)
	}
	s.goesOn(t)

	// It is not changed into another one that does not fit either.
	blue := config.Network{Name: "blue", VNI: 7, Uplink: "up0", MTU: 1351, Learning: true}
	if _, err := s.d.API().PutNetwork(ctx, blue); err == nil || !strings.HasSuffix(err.Error(), "set the network's to 1350 or less") {
		t.Errorf("%v", err)
	}
	run(t, s.host, "ip", "link", "set", "up0", "mtu", "1500")
	s.status(t, "with the MTU it had", func(u control.UplinkStatus, n control.NetworkStatus) bool { return n.Problem == "" })
	if err := s.tunnelled.ask(within(t, 20*time.Second), full); err != nil {
		t.Error(err)
	}
}
