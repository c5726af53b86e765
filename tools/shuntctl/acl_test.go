package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shuntio/shunt/vxlan/acl"
)

const webRules = `# a web server
allow in tcp to any port 80-443
deny out any to 169.254.169.254
allow out tcp
default deny
`

// TestACL runs the commands of a port's rules in order on one daemon, and compares what they print with their golden files.
func TestACL(t *testing.T) {
	e, socket := daemon(t)
	e.Hits = func(string) acl.Hits { return acl.Hits{Rules: []uint64{12345, 0, 7}, Default: 89, Always: 3} }
	dir := t.TempDir()
	rules := filepath.Join(dir, "web.rules")
	if err := os.WriteFile(rules, []byte(webRules), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		golden string
		status int
		args   []string
	}{
		{"acl-none", 1, []string{"acl", "show", "vm1-eth0"}},
		{"acl-test-none", 0, []string{"acl", "test", "vm1-eth0", "--direction", "in", "--packet", "udp 10.0.0.1:53 > 10.0.0.2:1"}},
		{"acl-set", 0, []string{"acl", "set", "vm1-eth0", "-f", rules}},
		{"acl-show", 0, []string{"acl", "show", "vm1-eth0"}},
		{"acl-show.json", 0, []string{"acl", "show", "vm1-eth0", "-o", "json"}},
		{"acl-test-rule", 0, []string{"acl", "test", "vm1-eth0", "--direction", "in", "--packet", "tcp 10.0.0.1:1234 > 10.0.0.2:80"}},
		{"acl-test-answer", 0, []string{"acl", "test", "vm1-eth0", "--direction=in", "--packet", "tcp 10.0.0.1:5432 > 10.0.0.2:1234"}},
		{"acl-test.json", 0, []string{"acl", "test", "vm1-eth0", "--direction=in", "--packet", "tcp 10.0.0.1:5432 > 10.0.0.2:1234", "-o", "json"}},
		{"acl-test-always", 0, []string{"acl", "test", "vm1-eth0", "--direction=out", "--packet", "arp"}},
		{"acl-test-file", 0, []string{"acl", "test", "-f", rules, "--direction=out", "--packet", "tcp 10.0.0.2:1 > 169.254.169.254:80"}},
		{"acl-remove", 0, []string{"acl", "remove", "vm1-eth0"}},
		{"acl-remove-again", 1, []string{"acl", "remove", "vm1-eth0"}},
		{"move", 0, []string{"move", "vm1-eth0", "1"}},
		{"move-again", 0, []string{"move", "vm1-eth0", "1"}},
		{"move-auto", 0, []string{"move", "vm1-eth0", "auto"}},
		{"move-too-many", 1, []string{"move", "vm1-eth0", "0,1"}},
		{"move-unknown", 1, []string{"move", "vm9", "0"}},
	} {
		t.Run(test.golden, func(t *testing.T) {
			var out, errs bytes.Buffer
			status := run(t.Context(), append(test.args, "--socket", socket), strings.NewReader(""), &out, &errs)
			if status != test.status {
				t.Errorf("status %d, want %d", status, test.status)
			}
			got := out.String()
			if errs.Len() > 0 {
				got += "stderr: " + errs.String()
			}
			compare(t, filepath.Join("testdata", test.golden+".golden"), got)
		})
	}
	if _, _, ports := e.Held(); ports["vm1-eth0"].ACL != nil || ports["vm1-eth0"].Workers != nil {
		t.Errorf("the port is left with %+v", ports["vm1-eth0"])
	}
}

func TestACLBadInput(t *testing.T) {
	dir := t.TempDir()
	wrong := filepath.Join(dir, "wrong.rules")
	if err := os.WriteFile(wrong, []byte("allow in tpc\n\ndeny out any too\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"acl"}, "shuntctl: acl what? show, set, remove or test\n"},
		{[]string{"acl", "set", "p"}, "shuntctl: set which rules? name a file with -f, or give --rule, once for each\n"},
		{[]string{"acl", "set", "p", "-f", "x", "--rule", "allow in"}, "shuntctl: set which rules?"},
		{[]string{"acl", "set", "p", "-f", "x", "--default", "allow"}, "shuntctl: --default is for --rule: the file says its own\n"},
		{[]string{"acl", "set", "p", "-f", dir + "/none"}, "shuntctl: read the rules: open " + dir + "/none: no such file or directory: name a file that can be read\n"},
		{[]string{"acl", "set", "p", "-f", wrong}, wrong + `:1:10: "tpc" is none of any, ether, from, icmp, icmpv6, proto, tcp, to, udp, which may stand here` + "\n" +
			wrong + `:3:14: "too" is none of from, to, which may stand here` + "\n"},
		{[]string{"acl", "set", "p", "-f", "-"}, `stdin:1:1: "ports:" is none of allow, default, deny, which may stand here` + "\n"},
		{[]string{"acl", "set", "p", "--rule", "allow it"}, `shuntctl: --rule "allow it": at character 7: "it" is none of in, out, which may stand here` + "\n"},
		{[]string{"acl", "set", "p", "--rule", "allow in", "--default", "drop"}, `shuntctl: --default: "drop" is neither allow nor deny` + "\n"},
		{[]string{"acl", "test", "p"}, `shuntctl: --direction: "" is no direction: give in (to the guest) or out (from it)` + "\n"},
		{[]string{"acl", "test", "p", "--direction", "up", "--packet", "arp"}, `shuntctl: --direction: "up" is no direction: give in (to the guest) or out (from it)` + "\n"},
		{[]string{"acl", "test", "p", "--direction", "in", "--packet", "tcp"}, "shuntctl: --packet: at character 4: the text ends: go on with an address\n"},
		{[]string{"acl", "test", "--direction", "in", "--packet", "arp"}, "shuntctl: test what? name a port, or a file with -f\n"},
		{[]string{"move", "p", "one"}, `shuntctl: "one" is not the number of a worker: give one or more of those that shuntctl status shows, as 0,1, or auto` + "\n"},
	} {
		var out, errs bytes.Buffer
		status := run(t.Context(), append([]string{"--socket", filepath.Join(dir, "s")}, test.args...), strings.NewReader("ports: x"), &out, &errs)
		if status != 2 || !strings.HasPrefix(errs.String(), test.want) {
			t.Errorf("%v: status %d, %q; want 2, %q", test.args, status, errs.String(), test.want)
		}
	}
}

func TestACLCompletion(t *testing.T) {
	_, socket := daemon(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"acl", "test", ""}, "vm1-eth0\nvm2-eth0\n:4\n"},
		{[]string{"acl", "test", "--direction", ""}, "in\nout\n:4\n"},
		{[]string{"acl", "set", "--default", ""}, "allow\ndeny\n:4\n"},
		{[]string{"move", ""}, "vm1-eth0\nvm2-eth0\n:4\n"},
		{[]string{"move", "vm1-eth0", ""}, "auto\n0\n:4\n"},
	} {
		var out, errs bytes.Buffer
		if status := run(t.Context(), append([]string{"__complete", "--socket", socket}, test.args...), strings.NewReader(""), &out, &errs); status != 0 || out.String() != test.want {
			t.Errorf("%v: %d %q %q", test.args, status, out.String(), errs.String())
		}
	}
}
