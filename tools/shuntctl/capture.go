package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
)

// captureEnd is how long a capture that was told to end may take for its last packets and statistics.
const captureEnd = 5 * time.Second

func (c *command) capture() *cobra.Command {
	var o control.CaptureOptions
	var file, direction string
	var list bool
	var end uint64
	cmd := &cobra.Command{
		Use: "capture [NAME...] -w FILE", Short: "Write packets to a file for Wireshark", ValidArgsFunction: func(cmd *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
			return c.names(control.KindPort, control.KindUplink)(cmd, nil, begin)
		},
		Long: "capture writes the packets of ports and uplinks, or of all if none is named, as pcapng: to a file, or with -w - to a pipe such as\n\n" +
			"  shuntctl capture vm1-eth0 -w - | wireshark -k -i -\n\n" +
			"A packet is inbound that came into the engine, from the guest or the wire, and outbound that left it. On an uplink tunnelled packets have\n" +
			"their outer headers. With --drops there are those that were dropped, with the reason as a comment; of a long one only the head.\n\n" +
			"A filter is an expression as tcpdump takes it, without access to single bytes: host, net, port, portrange, tcp, udp, icmp, icmp6, arp, ip,\n" +
			"ip6, proto, ether, less, greater, joined with and, or, not. VLAN tags are looked through; vlan N, vni N, and inner, which looks into VXLAN:\n\n" +
			"  shuntctl capture up0 -w up0.pcapng --filter 'vni 100 and inner (tcp port 443 or icmp)'\n\n" +
			"The capture ends with --count, with Ctrl-C, or when whoever reads the pipe goes away. What the daemon had to leave out, since the\n" +
			"file was not written fast enough, is counted as missed; no packet is held up or lost for a capture.",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Names, o.Direction = args, control.CaptureDirection(direction)
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				switch {
				case list:
					return c.listCaptures(ctx, client)
				case end != 0:
					return client.EndCapture(ctx, end)
				case file == "":
					return usageError{errors.New("capture to which file? name it with -w, or pipe -w - to a program")}
				case file == "-" && isTerminal(c.out):
					return usageError{errors.New("packets are no text for a terminal: name a file with -w, or pipe to a program")}
				}
				return c.runCapture(ctx, client, o, file, cmd.ErrOrStderr())
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&file, "write", "w", "", "file that is written, or - for the standard output")
	flags.StringVarP(&o.Filter, "filter", "f", "", "expression that chooses packets; all if there is none")
	flags.Uint64VarP(&o.Count, "count", "c", 0, "end after so many packets; 0: go on")
	flags.IntVarP(&o.Snaplen, "snaplen", "s", 0, "bytes kept of each packet; 0: all")
	flags.StringVar(&direction, "direction", "", "in, out or both; with --drops also none, which is then the default")
	flags.StringSliceVar(&o.Drops, "drops", nil, "capture packets dropped for these reasons, or any")
	flags.BoolVar(&list, "list", false, "show the captures that run, and end")
	flags.Uint64Var(&end, "end", 0, "end the capture of this number, whoever runs it")
	for name, words := range map[string][]string{"direction": {"in", "out", "both", "none"}, "drops": {control.AnyReason}} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // the flag is right above
		}
	}
	return cmd
}

// runCapture copies the stream until it ends. A signal ends it in good order: the daemon is told, and its last words are still written.
func (c *command) runCapture(ctx context.Context, client *api.Client, o control.CaptureOptions, file string, errs io.Writer) (err error) {
	// Whoever reads a pipe may go away; that is an end, and not to be killed by.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, unix.SIGPIPE)
	defer signal.Stop(broken)

	hard, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	stream, err := client.Capture(hard, o)
	if err != nil {
		return err
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() {
		ending, cancel := context.WithTimeout(hard, captureEnd)
		defer cancel()
		if client.EndCapture(ending, stream.ID) != nil {
			abort()
		}
		time.AfterFunc(captureEnd, abort)
	})
	defer stop()

	out, done, err := c.create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	progress := watchCapture(ctx, client, stream.ID, errs)
	n, err := copyUntil(hard, out, stream)
	progress()
	if errors.Is(err, unix.EPIPE) {
		fmt.Fprintf(errs, "shuntctl: whoever read the capture went away after %s\n", size(uint64(n)))
		return nil
	}
	counters, whole := stream.Counters()
	switch {
	case err != nil && ctx.Err() == nil:
		return fmt.Errorf("the capture broke off after %s: %w", size(uint64(n)), err)
	case !whole:
		return fmt.Errorf("the capture broke off after %s", size(uint64(n)))
	}
	fmt.Fprintf(errs, "%s packets captured, %s missed, %s written\n", count(counters.Packets), count(counters.Missed), size(uint64(n)))
	return nil
}

// copyUntil copies until the stream ends, or ctx: a pipe that nobody reads may hold up the last write for ever.
func copyUntil(ctx context.Context, out io.Writer, stream io.Reader) (int64, error) {
	type result struct {
		n   int64
		err error
	}
	copied := make(chan result, 1)
	go func() {
		n, err := io.Copy(out, stream)
		copied <- result{n, err}
	}()
	select {
	case r := <-copied:
		return r.n, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-copied:
		return r.n, r.err
	case <-time.After(time.Second):
		return 0, errors.New("what it is written to takes nothing any more")
	}
}

// create opens what is written to, and returns how to close it.
func (c *command) create(file string) (io.Writer, func() error, error) {
	if file == "-" {
		return c.out, func() error { return nil }, nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // what packets say is nobody else's
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("%w: name a file that can be written to", err)}
	}
	return f, f.Close, nil
}

// watchCapture shows on a terminal how far the capture is, until the function that it returns is called.
func watchCapture(ctx context.Context, client *api.Client, id uint64, errs io.Writer) (end func()) {
	if !isTerminal(errs) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				fmt.Fprint(errs, "\r\x1b[K")
				return
			case <-tick.C:
			}
			list, _ := client.Captures(ctx)
			for _, s := range list {
				if s.ID == id {
					fmt.Fprintf(errs, "\r\x1b[K%s packets captured, %s missed", count(s.Packets), count(s.Missed))
				}
			}
		}
	}()
	return func() { cancel(); <-ended }
}

func (c *command) listCaptures(ctx context.Context, client *api.Client) error {
	list, err := client.Captures(ctx)
	if err != nil {
		return err
	}
	return c.print(list, func(t *table) {
		if len(list) == 0 {
			t.line("no capture runs")
			return
		}
		t.head("CAPTURE", "OF", "DIRECTION", "DROPS", "FILTER", "PACKETS", "MISSED", "SINCE")
		for _, s := range list {
			t.row(s.ID, or(strings.Join(s.Names, ","), "all"), s.Direction, strings.Join(s.Drops, ","), s.Filter, count(s.Packets), count(s.Missed),
				span(time.Since(s.Started)))
		}
	})
}

// isTerminal tells whether somebody looks at what is written.
func isTerminal(w io.Writer) bool {
	f, is := w.(*os.File)
	if !is {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
