package vnet

import (
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
	d.relog()
	return nil
}

// relog makes the log that which features and front-end ask for, of all pairs: one whose memory turns out to be gone is out of service then, and
// marks nothing.
func (d *Device) relog() {
	log := d.given
	if d.features&vhostuser.FeatureLogAll == 0 {
		log = nil
	}
	d.each(func(p *Pair) {
		if p.log == log {
			return
		}
		p.log = log
		for _, q := range []*queue{&p.rx, &p.tx} {
			if q.ring != nil {
				q.ring.SetLog(log, q.log)
			}
		}
	})
}

// markRing tells the log that descriptors of a packed ring were put in order.
func (p *Pair) markRing(desc []byte) {
	if addr, ok := p.memory.Guest(desc); ok {
		p.log.Mark(addr, uint64(len(desc)))
	}
}
