// Shuntbench measures shunt: a thin face on package bench.
//
//	shuntbench list
//	shuntbench run [SCENARIO...]
//	shuntbench compare OLD.json NEW.json
//
// Each prints a table for people, or with -o json for programs; compare reads what run -o json printed. Exit status 0: done. 1: a measurement failed.
// 2: the command line or a file is wrong.
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

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/bench"
	"github.com/shuntio/shunt/tools/control"
)

func main() {
	bench.Child()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
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

// command is what the subcommands share.
type command struct{ output string }

func newCommand() *cobra.Command {
	c := &command{}
	root := &cobra.Command{
		Use: "shuntbench", Short: "Measure shunt", Version: control.Version(), SilenceErrors: true, SilenceUsage: true,
		Long: "Measure shunt. Figures of a shared machine are noisy: compare within one run, and compare busy time where the other side limits the rate.\n" +
			"Exit status 0: done; 1: a measurement failed; 2: the command line or a file is wrong.",
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.output != "table" && c.output != "json" {
				return usageError{fmt.Errorf("output %q is neither table nor json", c.output)}
			}
			return nil
		},
	}
	root.SetVersionTemplate("shuntbench {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.Args = only(cobra.NoArgs)
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "table", "table for people, json for programs")
	if err := root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is right above
	}
	root.AddCommand(c.list(), c.run(), c.compare())
	return root
}

// print writes v as JSON, or calls table to write it for people.
func (c *command) print(cmd *cobra.Command, flags uint, v any, table func(io.Writer)) error {
	if c.output == "json" {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', flags)
	table(t)
	return t.Flush()
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

// listed is a scenario as list tells it.
type listed struct {
	Scenario string `json:"scenario"`
	Help     string `json:"help"`
}

func (c *command) list() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the scenarios", Args: only(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []listed
			for _, s := range bench.Scenarios() {
				all = append(all, listed{s.Name, s.Help})
			}
			return c.print(cmd, 0, all, func(w io.Writer) {
				for _, s := range all {
					fmt.Fprintf(w, "%s\t%s\n", s.Scenario, s.Help)
				}
			})
		},
	}
}

func (c *command) run() *cobra.Command {
	var o bench.Options
	cmd := &cobra.Command{
		Use: "run [SCENARIO...]", Short: "Run scenarios; all that need no interface, if none is named", ValidArgsFunction: scenarioNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := check(o); err != nil {
				return err
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
			return c.print(cmd, tabwriter.AlignRight, reports, func(w io.Writer) { table(w, reports) })
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.FrameLen, "frame", 64, "length of the guests' frames in bytes, 60 to 1514")
	f.DurationVar(&o.Duration, "duration", 2e9, "of each measurement")
	f.IntVar(&o.WorkerCPU, "worker-cpu", 0, "CPU of the worker")
	f.IntVar(&o.GuestCPU, "guest-cpu", 1, "CPU of the load generator")
	f.StringVar(&o.Interface, "interface", "", "uplink of the scenarios that have one")
	f.StringVar(&o.Dir, "dir", "", "where disks have their files (default: the directory for temporary ones)")
	return cmd
}

// check refuses options that make no sense.
func check(o bench.Options) error {
	switch {
	case o.Duration <= 0:
		return usageError{fmt.Errorf("--duration %v is no time to measure in: give more than 0s", o.Duration)}
	case o.WorkerCPU < 0 || o.GuestCPU < 0:
		return usageError{errors.New("--worker-cpu and --guest-cpu are numbers of CPUs, from 0 on: lscpu shows those there are")}
	case o.FrameLen < 60 || o.FrameLen > 1514:
		return usageError{fmt.Errorf("--frame %d is not the length of an Ethernet frame: give 60 to 1514", o.FrameLen)}
	}
	return nil
}

// scenarioNames has the shell offer those that are not named yet.
func scenarioNames(_ *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	for _, s := range bench.Scenarios() {
		if !slices.Contains(args, s.Name) {
			names = append(names, cobra.CompletionWithDesc(s.Name, s.Help))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
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

func table(w io.Writer, reports []*bench.Report) {
	for _, r := range reports {
		for _, m := range r.Metrics {
			fmt.Fprintf(w, "%s\t%s\t%.2f\t%s\t\n", r.Scenario, m.Name, m.Value, m.Unit)
		}
	}
}

// compared is a figure of two runs; one of them may not have it.
type compared struct {
	Scenario string   `json:"scenario"`
	Metric   string   `json:"metric"`
	Unit     string   `json:"unit"`
	Old      *float64 `json:"old,omitempty"`
	New      *float64 `json:"new,omitempty"`
	Ratio    *float64 `json:"ratio,omitempty"` // of the new one to the old one, if that is not 0
}

func (c *command) compare() *cobra.Command {
	return &cobra.Command{
		Use: "compare OLD.json NEW.json", Short: "Compare two runs, which run -o json printed", Args: only(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, files []string) error {
			old, err := read(files[0])
			if err != nil {
				return usageError{err}
			}
			now, err := read(files[1])
			if err != nil {
				return usageError{err}
			}
			all := compare(old, now)
			return c.print(cmd, 0, all, func(w io.Writer) {
				fmt.Fprintln(w, "SCENARIO\tMETRIC\tUNIT\tOLD\tNEW\tRATIO")
				for _, f := range all {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", f.Scenario, f.Metric, f.Unit, figure(f.Old), figure(f.New), figure(f.Ratio))
				}
			})
		},
	}
}

// compare puts the figures of two runs side by side, in the order of the old one.
func compare(old, now []bench.Report) []*compared {
	all, place := []*compared{}, map[[3]string]*compared{}
	each := func(reports []bench.Report, found func(*compared, float64)) {
		for _, r := range reports {
			for _, m := range r.Metrics {
				k := [3]string{r.Scenario, m.Name, m.Unit}
				if place[k] == nil {
					place[k] = &compared{Scenario: r.Scenario, Metric: m.Name, Unit: m.Unit}
					all = append(all, place[k])
				}
				found(place[k], m.Value)
			}
		}
	}
	each(old, func(c *compared, v float64) { c.Old = &v })
	each(now, func(c *compared, v float64) {
		c.New = &v
		if c.Old != nil && *c.Old != 0 {
			ratio := v / *c.Old
			c.Ratio = &ratio
		}
	})
	return all
}

func figure(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *v)
}

func read(file string) (reports []bench.Report, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: name a file that shuntbench run -o json has written", err)
	}
	if err := json.Unmarshal(text, &reports); err != nil {
		return nil, fmt.Errorf("%s is not what shuntbench run -o json writes (%w): measure again", file, err)
	}
	return reports, nil
}
