package main

import (
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/bpf"
)

// loaded is what load reports.
type loaded struct {
	Name         string `json:"name"`
	Tag          string `json:"tag"`
	Instructions int    `json:"instructions"`
	Verified     uint32 `json:"verified"`
	Jited        uint32 `json:"jited-bytes"`
	Maps         int    `json:"maps"`
	Pin          string `json:"pin,omitempty"`
}

func newLoad(o *options) *cobra.Command {
	var src source
	var pin string
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Load a program into the kernel to have it verified",
		Long:  "Load has the kernel verify and translate a program. It is gone again at once,\nunless it is pinned: then attach --pinned takes it from there.",
		Example: "  shuntbpf load\n" +
			"  shuntbpf load --object filter.o --program drop_all --pin /sys/fs/bpf/filter",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			prog, err := src.load()
			if err != nil {
				return err
			}
			defer prog.Close()
			if pin != "" {
				if err := bpf.Pin(prog, pin); err != nil {
					return err
				}
			}
			l, err := describe(prog, pin)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), l, l.table)
		},
	}
	src.addFlags(cmd)
	cmd.Flags().StringVar(&pin, "pin", "", "new directory on a BPF file system to pin the program and its maps in")
	return cmd
}

func describe(prog *ebpf.Program, pin string) (*loaded, error) {
	info, err := prog.Info()
	if err != nil {
		return nil, fmt.Errorf("look at the loaded program: %w", err)
	}
	l := &loaded{Name: info.Name, Tag: info.Tag, Pin: pin}
	l.Verified, _ = info.VerifiedInstructions()
	if n, err := info.TranslatedSize(); err == nil {
		l.Instructions = n / 8
	}
	l.Jited, _ = info.JitedSize()
	ids, _ := info.MapIDs()
	l.Maps = len(ids)
	return l, nil
}

func (l *loaded) table(w io.Writer) {
	row(w, "PROGRAM", "TAG", "INSTRUCTIONS", "VERIFIED", "JITED", "MAPS", "PIN")
	row(w, l.Name, l.Tag, l.Instructions, l.Verified, fmt.Sprintf("%d B", l.Jited), l.Maps, l.Pin)
}
