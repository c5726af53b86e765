package lab

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/need"
)

// TestRefusedInterface has the uplink's interface not as it should be.
func TestRefusedInterface(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "interface")
	const takeOff = ": take it off with `shuntbpf detach --force up0`, or choose another interface"
	m.attempts(t, []attempt{
		{name: "missing", change: []string{"interface: up0", "interface: up9"},
			says: "uplink up0: interface up9: no such interface: create it, or name one that ip link shows"},
		{name: "down", before: func(t *testing.T, m *machine) {
			m.ip(t, "link", "set", "up0", "down")
			t.Cleanup(func() { m.ip(t, "link", "set", "up0", "up") })
		}, says: "uplink up0: interface up0: the interface is down; bring it up with: ip link set up0 up"},
		{name: "loopback", change: []string{"interface: up0", "interface: lo"},
			says: "uplink up0: interface lo is no Ethernet interface, its address has 0 octets: choose another"},
		{name: "queues", change: []string{"interface: up0", "interface: up0, queues: 9"},
			says: "uplink up0: queues: interface up0 has 1 in use, 9 are asked for: ask for no more, or raise them with ethtool -L"},
		{name: "zero copy", change: []string{"interface: up0", "interface: up0, mode: zerocopy"},
			says: "uplink up0: AF_XDP on up0 queue 0: the driver offers no zero copy here; ask for mode copy or auto, or check driver, MTU and queue"},
		{name: "native masked", mask: "xdp-native", change: []string{"interface: up0", "interface: up0, xdp: native"},
			says: "uplink up0: native XDP is masked by SHUNT_MASK: clear that, or ask for auto"},
		{name: "native refused", mask: "xdp-frags", change: []string{"interface: up0", "interface: up0, xdp: native"},
			before: func(t *testing.T, m *machine) { m.setMTU(t, 9000) },
			says: "uplink up0: the driver of up0 refuses native XDP (numerical result out of range): lower its MTU of 9000, " +
				"give it more receive queues, turn receive offloads off, or ask for auto"},
		{name: "MTU, IPv4", change: []string{"vni: 7", "vni: 7, mtu: 1451"},
			says: "network blue: MTU 1451 with 50 bytes of encapsulation does not fit uplink up0 of MTU 1500: set the network's to 1450 or less"},
		{name: "MTU, IPv6", change: []string{"vni: 7", "vni: 7, mtu: 1431", "192.0.2.2", `"2001:db8::2"`, "interface: up0", `interface: up0, address: "2001:db8::1"`},
			says: "network blue: MTU 1431 with 70 bytes of encapsulation does not fit uplink up0 of MTU 1500: set the network's to 1430 or less"},
		{name: "MTU of the default", before: func(t *testing.T, m *machine) { m.setMTU(t, 1400) },
			says: "network blue: MTU 1450 with 50 bytes of encapsulation does not fit uplink up0 of MTU 1400: set the network's to 1350 or less"},
		{name: "two", change: []string{"{name: up0, interface: up0}", "{name: up0, interface: up8}, {name: up1, interface: up9}"},
			says: "uplink up0: interface up8: no such interface: create it, or name one that ip link shows\n" +
				"uplink up1: interface up9: no such interface: create it, or name one that ip link shows"},
		{name: "own address flooded", change: []string{"192.0.2.2", "192.0.2.1"}, says: "network blue: VTEP 192.0.2.1: invalid, it is this machine's own address; name other machines only"},
		{name: "other IP version flooded", change: []string{"192.0.2.2", `"2001:db8::2"`}, says: "network blue: VTEP 2001:db8::2: invalid, the uplink's address 192.0.2.1 is of the other IP version; name VTEPs of that one"},
		{name: "foreign program", before: func(t *testing.T, m *machine) { foreignProgram(t, m.ns, "up0") },
			says: "uplink up0: interface up0 runs XDP program stranger (id #, native), which shunt did not put there" + takeOff},
		{name: "queue taken", before: foreignSocket,
			says: "uplink up0: AF_XDP on up0 queue 0: another AF_XDP socket holds the queue; stop its program (ss --xdp -p shows which), or take another queue"},
		{name: "second daemon", before: func(t *testing.T, m *machine) { m.first(t, "first.sock", "p0.sock") },
			says: "uplink up0: interface up0 belongs to process # (shuntd): stop that, or choose another interface"},
	})
}

