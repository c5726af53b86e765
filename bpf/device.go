package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// device is an interface of the calling thread's network namespace, and what
// its XDP hook held when it was looked at.
type device struct {
	name     string
	index    int
	mtu      int
	rxQueues int
	program  ebpf.ProgramID // 0: none
	mode     Mode           // of program
}

func findDevice(name string) (device, error) {
	l, err := netlink.LinkByName(name)
	if notFound := (netlink.LinkNotFoundError{}); errors.As(err, &notFound) {
		return device{}, fmt.Errorf("%w: %q is not in this network namespace, `ip link` lists what is", ErrNoInterface, name)
	}
	if err != nil {
		return device{}, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return newDevice(l.Attrs()), nil
}

func newDevice(a *netlink.LinkAttrs) device {
	dev := device{name: a.Name, index: a.Index, mtu: a.MTU, rxQueues: max(1, a.NumRxQueues)}
	if a.Xdp != nil && a.Xdp.Attached {
		dev.program, dev.mode = ebpf.ProgramID(a.Xdp.ProgId), modeInForce(a.Xdp.AttachMode)
	}
	return dev
}

// describe names the program on the device for an error message.
func (d device) describe() string {
	return fmt.Sprintf("XDP program %s (id %d, %s)", programName(d.program), d.program, d.mode)
}

func programName(id ebpf.ProgramID) string {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "unknown"
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil || info.Name == "" {
		return "without name"
	}
	return info.Name
}

// holds reports whether l is what put the device's program there. A link whose
// device has gone holds index 0, and the number may have come back to another.
func (d device) holds(l link.Link) bool {
	info, err := l.Info()
	return err == nil && info.XDP() != nil && int(info.XDP().Ifindex) == d.index && info.Program == d.program
}

// findLink returns the bpf_link that holds the device's program, nil when it
// was attached without one. Links are listed for all network namespaces, but
// hardly two of them run one program on one index; where they do it refuses.
func (d device) findLink() (link.Link, error) {
	var found link.Link
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		if !d.holds(it.Link) {
			continue
		}
		if found != nil {
			found.Close()
			return nil, fmt.Errorf("%w: several links hold %s with the number of %s, in different namespaces; end the process that holds it", ErrBusy, d.describe(), d.name)
		}
		found = it.Take()
	}
	if err := it.Err(); err != nil {
		if found != nil {
			found.Close()
		}
		return nil, Explain("list BPF links", err)
	}
	return found, nil
}

// evict takes the device's program off, whoever put it there.
func (d device) evict() error {
	l, err := d.findLink()
	if err != nil {
		return err
	}
	if l != nil {
		defer l.Close()
		return Explain("detach "+d.describe()+" from "+d.name, l.Detach())
	}
	dev, err := netlink.LinkByIndex(d.index)
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", d.name, err)
	}
	return Explain("detach "+d.describe()+" from "+d.name, netlink.LinkSetXdpFdWithFlags(dev, -1, int(d.mode.flags())))
}

// refusal says why attaching in one mode did not work. What is neither the
// caller's nor the kernel's fault is the driver's, with one errno or another.
func (d device) refusal(mode Mode, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return tell([]error{ErrBusy, err}, "another XDP program came to %s meanwhile: try again", d.name)
	case errors.Is(err, unix.ENODEV):
		return tell([]error{ErrNoInterface, err}, "interface %s has gone meanwhile: try again", d.name)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOMEM):
		return Explain(fmt.Sprintf("attach to %s in %s mode", d.name, mode), err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return tell([]error{ErrNotSupported, err}, "the driver of %s has no %s XDP: ask for auto", d.name, mode)
	}
	return tell([]error{ErrNotSupported, err},
		"the driver of %s refuses %s XDP (%v): lower its MTU of %d, give it more receive queues, turn receive offloads off, or ask for auto",
		d.name, mode, reason(err), d.mtu)
}
