// Package bpf loads the XDP programs that decide which frames of an interface are
// ours, keeps them attached, and fills their tables.
//
//	NIC queue --> steer.bpf.c --+--> XSKMAP --> AF_XDP socket   VXLAN to one of our VTEPs with a
//	                            |               of a worker     known VNI; a flat network's unicast
//	                            +--> kernel                     everything else
//	                            +--> dropped, counted           ours, but nobody serves it now
//
//	container --> veth --> port.bpf.c --+--> XSKMAP --> AF_XDP socket   everything
//	                                    +--> dropped, counted           nobody serves it now; too long
//
// # Who gets a frame
//
// An uplink's queue can have a socket for each worker. A frame goes to the
// worker of its station: a guest's MAC in a network ([Program.AddStation]), or in
// a flat one ([Program.AddMAC]). A station with several workers has its flows
// shared among them, each flow on one. Broadcast and what is for stations
// not told goes to the worker of the network ([Program.AddVNI]).
//
// Nothing of what the program found out is handed over in front of the frame (data_meta). The engine checks every length
// and checksum for itself, so all it could leave out is to find the network by its VNI again. For that each frame would bring
// one more cache line, and program and engine of different versions would have to agree on a layout across a takeover.
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

// Options describe a program on an interface.
type Options struct {
	// Interface is its name.
	Interface string
	// Mode to attach in; the zero value is Auto.
	Mode Mode
	// Port is the UDP port VXLAN arrives on at an uplink; 0 is DefaultPort.
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

// attachment is what all our programs have: a hook they hang on, sockets they
// send to, counters.
type attachment struct {
	hook     *Hook
	xsks     *ebpf.Map
	verdicts *ebpf.Map
	names    []string // of verdicts
	queues   int
	perQueue int  // sockets
	frags    bool // the program for frames of several buffers is the one that runs
}

// succession is what a new owner of an interface takes over from a dead one.
var succession = []string{steerProgShuntSteer, steerProgShuntSteerLin, portProgShuntPort, portProgShuntPortLin}

// open claims the interface's hook.
func (a *attachment) open(opts *Options) (err error) {
	a.hook, err = OpenHook(HookOptions{
		Interface: opts.Interface, Mode: opts.Mode, Replace: opts.Replace, PinPath: opts.PinPath, Succeeds: succession,
	})
	if err != nil {
		return err
	}
	if a.queues = opts.Queues; a.queues == 0 {
		a.queues = a.hook.dev.rxQueues
	}
	return nil
}

// attach puts frags on the hook, or lin where only that goes.
func (a *attachment) attach(frags, lin *ebpf.Program) error {
	if masked("xdp-frags") {
		return a.hook.Attach(lin)
	}
	err := a.hook.Attach(frags, lin)
	a.frags = a.hook.runs == frags
	return err
}

// Mode is the mode in force, as the kernel reports it.
func (a *attachment) Mode() Mode { return a.hook.Mode() }

// NativeRefused is why Auto became Generic; see [Hook.NativeRefused].
func (a *attachment) NativeRefused() error { return a.hook.NativeRefused() }

// Frags tells whether the program in force takes frames of several buffers, so
// that jumbo frames can reach a socket.
func (a *attachment) Frags() bool { return a.frags }

// Pin is the path of the pinned link.
func (a *attachment) Pin() string { return a.hook.Pin() }

// Queues is how many receive queues can have sockets.
func (a *attachment) Queues() int { return a.queues }

// Counters returns a counter for each verdict, in the order of enum verdict. A
// redirected frame may still meet a full socket, which counts it there. Any goroutine may call it.
func (a *attachment) Counters() ([]Counter, error) { return readCounters(a.verdicts, a.names) }

// addSocket puts a socket where the frames of a queue and one of its workers go.
func (a *attachment) addSocket(queue, worker, fd int) error {
	if queue < 0 || queue >= a.queues {
		return fmt.Errorf("%w: queue %d is none of the %d the program was loaded for", ErrInvalid, queue, a.queues)
	}
	err := a.xsks.Put(uint32(queue*a.perQueue+worker), uint32(fd))
	return Explain(fmt.Sprintf("give queue %d its socket", queue), err)
}

// Program is the steering program on one uplink. It is for one goroutine, except
// that Counters may be called by any.
type Program struct {
	attachment
	objs steerObjects
	// inherited has the keys taken over from a dead owner and not added again
	// since, until Settle.
	inherited map[*ebpf.Map]map[string]bool
	// stations has those added, by their network.
	stations map[uint32]map[[6]byte]bool
}

// Attach loads the steering program and attaches it to an uplink, on which
// nothing is ours until a VTEP and a VNI are added. What a dead owner had
// attached there is taken over with its tables; see [Program.Settle].
//
// The error wraps ErrBusy, ErrNoInterface, ErrPermission or ErrNotSupported
// where one fits, and nothing has changed then.
func Attach(opts Options) (*Program, error) {
	p := &Program{inherited: map[*ebpf.Map]map[string]bool{}}
	if err := p.open(&opts); err != nil {
		return nil, err
	}
	err := p.load(opts.Port)
	if err == nil {
		err = p.inherit()
	}
	if err == nil {
		err = p.attach(p.objs.ShuntSteer, p.objs.ShuntSteerLin)
	}
	if err != nil {
		return nil, errors.Join(err, p.Return())
	}
	return p, nil
}

// load loads the program for its queues.
func (p *Program) load(port uint16) error {
	spec, err := steerSpec(port, p.queues)
	if err != nil {
		return err
	}
	if err := Explain("load the XDP program", spec.LoadAndAssign(&p.objs, nil)); err != nil {
		return err
	}
	p.stations = map[uint32]map[[6]byte]bool{}
	p.xsks, p.verdicts, p.perQueue = p.objs.Xsks, p.objs.Verdicts, MaxWorkers
	p.names, err = verdictNames(p.objs.ShuntSteer)
	return err
}

// checkQueues says whether a program can be loaded for so many.
func checkQueues(n int) error {
	if n < 1 || n > 1<<16 {
		return fmt.Errorf("%w: %d receive queues are not between 1 and %d", ErrInvalid, n, 1<<16)
	}
	return nil
}

// steerSpec is the embedded object with its constants and sizes set.
func steerSpec(port uint16, queues int) (*ebpf.CollectionSpec, error) {
	if err := checkQueues(queues); err != nil {
		return nil, err
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

// Close takes the program off the uplink and removes its pin and tables. Frames
// that were ours are the kernel's again.
func (p *Program) Close() error {
	return errors.Join(p.hook.Close(), p.objs.close())
}

// Return is Close for an owner that could not come into service: where a dead
// one had left its program, this one stays as it would, with what was taken over.
func (p *Program) Return() error { return errors.Join(p.hook.Return(), p.objs.close()) }

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
