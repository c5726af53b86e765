package api_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/controltest"
	"github.com/shuntio/shunt/vxlan/acl"
)

// client is one of a daemon that runs example.
func client(t *testing.T) *api.Client {
	_, socket := serve(t, &controltest.Engine{}, example)
	return dial(t, socket)
}

// TestACL goes through the life of a port's rules.
func TestACL(t *testing.T) {
	c := client(t)
	ctx := t.Context()
	const port = "p1"
	if _, err := c.ACL(ctx, port); code(err) != api.CodeNotFound || err.Error() != "port p1 has no ACL: everything may pass" {
		t.Errorf("without an ACL: %v", err)
	}
	packet, err := acl.ParseTuple("tcp 10.0.0.1:1 > 10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := c.TestACL(ctx, port, acl.In, packet); err != nil || a.Judged || a.Verdict != acl.Allow {
		t.Errorf("without an ACL: %+v, %v", a, err)
	}
	policy, err := acl.ParsePolicy("deny in udp\nallow in tcp to any port 80\n")
	if err != nil {
		t.Fatal(err)
	}
	changes, err := c.PutACL(ctx, port, policy)
	if got := fmt.Sprint(changes, err); !strings.Contains(got, "port p1 updated") {
		t.Errorf("set: %s", got)
	}
	s, err := c.ACL(ctx, port)
	if got := fmt.Sprintf("%+v %v", s, err); got != "{Port:p1 Default:deny Rules:[{Rule:deny in udp Packets:0} {Rule:allow in tcp to any port 80 Packets:0}] "+
		"DefaultPackets:0 AlwaysPackets:0} <nil>" {
		t.Errorf("get: %s", got)
	}
	a, err := c.TestACL(ctx, port, acl.In, packet)
	if err != nil || !a.Judged || a.Verdict != acl.Allow || a.Rule != 1 || a.Packet != "tcp 10.0.0.1:1 > 10.0.0.2:80" || a.Text != "allow in tcp to any port 80" {
		t.Errorf("test: %+v, %v", a, err)
	}
	if p, err := c.Port(ctx, port); err != nil || p.Config.ACL == nil || len(p.Config.ACL.Rules) != 2 {
		t.Errorf("the port's configuration: %+v, %v", p.Config.ACL, err)
	}
	if changes, err = c.PutACL(ctx, port, policy); err != nil || actionOf(changes, port) != control.Unchanged {
		t.Errorf("set again: %v, %v", changes, err)
	}
	if changes, err = c.DeleteACL(ctx, port); err != nil || actionOf(changes, port) != control.Updated {
		t.Errorf("delete: %v, %v", changes, err)
	}
	if _, err = c.DeleteACL(ctx, port); code(err) != api.CodeNotFound {
		t.Errorf("delete again: %v", err)
	}
}

func TestMove(t *testing.T) {
	c := client(t)
	for _, test := range []struct {
		workers []int
		action  control.Action
	}{{[]int{3}, control.Updated}, {[]int{3}, control.Unchanged}, {nil, control.Updated}} {
		if changes, err := c.Move(t.Context(), "p1", test.workers); err != nil || actionOf(changes, "p1") != test.action {
			t.Errorf("%v: %v, %v", test.workers, changes, err)
		}
	}
	_, err := c.Move(t.Context(), "p1", []int{0, 1})
	if code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "workers: 2 workers are named for 1 of queues") {
		t.Error(err)
	}
}

func code(err error) api.Code {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func actionOf(changes []control.Change, name string) control.Action {
	for _, c := range changes {
		if c.Name == name {
			return c.Action
		}
	}
	return ""
}
