package vxlan

import "fmt"

// MTU is the longest IP packet a network takes, as configured or as its uplink left it.
func (s *Switch) MTU(network string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.networks[network]
	if n == nil {
		return 0, fmt.Errorf("network %s: %w", network, ErrNotFound)
	}
	return n.config.MTU, nil
}
