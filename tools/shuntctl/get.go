package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
)

func (c *command) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the daemon, its workers and everything it serves", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				s, err := client.Status(ctx)
				if err != nil {
					return err
				}
				return c.print(s, func(t *table) { drawStatus(t, s, time.Now()) })
			})
		},
	}
}

func drawStatus(t *table, s control.Status, now time.Time) {
	memory := ""
	if s.HugePages {
		memory = ", frame memory on huge pages"
	}
	t.line("shuntd %s, process %d, up %s%s", s.Version, s.PID, span(now.Sub(s.Started)), memory)
	t.head("WORKER", "CPU", "IDLE", "BUSY", "ROUNDS", "SLEEPS", "PACKETS", "FREE FRAMES")
	for _, w := range s.Workers {
		cpu := fmt.Sprint(w.CPU)
		if w.CPU < 0 {
			cpu = "any"
		}
		t.row(w.ID, cpu, w.Idle, fmt.Sprintf("%.1f %%", 100*w.Busy), count(w.Rounds), count(w.Sleeps), count(w.Packets),
			fmt.Sprintf("%d of %d", w.FreeFrames, w.Frames))
	}
	if len(s.Uplinks) > 0 {
		drawUplinks(t, s.Uplinks)
	}
	if len(s.Networks) > 0 {
		drawNetworks(t, s.Networks)
	}
	if len(s.Ports) > 0 {
		drawPorts(t, s.Ports)
	}
	if len(s.Volumes) > 0 {
		drawVolumes(t, s.Volumes, now)
	}
	drawFailed(t, s.Failed, now)
}

// drawFailed shows what is not as configured, and how it is tried again if it is.
func drawFailed(t *table, list []control.Failure, now time.Time) {
	if len(list) == 0 {
		return
	}
	t.head("FAILED", "NAME", "TRIED", "SINCE", "NEXT TRY", "ERROR")
	for _, f := range list {
		row := []any{f.Kind, f.Name, "", "", "", f.Error}
		if r := f.Retry; r != nil {
			row[2], row[3], row[4] = count(uint64(r.Tries)), span(now.Sub(r.Since)), span(max(r.Next.Sub(now), 0))
		}
		t.row(row...)
	}
}

func drawUplinks(t *table, list []control.UplinkStatus) {
	t.head("UPLINK", "DEVICE", "STATE", "XDP", "BIND", "QUEUES", "ADDRESS", "MTU", "NEIGHBOURS")
	for _, u := range list {
		address := ""
		if u.Address.IsValid() {
			address = u.Address.String()
		}
		t.row(u.Name, or(u.Interface, u.VhostUser), state(u.State, u.Reason), u.XDP, bound(u), u.Queues, address, u.MTU, u.Neighbours)
	}
}

// bound is how an uplink's sockets work.
func bound(u control.UplinkStatus) string {
	how := u.Bind
	if u.BusyPoll {
		how += " busy-poll"
	}
	if u.MultiBuffer {
		how += " multi-buffer"
	}
	return how
}

func drawNetworks(t *table, list []control.NetworkStatus) {
	t.head("NETWORK", "VNI", "UPLINK", "MTU", "LEARNING", "PORTS", "STATIC", "LEARNED")
	for _, n := range list {
		vni := ""
		switch {
		case n.VNI != 0:
			vni = fmt.Sprint(n.VNI)
		case n.Uplink != "":
			vni = "flat"
		}
		t.row(n.Name, vni, n.Uplink, n.MTU, yes(n.Learning), n.Ports, n.Static, n.Learned)
	}
	for _, n := range list {
		if n.Problem != "" {
			t.line("network %s: %s", n.Name, n.Problem)
		}
	}
}

func drawPorts(t *table, list []control.PortStatus) {
	t.head("PORT", "NETWORK", "STATE", "MAC", "RING", "QUEUES", "WORKERS", "ATTACHED TO")
	for _, p := range list {
		mac := ""
		if !p.MAC.IsZero() {
			mac = p.MAC.String()
		}
		t.row(p.Name, p.Network, state(p.State, p.Reason), mac, p.Ring, p.Queues, joined(p.Workers), or(p.Socket, p.Interface))
	}
}

