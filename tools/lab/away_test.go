package lab

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

// TestInterfaceGoesAwayAndComesBack moves a port's interface to another namespace and back: so that the daemon sees it, and so fast that it only finds the
// interface where it was, with the index that it had. What was open on it is dead each time.
func TestInterfaceGoesAwayAndComesBack(t *testing.T) {
	t.Parallel()
	need.Program(t, "ping")
	ctx := within(t, 2*time.Minute)
	host, away := namespace(t, "host"), namespace(t, "away")
	config := "workers: {cpus: [1]}\nnetworks: [{name: blue}]\nports:\n"
	var pods [2]*netlab.Namespace
	for i := range pods {
		pods[i] = namespace(t, fmt.Sprintf("pod%d", i))
		mac := fmt.Sprintf("52:54:00:00:06:%02x", i+1)
		err := netlab.Veth(netlab.End{Namespace: host, Name: fmt.Sprintf("pod%d", i)},
			netlab.End{Namespace: pods[i], Name: "eth0", MAC: mac, Addrs: []string{fmt.Sprintf("10.6.0.%d/24", i+1)}}, 1)
		must(t, err)
		config += fmt.Sprintf("  - {name: pod%d, network: blue, interface: pod%d, mac: %q}\n", i, i, mac)
	}
	d := start(t, host, "shuntd", config)
	reach(t, ctx, pods[1], "10.6.0.1")

	index := run(t, host, "cat", "/sys/class/net/pod0/ifindex")
	leave := func() { run(t, host, "ip", "link", "set", "pod0", "netns", away.Name) }
	back := func() {
		t.Helper()
		run(t, away, "ip", "link", "set", "pod0", "netns", host.Name)
		run(t, host, "ip", "link", "set", "pod0", "up")
		if now := run(t, host, "cat", "/sys/class/net/pod0/ifindex"); now != index {
			t.Logf("the index of the interface was %s and is %s", index, now)
		}
	}
	leave()
	must(t, d.WaitPort(ctx, "pod0", control.StateDown))
	back()
	must(t, d.WaitPort(ctx, "pod0", control.StateConnected))
	reach(t, ctx, pods[1], "10.6.0.1")

	must(t, unix.Kill(d.PID(), unix.SIGSTOP))
	t.Cleanup(func() { _ = unix.Kill(d.PID(), unix.SIGCONT) })
	leave()
	back()
	must(t, unix.Kill(d.PID(), unix.SIGCONT))
	reach(t, ctx, pods[1], "10.6.0.1")
	if c := counters(t, d, control.KindPort, "pod0"); c.More["xdp-redirect"] == 0 {
		t.Errorf("of what was counted before nothing is left: %v", c)
	}
}
