// Shuntctl is the operator's command: it asks a running shuntd over its control socket, and prints tables for people or
// JSON for programs.
//
// Exit status 0: done. 1: the daemon refused, failed or does not run. 2: the command line or a file is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// usageError is an error of whoever called us.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	c := &command{out: out, in: in}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	cmd, err := root.ExecuteContextC(ctx)
	var invalid *config.Error
	var refused *api.Error
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &invalid): // file:line:column first, as compilers do, so that editors find it
		fmt.Fprintln(errs, err)
		return 2
	case errors.As(err, &usage), errors.As(err, &refused) && refused.Code == api.CodeBad: // a filter, say, which the daemon alone understands
		fmt.Fprintf(errs, "shuntctl: %v\n", err)
		return 2
	case !c.ran:
		fmt.Fprintf(errs, "shuntctl: %s: see %s --help\n", strings.TrimSpace(err.Error()), cmd.CommandPath())
		return 2
	default:
		fmt.Fprintf(errs, "shuntctl: %v\n", err)
		return 1
	}
}

// command is what the subcommands share.
type command struct {
	out    io.Writer
	in     io.Reader
	socket string
	output string
	ran    bool // the command line was good: what fails now is not its fault
}

func (c *command) root() *cobra.Command {
	root := &cobra.Command{
		Use: "shuntctl", Short: "Watch and change a running shuntd",
		Long: "shuntctl asks a running shuntd over its control socket.\n" +
			"Exit status 0: done; 1: the daemon refused, failed or does not run; 2: the command line or a file is wrong.",
		Version: control.Version(), SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.output != "table" && c.output != "json" {
				return usageError{fmt.Errorf("output %q is neither table nor json", c.output)}
			}
			c.ran = true
			return nil
		},
	}
	root.SetVersionTemplate("shuntctl {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&c.socket, "socket", config.DefaultSocket, "control socket of the daemon")
	flags.StringVarP(&c.output, "output", "o", "table", "table for people, json for programs")
	if err := root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is right above
	}
	root.AddCommand(c.status(), c.get(), c.apply(), c.delete(), c.stats(), c.top(), c.capture(), c.drops(), c.fdb(), c.acl(), c.move(), c.volume(),
		c.version())
	sayArguments(root)
	return root
}

// sayArguments has each command say which arguments it takes, where they are too many or too few.
func sayArguments(cmd *cobra.Command) {
	if fit := cmd.Args; fit != nil && !cmd.HasSubCommands() {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if fit(cmd, args) == nil {
				return nil
			}
			return usageError{fmt.Errorf("too many or too few arguments: write %s", strings.TrimSuffix(cmd.UseLine(), " [flags]"))}
		}
	}
	for _, sub := range cmd.Commands() {
		sayArguments(sub)
	}
}

// with gives f a client of the daemon.
func (c *command) with(cmd *cobra.Command, f func(ctx context.Context, client *api.Client) error) error {
	client := api.NewClient(c.socket)
	defer client.Close()
	return f(cmd.Context(), client)
}

func (c *command) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the versions of shuntctl and the daemon", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				v := struct {
					Shuntctl string `json:"shuntctl"`
					Shuntd   string `json:"shuntd,omitempty"`
				}{Shuntctl: control.Version()}
				s, err := client.Status(ctx)
				if err != nil && !errors.Is(err, api.ErrNoDaemon) {
					return err
				}
				v.Shuntd = s.Version
				return c.print(v, func(t *table) {
					t.row("shuntctl", v.Shuntctl)
					t.row("shuntd", or(v.Shuntd, "does not run"))
				})
			})
		},
	}
}
