package config

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// exampleVolumes are those of testdata/example.yaml.
var exampleVolumes = func() []Volume {
	on, off := true, false
	noLimits := VolumeLimits{Burst: DefaultVolumeBurst}
	return []Volume{
		{Name: "vm1-root", Socket: "/run/shunt/vm1-root.sock", Role: RoleServer, Mode: 0o600, Owner: "libvirt-qemu", Group: "kvm",
			Source: "nbds://storage.example:10809/vm1", Serial: "R00T", ReadOnly: true, Queues: 4, Workers: []int{0}, OnError: OnErrorFail,
			Timeout: Duration(30 * time.Second), Durability: DurabilityFUA, Quiesce: Duration(5 * time.Second), VolumeGroup: "gold",
			Limits: VolumeLimits{IOPS: 5000, BPS: 100000000, Burst: Duration(200 * time.Millisecond)},
			TLS:    &TLS{CA: "/etc/shunt/ca.pem", Cert: "/etc/shunt/me.pem", Key: "/etc/shunt/me.key", ServerName: "storage"}},
		{Name: "vm1-data-with-a-long-name", Socket: "/run/shunt/vm1-data.sock", Role: RoleClient, Source: "file:///var/lib/vm1.img",
			Serial: "vm1-data-with-a-long", Queues: 1, Direct: &on, RegisteredBuffers: true, OnError: OnErrorWait, Durability: DurabilityFlush, Limits: noLimits},
		{Name: "vm1-scratch", Socket: "/run/shunt/vm1-scratch.sock", Role: RoleServer, Mode: 0o660, Source: "file:///var/lib/scratch%20disk.img",
			Serial: "vm1-scratch", Queues: 1, Direct: &off, OnError: OnErrorWait, Durability: DurabilityFlush, Limits: noLimits},
		{Name: "vm2-root", Socket: "/run/shunt/vm2-root.sock", Role: RoleServer, Mode: 0o660,
			Source: "nvme+tcp://[2001:db8::9]:4420/nqn.2014-08.org.example:disks?nsid=3", Serial: "vm2-root", Queues: 1, OnError: OnErrorWait,
			Durability: DurabilityFlush, Limits: noLimits, Digests: Digests{Header: true, Data: true}, HostNQN: "nqn.2014-08.org.example:host1"},
		{Name: "vm3-root", Socket: "/run/shunt/vm3-root.sock", Role: RoleServer, Mode: 0o660, Source: "nbd+unix:///vm3?socket=/run/nbd.sock",
			Serial: "vm3-root", Queues: 1, OnError: OnErrorWait, Durability: DurabilityFlush, Limits: noLimits},
	}
}()