// TestRefusedPrivilege starts it with less than it needs.
func TestRefusedPrivilege(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "privilege")
	need.Program(t, "setpriv", "prlimit")
	if err := os.Chmod(filepath.Dir(shuntd(t)), 0o755); err != nil { // nobody is to be able to run it
		t.Fatal(err)
	}
	without := func(capabilities ...string) []string {
		list := "-" + strings.Join(capabilities, ",-")
		return []string{"setpriv", "--bounding-set=" + list, "--inh-caps=" + list}
	}
	nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
	const capabilities = "permission denied: run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"
	m.attempts(t, []attempt{
		{name: "nobody", under: nobody, says: "uplink up0: load the XDP program: " + capabilities},
		{name: "CAP_BPF", under: without("bpf", "sys_admin"), says: "uplink up0: load the XDP program: " + capabilities},
		{name: "CAP_NET_ADMIN", under: without("net_admin", "sys_admin"), says: "uplink up0: ..."},
		{name: "CAP_NET_RAW", under: without("net_raw"),
			says: "uplink up0: AF_XDP on up0 queue 0: permission denied; run as root or with CAP_NET_RAW"},
		{name: "CAP_IPC_LOCK", under: append([]string{"prlimit", "--memlock=8388608:8388608"}, without("ipc_lock", "sys_resource")...),
			says: "uplink up0: AF_XDP on up0 queue 0: the limit of locked memory is too low for the UMEM of 65536 KiB; " +
				"grant CAP_IPC_LOCK, or raise it (LimitMEMLOCK= of the unit, ulimit -l)"},
		{name: "read-only bpffs", under: []string{"sh", "-c", `mount -o remount,bind,ro /sys/fs/bpf && exec "$0" "$@"`},
			says: "uplink up0: claim up0: the BPF file system is read-only: remount it with `mount -o remount,rw /sys/fs/bpf`"},
		{name: "no bpffs", under: append([]string{"sh", "-c", `umount /sys/fs/bpf && exec "$0" "$@"`}, without("sys_admin")...),
			says: "uplink up0: no BPF file system is on /sys/fs/bpf, and mounting one failed (operation not permitted): " +
				"mount it as root with `mount -t bpf bpf /sys/fs/bpf`"},
		{name: "unreadable", under: nobody, args: []string{"--config", "DIR/secret.yaml"}, before: func(t *testing.T, m *machine) {
			if err := os.WriteFile(m.path("secret.yaml"), []byte(goodConfig), 0o600); err != nil {
				t.Fatal(err)
			}
		}, says: "read the configuration DIR/secret.yaml: permission denied: run as its owner or as root, or change its mode"},
	})
}

