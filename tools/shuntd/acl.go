package main

import (
	"fmt"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/vxlan/acl"
)

// ACLHits implements control.Engine.
func (e *engine) ACLHits(name string) (*acl.Policy, acl.Hits, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ports[name] == nil {
		return nil, acl.Hits{}, fmt.Errorf("port %s: %w", name, control.ErrNotFound)
	}
	return nil, acl.Hits{}, nil // as long as a policy is refused (unsupported.go)
}
