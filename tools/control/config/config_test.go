package config

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shuntio/shunt/vxlan/acl"
)

var compareAddr = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// noLimits are the defaults filled in, usualFlood is one of them.
var (
	noLimits   = Limits{FromGuest: Limit{Burst: DefaultBurst}, ToGuest: Limit{Burst: DefaultBurst}, Flood: usualFlood}
	usualFlood = FloodLimit{PPS: DefaultFlood, Burst: DefaultBurst}
)

func TestExample(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "example.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("example.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Workers: Workers{CPUs: CPUs{1, 3}, Idle: IdleAdaptive, HugePages: ToggleOn},
		Control: Control{Socket: "/run/shunt/shuntd.sock", Group: "kvm", Metrics: "127.0.0.1:9464"},
		Uplinks: []Uplink{
			{Name: "up0", Interface: "eth1", Mode: BindAuto, XDP: XDPNative, Address: netip.MustParseAddr("192.0.2.1"), Port: 4789, Queues: 2,
				BusyPoll: ToggleOn, MultiBuffer: ToggleOff, TransmitBudget: 64},
			{Name: "up1", VhostUser: "/run/shunt/up1.sock", Mode: BindAuto, XDP: XDPAuto, Address: netip.MustParseAddr("2001:db8::1"), Port: 8472,
				BusyPoll: ToggleAuto, MultiBuffer: ToggleAuto},
		},
		Networks: []Network{
			{Name: "blue", VNI: 100, Uplink: "up0", MTU: 1450, Learning: true, Flood: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
				Entries: []Entry{{MAC: MAC{0x52, 0x54, 0, 0, 0, 2}, IP: netip.MustParseAddr("10.0.0.2"), VTEP: netip.MustParseAddr("192.0.2.2")}},
				Age:     Duration(10 * time.Minute), LearnLimit: 1000, DSCP: DSCPCopy},
			{Name: "red", VNI: 100, Uplink: "up1", Learning: false, Flood: []netip.Addr{netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::")},
				Age: DefaultAge, LearnLimit: DefaultNetworkLearn, Answer: true, DSCP: DSCPCopy},
			{Name: "flat", Uplink: "up0", Learning: true, Entries: []Entry{{MAC: MAC{0x52, 0x54, 0, 0, 0, 3}, IP: netip.MustParseAddr("fd00::3")}},
				Age: DefaultAge, LearnLimit: DefaultNetworkLearn, Answer: true, DSCP: DSCPCopy},
			{Name: "local", Learning: true, MTU: 9000, Age: DefaultAge, LearnLimit: DefaultNetworkLearn, Answer: true, DSCP: DSCPCopy},
		},
		Ports: []Port{
			{Name: "vm1-eth0", Network: "blue", Socket: "/run/shunt/vm1-eth0.sock", Role: RoleServer, Mode: 0o600, Owner: "libvirt-qemu",
				Group: "107", MAC: MAC{0x52, 0x54, 0, 0, 0, 1}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
				Queues: 4, Workers: []int{1, 0}, AntiSpoof: true, LearnLimit: DefaultPortLearn,
				Limits: Limits{FromGuest: Limit{Burst: 2 * DefaultBurst}, ToGuest: Limit{Burst: 2 * DefaultBurst}, Flood: FloodLimit{Burst: DefaultBurst}},
				ACL: &acl.Policy{Default: acl.Allow, Rules: []acl.Rule{
					{Verdict: acl.Allow, Subject: acl.OfProtocol, Number: 6, From: netip.MustParsePrefix("10.0.0.0/8"), ToPort: acl.Ports{First: 80, Last: 443}},
					{Direction: acl.Out, To: netip.MustParsePrefix("fd00::/64")},
				}}},
			{Name: "test.0", Network: "local", Socket: "/tmp/test.sock", Role: RoleServer, Mode: 0o660, Queues: 1, Coalesce: true, LearnLimit: 8,
				Limits: Limits{FromGuest: Limit{PPS: 1000, Burst: DefaultBurst}, ToGuest: Limit{BPS: 100000000, Burst: DefaultBurst / 10}, Flood: FloodLimit{PPS: 200, Burst: 2 * DefaultBurst}},
				ACL: &acl.Policy{Rules: []acl.Rule{
					{Verdict: acl.Allow, Subject: acl.OfProtocol, Number: 1, ICMP: acl.ICMP{HasType: true, Type: 8}},
				}}},
			{Name: "vm2-eth0", Network: "local", Socket: "/run/vm2.sock", Role: RoleClient, Queues: 1, Coalesce: true, LearnLimit: DefaultPortLearn,
				Limits: Limits{FromGuest: Limit{PPS: 7, Burst: DefaultBurst}, ToGuest: Limit{PPS: 7, Burst: DefaultBurst}, Flood: usualFlood}},
			{Name: "container", Network: "local", Interface: "veth1", Queues: 2, Coalesce: true, LearnLimit: DefaultPortLearn, Limits: noLimits},
		},
		VolumeGroups: []VolumeGroup{{Name: "gold", Limits: VolumeLimits{IOPS: 20000, BPS: 500000000, Burst: Duration(time.Second)}}},
		Volumes:      exampleVolumes,
	}
	if diff := cmp.Diff(want, got, compareAddr); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}

	// What the API sends is what it takes.
	body, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseJSON(body)
	if err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	if !reflect.DeepEqual(got, again) {
		t.Errorf("through JSON: %s", cmp.Diff(got, again, compareAddr))
	}
	var plain Config
	if err := json.Unmarshal(body, &plain); err != nil || !reflect.DeepEqual(got, &plain) {
		t.Errorf("through encoding/json: %v %s", err, cmp.Diff(got, &plain, compareAddr))
	}
	if err := Check(got); err != nil {
		t.Errorf("a parsed configuration does not pass its own rules: %v", err)
	}
}

