package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// HookOptions say which XDP hook to open and what may stand in the way.
type HookOptions struct {
	// Interface is the name of an interface in the calling thread's network
	// namespace.
	Interface string
	// Mode to attach in; the zero value is Auto.
	Mode Mode
	// Replace allows a program that is there already to be taken off.
	Replace bool
	// Succeeds names the programs which, left behind by a process that died, are
	// replaced without Replace and without a gap.
	Succeeds []string
	// PinPath is a directory on a BPF file system; empty is DefaultPinPath.
	PinPath string
}

// Hook is one interface's place for an XDP program. From [OpenHook] until
// [Hook.Close] or [Hook.Leave] no other process can open it.
//
//	OpenHook -> Attach -> Close   the program is gone
//	                   -> Leave   the program stays, pinned, without an owner
//	                   -> Return  as OpenHook found it: one of the two
//	                   -> (dies)  the program stays
//
// A Hook is for one goroutine.
type Hook struct {
	opts  HookOptions
	dev   device
	claim *claim
	// link holds the program: a dead owner's until Attach, then ours. Nil while
	// there is none, and while the program there is not from under PinPath.
	link    link.Link
	ours    bool          // link runs our program, so Close ends it
	heir    bool          // a dead owner's was there before
	runs    *ebpf.Program // that one, as it was given to Attach
	refused error
}

// OpenHook claims the hook of an interface. What is attached there stays as it
// is until [Hook.Attach]. The error wraps ErrBusy when a living process has the
// hook or a program is there that options do not allow to replace.
func OpenHook(opts HookOptions) (*Hook, error) {
	if opts.PinPath == "" {
		opts.PinPath = DefaultPinPath
	}
	dev, err := findDevice(opts.Interface)
	if err != nil {
		return nil, err
	}
	if err := mountBPFFS(opts.PinPath); err != nil {
		return nil, err
	}
	sweep(opts.PinPath)
	c, err := takeClaim(opts.PinPath, dev)
	if err != nil {
		return nil, err
	}
	h := &Hook{opts: opts, dev: dev, claim: c}
	if err := h.meetPredecessor(); err != nil {
		h.giveUp()
		return nil, err
	}
	return h, nil
}

// meetPredecessor finds out what is attached, and whether it may be replaced.
func (h *Hook) meetPredecessor() error {
	// The device was looked at before it was claimed, when an owner may have
	// been about to leave.
	dev, err := findDevice(h.opts.Interface)
	if err != nil {
		return err
	}
	if dev.index != h.dev.index {
		return fmt.Errorf("%w: %s was replaced by another of that name meanwhile, try again", ErrNoInterface, dev.name)
	}
	h.dev = dev
	left, err := link.LoadPinnedLink(h.claim.link(), nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return Explain("open the link left at "+h.claim.link(), err)
	case dev.program == 0 || !dev.holds(left):
		left.Close()
		if err := h.claim.removePin(); err != nil {
			return err
		}
	default:
		h.link, h.heir = left, true
	}
	if dev.program == 0 || h.opts.Replace {
		return nil
	}
	if h.link == nil {
		return tell([]error{ErrBusy}, "interface %s runs %s, which shunt did not put there: take it off with `shuntbpf detach --force %s`, or choose another interface",
			dev.name, dev.describe(), dev.name)
	}
	if !slices.Contains(h.opts.Succeeds, programName(dev.program)) {
		return tell([]error{ErrBusy}, "interface %s runs %s, pinned at %s: take it off with `shuntbpf detach %s`, or choose another interface",
			dev.name, dev.describe(), h.claim.link(), dev.name)
	}
	return nil
}

// Attach puts the first of progs there that the interface accepts: a program
// for frames of several buffers comes before one for linear frames. A dead
// owner's program is exchanged in place, so no frame is without one of the two;
// only when it runs in another mode than the one asked for is there a gap.
func (h *Hook) Attach(progs ...*ebpf.Program) error {
	if h.link != nil && (h.opts.Mode == Auto || h.opts.Mode == h.dev.mode) {
		if err := h.exchange(progs); err != nil {
			return err
		}
	} else {
		if err := h.clear(); err != nil {
			return err
		}
		if err := h.attachNew(progs); err != nil {
			return err
		}
	}
	h.ours = true
	dev, err := findDevice(h.opts.Interface)
	if err != nil {
		return err
	}
	h.dev = dev
	return nil
}

