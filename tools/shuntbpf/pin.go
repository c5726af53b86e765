package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/bpf"
)

func newPin(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "pin INTERFACE DIRECTORY",
		Short: "Pin the program an interface runs, with its maps",
		Long: "Pin keeps the program an interface runs, and its maps, in a new directory on a BPF file\n" +
			"system, as program and maps/NAME. They can be looked at there and attached again after\n" +
			"they were detached. The pins are removed with rm -r.",
		Example: "  shuntbpf pin eth1 /sys/fs/bpf/eth1\n" +
			"  shuntbpf attach eth2 --pinned /sys/fs/bpf/eth1",
		Args: wantArgs("INTERFACE", "DIRECTORY"), ValidArgsFunction: interfaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := bpf.PinAttached(args[0], args[1]); err != nil {
				return err
			}
			result := map[string]string{"pinned": args[1]}
			return o.print(cmd.OutOrStdout(), result, func(w io.Writer) { row(w, "pinned in", args[1]) })
		},
	}
}
