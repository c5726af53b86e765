package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/bpf"
)

func newDetach(o *options) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "detach INTERFACE",
		Short: "Take the program off an interface",
		Long: "Detach takes off what attach put there, or what a killed shuntd left behind, and\n" +
			"removes its pin. What belongs to a living process, or came from elsewhere, needs --force.",
		Args: wantArgs("INTERFACE"), ValidArgsFunction: interfaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := bpf.Detach(bpf.DetachOptions{Interface: args[0], Force: force, PinPath: o.pinPath}); err != nil {
				return err
			}
			result := map[string]string{"detached": args[0]}
			return o.print(cmd.OutOrStdout(), result, func(w io.Writer) { row(w, "detached from", args[0]) })
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also what belongs to a living process or was not attached by shunt")
	return cmd
}