func TestEmpty(t *testing.T) {
	for _, text := range []string{"", "# nothing yet\n", "---\n", "{}", "ports:\nnetworks:\nuplinks:\nworkers:\ncontrol:\n", "ports: []\n"} {
		c, err := Parse("f", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		want := &Config{Workers: Workers{Idle: IdleAdaptive, HugePages: ToggleAuto}, Control: Control{Socket: DefaultSocket}}
		if !reflect.DeepEqual(c, want) {
			t.Errorf("%q: %+v", text, c)
		}
	}
}

// TestBadValues goes through every way to be refused. The text's "@" marks where the problem must be reported, and is
// removed before parsing.
func TestBadValues(t *testing.T) {
	const net = "networks: [{name: blue}]\n"
	const up = "uplinks: [{name: up0, interface: eth1, address: 192.0.2.1}]\n"
	port := func(extra string) string {
		return net + "ports:\n  - name: p1\n    network: blue\n    socket: /run/p1.sock\n    anti-spoof: false\n    " + extra
	}
	container := func(extra string) string {
		return net + "ports:\n  - name: p1\n    network: blue\n    anti-spoof: false\n    " + extra
	}
	uplink := func(extra string) string { return "uplinks:\n  - name: up0\n    interface: eth1\n    " + extra }
	network := func(extra string) string {
		return up + "networks:\n  - name: blue\n    uplink: up0\n    vni: 7\n    " + extra
	}
	long := "/" + strings.Repeat("x", MaxSocketPath)
	for _, test := range []struct{ name, text, want string }{
		{"not yaml", "a: @b: c", "this is not YAML: mapping value is not allowed in this context"},
		{"unclosed quote", "control:\n  socket: @\"/run", "could not find end character of double-quoted text"},
		{"tab", "ports:\n- name: a\n@\tmac: b\n", "found character tab: indent with spaces"},
		{"second document", "workers: {}\n---\n@ports: []\n", "a second document begins here: a configuration is one, remove the others"},
		{"anchor", "workers:\n  idle: @&x poll\n", "this uses a feature of YAML (Anchor) that a configuration does without"},
		{"alias", "workers:\n  idle: @*x\n", "(Alias)"},
		{"tag", "workers:\n  idle: @!!str poll\n", "(Tag)"},
		{"merge", "workers:\n  @<<: {idle: poll}\n", "a key must be a plain word"},
		{"number as key", "@1: 2\n", "a key must be a plain word"},
		{"deep brackets", "ports: " + strings.Repeat("[", maxDepth) + "@[", "this is nested too deeply"},
		{"deep dashes", "ports:\n" + strings.Repeat("- ", 4*maxDepth) + "@- x", "this is nested too deeply"},
		{"deep lines", strings.Repeat("- ", maxDepth+1) + "@- x", "this is nested too deeply"},
		{"root list", "@- a\n", "this is a list: it must be a mapping of keys to values"},
		{"root word", "@hello\n", "this is a string: it must be a mapping"},

		{"unknown key", "workers: {}\n@portz: []\n", `unknown key "portz": the keys here are workers, control, uplinks, networks, ports, volume-groups, volumes`},
		{"unknown inner key", "workers: {@cpu: [1]}\n", `workers: unknown key "cpu": the keys here are cpus, idle, huge-pages`},
		{"case matters", "@Ports: []\n", `unknown key "Ports"`},
		{"key twice", port("@socket: /run/p2.sock\n"), "ports[0].socket: the key was given before, in line 5: keep one"},
		{"rdma", "@rdma: []\n", "the key rdma is not supported: this version has no RDMA"},

		{"cpus word", "workers: {cpus: @all}\n", "workers.cpus: this is neither auto nor a list of cores"},
		{"cpus number", "workers: {cpus: @1}\n", "workers.cpus: this is neither auto nor a list of cores"},
		{"cpus empty", "workers: {cpus: @[]}\n", "workers.cpus: the list is empty: write auto"},
		{"cpus negative", "workers: {cpus: [@-1]}\n", "workers.cpus[0]: -1 is not the number of a core"},
		{"cpus far", "workers: {cpus: [@100000]}\n", "100000 is not the number of a core"},
		{"cpus string", "workers: {cpus: [@one]}\n", "workers.cpus[0]: this is a string: it must be a whole number"},
		{"idle", "workers: {idle: @sleep}\n", `workers.idle: "sleep" is none of poll, adaptive, interrupt`},
		{"idle null", "workers:\n  @idle:\n", "workers.idle: the key has no value: give one, or remove the key"},
		{"workers list", "workers: @[1]\n", "workers: this is a list: it must be a mapping"},

		{"relative socket", "control: {socket: @shuntd.sock}\n", `control.socket: "shuntd.sock" is not the path of a socket`},
		{"empty socket", "control: {socket: @''}\n", `"" is not the path`},
		{"directory", "control: {socket: @/run/}\n", `"/run/" is not the path`},
		{"long socket", "control: {socket: @" + long + "}\n", "the path has 108 bytes: a unix socket's has at most 107"},
		{"socket boolean", "control: {socket: @true}\n", "control.socket: this is a boolean: it must be a string; put it in quotes"},
		{"control group", "control: {group: @'a b'}\n", `control.group: "a b" is neither a name of a user or group nor its number`},
		{"metrics", "control: {metrics: @9464}\n", "control.metrics: this is a number: it must be a string; put it in quotes"},
		{"metrics port", "control: {metrics: @'127.0.0.1:0'}\n", `"0" is not a TCP port: give 1 to 65535`},
		{"metrics host", "control: {metrics: @'example.org:9464'}\n", `"example.org" is not an IP address`},
		{"metrics no port", "control: {metrics: @localhost}\n", "write it as 127.0.0.1:9464"},

		{"nowhere", "uplinks:\n  - @name: up0\n", "uplinks[0]: the uplink leads nowhere: give interface or vhost-user"},
		{"both", uplink("vhost-user: @/run/up.sock\n"), "uplinks[0].vhost-user: the uplink has an interface too: keep one of them"},
		{"no name", "uplinks: [@{interface: eth1}]\n", "uplinks[0].name: the name is missing: give the object one"},
		{"name capital", "uplinks: [{name: @Up0, interface: eth1}]\n", `uplinks[0].name: "Up0" is not a name: use up to 63`},
		{"name dash", "uplinks: [{name: @-up, interface: eth1}]\n", `"-up" is not a name`},
		{"name long", "uplinks: [{name: @" + strings.Repeat("u", 64) + ", interface: eth1}]\n", "is not a name"},
		{"name number", "uplinks: [{name: @100, interface: eth1}]\n", "uplinks[0].name: this is a number: it must be a string; put it in quotes"},
		{"name twice", "uplinks: [{name: up0, interface: eth1}, {name: @up0, interface: eth2}]\n", "up0 is also the name of uplinks[0]: give each its own"},
		{"interface twice", "uplinks: [{name: up0, interface: eth1}, {name: up1, interface: @eth1}]\n", "eth1 belongs to uplinks[0]: an interface serves one uplink or port"},
		{"interface long", "uplinks: [{name: up0, interface: @abcdefghijklmnop}]\n", `"abcdefghijklmnop" is not the name of a network interface`},
		{"interface slash", "uplinks: [{name: up0, interface: @a/b}]\n", `"a/b" is not the name of a network interface`},
		{"mode", uplink("mode: @fast\n"), `uplinks[0].mode: "fast" is none of auto, zerocopy, copy`},
		{"xdp", uplink("xdp: @skb\n"), `uplinks[0].xdp: "skb" is none of auto, native, generic`},
		{"address", uplink("address: @192.0.2\n"), `uplinks[0].address: "192.0.2" is not an IP address`},
		{"address prefix", uplink("address: @192.0.2.1/24\n"), `"192.0.2.1/24" is not an IP address`},
		{"address group", uplink("address: @239.1.1.1\n"), "239.1.1.1 is not the address of one host"},
		{"address any", uplink("address: @0.0.0.0\n"), "0.0.0.0 is not the address of one host"},
		{"address mapped", uplink("address: @'::ffff:192.0.2.1'\n"), "write 192.0.2.1"},
		{"address zone", uplink("address: @fe80::1%eth1\n"), "has a zone: give the address alone"},
		{"port", uplink("port: @0\n"), "uplinks[0].port: 0 is out of range: give 1 to 65535"},
		{"port large", uplink("port: @65536\n"), "65536 is out of range: give at least 0 and at most 65535"},
		{"port word", uplink("port: @vxlan\n"), "uplinks[0].port: this is a string: it must be a whole number"},
		{"port octal", uplink("port: @04789\n"), `"04789" is not a decimal number`},
		{"port hex", uplink("port: @0x12b5\n"), `"0x12b5" is not a decimal number`},
		{"port fraction", uplink("port: @4789.5\n"), "this is a number: it must be a whole number"},
		{"uplink queues", uplink("queues: @0\n"), "uplinks[0].queues: 0 is out of range: give 1 to 256"},
		{"vhost-user mode", "uplinks: [{name: up0, vhost-user: /run/u.sock, mode: @copy}]\n", "uplinks[0].mode: this is for uplinks with an interface: remove it"},
		{"vhost-user xdp", "uplinks: [{name: up0, vhost-user: /run/u.sock, xdp: @generic}]\n", "uplinks[0].xdp: this is for uplinks with an interface"},
		{"vhost-user queues", "uplinks: [{name: up0, vhost-user: /run/u.sock, queues: @1}]\n", "uplinks[0].queues: this is for uplinks with an interface"},
		{"vhost-user busy-poll", "uplinks: [{name: up0, vhost-user: /run/u.sock, busy-poll: @on}]\n", "uplinks[0].busy-poll: this is for uplinks with an interface"},
		{"vhost-user multi-buffer", "uplinks: [{name: up0, vhost-user: /run/u.sock, multi-buffer: @off}]\n", "uplinks[0].multi-buffer: this is for uplinks"},
		{"vhost-user transmit-budget", "uplinks: [{name: up0, vhost-user: /run/u.sock, transmit-budget: @64}]\n", "uplinks[0].transmit-budget: this is for uplinks"},
		{"huge pages", "workers: {huge-pages: @true}\n", "workers.huge-pages: this is a boolean: it must be a string"},
		{"huge pages word", "workers: {huge-pages: @always}\n", `workers.huge-pages: "always" is none of auto, on, off`},
		{"busy-poll", uplink("busy-poll: @yes\n"), `uplinks[0].busy-poll: "yes" is none of auto, on, off`},
		{"transmit-budget", uplink("transmit-budget: @31\n"), "uplinks[0].transmit-budget: 31 is out of range: give 32 to 2048"},
		{"vhost-user path", "uplinks: [{name: up0, vhost-user: @u.sock}]\n", `"u.sock" is not the path of a socket`},
		{"uplink on control socket", "uplinks: [{name: up0, vhost-user: @/run/shunt/shuntd.sock}]\n", "/run/shunt/shuntd.sock is also control.socket: give each its own socket"},

		{"unknown uplink", "networks: [{name: blue, vni: 7, uplink: @up9}]\n", `networks[0].uplink: there is no uplink "up9"`},
		{"empty uplink", "networks: [{name: blue, uplink: @''}]\n", "networks[0].uplink: the name is empty"},
		{"network twice", "networks: [{name: blue}, {name: @blue}]\n", "blue is also the name of networks[0]"},
		{"vni zero", up + "networks: [{name: blue, uplink: up0, vni: @0}]\n", "networks[0].vni: 0 is out of range: give 1 to 16777215, or remove the key"},
		{"vni large", up + "networks: [{name: blue, uplink: up0, vni: @16777216}]\n", "16777216 is out of range: give 1 to 16777215"},
		{"vni larger", up + "networks: [{name: blue, uplink: up0, vni: @4294967296}]\n", "4294967296 is out of range"},
		{"vni negative", up + "networks: [{name: blue, uplink: up0, vni: @-1}]\n", "-1 is out of range: give at least 0"},
		{"vni twice", up + "networks: [{name: blue, uplink: up0, vni: 7}, {name: red, uplink: up0, vni: @7}]\n", "7 is also that of networks[0] on uplink up0: give each its own"},
		{"vni nowhere", "networks: [{name: blue, vni: @7}]\n", "7 needs an uplink to be sent on: name one, or remove the vni to keep the network on this host"},
		{"vni without address", "uplinks: [{name: up0, vhost-user: /run/u.sock}]\nnetworks: [{name: blue, uplink: up0, vni: @7}]\n", "uplink up0 is a vhost-user connection without address"},
		{"flat twice", up + "networks: [{name: blue, uplink: up0}, {name: red, uplink: @up0}]\n", "up0 carries the flat network of networks[0] already: give this one a vni"},
		{"mtu small", network("mtu: @67\n"), "networks[0].mtu: 67 is out of range: give 68 to 65535"},
		{"mtu zero", network("mtu: @0\n"), "0 is out of range"},
		{"mtu large", network("mtu: @65536\n"), "65536 is out of range"},
		{"learning", network("learning: @yes\n"), "networks[0].learning: this is a string: it must be true or false"},
		{"learning capital", network("learning: @True\n"), "it must be true or false"},
		{"age", network("age: @300\n"), `networks[0].age: "300" is not a duration`},
		{"age short", network("age: @10ms\n"), "networks[0].age: 10ms is out of range: give 1s to 24h"},
		{"age zero", network("age: @0s\n"), "0s is out of range"},
		{"learn-limit", network("learn-limit: @1048577\n"), "networks[0].learn-limit: 1048577 is out of range: give 1 to 1048576"},
		{"answer", network("answer: @all\n"), "networks[0].answer: this is a string: it must be true or false"},
		{"flood scalar", network("flood: @192.0.2.2\n"), "networks[0].flood: this is a string: it must be a list"},
		{"flood family", network("flood: [@2001:db8::2]\n"), "networks[0].flood[0]: 2001:db8::2 and 192.0.2.1 are of different IP versions: give addresses of one, as uplink up0 carries one"},
		{"flood twice", network("flood: [192.0.2.2, @192.0.2.2]\n"), "networks[0].flood[1]: 192.0.2.2 is in the list before"},
		{"flood self", network("flood: [@192.0.2.1]\n"), "192.0.2.1 is this host's own address on uplink up0"},
		{"flood group", network("flood: [@239.1.1.1]\n"), "239.1.1.1 is not the address of one host"},
		{"flood name", network("flood: [@peer]\n"), `"peer" is not an IP address`},
		{"flood flat", up + "networks: [{name: blue, uplink: up0, flood: @[192.0.2.2]}]\n", "the network is flat, so the uplink floods by itself"},
		{"flood local", "networks: [{name: blue, flood: @[192.0.2.2]}]\n", "the network has no uplink to flood"},
		{"unquoted in flow style", "networks: [{name: blue, flood: [@fd00::2]}]\n", "this is a mapping: it must be a string; put a value that holds colons in quotes"},
		{"unquoted number in flow style", "networks: [{name: blue, flood: [@2001:db8::2]}]\n", "put a value that holds colons in quotes"},
		{"families without address", "uplinks: [{name: up0, interface: eth1}]\nnetworks: [{name: blue, uplink: up0, vni: 7, flood: [192.0.2.2, @'2001:db8::2']}]\n", "are of different IP versions"},
		{"entry no mac", network("entries: [@{vtep: 192.0.2.2}]\n"), "networks[0].entries[0]: the entry has no mac"},
		{"entry no vtep", network("entries: [@{mac: 52:54:00:00:00:02}]\n"), "the entry has no vtep: name the tunnel endpoint that 52:54:00:00:00:02 is behind"},
		{"entry mac", network("entries: [{mac: @52:54:00:00:00, vtep: 192.0.2.2}]\n"), `"52:54:00:00:00" is not a MAC address: write it as 52:54:00:00:00:01`},
		{"entry mac group", network("entries: [{mac: @33:33:00:00:00:01, vtep: 192.0.2.2}]\n"), "33:33:00:00:00:01 is a multicast address"},
		{"entry mac zero", network("entries: [{mac: @00:00:00:00:00:00, vtep: 192.0.2.2}]\n"), "00:00:00:00:00:00 is not the address of a station"},
		{"entry mac twice", network("entries: [{mac: 52:54:00:00:00:02, vtep: 192.0.2.2}, {mac: @52:54:00:00:00:02, vtep: 192.0.2.3}]\n"), "52:54:00:00:00:02 has an entry before"},
		{"entry ip twice", network("entries: [{mac: 52:54:00:00:00:02, ip: 10.0.0.2, vtep: 192.0.2.2}, {mac: 52:54:00:00:00:03, ip: @10.0.0.2, vtep: 192.0.2.3}]\n"), "10.0.0.2 has an entry before"},
		{"entry mac again without ip", network("entries: [{mac: 52:54:00:00:00:02, ip: 10.0.0.2, vtep: 192.0.2.2}, {mac: @52:54:00:00:00:02, vtep: 192.0.2.2}]\n"), "this one an ip of its own"},
		{"entry ip", network("entries: [{mac: 52:54:00:00:00:02, ip: @10.0.0.256, vtep: 192.0.2.2}]\n"), `"10.0.0.256" is not an IP address`},
		{"entry vtep family", network("entries: [{mac: 52:54:00:00:00:02, vtep: @2001:db8::2}]\n"), "are of different IP versions"},
		{"entry flat vtep", up + "networks: [{name: blue, uplink: up0, entries: [{mac: 52:54:00:00:00:02, vtep: @192.0.2.2}]}]\n", "the network is flat and has no tunnel"},
		{"entries local", "networks: [{name: blue, entries: @[{mac: 52:54:00:00:00:02}]}]\n", "the network has no uplink to forward to"},
		{"entry null", network("entries: [@~]\n"), "networks[0].entries[0]: the key has no value"},

		{"port no network", "ports:\n  - @name: p1\n    socket: /run/p1.sock\n    anti-spoof: false\n", "ports[0].network: the network is missing"},
		{"port unknown network", "ports:\n  - name: p1\n    network: @blue\n    socket: /run/p1.sock\n    anti-spoof: false\n", `ports[0].network: there is no network "blue"`},
		{"port nowhere", net + "ports: [@{name: p1, network: blue, anti-spoof: false}]\n", "ports[0]: the port leads nowhere: give the path of its vhost-user socket, or an interface"},
		{"port socket long", net + "ports: [{name: p1, network: blue, anti-spoof: false, socket: @" + long + "}]\n", "the path has 108 bytes"},
		{"port socket twice", net + "ports: [{name: p1, network: blue, anti-spoof: false, socket: /run/p}, {name: p2, network: blue, anti-spoof: false, socket: @/run//p}]\n", "/run//p is also ports[0].socket: give each its own socket"},
		{"port on control socket", net + "control: {socket: /run/c}\nports: [{name: p1, network: blue, anti-spoof: false, socket: @/run/c}]\n", "/run/c is also control.socket"},
		{"port name twice", net + "ports: [{name: p1, network: blue, anti-spoof: false, socket: /run/a}, {name: @p1, network: blue, anti-spoof: false, socket: /run/b}]\n", "p1 is also the name of ports[0]"},
		{"role", port("role: @peer\n"), `"peer" is none of server, client`},
		{"mode decimal", port("mode: @660\n"), `ports[0].mode: "660" is not a file mode: write it in octal with a leading zero, as 0660`},
		{"mode large", port("mode: @01777\n"), "mode \"01777\" has more than permission bits"},
		{"mode letters", port("mode: @rw-rw----\n"), "is not a file mode"},
		{"mode nine", port("mode: @0690\n"), "is not a file mode"},
		{"mode none", port("mode: @0000\n"), "0000 lets nobody connect"},
		{"owner", port("owner: @a:b\n"), `ports[0].owner: "a:b" is neither a name of a user or group nor its number`},
		{"owner -1", port("owner: @4294967295\n"), "is neither a name of a user or group nor its number"},
		{"port mac", port("mac: @52-54-00-00-00-01\n"), `"52-54-00-00-00-01" is not a MAC address`},
		{"port mac group", port("mac: @01:00:5e:00:00:01\n"), "01:00:5e:00:00:01 is a multicast address"},
		{"port mac zero", port("mac: @00:00:00:00:00:00\n"), "is not the address of a station"},
		{"port mac empty", port("mac: @''\n"), "ports[0].mac: this is empty"},
		{"port mac twice", net + "ports: [{name: p1, network: blue, socket: /run/a, mac: 52:54:00:00:00:01}, {name: p2, network: blue, socket: /run/b, mac: @52:54:00:00:00:01}]\n", "52:54:00:00:00:01 is also that of ports[0] in network blue"},
		{"port mac of entry", network("entries: [{mac: 52:54:00:00:00:01, vtep: 192.0.2.2}]\n") + "ports: [{name: p1, network: blue, socket: /run/a, mac: @52:54:00:00:00:01}]\n", "is also that of networks[0].entries[0] in network blue"},
		{"anti-spoof", net + "ports: [{name: p1, network: blue, socket: /run/a, anti-spoof: @true}]\n", "ports[0].anti-spoof: this needs to know the port's address"},
		{"anti-spoof absent", net + "ports: [@{name: p1, network: blue, socket: /run/a}]\n", "ports[0].anti-spoof: this needs to know the port's address"},
		{"port in flat network", up + "networks: [{name: blue, uplink: up0}]\nports: [@{name: p1, network: blue, socket: /run/a, anti-spoof: false}]\n", "ports[0]: a port of a flat network needs its mac"},
		{"ips", port("ips: [@10.0.0.1/24]\n"), `ports[0].ips[0]: "10.0.0.1/24" is not an IP address`},
		{"ips number", port("ips: [@10]\n"), `"10" is not an IP address`},
		{"ips twice", port("ips: [10.0.0.1, @10.0.0.1]\n"), "10.0.0.1 is in the list before"},
		{"queues", port("queues: @129\n"), "ports[0].queues: 129 is out of range: give 1 to 128, or remove the key"},
		{"queues zero", port("queues: @0\n"), "0 is out of range"},
		{"role client mode", port("role: client\n    mode: @0600\n"), "ports[0].mode: this is for a socket that shuntd makes, and as client it finds one: remove it"},
		{"role client mode zero", port("role: client\n    mode: @0000\n"), "ports[0].mode: this is for a socket that shuntd makes"},
		{"role client owner", port("role: client\n    owner: @root\n"), "ports[0].owner: this is for a socket that shuntd makes"},
		{"role client group", port("role: client\n    group: @root\n"), "ports[0].group: this is for a socket that shuntd makes"},
		{"socket and interface", port("interface: @veth1\n"), "ports[0].interface: the port has a socket too: keep one of them"},
		{"interface empty", container("interface: @''\n"), `ports[0].interface: "" is not the name of a network interface`},
		{"interface slash in port", container("interface: @a/b\n"), `"a/b" is not the name of a network interface`},
		{"interface of an uplink", up + container("interface: @eth1\n"), "eth1 belongs to uplinks[0]: an interface serves one uplink or port, name another"},
		{"interface role", container("interface: veth1\n    role: @server\n"), "ports[0].role: this is for a socket, and the port has an interface: remove it"},
		{"interface mode", container("interface: veth1\n    mode: @0600\n"), "ports[0].mode: this is for a socket, and the port has an interface"},
		{"workers word", port("workers: @auto\n"), "ports[0].workers: this is a string: it must be a list"},
		{"workers negative", port("workers: [@-1]\n"), "-1 is not the number of a worker"},
		{"workers far", "workers: {cpus: [1, 2]}\n" + port("workers: [@2]\n"), "ports[0].workers[0]: there is no worker 2: workers.cpus names 2 of them, numbered from 0 on"},
		{"workers twice", port("queues: 2\n    workers: [1, @1]\n"), "ports[0].workers[1]: worker 1 is named before: keep one"},
		{"workers many", port("workers: @[0, 1]\n"), "ports[0].workers: 2 workers are named for 1 of queues"},
		{"coalesce", port("coalesce: @on\n"), "ports[0].coalesce: this is a string: it must be true or false"},
		{"port learn-limit", port("learn-limit: @0\n"), "ports[0].learn-limit: 0 is out of range: give 1 to 65536"},
		{"acl null", port("@acl:\n"), "ports[0].acl: the key has no value: give one, or remove the key"},
		{"acl list", port("acl: @[]\n"), "ports[0].acl: this is a list: it must be a mapping"},
		{"acl key", port("acl: {@rule: []}\n"), `ports[0].acl: unknown key "rule": the keys here are default, rules`},
		{"acl default", port("acl: {default: @drop}\n"), `ports[0].acl.default: "drop" is neither allow nor deny`},
		{"acl rule", port("acl: {rules: [allow in any, @allow in tpc]}\n"), `ports[0].acl.rules[1]: at character 10: "tpc" is none of any, ether,`},
		{"acl rule twice", port("acl: {rules: [allow in, allow out, @allow in any]}\n"), `ports[0].acl.rules[2]: "allow in any" is also rule 0, which decides before it: keep one`},
		{"limits both", port("limits: @{pps: 1, to-guest: {pps: 2}}\n"), "ports[0].limits: give pps, bps and burst either here, for both directions, or under from-guest and to-guest"},
		{"limits key", port("limits: {@ppm: 1}\n"), `ports[0].limits: unknown key "ppm": the keys here are pps, bps, burst, from-guest, to-guest, flood`},
		{"limits flood", port("limits: {flood: {@bps: 1}}\n"), `ports[0].limits.flood: unknown key "bps": the keys here are pps, burst`},
		{"limits flood burst", port("limits: {pps: 1, flood: {burst: @1us}}\n"), "ports[0].limits.flood.burst: 1µs is out of range: give 100µs to 1s"},
		{"limits flood twice", port("limits: {pps: 1, flood: {}, @flood: {}}\n"), "ports[0].limits.flood: the key was given before"},
		{"limits twice", port("limits: {pps: 1, flood: {}, @pps: 2}\n"), "ports[0].limits.pps: the key was given before"},
		{"limits inner key", port("limits: {to-guest: {@ppm: 1}}\n"), `ports[0].limits.to-guest: unknown key "ppm": the keys here are pps, bps, burst`},
		{"limits number", port("limits: @7\n"), "ports[0].limits: this is a number: it must be a mapping"},
		{"limits negative", port("limits: {from-guest: {bps: @-1}}\n"), "-1 is out of range: give at least 0"},
		{"limits burst directed", port("limits: {from-guest: {burst: @1us}}\n"), "ports[0].limits.from-guest.burst: 1µs is out of range: give 100µs to 1s"},
		{"limits huge", port("limits: {bps: @18446744073709551616}\n"), "18446744073709551616 is out of range: give at least 0 and at most 18446744073709551615"},
		{"burst", port("limits: {burst: @10}\n"), `ports[0].limits.burst: "10" is not a duration: write a number with its unit, as 10ms`},
		{"burst long", port("limits: {burst: @2s}\n"), "ports[0].limits.burst: 2s is out of range: give 100µs to 1s"},
		{"burst zero", port("limits: {burst: @0s}\n"), "0s is out of range"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before, after, marked := strings.Cut(test.text, "@")
			if !marked {
				t.Fatal("the text has no mark")
			}
			_, err := Parse("shunt.yaml", []byte(before+after))
			var list *Error
			if !errors.As(err, &list) {
				t.Fatalf("got %v, want a refusal", err)
			}
			p := list.Problems[0]
			line := 1 + strings.Count(before, "\n")
			column := 1 + len(before[strings.LastIndexByte(before, '\n')+1:])
			if len(list.Problems) != 1 || p.Line != line || p.Column != column || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %v\nwant shunt.yaml:%d:%d: ... %s", err, line, column, test.want)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Parse("shunt.yaml", []byte(`
ports:
  - name: P1
    network: blue
    socket: p1.sock
    mac: 01:00:00:00:00:00
uplinks:
  - name: up0
`))
	want := `shunt.yaml:3:11: ports[0].name: "P1" is not a name: use up to 63 lower-case letters, digits, dots and dashes, the first a letter or digit
shunt.yaml:4:14: ports[0].network: there is no network "blue": name one that stands under networks
shunt.yaml:5:13: ports[0].socket: "p1.sock" is not the path of a socket: begin it with / and end it with a file's name
shunt.yaml:6:10: ports[0].mac: 01:00:00:00:00:00 is a multicast address: give that of one station
shunt.yaml:8:5: uplinks[0]: the uplink leads nowhere: give interface or vhost-user`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// A document that is wrong everywhere is refused in a few lines: a body of 4 MiB had an answer of 800 MB.
func TestTooManyProblems(t *testing.T) {
	const ports = 5000
	for name, parse := range map[string]func() error{
		"values": func() error {
			_, err := ParseJSON([]byte(`{"ports":[` + strings.Repeat(`0,`, ports) + `0]}`))
			return err
		},
		"keys": func() error {
			_, err := ParseJSON([]byte(`{` + strings.Repeat(`"x":0,`, ports) + `"y":0}`))
			return err
		},
		"rules": func() error {
			_, err := Parse("x.yaml", []byte("ports:\n"+strings.Repeat("- {}\n", ports)))
			return err
		},
	} {
		var invalid *Error
		if err := parse(); !errors.As(err, &invalid) {
			t.Fatalf("%s: %v", name, err)
		}
		if n := len(invalid.Problems); n != maxProblems+1 {
			t.Errorf("%s: %d problems are told, want %d and that there are more", name, n, maxProblems)
		}
		if last := invalid.Problems[len(invalid.Problems)-1].Reason; !strings.Contains(last, "more") {
			t.Errorf("%s: the last line says nothing of the rest: %s", name, last)
		}
	}
}

func TestJSON(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{`{"ports": [{"name": "p1",` + "\n" + ` "Network": "blue"}]}`, `2:2: ports[0]: unknown key "Network"`},
		{`{"workers": {"idle": "poll", "idle": "poll"}}`, "1:30: workers.idle: the key was given before, in line 1: keep one"},
		{`{"workers": {}} {}`, "1:17: this is not JSON: something follows the document"},
		{`{"workers": {`, "1:14: this is not JSON: unexpected EOF"},
		{`{"workers": `, "this is not JSON: unexpected EOF"},
		{`{"workers": tru}`, "1:13: this is not JSON: invalid character '}' in literal true"},
		{`workers: {}`, "1:1: this is not JSON: invalid character 'w'"},
		{strings.Repeat("[", 100000), "this is not JSON: it is nested too deeply"},
		{`{"ports": [{"mode": 660}]}`, `1:21: ports[0].mode: "660" is not a file mode`},
		{`{"ports": null, "uplinks": [{"port": 1e3}]}`, "1:38: uplinks[0].port: this is a number: it must be a whole number"},
		{`{"ü": 1, "x": 2}`, `1:10: unknown key "x"`},
	} {
		_, err := ParseJSON([]byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.40s:\ngot  %v\nwant %s", test.text, err, test.want)
		}
	}
	if _, err := Parse("f", make([]byte, MaxDocument+1)); err == nil || err.Error() != "f: the document is larger than 4 MiB, the most that is read: shorten it" {
		t.Errorf("a large document: %v", err)
	}
}

func TestWith(t *testing.T) {
	base, err := Parse("f", []byte("uplinks: [{name: up0, interface: eth1}]\nnetworks: [{name: blue}]\nports: [{name: p1, network: blue, socket: /run/a, mac: 52:54:00:00:00:01}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := WithPort(base, "p2", []byte(`{"network": "blue", "socket": "/run/b", "anti-spoof": false}`))
	if err != nil {
		t.Fatal(err)
	}
	want := Port{Name: "p2", Network: "blue", Socket: "/run/b", Role: RoleServer, Mode: 0o660, Queues: 1, Coalesce: true, LearnLimit: DefaultPortLearn, Limits: noLimits}
	if len(got.Ports) != 2 || !reflect.DeepEqual(got.Ports[1], want) || len(base.Ports) != 1 {
		t.Errorf("a port added: %+v", got.Ports)
	}
	if got, err = WithPort(got, "p1", []byte(`{"name": "p1", "network": "blue", "socket": "/run/c", "mac": "52:54:00:00:00:09"}`)); err != nil {
		t.Fatal(err)
	}
	if len(got.Ports) != 2 || got.Ports[0].Socket != "/run/c" || base.Ports[0].Socket != "/run/a" {
		t.Errorf("a port replaced: %+v", got.Ports)
	}
	for _, test := range []struct {
		with       func(*Config, string, []byte) (*Config, error)
		text, want string
	}{
		{WithPort, `{"name": "p9", "network": "blue"}`, `1:10: name: "p9" is not the name in the request's path, "x"`},
		{WithPort, `{"network": "blue", "socket": "/run/a", "anti-spoof": false}`, "1:31: socket: /run/a is also ports[0].socket"},
		{WithPort, `{"network": "green", "socket": "/run/x", "anti-spoof": false}`, `1:13: network: there is no network "green"`},
		{WithPort, `{"mtu": 1}`, `1:2: unknown key "mtu"`},
		{WithNetwork, `{"uplink": "up0", "vni": 0}`, "1:26: vni: 0 is out of range"},
		{WithUplink, `{}`, "1:1: the uplink leads nowhere"},
	} {
		if _, err := test.with(base, "x", []byte(test.text)); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s:\ngot  %v\nwant %s", test.text, err, test.want)
		}
	}
}

func TestParts(t *testing.T) {
	p, err := ParseACL([]byte(`{"default": "allow", "rules": ["deny in tcp"]}`))
	if err != nil || p.String() != "deny in tcp\ndefault allow\n" {
		t.Errorf("%v, %v", p, err)
	}
	w, err := ParseWorkers([]byte(`[3, 1]`))
	if err != nil || !reflect.DeepEqual(w, []int{3, 1}) {
		t.Errorf("%v, %v", w, err)
	}
	for _, test := range []struct {
		parse      func([]byte) (any, error)
		text, want string
	}{
		{parseACL, `{"rules": ["deny in", "deny in any"]}`, `1:23: rules[1]: "deny in any" is also rule 0, which decides before it: keep one`},
		{parseACL, `{"rules": ["deny all"]}`, `1:12: rules[0]: at character 6: "all" is none of in, out, which may stand here`},
		{parseACL, `{"default": null}`, "1:13: default: the key has no value: give one, or remove the key"},
		{parseACL, `[]`, "1:1: this is a list: it must be a mapping of keys to values"},
		{parseWorkers, `[1, "2"]`, "1:5: [1]: this is a string: it must be a whole number"},
		{parseWorkers, `{}`, "1:1: this is a mapping: it must be a list, with a dash before each entry"},
	} {
		if _, err := test.parse([]byte(test.text)); err == nil || err.Error() != test.want {
			t.Errorf("%s: %v, want %s", test.text, err, test.want)
		}
	}
}

func parseACL(text []byte) (any, error)     { return ParseACL(text) }
func parseWorkers(text []byte) (any, error) { return ParseWorkers(text) }

// TestManyRules: more than a port may have are refused, as many are not.
func TestManyRules(t *testing.T) {
	c := Config{Networks: []Network{{Name: "blue"}}, Ports: []Port{{Name: "p1", Network: "blue", Socket: "/run/p1", ACL: &acl.Policy{}}}}
	for i := range acl.MaxRules {
		c.Ports[0].ACL.Rules = append(c.Ports[0].ACL.Rules, acl.Rule{Subject: acl.OfProtocol, Number: 17, ToPort: acl.Ports{First: 1, Last: uint16(i + 1)}})
	}
	if err := Check(&c); err != nil {
		t.Error(err)
	}
	c.Ports[0].ACL.Rules = append(c.Ports[0].ACL.Rules, acl.Rule{})
	if err := Check(&c); err == nil || err.Error() != "ports[0].acl.rules: 4097 rules are more than the 4096 that a port may have: take some together" {
		t.Error(err)
	}
}
