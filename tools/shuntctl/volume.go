package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
)

func (c *command) volume() *cobra.Command {
	cmd := &cobra.Command{
		Use: "volume", Short: "Resize a volume, and look at what storage servers have", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{fmt.Errorf("do what with a volume? resize, check or exports")}
		},
	}
	cmd.AddCommand(c.volumeResize(), c.volumeCheck(), c.volumeExports())
	return cmd
}

func (c *command) volumeResize() *cobra.Command {
	return &cobra.Command{
		Use: "resize NAME", Short: "Ask a volume's store how large it is now, and tell the guest", Args: cobra.ExactArgs(1),
		Long: "resize asks a volume's store anew how large it is, after it was made larger there, and tells the guest.\n" +
			"An NVMe controller says so by itself; files and NBD servers have to be asked.",
		ValidArgsFunction: c.names(control.KindVolume),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				status, err := client.ResizeVolume(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(status, func(t *table) { drawVolume(t, []control.VolumeStatus{status}) })
			})
		},
	}
}

// sourceFlags are the keys of a volume's configuration that say how its source is reached.
type sourceFlags struct {
	source config.VolumeSource
	tls    config.TLS
}

func (f *sourceFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.source.ReadOnly, "readonly", false, "what cannot be written to will do")
	flags.StringVar(&f.tls.CA, "ca", "", "file of certificates, of which one must have signed the server's")
	flags.StringVar(&f.tls.Cert, "cert", "", "file of our own certificate")
	flags.StringVar(&f.tls.Key, "key", "", "file of its key")
	flags.StringVar(&f.tls.ServerName, "server-name", "", "whose certificate the server must have")
	flags.BoolVar(&f.source.Digests.Header, "header-digest", false, "checksums of NVMe/TCP headers")
	flags.BoolVar(&f.source.Digests.Data, "data-digest", false, "checksums of NVMe/TCP data")
	flags.StringVar(&f.source.HostNQN, "host-nqn", "", "who we are for NVMe")
}

// of is the source of an argument: a URI with the flags, or a volume of the running configuration.
func (f *sourceFlags) of(ctx context.Context, client *api.Client, arg string) (config.VolumeSource, error) {
	if !strings.ContainsAny(arg, ":/") {
		v, err := client.Volume(ctx, arg)
		return v.Config.From(), err
	}
	s := f.source
	s.Source = arg
	if f.tls != (config.TLS{}) {
		s.TLS = &f.tls
	}
	if err := config.CheckSource(arg); err != nil {
		return s, usageError{err}
	}
	return s, nil
}

