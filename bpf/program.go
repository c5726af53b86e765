// Package bpf loads the XDP program that decides which frames of an uplink are
// ours, keeps it attached, and fills its tables.
//
//	NIC queue --> steer.bpf.c --+--> XSKMAP --> AF_XDP socket   VXLAN to one of our VTEPs with a
//	                            |                               known VNI; a flat network's unicast
//	                            +--> kernel                     everything else
//	                            +--> dropped, counted           ours, but nobody serves it now
//
// # Who owns an interface
//
// The program hangs on a bpf_link that is pinned on the BPF file system, in a
// directory its owner keeps locked ([Hook]). When the owner is killed the lock
// goes and the pin stays: the program runs on, and drops the frames of known
// networks, so that the kernel does not answer them. The next owner finds the
// pin without a lock, copies what its predecessor knew and exchanges the program
// in place. Only [Program.Close] and [Detach] remove it.
//
// # What it needs
//
// Kernel 6.1, and root or its capabilities. Memory of maps is charged to the
// memory cgroup there, so RLIMIT_MEMLOCK plays no part. The functions that name
// an interface work in the network namespace of the calling thread.
//
// A receive offload can hide an 802.1Q tag from the program, which then takes
// the frame for an untagged one. Where tagged traffic shares an uplink, turn it
// off (ethtool -K DEV rxvlan off; on veth txvlan of the peer).
package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// MaxWorkers is how many sockets a queue can have, one for each worker.
const MaxWorkers = 64

// DefaultPort is the UDP port IANA gave to VXLAN.
const DefaultPort = 4789

// Options describe an uplink's steering program.
type Options struct {
	// Interface is the uplink's name.
	Interface string
	// Mode to attach in; the zero value is Auto.
	Mode Mode
	// Port is the UDP port VXLAN arrives on; 0 is DefaultPort.
	Port uint16
	// Queues is how many receive queues can get sockets; 0 is all the interface
	// can have. What arrives on a queue beyond is dropped when it is ours.
	Queues int
	// Replace allows to take off a program that is not ours.
	Replace bool
	// PinPath is a directory on a BPF file system, made when it is missing and
	// removed when it becomes empty; "" is DefaultPinPath.
	PinPath string
}

// Program is the steering program on one uplink. It is for one goroutine, except
// that [Program.Counters] may be called by any.
type Program struct {
	hook   *Hook
	objs   steerObjects
	names  []string // of verdicts
	queues int
	// inherited has the keys taken over from a dead owner and not added again
	// since, until Settle.
	inherited map[*ebpf.Map]map[string]bool
}

// Attach loads the steering program and attaches it to an uplink, on which
// nothing is ours until a VTEP and a VNI are added. What a dead owner had
// attached there is taken over with its tables; see [Program.Settle].
//
// The error wraps ErrBusy, ErrNoInterface, ErrPermission or ErrNotSupported
// where one fits, and nothing has changed then.
func Attach(opts Options) (*Program, error) {
	hook, err := OpenHook(HookOptions{
		Interface: opts.Interface, Mode: opts.Mode, Replace: opts.Replace, PinPath: opts.PinPath,
		Succeeds: []string{steerProgShuntSteer, steerProgShuntSteerLin},
	})
	if err != nil {
		return nil, err
	}
	p := &Program{hook: hook, queues: opts.Queues, inherited: map[*ebpf.Map]map[string]bool{}}
	if p.queues == 0 {
		p.queues = hook.dev.rxQueues
	}
	if err := p.attach(opts.Port); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Program) attach(port uint16) error {
	spec, err := steerSpec(port, p.queues)
	if err != nil {
		return err
	}
	if err := Explain("load the XDP program", spec.LoadAndAssign(&p.objs, nil)); err != nil {
		return err
	}
	if p.names, err = verdictNames(p.objs.ShuntSteer); err != nil {
		return err
	}
	if err := p.inherit(); err != nil {
		return err
	}
	if masked("xdp-frags") {
		return p.hook.Attach(p.objs.ShuntSteerLin)
	}
	return p.hook.Attach(p.objs.ShuntSteer, p.objs.ShuntSteerLin)
}

// steerSpec is the embedded object with its constants and sizes set.
func steerSpec(port uint16, queues int) (*ebpf.CollectionSpec, error) {
	if queues < 1 || queues > 1<<16 {
		return nil, fmt.Errorf("%w: %d receive queues are not between 1 and %d", ErrInvalid, queues, 1<<16)
	}
	if port == 0 {
		port = DefaultPort
	}
	spec, err := loadSteer()
	if err != nil {
		return nil, err
	}
	spec.Maps[steerMapXsks].MaxEntries = uint32(queues) * MaxWorkers
	return spec, errors.Join(
		spec.Variables[steerVarVxlanPort].Set(port),
		spec.Variables[steerVarSocketsPerQueue].Set(uint32(MaxWorkers)),
	)
}

// Spec returns the steering program as it is embedded, for tools that load it
// without attaching.
func Spec() (*ebpf.CollectionSpec, error) { return steerSpec(DefaultPort, 1) }

// Mode is the mode in force, as the kernel reports it.
func (p *Program) Mode() Mode { return p.hook.Mode() }

// NativeRefused is why Auto became Generic; see [Hook.NativeRefused].
func (p *Program) NativeRefused() error { return p.hook.NativeRefused() }

// Pin is the path of the pinned link.
func (p *Program) Pin() string { return p.hook.Pin() }

// Queues is how many receive queues can have sockets.
func (p *Program) Queues() int { return p.queues }

// Close takes the program off the uplink and removes its pin and tables. Frames
// that were ours are the kernel's again.
func (p *Program) Close() error {
	return errors.Join(p.hook.Close(), p.objs.close())
}

// Leave ends the ownership and lets the program run on, as if the process had
// died: known networks are dropped until a next owner comes.
func (p *Program) Leave() error {
	p.hook.Leave()
	return p.objs.close()
}

// close also takes what LoadAndAssign left nil after an error.
func (o *steerObjects) close() error {
	if o.ShuntSteer == nil {
		return nil
	}
	return o.Close()
}
