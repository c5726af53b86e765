package vnet

import (
	"errors"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/vhostuser"
)

var _ vhostuser.Logger = (*Device)(nil)

// While a guest moves to another machine, its front-end wants to know which pages we write (VHOST_F_LOG_ALL). Package virtq marks them as chains are
// completed and published, in the order that guestmem.Log asks for; here that is switched on and off under running rings.

// SetLog implements vhostuser.Logger. When it returns, nothing is marked in the log before any more.
func (d *Device) SetLog(log *guestmem.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.given = log
	return d.relog()
}

// relog makes the log that which features and front-end ask for.
func (d *Device) relog() (err error) {
	log := d.given
	if d.features&vhostuser.FeatureLogAll == 0 {
		log = nil
	}
	if log == d.log.Load() {
		return nil
	}
	if log != nil {
		d.log.Store(log) // first, since Fault asks for it
	}
	for _, p := range d.pairs {
		err = errors.Join(err, p.on(func() error {
			for _, q := range []*queue{&p.rx, &p.tx} {
				if q.ring != nil {
					q.ring.SetLog(log, q.log)
				}
			}
			return nil
		}))
	}
	d.log.Store(log)
	return err
}

// markRing tells the log that descriptors of a packed ring were put in order.
func (d *Device) markRing(desc []byte) {
	if addr, ok := d.memory.Guest(desc); ok {
		d.log.Load().Mark(addr, uint64(len(desc)))
	}
}