func (c *command) volumeCheck() *cobra.Command {
	var flags sourceFlags
	cmd := &cobra.Command{
		Use: "check NAME|URI", Short: "Connect to a store, and say what it is and can do", Args: cobra.ExactArgs(1),
		Long: "check has the daemon connect to a store as a volume would, read what it is, and leave. It takes the name of a volume, or a URI\n" +
			"as the key source has it; the flags are for URIs.",
		ValidArgsFunction: c.names(control.KindVolume),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				source, err := flags.of(ctx, client, args[0])
				if err != nil {
					return err
				}
				report, err := client.CheckVolume(ctx, source)
				if err != nil {
					return err
				}
				return c.print(report, func(t *table) { drawReport(t, report) })
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func (c *command) volumeExports() *cobra.Command {
	var flags sourceFlags
	cmd := &cobra.Command{
		Use: "exports URI", Short: "List what a storage server offers", Args: cobra.ExactArgs(1),
		Long: "exports lists what a server has: the exports of an NBD server (nbd://HOST), or the subsystems that an NVMe discovery\n" +
			"controller knows (nvme+tcp://HOST, port 8009).",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				if u, is := strings.CutPrefix(args[0], config.SchemeNVMe+"://"); is && !strings.Contains(strings.TrimSuffix(u, "/"), "/") {
					args[0] = strings.TrimSuffix(args[0], "/") + "/" + config.DiscoveryNQN
				}
				source, err := flags.of(ctx, client, args[0])
				if err != nil {
					return err
				}
				list, err := client.VolumeExports(ctx, source)
				if err != nil {
					return err
				}
				return c.print(list, func(t *table) {
					if len(list) == 0 {
						t.line("the server offers nothing, or does not say")
						return
					}
					t.head("SOURCE", "DESCRIPTION")
					for _, e := range list {
						t.row(e.Source, e.Description)
					}
				})
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func drawReport(t *table, r control.VolumeReport) {
	t.head("STORE", r.Source)
	s := r.Store
	t.row("answered in", time.Duration(r.Took*float64(time.Second)).Round(100*time.Microsecond))
	t.row("is", s.Description)
	t.row("size", fmt.Sprintf("%s (%s)", size(s.Size), count(s.Size)))
	t.row("blocks", fmt.Sprintf("%d, physical %d, optimal %d", s.BlockSize, or(s.PhysicalBlock, s.BlockSize), or(s.OptimalIO, s.BlockSize)))
	t.row("can", strings.Join(abilities(s), ", "))
	if len(r.Notes) > 0 {
		t.line("\n%s", strings.Join(r.Notes, "\n"))
	}
}

// abilities says what a store can do.
func abilities(s control.StoreStatus) (list []string) {
	for _, a := range []struct {
		can  bool
		what string
	}{
		{true, "read"}, {!s.ReadOnly, "write"}, {s.Flush, "flush"}, {s.FUA, "fua"}, {s.Discard, "discard"}, {s.WriteZeroes, "write-zeroes"},
		{s.MultiWorker, "several workers"},
	} {
		if a.can {
			list = append(list, a.what)
		}
	}
	return list
}

func drawVolumes(t *table, list []control.VolumeStatus, now time.Time) {
	t.head("VOLUME", "STATE", "SIZE", "QUEUES", "WORKERS", "SOURCE", "ATTACHED TO")
	for _, v := range list {
		bytes := ""
		if v.Store != nil {
			bytes = size(v.Store.Size)
		}
		t.row(v.Name, v.State, bytes, v.Queues, joined(v.Workers), v.Source, v.Socket)
	}
	for _, v := range list {
		if v.Reason != "" {
			t.line("volume %s: %s", v.Name, v.Reason)
		}
		for _, w := range v.Waits {
			t.line("volume %s: %s%s", v.Name, w.Reason, within(w.Until, now))
		}
	}
}

// within says how long something takes at most, if that is known.
func within(until, now time.Time) string {
	if until.IsZero() {
		return ""
	}
	return fmt.Sprintf(", %.1f s at most", max(0, until.Sub(now).Seconds()))
}

// drawVolume adds to one volume what is too long for a table of many.
func drawVolume(t *table, list []control.VolumeStatus) {
	drawVolumes(t, list, time.Now())
	if len(list) != 1 {
		return
	}
	if v := list[0]; v.Store != nil {
		t.line("\nstore:    %s\ncan:      %s\nserial:   %s", v.Store.Description, strings.Join(abilities(*v.Store), ", "), v.Serial)
		if len(v.Features) > 0 {
			t.line("features: %s", strings.Join(v.Features, " "))
		}
	}
}

func (c *command) getVolumeGroups() *cobra.Command {
	return &cobra.Command{
		Use: "volume-groups [NAME]", Aliases: []string{string(control.KindVolumeGroup)}, Short: "Show all volume-groups, or one", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: c.names(control.KindVolumeGroup),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				var value any
				var list []api.VolumeGroup
				var err error
				if len(args) == 0 {
					list, err = client.VolumeGroups(ctx)
					value = list
				} else {
					var g api.VolumeGroup
					g, err = client.VolumeGroup(ctx, args[0])
					list, value = []api.VolumeGroup{g}, g
				}
				if err != nil {
					return err
				}
				return c.print(value, func(t *table) { drawVolumeGroups(t, list) })
			})
		},
	}
}

func drawVolumeGroups(t *table, list []api.VolumeGroup) {
	t.head("VOLUME GROUP", "IOPS", "BYTES/S", "BURST")
	for _, g := range list {
		iops, bytes := "", ""
		if l := g.Config.Limits; l.IOPS > 0 {
			iops = count(l.IOPS)
		}
		if l := g.Config.Limits; l.BPS > 0 {
			bytes = size(l.BPS)
		}
		t.row(g.Config.Name, iops, bytes, g.Config.Limits.Burst)
	}
}
