package control

import (
	"context"
	"slices"

	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan/acl"
)

// ACLStatus is the policy that a port's packets are judged by, with its counters.
type ACLStatus struct {
	Port    string      `json:"port"`
	Default acl.Verdict `json:"default"` // on what no rule matches
	Rules   []ACLRule   `json:"rules"`   // the first that matches decides
	// DefaultPackets were matched by no rule; AlwaysPackets are of those that no policy judges, as ARP.
	DefaultPackets uint64 `json:"default-packets"`
	AlwaysPackets  uint64 `json:"always-packets"`
}

// ACLRule is a rule and how many packets it decided about.
type ACLRule struct {
	Rule    acl.Rule `json:"rule"`
	Packets uint64   `json:"packets"`
}

// ACLTest is the answer to "would this packet pass, and by which rule?"
type ACLTest struct {
	Port      string        `json:"port"`
	Direction acl.Direction `json:"direction"`
	Packet    string        `json:"packet"`
	Judged    bool          `json:"judged"` // the port has an ACL; one without lets everything pass
	acl.Explanation
}

// ACL returns a port's policy and counters. The error wraps ErrNotFound for a port that has none.
func (c *Controller) ACL(port string) (ACLStatus, error) {
	if _, err := portNamed(c.Config(), port); err != nil {
		return ACLStatus{}, err
	}
	policy, hits, err := c.engine.ACLHits(port)
	switch {
	case err != nil:
		return ACLStatus{}, err
	case policy == nil:
		return ACLStatus{}, withoutACL(port)
	}
	s := ACLStatus{Port: port, Default: policy.Default, Rules: []ACLRule{}, DefaultPackets: hits.Default, AlwaysPackets: hits.Always}
	for i, r := range policy.Rules {
		s.Rules = append(s.Rules, ACLRule{r, hits.Rules[i]})
	}
	return s, nil
}

// TestACL tells what would become of a packet by the running policy of a port, not counting what else may happen to it.
func (c *Controller) TestACL(port string, d acl.Direction, packet acl.Tuple) (ACLTest, error) {
	running := c.Config()
	i, err := portNamed(running, port)
	if err != nil {
		return ACLTest{}, err
	}
	t := ACLTest{Port: port, Direction: d, Packet: packet.String(), Explanation: acl.Explanation{Verdict: acl.Allow, Rule: acl.Default}}
	if policy := running.Ports[i].ACL; policy != nil {
		t.Judged, t.Explanation = true, acl.Explain(*policy, &packet, d)
	}
	return t, nil
}

// SetACL gives a port another policy, nil for none, while its guest stays connected.
func (c *Controller) SetACL(ctx context.Context, port string, policy *acl.Policy) ([]Change, error) {
	return c.editPort(ctx, port, func(p *config.Port) error {
		if p.ACL == nil && policy == nil {
			return withoutACL(port)
		}
		p.ACL = policy
		return nil
	})
}

func withoutACL(port string) error {
	return because(ErrNotFound, "port %s has no ACL: everything may pass", port)
}

// Move gives a port's queues to other workers, while its guest stays connected. Without workers the engine chooses.
func (c *Controller) Move(ctx context.Context, port string, workers []int) ([]Change, error) {
	return c.editPort(ctx, port, func(p *config.Port) error {
		p.Workers = workers
		return nil
	})
}

// editPort changes one port of the running configuration.
func (c *Controller) editPort(ctx context.Context, name string, edit func(*config.Port) error) ([]Change, error) {
	return c.Edit(ctx, func(running *config.Config) (*config.Config, error) {
		i, err := portNamed(running, name)
		if err != nil {
			return nil, err
		}
		edited := *running
		edited.Ports = slices.Clone(running.Ports)
		return &edited, edit(&edited.Ports[i])
	})
}

func portNamed(c *config.Config, name string) (int, error) {
	i := slices.IndexFunc(c.Ports, func(p config.Port) bool { return p.Name == name })
	if i < 0 {
		return i, because(ErrNotFound, "there is no port %q", name)
	}
	return i, nil
}
