package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
)

func (c *command) stats() *cobra.Command {
	var watched bool
	every := interval(time.Second)
	cmd := &cobra.Command{
		Use: "stats [NAME]", Short: "Show counters of all objects, or everything one of them counts",
		Long: "stats shows counters as the engine sees them: RX came into it, from a port's guest or an uplink's wire;\n" +
			"TX left it, to the guest or onto the wire. A volume counts requests and bytes, and by its NAME how long each kind took.\n" +
			"With -w it goes on, and shows what changes in a second.",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.names(control.KindPort, control.KindUplink, control.KindVolume),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			return c.with(cmd, func(ctx context.Context, client *api.Client) error {
				if watched {
					return c.watchStats(ctx, client, name, time.Duration(every))
				}
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
	cmd.Flags().BoolVarP(&watched, "watch", "w", false, "go on, and show packets and bits a second")
	cmd.Flags().VarP(&every, "interval", "i", "how often to look, with --watch")
	return cmd
}

// watchStats shows rates until ctx ends: one table over the other on a terminal, one below the other elsewhere. As JSON it is the counters, a line each time.
func (c *command) watchStats(ctx context.Context, client *api.Client, name string, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var was control.Stats
	for turn := 0; ; turn++ {
		s, err := client.Stats(ctx, name)
		switch {
		case ctx.Err() != nil:
			return nil // that is how it ends
		case err != nil:
			return err
		case c.output == "json":
			err = json.NewEncoder(c.out).Encode(s)
		case turn > 0:
			err = c.drawWatch(s, compareStats(was, s), name != "")
		}
		if err != nil {
			return err
		}
		was = s
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// drawWatch writes one table, at once, so that a terminal does not flicker.
func (c *command) drawWatch(s control.Stats, list []rates, one bool) error {
	var text bytes.Buffer
	t := newTable(&text)
	t.line("%s", s.At.Local().Format(time.TimeOnly))
	drawRates(t, list)
	if one {
		drawRatesMore(t, list)
	}
	t.line("")
	if err := t.end(); err != nil {
		return err
	}
	if isTerminal(c.out) {
		if _, err := io.WriteString(c.out, "\x1b[H\x1b[2J"); err != nil {
			return err
		}
	}
	_, err := c.out.Write(text.Bytes())
	return err
}

func drawRates(t *table, list []rates) {
	var disks []rates // which come last
	for i, r := range list {
		if r.volume != nil {
			disks = append(disks, r)
			continue
		}
		if i == 0 {
			t.head("OBJECT", "NAME", "RX PPS", "RX BIT/S", "TX PPS", "TX BIT/S", "DROPPED/S")
		}
		t.row(r.kind, r.name, rate(r.rxPackets), rate(r.rxBits), rate(r.txPackets), rate(r.txBits), rate(r.dropped))
	}
	if len(disks) > 0 {
		drawVolumeRates(t, disks)
	}
}

// drawRatesMore shows what changes of the counters that not every object has.
func drawRatesMore(t *table, list []rates) {
	t.head("DROP REASON OR EVENT", "PER SECOND")
	for _, r := range list {
		for _, reason := range slices.Sorted(maps.Keys(r.drops)) {
			t.row(reason, rate(r.drops[reason]))
		}
		for _, event := range slices.Sorted(maps.Keys(r.more)) {
			t.row(event, rate(r.more[event]))
		}
	}
}

func drawStats(t *table, s control.Stats) {
	var disks []control.ObjectStats // which come last
	for i, o := range s.Objects {
		if o.Volume != nil {
			disks = append(disks, o)
			continue
		}
		if i == 0 {
			t.head("OBJECT", "NAME", "RX PACKETS", "RX BYTES", "TX PACKETS", "TX BYTES", "DROPPED")
		}
		t.row(o.Kind, o.Name, count(o.RxPackets), size(o.RxBytes), count(o.TxPackets), size(o.TxBytes), count(o.Dropped()))
	}
	if len(disks) > 0 {
		drawVolumeStats(t, disks)
	}
}

// drawMore shows the counters that not every object has.
func drawMore(t *table, s control.Stats) {
	if drops := s.DropList(); len(drops) > 0 {
		drawDrops(t, drops)
	}
	for _, o := range s.Objects {
		if o.Volume != nil {
			drawVolumeMore(t, o.Volume)
		}
		if len(o.Queues) > 1 {
			t.head("QUEUE", "WORKER", "RX PACKETS", "RX BYTES", "TX PACKETS", "TX BYTES", "DROPPED")
			for _, q := range o.Queues {
				t.row(q.Queue, q.Worker, count(q.RxPackets), size(q.RxBytes), count(q.TxPackets), size(q.TxBytes), count(q.Dropped()))
			}
		}
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
