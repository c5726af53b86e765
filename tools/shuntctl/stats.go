package main

import (
	"context"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
)

func (c *command) stats() *cobra.Command {
	return &cobra.Command{
		Use: "stats [NAME]", Short: "Show counters of all objects, or everything one of them counts",
		Long: "stats shows counters as the engine sees them: RX came into it, from a port's guest or an uplink's wire;\n" +
			"TX left it, to the guest or onto the wire.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				s, err := client.Stats(ctx, name)
				if err != nil {
					return err
				}
				return c.print(s, func(t *table) {
					drawStats(t, s)
					if name != "" {
						drawMore(t, s)
					}
				})
			})
		},
	}
}

func drawStats(t *table, s control.Stats) {
	t.head("OBJECT", "NAME", "RX PACKETS", "RX BYTES", "TX PACKETS", "TX BYTES", "DROPPED")
	for _, o := range s.Objects {
		t.row(o.Kind, o.Name, count(o.RxPackets), size(o.RxBytes), count(o.TxPackets), size(o.TxBytes), count(o.Dropped()))
	}
}

// drawMore shows the counters that not every object has.
func drawMore(t *table, s control.Stats) {
	if drops := s.DropList(); len(drops) > 0 {
		drawDrops(t, drops)
	}
	for _, o := range s.Objects {
		if len(o.More) == 0 {
			continue
		}
		t.head("EVENT", "COUNT")
		for _, event := range slices.Sorted(maps.Keys(o.More)) {
			t.row(event, count(o.More[event]))
		}
	}
}

func (c *command) drops() *cobra.Command {
	return &cobra.Command{
		Use: "drops", Short: "Show how many packets were dropped, where and why", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				drops, err := client.Drops(ctx)
				if err != nil {
					return err
				}
				return c.print(drops, func(t *table) {
					if len(drops) == 0 {
						t.line("no packet was dropped")
						return
					}
					drawDrops(t, drops)
				})
			})
		},
	}
}

func drawDrops(t *table, drops []control.Drop) {
	t.head("OBJECT", "NAME", "REASON", "PACKETS", "MEANING")
	for _, d := range drops {
		t.row(d.Kind, d.Name, d.Reason, count(d.Packets), d.Meaning)
	}
}

func (c *command) fdb() *cobra.Command {
	return &cobra.Command{
		Use: "fdb NETWORK", Short: "Show a network's forwarding table", Args: cobra.ExactArgs(1),
		ValidArgsFunction: c.names(control.KindNetwork),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				entries, err := client.FDB(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(entries, func(t *table) { drawFDB(t, entries) })
			})
		},
	}
}

func drawFDB(t *table, entries []control.FDBEntry) {
	t.head("MAC", "ORIGIN", "PORT", "VTEP", "IP", "AGE")
	for _, e := range entries {
		vtep, ip, age := "", "", ""
		if e.VTEP.IsValid() {
			vtep = e.VTEP.String()
		}
		if e.IP.IsValid() {
			ip = e.IP.String()
		}
		if e.Origin == control.FDBLearned {
			age = span(e.Age)
		}
		t.row(e.MAC, e.Origin, e.Port, vtep, ip, age)
	}
}
