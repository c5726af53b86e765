package vxlan

import (
	"fmt"

	"github.com/shuntio/shunt/vxlan/acl"
)

// ACLHits are the packets that each rule of a port decided about; none if it has no ACL. A reply counts for the rule that let its flow begin.
func (s *Switch) ACLHits(port string) (acl.Hits, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.ports[port]
	switch {
	case p == nil:
		return acl.Hits{}, fmt.Errorf("port %s: %w", port, ErrNotFound)
	case p.filter == nil:
		return acl.Hits{}, nil
	}
	return p.filter.rules.Hits(), nil
}

// Cut is how many packets that were longer than their path a worker has cut, and into how many segments.
func (s *Switch) Cut(worker int) (packets, segments uint64) { return s.lanes[worker].segmenter.Cut() }
