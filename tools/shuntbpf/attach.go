package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/bpf"
)

// attach is the command's flags.
type attach struct {
	*options
	source
	iface   string
	mode    string
	replace bool
	port    uint16
	vteps   []string
	vnis    []uint
}

// attached is what attach reports.
type attached struct {
	Interface     string   `json:"interface"`
	Mode          bpf.Mode `json:"mode"`
	NativeRefused string   `json:"native-refused,omitempty"`
	Pin           string   `json:"pin"`
}

func newAttach(o *options) *cobra.Command {
	a := &attach{options: o}
	cmd := &cobra.Command{
		Use:   "attach INTERFACE",
		Short: "Attach a program to an interface, where it stays until it is detached",
		Long: "Attach puts a program on an interface and pins it there, so that it stays when this\n" +
			"command ends. The built-in program sends VXLAN frames of known networks to shuntd and\n" +
			"leaves the rest to the kernel; before a shuntd takes it over it drops the former.",
		Example: "  shuntbpf attach eth1\n" +
			"  shuntbpf attach eth1 --vtep 192.0.2.1 --vni 100\n" +
			"  shuntbpf attach eth1 --object filter.o --program drop_all --mode generic",
		Args: wantArgs("INTERFACE"), ValidArgsFunction: interfaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.iface = args[0]
			result, err := a.run(cmd)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), result, result.table)
		},
	}
	a.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&a.pinned, "pinned", "", "take the program from a pin, or from a directory made by load --pin or pin")
	f.StringVar(&a.mode, "mode", "auto", "auto, native (in the driver), or generic (after it); auto is native or else generic")
	complete(cmd, "mode", "auto", "native", "generic")
	f.BoolVar(&a.replace, "replace", false, "take off a program that is there already and does not belong to a living process")
	f.Uint16Var(&a.port, "port", bpf.DefaultPort, "UDP port of VXLAN, for the built-in program")
	f.StringSliceVar(&a.vteps, "vtep", nil, "address of a local tunnel endpoint, for the built-in program; repeatable")
	f.UintSliceVar(&a.vnis, "vni", nil, "number of a known network, for the built-in program; repeatable")
	return cmd
}

func (a *attach) run(cmd *cobra.Command) (*attached, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	mode, err := bpf.ParseMode(a.mode)
	if err != nil {
		return nil, err
	}
	if a.builtIn() {
		if a.program != "" {
			return nil, badUsage("--program belongs to --object; which of the built-in programs fits is found out")
		}
		return a.attachSteering(mode)
	}
	for _, name := range []string{"port", "vtep", "vni"} {
		if cmd.Flags().Changed(name) {
			return nil, badUsage("--%s is for the built-in program", name)
		}
	}
	return a.attachOther(mode)
}

func (a *attach) attachSteering(mode bpf.Mode) (*attached, error) {
	// All is checked first: what is attached already shall not suffer from a typo.
	vteps, err := a.addresses()
	if err != nil {
		return nil, err
	}
	for _, vni := range a.vnis {
		if err := bpf.CheckVNI(uint32(min(vni, math.MaxUint32))); err != nil {
			return nil, err
		}
	}
	p, err := bpf.Attach(bpf.Options{Interface: a.iface, Mode: mode, Port: a.port, Replace: a.replace, PinPath: a.pinPath})
	if err != nil {
		return nil, err
	}
	if err := a.fill(p, vteps); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	result := newAttached(a.iface, p)
	return result, p.Leave()
}

func (a *attach) addresses() ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, s := range a.vteps {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, badUsage("--vtep: %w", err)
		}
		if err := bpf.CheckVTEP(addr); err != nil {
			return nil, err
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// fill gives the program the tables asked for, and none of a predecessor's.
func (a *attach) fill(p *bpf.Program, vteps []netip.Addr) error {
	for _, addr := range vteps {
		if err := p.AddVTEP(addr); err != nil {
			return err
		}
	}
	for _, vni := range a.vnis {
		if err := p.AddVNI(uint32(vni), 0); err != nil {
			return err
		}
	}
	return p.Settle()
}

func (a *attach) attachOther(mode bpf.Mode) (*attached, error) {
	prog, err := a.load()
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	hook, err := bpf.OpenHook(bpf.HookOptions{Interface: a.iface, Mode: mode, Replace: a.replace, PinPath: a.pinPath})
	if err != nil {
		return nil, err
	}
	defer hook.Leave()
	if err := hook.Attach(prog); err != nil {
		return nil, err
	}
	return newAttached(a.iface, hook), nil
}

func newAttached(iface string, p interface {
	Mode() bpf.Mode
	NativeRefused() error
	Pin() string
}) *attached {
	result := &attached{Interface: iface, Mode: p.Mode(), Pin: p.Pin()}
	if err := p.NativeRefused(); err != nil {
		result.NativeRefused = err.Error()
	}
	return result
}

func (a *attached) table(w io.Writer) {
	row(w, "INTERFACE", "MODE", "PIN")
	row(w, a.Interface, a.Mode, a.Pin)
	if a.NativeRefused != "" {
		fmt.Fprintf(w, "generic because: %s\n", a.NativeRefused)
	}
}