func (h *Hook) exchange(progs []*ebpf.Program) error {
	var first error
	for _, prog := range progs {
		err := h.link.Update(prog)
		if err == nil {
			h.runs = prog
			return nil
		}
		if first == nil {
			first = h.dev.refusal(h.dev.mode, err)
		}
	}
	return first
}

// clear empties the hook.
func (h *Hook) clear() error {
	if h.dev.program == 0 {
		return nil
	}
	if err := h.claim.removePin(); err != nil {
		return err
	}
	if h.link == nil {
		return h.dev.evict()
	}
	err := h.link.Detach()
	h.link.Close()
	h.link = nil
	return Explain("detach "+h.dev.describe()+" from "+h.dev.name, err)
}

func (h *Hook) attachNew(progs []*ebpf.Program) error {
	var last error
	for _, mode := range h.opts.Mode.tries() {
		var err error
		if h.link, h.runs, err = h.dev.attach(mode, progs); err == nil {
			if err := h.link.Pin(h.claim.link()); err != nil {
				return Explain("pin the link of "+h.dev.name, err)
			}
			h.refused = last
			return nil
		}
		last = err
		if !errors.Is(err, ErrNotSupported) {
			break
		}
	}
	return last
}

// attach tries one program after the other. It returns the error of the first, whose demands are the lowest.
func (d device) attach(mode Mode, progs []*ebpf.Program) (link.Link, *ebpf.Program, error) {
	if mode == Native && masked("xdp-native") {
		return nil, nil, tell([]error{ErrNotSupported}, "native XDP is masked by SHUNT_MASK: clear that, or ask for auto")
	}
	var first error
	for _, prog := range progs {
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: d.index, Flags: mode.flags()})
		if err == nil {
			return l, prog, nil
		}
		if first == nil {
			first = d.refusal(mode, err)
		}
	}
	return nil, nil, first
}

// Mode is the mode in force, as the kernel reports it.
func (h *Hook) Mode() Mode { return h.dev.mode }

// NativeRefused is why an Auto hook runs Generic: the driver's refusal. It is
// nil in native mode, where Generic was asked for, and after a dead owner's
// program was taken over in the mode it had.
func (h *Hook) NativeRefused() error { return h.refused }

// Pin is the path of the pinned link.
func (h *Hook) Pin() string { return h.claim.link() }

// Close takes the program off and removes its pin. A hook that nothing was
// attached to is left as it was found.
func (h *Hook) Close() error {
	if !h.ours {
		h.giveUp()
		return nil
	}
	// The pin goes first: a death in between then takes the link along. The
	// detaching is explicit as a passing reader, such as a status command, may
	// hold the link open for a moment.
	err := errors.Join(h.claim.removePin(), Explain("detach from "+h.dev.name, h.link.Detach()))
	h.giveUp()
	return err
}

// Return is for an owner that comes to nothing: what a dead one had left, it
// leaves again, so that the kernel gets no frame in between.
func (h *Hook) Return() error {
	if h.heir {
		h.Leave()
		return nil
	}
	return h.Close()
}

// Leave ends the ownership and lets the program run on, pinned, for the next
// process that opens the hook.
func (h *Hook) Leave() { h.giveUp() }

func (h *Hook) giveUp() {
	if h.link != nil {
		h.link.Close()
	}
	h.claim.release()
}

// DetachOptions say what to take off.
type DetachOptions struct {
	// Interface is the name of an interface in the calling thread's namespace.
	Interface string
	// Force takes the program off even if it belongs to a living process or was
	// not attached through a Hook.
	Force bool
	// PinPath is a directory on a BPF file system; empty is DefaultPinPath.
	PinPath string
}

// Detach takes the XDP program off an interface and removes its pin. Without
// Force it takes only what a dead process, or one that called [Hook.Leave],
// left behind. The error wraps ErrNotAttached when there is nothing.
func Detach(opts DetachOptions) error {
	hook, err := OpenHook(HookOptions{Interface: opts.Interface, PinPath: opts.PinPath, Replace: true})
	if errors.Is(err, ErrBusy) && opts.Force {
		dev, err := findDevice(opts.Interface)
		if err != nil {
			return err
		}
		if dev.program == 0 {
			return notAttached(dev)
		}
		return dev.evict()
	}
	if err != nil {
		return err
	}
	defer hook.giveUp()
	switch {
	case hook.dev.program == 0:
		return notAttached(hook.dev)
	case hook.link == nil && !opts.Force:
		return tell([]error{ErrBusy}, "interface %s runs %s, which is not pinned under %s: force it off if nobody needs it",
			hook.dev.name, hook.dev.describe(), hook.opts.PinPath)
	}
	return hook.clear()
}
