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
	p := e.ports[name]
	if p == nil {
		return nil, acl.Hits{}, fmt.Errorf("port %s: %w", name, control.ErrNotFound)
	}
	hits, err := e.fabric.ACLHits(name)
	return p.config.ACL, hits, err
}
