package bpf

import "errors"

// PortProgram is the program on an interface whose frames are all ours: the
// host end of the veth of a container, or of the host itself. It is for one goroutine, except that
// Counters may be called by any.
//
// Attached in native mode it makes the kernel segment what the container sends
// before it comes here, since veth takes software segmentation from the peer of
// an interface that runs a program. In generic mode the peer knows nothing, and
// what it left to be segmented is dropped, as drop-too-long: turn that off there
// (ethtool -K eth0 tso off gso off).
type PortProgram struct {
	attachment
	objs portObjects
}

// AttachPort loads the program for a port and attaches it to an interface, where
// from then on nothing gets to the kernel. What a dead owner had attached there
// is exchanged in place. Errors are as in [Attach].
func AttachPort(opts Options) (*PortProgram, error) {
	p := &PortProgram{}
	if err := p.open(&opts); err != nil {
		return nil, err
	}
	err := p.load()
	if err == nil {
		err = p.SetMTU(p.hook.dev.mtu)
	}
	if err == nil {
		err = p.attach(p.objs.ShuntPort, p.objs.ShuntPortLin)
	}
	if err != nil {
		return nil, errors.Join(err, p.Return())
	}
	return p, nil
}

func (p *PortProgram) load() error {
	if err := checkQueues(p.queues); err != nil {
		return err
	}
	spec, err := loadPort()
	if err != nil {
		return err
	}
	spec.Maps[portMapXsks].MaxEntries = uint32(p.queues)
	if err := Explain("load the XDP program", spec.LoadAndAssign(&p.objs, nil)); err != nil {
		return err
	}
	p.xsks, p.verdicts, p.perQueue = p.objs.Xsks, p.objs.Verdicts, 1
	p.names, err = verdictNames(p.objs.ShuntPort)
	return err
}

// SetMTU follows a change of the interface's MTU: longer frames, with a VLAN tag,
// are dropped as drop-too-long.
func (p *PortProgram) SetMTU(mtu int) error {
	const ethernet, tag = 14, 4
	return Explain("set the length of the longest frame", p.objs.Longest.Set(uint32(mtu+ethernet+tag)))
}

// AddSocket puts an AF_XDP socket, bound to this interface and queue, where the
// queue's frames go. The kernel removes it when it is closed.
func (p *PortProgram) AddSocket(queue, fd int) error { return p.addSocket(queue, 0, fd) }

// Close takes the program off the interface and removes its pin.
func (p *PortProgram) Close() error { return errors.Join(p.hook.Close(), p.objs.close()) }

// Return is Close for an owner that could not come into service: where a dead
// one had left its program, this one stays as it would, with what was taken over.
func (p *PortProgram) Return() error { return errors.Join(p.hook.Return(), p.objs.close()) }

// Leave ends the ownership and lets the program run on, as if the process had
// died: all frames are dropped until a next owner comes.
func (p *PortProgram) Leave() error {
	p.hook.Leave()
	return p.objs.close()
}

// close also takes what LoadAndAssign left nil after an error.
func (o *portObjects) close() error {
	if o.ShuntPort == nil {
		return nil
	}
	return o.Close()
}
