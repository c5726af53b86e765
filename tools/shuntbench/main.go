// Shuntbench measures shunt: a thin face on package bench.
//
//	shuntbench list
//	shuntbench run [SCENARIO...] [-o table|json]
//	shuntbench compare OLD.json NEW.json
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/shuntio/shunt/bench"
	"github.com/spf13/cobra"
)

func main() {
	bench.Child()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	cmd := command()
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "shuntbench:", err)
		var usage usageError
		if errors.As(err, &usage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// usageError is the caller's mistake.
type usageError struct{ error }

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "shuntbench", Short: "Measure shunt", SilenceErrors: true, SilenceUsage: true,
		Long: "Measure shunt. Figures of a shared machine are noisy: compare within one run, and compare busy time where the other side limits the rate.",
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.Args = only(cobra.NoArgs)
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.AddCommand(listCommand(), runCommand(), compareCommand())
	return root
}

// only makes what does not fit the caller's mistake, with what would.
func only(fit cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case fit(cmd, args) == nil:
			return nil
		case cmd.HasSubCommands():
			return usageError{fmt.Errorf("there is no command %q: see %s --help", args[0], cmd.CommandPath())}
		}
		return usageError{fmt.Errorf("too many or too few arguments: write %s", strings.TrimSuffix(cmd.UseLine(), " [flags]"))}
	}
}

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the scenarios", Args: only(cobra.NoArgs),
		Run: func(cmd *cobra.Command, _ []string) {
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			defer t.Flush()
			for _, s := range bench.Scenarios() {
				fmt.Fprintf(t, "%s\t%s\n", s.Name, s.Help)
			}
		},
	}
}

func runCommand() *cobra.Command {
	var o bench.Options
	var output string
	cmd := &cobra.Command{
		Use: "run [SCENARIO...]", Short: "Run scenarios; all that need no interface, if none is named",
		RunE: func(cmd *cobra.Command, names []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("output %q: must be table or json", output)}
			}
			if o.Duration <= 0 {
				return usageError{fmt.Errorf("--duration %v is no time to measure in: give more than 0s", o.Duration)}
			}
			if o.WorkerCPU < 0 || o.GuestCPU < 0 {
				return usageError{errors.New("--worker-cpu and --guest-cpu are numbers of CPUs, from 0 on: lscpu shows those there are")}
			}
			if o.FrameLen < 60 || o.FrameLen > 1514 {
				return usageError{fmt.Errorf("--frame %d is not the length of an Ethernet frame: give 60 to 1514", o.FrameLen)}
			}
			scenarios, err := choose(names, o.Interface != "")
			if err != nil {
				return err
			}
			var reports []*bench.Report
			for _, s := range scenarios {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v …\n", s.Name, o.Duration)
				r, err := s.Run(cmd.Context(), o)
				if err != nil {
					return err
				}
				reports = append(reports, r)
			}
			return print(cmd.OutOrStdout(), output, reports)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.FrameLen, "frame", 64, "length of the guests' frames in bytes, 60 to 1514")
	f.DurationVar(&o.Duration, "duration", 2e9, "of each measurement")
	f.IntVar(&o.WorkerCPU, "worker-cpu", 0, "CPU of the worker")
	f.IntVar(&o.GuestCPU, "guest-cpu", 1, "CPU of the load generator")
	f.StringVar(&o.Interface, "interface", "", "uplink of the scenarios that have one")
	f.StringVar(&o.Dir, "dir", "", "where disks have their files (default: the directory for temporary ones)")
	f.StringVarP(&output, "output", "o", "table", "table for people, json for programs")
	return cmd
}

// choose finds scenarios by name.
func choose(names []string, wired bool) (chosen []bench.Scenario, err error) {
	all := bench.Scenarios()
	if len(names) == 0 {
		return slices.DeleteFunc(all, func(s bench.Scenario) bool { return !wired && strings.HasSuffix(s.Name, "-wire") }), nil
	}
	for _, name := range names {
		i := slices.IndexFunc(all, func(s bench.Scenario) bool { return s.Name == name })
		if i < 0 {
			return nil, usageError{fmt.Errorf("there is no scenario %q; shuntbench list names them", name)}
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func print(to io.Writer, output string, reports []*bench.Report) error {
	if output == "json" {
		e := json.NewEncoder(to)
		e.SetIndent("", "  ")
		return e.Encode(reports)
	}
	t := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, r := range reports {
		for _, m := range r.Metrics {
			fmt.Fprintf(t, "%s\t%s\t%.2f\t%s\t\n", r.Scenario, m.Name, m.Value, m.Unit)
		}
	}
	return t.Flush()
}

func compareCommand() *cobra.Command {
	return &cobra.Command{
		Use: "compare OLD.json NEW.json", Short: "Compare two runs", Args: only(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, files []string) error {
			var runs [2]map[string]float64
			var order []string
			for i, file := range files {
				reports, err := read(file)
				if err != nil {
					return usageError{err}
				}
				runs[i] = map[string]float64{}
				for _, r := range reports {
					for _, m := range r.Metrics {
						key := fmt.Sprintf("%s\t%s\t%s", r.Scenario, m.Name, m.Unit)
						if _, seen := runs[0][key]; !seen || i == 0 {
							order = append(order, key)
						}
						runs[i][key] = m.Value
					}
				}
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "SCENARIO\tMETRIC\tUNIT\tOLD\tNEW\tRATIO")
			for _, key := range order {
				old, now := runs[0][key], runs[1][key]
				fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\n", key, old, now, now/old)
			}
			return t.Flush()
		},
	}
}

func read(file string) (reports []bench.Report, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &reports); err != nil {
		return nil, fmt.Errorf("%s: not the output of shuntbench run -o json: %w", file, err)
	}
	return reports, nil
}
