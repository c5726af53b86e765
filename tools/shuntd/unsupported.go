package main

import (
	"errors"
	"fmt"

	"github.com/shuntio/shunt/tools/control/config"
)

// unsupported refuses what a configuration may say and this engine does not do yet.
func unsupported(object any) error {
	switch o := object.(type) {
	case config.Workers:
		switch {
		case len(o.CPUs) > 1:
			return fmt.Errorf("workers.cpus: %d cores are named: this version runs one worker, so name one", len(o.CPUs))
		case o.HugePages != config.ToggleAuto:
			return errors.New("workers.huge-pages is not supported by this version: remove the key")
		}
	case config.Uplink:
		switch {
		case o.BusyPoll != config.ToggleAuto:
			return errors.New("busy-poll is not supported by this version: remove the key")
		case o.MultiBuffer != config.ToggleAuto:
			return errors.New("multi-buffer is not supported by this version: remove the key")
		case o.TransmitBudget != 0:
			return errors.New("transmit-budget is not supported by this version: remove the key")
		}
	case config.Port:
		switch {
		case o.Interface != "":
			return errors.New("an interface is not supported by this version: give a socket")
		case o.Role == config.RoleClient:
			return errors.New("role client is not supported by this version: let the guest's VMM connect to shuntd")
		case o.Queues > 1:
			return fmt.Errorf("queues: %d queue pairs are not supported by this version: give 1", o.Queues)
		case len(o.Workers) > 0:
			return errors.New("workers is not supported by this version: remove the key")
		case o.Limits.FromGuest.PPS|o.Limits.FromGuest.BPS|o.Limits.ToGuest.PPS|o.Limits.ToGuest.BPS != 0:
			return errors.New("limits are not supported by this version: give 0, or remove the key")
		case o.ACL != nil:
			return errors.New("acl is not supported by this version: remove the key")
		}
	}
	return nil
}