// TestBadVolumes does for volumes what TestBadValues does for the rest.
func TestBadVolumes(t *testing.T) {
	volume := func(extra string) string {
		return "volumes:\n  - name: v1\n    socket: /run/v1.sock\n    source: nbd://192.0.2.9/v1\n    " + extra
	}
	from := func(source string) string {
		return "volumes:\n  - name: v1\n    socket: /run/v1.sock\n    source: @" + source
	}
	file := func(extra string) string {
		return "volumes:\n  - name: v1\n    socket: /run/v1.sock\n    source: file:///v1\n    " + extra
	}
	nqn := "nqn.2014-08.org.example:disks"
	for _, test := range []struct{ name, text, want string }{
		{"no name", "volumes: [@{socket: /s, source: file:///f}]", "volumes[0].name: the name is missing"},
		{"name twice", "volumes: [{name: a, socket: /s, source: file:///f}, {name: @a, socket: /t, source: file:///g}]", "a is also the name of volumes[0]"},
		{"no socket", "volumes: [@{name: a, source: file:///f}]", "volumes[0]: the volume has no socket: give the path of its vhost-user socket"},
		{"relative socket", "volumes: [{name: a, socket: @s, source: file:///f}]", `volumes[0].socket: "s" is not the path of a socket`},
		{"socket of a port", "networks: [{name: n}]\nports: [{name: p, network: n, socket: /s, anti-spoof: false}]\nvolumes: [{name: a, socket: @/s, source: file:///f}]",
			"/s is also ports[0].socket: give each its own socket"},
		{"no source", "volumes: [@{name: a, socket: /s}]", "volumes[0]: the volume has no source: give the URI of its data"},
		{"mode of a client", volume("role: client\n    mode: @0660\n"), "this is for a socket that shuntd makes"},
		{"unknown key", volume("@cache: none\n"), `volumes[0]: unknown key "cache": the keys here are name, socket, role,`},

		{"empty source", from("''"), `volumes[0].source: "" has the scheme "", which is none of file, nbd, nbds, nbd+unix, nbds+unix, nvme+tcp`},
		{"a path", from("/var/lib/v1"), `"/var/lib/v1" has no scheme: write file:///var/lib/v1`},
		{"a word", from("v1"), `"v1" has the scheme "", which is none of`},
		{"another scheme", from("iscsi://h/v1"), `"iscsi://h/v1" has the scheme "iscsi", which is none of file, nbd,`},
		{"no slashes", from("'nbd:192.0.2.9'"), `"nbd:192.0.2.9" has no // behind its scheme: write it as nbd://192.0.2.9:10809/vm1`},
		{"escape", from("'nbd://192.0.2.9/%zz'"), `is not a URI: invalid URL escape "%zz"`},
		{"bad port", from("'nbd://192.0.2.9:x/'"), `is not a URI: invalid port ":x" after host`},
		{"port zero", from("'nbd://192.0.2.9:0/'"), `has the TCP port "0": write it as nbd://192.0.2.9:10809/vm1`},
		{"user", from("nbd://me@192.0.2.9/v1"), "has a user or a fragment (#), which mean nothing here: remove them"},
		{"fragment", from("'nbd://192.0.2.9/v1#2'"), "has a user or a fragment"},
		{"no host", from("'nbd:///v1'"), `"nbd:///v1" names no host: write it as nbd://`},
		{"file with host", from("file://host/v1"), `names the host "host", and a file is on this one: write it as file:///var/lib/vm1.img`},
		{"file with query", from("'file:///v1?x=1'"), "has a query (?), and a file has none"},
		{"directory", from("file:///var/lib/"), "has not the whole path of a file"},
		{"unix without socket", from("nbd+unix:///v1"), "has no socket=/path in its query: write it as nbd+unix:///vm1?socket=/run/nbd.sock"},
		{"unix with host", from("'nbd+unix://h/v1?socket=/s'"), `names the host "h", and a unix socket is on this one`},
		{"unix socket long", from("'nbds+unix:///v1?socket=/" + strings.Repeat("x", MaxSocketPath) + "'"), "has a socket of 108 bytes, and a unix socket's path has at most 107"},
		{"nvme without nqn", from("nvme+tcp://192.0.2.9/disk"), "names no subsystem (nqn...): write it as nvme+tcp://192.0.2.9:4420/nqn.2014-08.org.example:disks?nsid=1"},
		{"file twice", "volumes: [{name: a, socket: /s, source: file:///f}, {name: b, socket: /t, source: @file:///f, readonly: true}]",
			"volumes[1].source: file:///f is that of volumes[0], too: one guest alone can write to a file"},

		{"serial long", volume("serial: @012345678901234567890\n"), `volumes[0].serial: this is a number: it must be a string; put it in quotes`},
		{"serial too long", volume("serial: @'012345678901234567890'\n"), `volumes[0].serial: "012345678901234567890" has 21 bytes: a disk's serial number has at most 20`},
		{"serial umlauts", volume("serial: @äöüäöüäöüäö\n"), "has 22 bytes"},
		{"readonly word", volume("readonly: @yes\n"), "volumes[0].readonly: this is a string: it must be true or false"},
		{"queues none", volume("queues: @0\n"), "volumes[0].queues: 0 is out of range: give 1 to 256"},
		{"queues many", volume("queues: @257\n"), "257 is out of range"},
		{"workers many", volume("workers: @[0, 1]\n"), "volumes[0].workers: 2 workers are named for 1 of queues: name no more than that, or raise queues"},
		{"workers twice", volume("queues: 2\n    workers: [0, @0]\n"), "volumes[0].workers[1]: worker 0 is named before: keep one"},
		{"on-error", volume("on-error: @stop\n"), `volumes[0].on-error: "stop" is none of wait, fail`},
		{"durability", volume("durability: @none\n"), `volumes[0].durability: "none" is none of flush, fua`},
		{"timeout short", volume("timeout: @1ms\n"), "volumes[0].timeout: 1ms is out of range: give 10ms to 24h"},
		{"timeout number", volume("timeout: @30\n"), `"30" is not a duration: write a number with its unit`},
		{"quiesce long", volume("quiesce: @2h\n"), "volumes[0].quiesce: 2h0m0s is out of range: give 1ms to 1h"},
		{"quiesce of a file", file("quiesce: @2s\n"), "volumes[0].quiesce: this is for a source that is a server, and this one is file://: remove it"},
		{"no group", volume("volume-group: @gold\n"), `volumes[0].volume-group: there is no volume group "gold": name one that stands under volume-groups`},
		{"burst", volume("limits: {burst: @1us}\n"), "volumes[0].limits.burst: 1µs is out of range: give 1ms to 10s"},
		{"limits key", volume("limits: {@pps: 1}\n"), `volumes[0].limits: unknown key "pps": the keys here are iops, bps, burst`},
		{"group burst", "volume-groups: [{name: gold, limits: {iops: 1, burst: @11s}}]", "volume-groups[0].limits.burst: 11s is out of range"},
		{"group name", "volume-groups: [{name: @Gold}]", `volume-groups[0].name: "Gold" is not a name`},

		{"direct of a server", volume("direct: @true\n"), "volumes[0].direct: this is for a source that is file://, and this one is nbd://: remove it"},
		{"registered of a server", volume("registered-buffers: @true\n"), "volumes[0].registered-buffers: this is for a source that is file://"},
		{"tls of a file", file("tls: @{ca: /ca}\n"), "volumes[0].tls: this is for a source that is nbd:// and nbds://, and this one is file://"},
		{"digests of nbd", volume("digests: @{data: true}\n"), "volumes[0].digests: these are for a source that is nvme+tcp://"},
		{"host-nqn of nbd", volume("host-nqn: @" + nqn + "\n"), "volumes[0].host-nqn: this is for a source that is nvme+tcp://"},
		{"host-nqn", "volumes: [{name: a, socket: /s, source: 'nvme+tcp://h/" + nqn + "', host-nqn: @me}]", `volumes[0].host-nqn: "me" is no NQN: it begins with nqn.`},
		{"cert alone", volume("tls: @{cert: /c}\n"), "volumes[0].tls: a certificate and its key belong together: give cert and key, or neither"},
		{"relative ca", volume("tls: {ca: @ca.pem}\n"), `volumes[0].tls.ca: "ca.pem" is not the whole path of a file: begin it with /`},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := strings.Index(test.text, "@")
			if test.name == "user" {
				i = strings.Index(test.text, "@nbd")
			}
			before, after := test.text[:i], test.text[i+1:]
			_, err := Parse("shunt.yaml", []byte(before+after))
			var list *Error
			if !errors.As(err, &list) {
				t.Fatalf("got %v, want a refusal", err)
			}
			p := list.Problems[0]
			line := 1 + strings.Count(before, "\n")
			column := 1 + len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
			if len(list.Problems) != 1 || p.Line != line || p.Column != column || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %v\nwant shunt.yaml:%d:%d: ... %s", err, line, column, test.want)
			}
		})
	}
}

func TestVolumeSource(t *testing.T) {
	s, err := ParseVolumeSource([]byte(`{"source": "nbd://192.0.2.9/v1", "readonly": true, "tls": {"ca": "/ca"}}`))
	if err != nil || s.Source != "nbd://192.0.2.9/v1" || !s.ReadOnly || s.TLS == nil || s.TLS.CA != "/ca" {
		t.Errorf("%+v %v", s, err)
	}
	for text, want := range map[string]string{
		`{}`:                      "has no source",
		`{"source": "iscsi://h"}`: `1:12: source: "iscsi://h" has the scheme "iscsi"`,
		`{"source": "file:///f", "tls": {"ca": "/c"}}`: "1:32: tls: this is for a source that is nbd://",
		`{"source": "file:///f", "name": "v"}`:         `unknown key "name"`,
	} {
		if _, err := ParseVolumeSource([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
