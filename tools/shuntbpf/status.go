package main

import (
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/bpf"
)

func newStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status [INTERFACE...]",
		Short: "Show which interface runs what program, with its maps and counters",
		Long: "Status shows the XDP programs of the named interfaces, or of all: ours and others. For\n" +
			"ours it shows what became of the frames, by verdict. It disturbs nobody.",
		ValidArgsFunction: interfaces(math.MaxInt),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := bpf.Inspect(o.pinPath, args...)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), all, func(w io.Writer) { statusTable(w, args, all) })
		},
	}
}

func statusTable(w io.Writer, asked []string, all []bpf.Attachment) {
	if len(all) == 0 {
		where := "any interface"
		if len(asked) > 0 {
			where = strings.Join(asked, ", ")
		}
		fmt.Fprintf(w, "no XDP program on %s\n", where)
		return
	}
	row(w, "INTERFACE", "PROGRAM", "ID", "MODE", "LINK", "OWNER", "PIN")
	for _, a := range all {
		row(w, a.Interface, a.Program.Name, a.Program.ID, a.Mode, number(a.Link), owner(a), a.Pin)
	}
	for _, a := range all {
		if len(a.Maps) > 0 {
			fmt.Fprintln(w)
			row(w, "MAPS OF "+a.Interface, "TYPE", "ID", "ENTRIES", "AT MOST")
		}
		for _, m := range a.Maps {
			entries := ""
			if m.Entries != nil {
				entries = fmt.Sprint(*m.Entries)
			}
			row(w, m.Name, m.Type, m.ID, entries, m.MaxEntries)
		}
		if len(a.Counters) > 0 {
			fmt.Fprintln(w)
			row(w, "VERDICTS ON "+a.Interface, "PACKETS", "BYTES")
		}
		for _, c := range a.Counters {
			row(w, c.Verdict, c.Packets, c.Bytes)
		}
	}
}

func number(n uint32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func owner(a bpf.Attachment) string {
	if a.Owner == 0 {
		return ""
	}
	return fmt.Sprintf("%s (%d)", a.OwnerName, a.Owner)
}