// TestRefusedPath has something else where a socket or the configuration is to be.
func TestRefusedPath(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "path")
	for name, text := range map[string]string{"file": "precious", "huge": strings.Repeat("#\n", 3<<20)} {
		if err := os.WriteFile(m.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(m.path("dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere", m.path("link")); err != nil {
		t.Fatal(err)
	}
	listening, err := net.Listen("unix", m.path("taken"))
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	var metrics net.Listener
	if err := m.ns.Do(func() error { metrics, err = net.Listen("tcp", "127.0.0.1:9464"); return err }); err != nil {
		t.Fatal(err)
	}
	defer metrics.Close()
	readOnly := []string{"sh", "-c", `mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"`, m.path("dir")}
	port := func(path string) []string { return []string{"DIR/p1.sock", path} }
	control := func(path string) []string { return []string{"DIR/shuntd.sock", path} }
	const (
		elsewhere = ": create the directory, or choose another path with control.socket"
		another   = ": choose another path with control.socket"
		inTheWay  = "exists and is no socket: remove it or choose another path"
	)
	m.attempts(t, []attempt{
		{name: "port, listener", change: port("DIR/taken"),
			says: "port p1: socket is in use: another process listens on DIR/taken: stop it or choose another path"},
		{name: "port, file", change: port("DIR/file"), says: "port p1: DIR/file " + inTheWay},
		{name: "port, directory", change: port("DIR/dir"), says: "port p1: DIR/dir " + inTheWay},
		{name: "port, link", change: port("DIR/link"), says: "port p1: DIR/link " + inTheWay},
		{name: "port, no directory", change: port("DIR/none/p1"),
			says: "port p1: socket DIR/none/p1 has no directory (no such file or directory): create it, or choose another path"},
		{name: "port, file as directory", change: port("DIR/file/p1"),
			says: "port p1: socket DIR/file/p1 has no directory (not a directory): create it, or choose another path"},
		{name: "port, read-only", change: port("DIR/dir/p1"), under: readOnly,
			says: "port p1: socket DIR/dir/p1 cannot be made there (read-only file system): run as root, or choose a directory that can be written to"},
		{name: "control, listener", change: control("DIR/taken"),
			says: "another shuntd is running: it answers on DIR/taken: stop it, or choose another path with control.socket"},
		{name: "control, file", change: control("DIR/file"), says: "DIR/file is not a socket: remove it, or choose another path with control.socket"},
		{name: "control, directory", change: control("DIR/dir"), says: "DIR/dir is not a socket: remove it, or choose another path with control.socket"},
		{name: "control, no directory", change: control("DIR/none/none/s"),
			says: "the control socket DIR/none/none/s cannot be made (no such file or directory)" + elsewhere},
		{name: "control, file as directory", change: control("DIR/file/s"), says: "the control socket DIR/file/s cannot be made (not a directory)" + another},
		{name: "control, read-only", change: control("DIR/dir/s"), under: readOnly,
			says: "the control socket DIR/dir/s cannot be made (read-only file system)" + another},
		{name: "second daemon", before: func(t *testing.T, m *machine) { m.first(t, "shuntd.sock", "p0.sock") },
			says: "another shuntd is running: it answers on DIR/shuntd.sock: stop it, or choose another path with control.socket"},
		{name: "owner", change: []string{"mac:", "owner: nosuchuser, mac:"},
			says: "port p1: owner: this host has no nosuchuser: create it, name another, or give a number"},
		{name: "group", change: []string{"mac:", "group: nosuchgroup, mac:"},
			says: "port p1: group: this host has no nosuchgroup: create it, name another, or give a number"},
		{name: "control.group", change: []string{"sock}\nuplinks", "sock, group: nosuchgroup}\nuplinks"},
			says: "control.group: this host has no group nosuchgroup: create it, or name another"},
		{name: "metrics taken", change: []string{"sock}\nuplinks", "sock, metrics: \"127.0.0.1:9464\"}\nuplinks"},
			says: "control.metrics: nothing can listen on 127.0.0.1:9464: address already in use: choose another address"},
		{name: "metrics elsewhere", change: []string{"sock}\nuplinks", "sock, metrics: \"198.51.100.1:9464\"}\nuplinks"},
			says: "control.metrics: nothing can listen on 198.51.100.1:9464: cannot assign requested address: choose another address"},
		{name: "no such core", change: []string{"idle: interrupt", "cpus: [4000]"},
			says: "workers.cpus: CPU 4000 does not exist, this machine has ..."},
		{name: "no file", args: []string{"--config", "DIR/none"},
			says: "read the configuration DIR/none: no such file or directory: create it, or name another file"},
		{name: "directory", args: []string{"--config", "DIR/dir"},
			says: "read the configuration DIR/dir: is a directory: name a file that can be read"},
		{name: "flag", args: []string{"--frobnicate"}, says: "unknown flag: --frobnicate\nRun shuntd --help for the flags."},
		{name: "argument", args: []string{"start"}, says: "unknown command \"start\" for \"shuntd\"\nRun shuntd --help for the flags."},
		{name: "level", args: []string{"--log-level=loud"},
			says: "invalid argument \"loud\" for \"--log-level\" flag: choose debug, info, warn or error\nRun shuntd --help for the flags."},
	})
	for _, endless := range []string{"/dev/zero", m.path("huge")} {
		out, err := m.ns.Run(within(t, 30*time.Second), shuntd(t), "--config", endless)
		if want := endless + ": the document is larger than 4 MiB, the most that is read: shorten it\n"; out != want || err == nil {
			t.Errorf("%s: %v\n%s", endless, err, out)
		}
	}
	if text, err := os.ReadFile(m.path("file")); err != nil || string(text) != "precious" {
		t.Errorf("the file that was in the way holds %q, %v", text, err)
	}
}
