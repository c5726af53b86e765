package driver

import (
	"fmt"

	"github.com/shuntio/shunt/dataplane/vhostuser"
)

// What a hypervisor does to a disk while its guest runs. Each fails with ErrGone while the back-end is away.

// do runs f with the connection.
func (d *Disk) do(f func(l *link) error) error {
	d.control.Lock()
	defer d.control.Unlock()
	l, err := d.front()
	if err != nil {
		return err
	}
	return f(l)
}

// Stop stops all rings (GET_VRING_BASE), as when a machine is paused. What is under way then, the back-end has finished, or will find in the rings or in the in-flight
// area when they start again.
func (d *Disk) Stop() error {
	return d.do(func(l *link) error {
		for i := range d.queues {
			base, err := l.front.StopVring(i)
			if err != nil {
				return err
			}
			d.kept.bases[i] = base
		}
		d.stopped = true
		return nil
	})
}

// Start starts the rings where Stop stopped them.
func (d *Disk) Start() error {
	return d.do(func(l *link) error {
		d.stopped = false
		return d.startRings(l)
	})
}

// Reset resets the device by whatever the back-end knows for that, as a guest that boots anew; the in-flight area is a new one. What was under way and is not
// answered yet is offered again.
func (d *Disk) Reset() error {
	return d.do(func(l *link) error {
		for i := range d.queues {
			if _, err := l.front.StopVring(i); err != nil {
				return err
			}
		}
		if err := d.resetDevice(l); err != nil {
			return err
		}
		d.kept.dropInflight()
		d.fresh()
		for _, q := range d.queues {
			if err := q.renew(); err != nil {
				return err
			}
		}
		d.stopped = false
		if err := d.setUp(l); err != nil {
			return err
		}
		for _, q := range d.queues {
			q.Kick()
		}
		return nil
	})
}

func (d *Disk) resetDevice(l *link) error {
	switch p := l.front.Protocol(); {
	case p&vhostuser.ProtocolStatus != 0:
		if err := l.front.SetStatus(0); err != nil {
			return err
		}
	case p&vhostuser.ProtocolResetDevice != 0:
		if err := l.front.Reset(); err != nil {
			return err
		}
	}
	if err := l.status(statusAcknowledge | statusDriver); err != nil {
		return err
	}
	if err := l.front.AcceptFeatures(d.Features() | vhostuser.FeatureProtocol); err != nil {
		return err
	}
	return l.status(statusAcknowledge | statusDriver | statusFeaturesOK)
}

// SetWriteback turns the device's volatile cache on or off (feature CONFIG_WCE).
func (d *Disk) SetWriteback(on bool) error {
	if d.Features()&FeatureConfigWCE == 0 {
		return fmt.Errorf("%w: feature CONFIG_WCE", ErrLacks)
	}
	return d.do(func(l *link) error {
		v := []byte{0}
		if on {
			v[0] = 1
		}
		if err := l.front.SetConfig(writebackAt, v, false); err != nil {
			return err
		}
		return d.readConfig(l)
	})
}

// Frontend gives the connection to f, for what this package does not do itself: removing memory, breaking rules.
func (d *Disk) Frontend(f func(*vhostuser.Frontend) error) error {
	return d.do(func(l *link) error { return f(l.front) })
}
