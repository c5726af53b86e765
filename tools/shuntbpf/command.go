package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/bpf"
	"github.com/shuntio/shunt/tools/control"
)

// options are the flags of every command.
type options struct {
	output  string
	pinPath string
}

func newCommand() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "shuntbpf",
		Short: "Load, attach and look at XDP programs",
		Long: "Shuntbpf loads, attaches and looks at XDP programs: shunt's own, which is built in,\nand those of any object file. It works in the network namespace it is run in.\n" +
			"Exit status 0: done; 1: it failed; 2: it was asked for something that makes no sense.",
		Version:       control.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if o.output != "table" && o.output != "json" {
				return badUsage("output %q is neither table nor json", o.output)
			}
			return nil
		},
	}
	cmd.SetVersionTemplate("shuntbpf {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.PersistentFlags().StringVarP(&o.output, "output", "o", "table", "form of the output: table, json")
	cmd.PersistentFlags().StringVar(&o.pinPath, "pin-path", bpf.DefaultPinPath, "directory on a BPF file system for the pins of attached programs")
	complete(cmd, "output", "table", "json")
	cmd.AddCommand(newLoad(o), newAttach(o), newDetach(o), newStatus(o), newPin(o))
	return cmd
}

// complete has the shell offer a flag's values.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is made beside the call
	}
}

// interfaces has the shell offer those there are, at most so many. What comes behind them are files.
func interfaces(most int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveDefault
		}
		var names []string
		all, _ := net.Interfaces()
		for _, i := range all {
			if !slices.Contains(args, i.Name) {
				names = append(names, i.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return badUsage("%s takes no argument %q, see %[1]s --help", cmd.CommandPath(), args[0])
	}
	return nil
}

// wantArgs asks for one argument of each name.
func wantArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return badUsage("%s wants %s, see %[1]s --help", cmd.CommandPath(), strings.Join(names, " and "))
		}
		return nil
	}
}

// print writes v as JSON, or calls table to write it for people.
func (o *options) print(w io.Writer, v any, table func(io.Writer)) error {
	if o.output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	table(tw)
	return tw.Flush()
}

// row writes the cells of a table's row; what is empty becomes "-".
func row(w io.Writer, cells ...any) {
	for i, cell := range cells {
		s := fmt.Sprint(cell)
		if s == "" {
			s = "-"
		}
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, s)
	}
	fmt.Fprintln(w)
}
