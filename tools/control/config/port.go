package config

import (
	"errors"
	"net/netip"
	"reflect"

	"github.com/shuntio/shunt/vxlan/acl"
)

// Port is a guest's network interface: a vhost-user socket, or one end of a veth whose other end a container or this host has.
// Exactly one of Socket and Interface is set.
type Port struct {
	Name      string       `json:"name"`
	Network   string       `json:"network"`
	Socket    string       `json:"socket,omitempty"`    // vhost-user
	Interface string       `json:"interface,omitempty"` // taken by AF_XDP
	Role      Role         `json:"role,omitempty"`      // of a socket's port; absent: server
	Mode      FileMode     `json:"mode,omitzero"`       // of the server's socket; absent: 0660
	Owner     Account      `json:"owner,omitempty"`     // absent: the daemon's user
	Group     Account      `json:"group,omitempty"`     // absent: the daemon's group
	MAC       MAC          `json:"mac,omitzero"`        // absent: the guest chooses, and anti-spoof must be off
	IPs       []netip.Addr `json:"ips,omitempty"`       // absent: any, where anti-spoof looks at MAC addresses only
	// Queues are the queue pairs offered to the guest, or the interface's queues that are served, from queue 0; absent: 1.
	Queues int `json:"queues,omitempty"`
	// Workers are numbers in the list of workers: queue pair i belongs to Workers[i % len(Workers)]. Absent: the daemon chooses.
	Workers    []int  `json:"workers,omitempty"`
	AntiSpoof  bool   `json:"anti-spoof"`            // absent: true
	Coalesce   bool   `json:"coalesce"`              // TCP packets for a guest that takes long ones; absent: true
	LearnLimit int    `json:"learn-limit,omitempty"` // of MAC addresses, without anti-spoof; absent: 64
	Limits     Limits `json:"limits"`
	// ACL is what the port's packets are judged by. Absent: all may pass.
	ACL *acl.Policy `json:"acl,omitempty"`
}

// ObjectName returns the port's name.
func (p Port) ObjectName() string { return p.Name }

func (p *Port) fill() {
	if p.Socket != "" {
		p.Role = or(p.Role, RoleServer)
	}
	if p.Role == RoleServer {
		p.Mode = or(p.Mode, DefaultMode)
	}
	p.Queues = or(p.Queues, DefaultQueues)
	p.LearnLimit = or(p.LearnLimit, DefaultPortLearn)
	p.Limits.FromGuest.Burst = or(p.Limits.FromGuest.Burst, DefaultBurst)
	p.Limits.ToGuest.Burst = or(p.Limits.ToGuest.Burst, DefaultBurst)
	p.Limits.Flood.Burst = or(p.Limits.Flood.Burst, DefaultBurst)
	p.IPs, p.Workers = some(p.IPs), some(p.Workers)
	if p.ACL != nil {
		p.ACL = &acl.Policy{Default: p.ACL.Default, Rules: some(p.ACL.Rules)}
	}
}

// Limits bounds what comes from a port's guest, and what goes to it. In a document, the keys of one Limit in their place speak of both.
type Limits struct {
	FromGuest Limit      `json:"from-guest"`
	ToGuest   Limit      `json:"to-guest"`
	Flood     FloodLimit `json:"flood"`
}

// FloodLimit bounds what comes from a port's guest and goes to several places: broadcast, multicast and unknown unicast frames. What is more is dropped.
type FloodLimit struct {
	PPS   uint64   `json:"pps"`            // zero is no limit; absent: 10000
	Burst Duration `json:"burst,omitzero"` // how much may pass at once, as time at the limit; absent: 10ms
}

// Limit bounds one direction. Zero is no limit.
type Limit struct {
	PPS   uint64   `json:"pps"`
	BPS   uint64   `json:"bps"`            // bits a second
	Burst Duration `json:"burst,omitzero"` // how much may pass at once, as time at the limit; absent: 10ms
}

// decodeNode reads either form. That of one Limit may have a flood beside it.
func (l *Limits) decodeNode(d *decoder, n *node, path string) {
	type directions Limits // without this method
	one, both := fieldsOf(reflect.TypeFor[Limit]()), fieldsOf(reflect.TypeFor[Limits]())
	flat, directed := *n, *n
	flat.keys, directed.keys = nil, nil
	floods := 0
	for _, k := range n.keys {
		_, ofOne := one.index[k.name]
		_, ofBoth := both.index[k.name]
		switch {
		case ofOne:
			flat.keys = append(flat.keys, k)
		case ofBoth:
			directed.keys = append(directed.keys, k)
		default:
			keys := fields{names: append(one.names, both.names...)}
			d.fail(path, &node{position: k.position}, unknownKey(k.name, reflect.TypeFor[Limits](), keys))
			return
		}
		if k.name == "flood" {
			floods++
		}
	}
	if len(flat.keys) > 0 {
		if len(directed.keys) > floods {
			d.fail(path, n, errors.New("give pps, bps and burst either here, for both directions, or under from-guest and to-guest"))
			return
		}
		d.value(&flat, &l.FromGuest, path)
		l.ToGuest = l.FromGuest
	}
	d.value(&directed, (*directions)(l), path)
}