// joined shows the workers of a port's queue pairs.
func joined(numbers []int) string {
	text := make([]string, len(numbers))
	for i, n := range numbers {
		text[i] = fmt.Sprint(n)
	}
	return strings.Join(text, ",")
}

func state(s control.State, reason string) string {
	if reason != "" {
		return fmt.Sprintf("%s (%s)", s, reason)
	}
	return string(s)
}

func (c *command) get() *cobra.Command {
	get := &cobra.Command{
		Use: "get", Short: "Show configured objects and their state", Args: cobra.NoArgs,
		Long: "get shows configured objects and their state; with -o json the running configuration of each, too.",
		RunE: func(*cobra.Command, []string) error {
			return usageError{fmt.Errorf("get what? uplinks, networks, ports, volumes or volume-groups")}
		},
	}
	get.AddCommand(
		getObjects(c, control.KindUplink, (*api.Client).Uplinks, (*api.Client).Uplink, drawUplinks),
		getObjects(c, control.KindNetwork, (*api.Client).Networks, (*api.Client).Network, drawNetworks),
		getObjects(c, control.KindPort, (*api.Client).Ports, (*api.Client).Port, drawPort),
		getObjects(c, control.KindVolume, (*api.Client).Volumes, (*api.Client).Volume, drawVolume),
		c.getVolumeGroups(),
	)
	return get
}

// drawPort adds to one port what is too long for a table of many.
func drawPort(t *table, list []control.PortStatus) {
	drawPorts(t, list)
	if len(list) == 1 && len(list[0].Features) > 0 {
		t.line("\nfeatures: %s", strings.Join(list[0].Features, " "))
	}
}

func getObjects[C, S any](c *command, kind control.Kind,
	all func(*api.Client, context.Context) ([]api.Object[C, S], error),
	one func(*api.Client, context.Context, string) (api.Object[C, S], error),
	draw func(*table, []S),
) *cobra.Command {
	return &cobra.Command{
		Use: string(kind) + "s [NAME]", Aliases: []string{string(kind)}, Short: "Show all " + string(kind) + "s, or one",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.names(kind),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				var value any
				var list []api.Object[C, S]
				var err error
				if len(args) == 0 {
					list, err = all(client, ctx)
					value = list
				} else {
					var o api.Object[C, S]
					o, err = one(client, ctx, args[0])
					list, value = []api.Object[C, S]{o}, o
				}
				if err != nil {
					return err
				}
				var states []S
				for _, o := range list {
					if o.Status != nil {
						states = append(states, *o.Status)
					}
				}
				failed, err := c.failedOf(ctx, client, kind, len(args) == 0)
				if err != nil {
					return err
				}
				return c.print(value, func(t *table) {
					draw(t, states)
					drawFailed(t, failed, time.Now())
				})
			})
		},
	}
}

// failedOf is what of a kind failed, for people who look at all of it.
func (c *command) failedOf(ctx context.Context, client *api.Client, kind control.Kind, all bool) (failed []control.Failure, err error) {
	if !all || c.output == "json" {
		return nil, nil
	}
	s, err := client.Status(ctx)
	for _, f := range s.Failed {
		if f.Kind == kind {
			failed = append(failed, f)
		}
	}
	return failed, err
}

// names completes a first argument with the names of some kinds of objects, by asking the daemon.
func (c *command) names(kinds ...control.Kind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var names []string
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		_ = c.with(cmd, func(ctx context.Context, client *api.Client) error { // without a daemon there are none
			running, err := client.Config(ctx)
			if err != nil {
				return err
			}
			for _, u := range running.Uplinks {
				if slices.Contains(kinds, control.KindUplink) {
					names = append(names, u.Name)
				}
			}
			for _, n := range running.Networks {
				if slices.Contains(kinds, control.KindNetwork) {
					names = append(names, n.Name)
				}
			}
			for _, p := range running.Ports {
				if slices.Contains(kinds, control.KindPort) {
					names = append(names, p.Name)
				}
			}
			for _, v := range running.Volumes {
				if slices.Contains(kinds, control.KindVolume) {
					names = append(names, v.Name)
				}
			}
			for _, g := range running.VolumeGroups {
				if slices.Contains(kinds, control.KindVolumeGroup) {
					names = append(names, g.Name)
				}
			}
			return nil
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
