package bench

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// BlockTable is what was measured, for people: a row for each cell, and for each peer its requests a second (in thousands), the CPU time that it took, requests a second of
// CPU time, and how many times those the first peer has.
func BlockTable(all []BlockResult, peers int) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 1, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\t")
	for _, r := range all[:peers] {
		fmt.Fprintf(w, "|\t%s\t\t\t\t", r.Peer)
	}
	fmt.Fprint(w, "\n\t")
	for range peers {
		fmt.Fprint(w, "|\tkIOPS\tCPU s\tkIOPS/CPU s\tof it\t")
	}
	fmt.Fprintln(w)
	for i := range all {
		r, first := &all[i], &all[i/peers*peers]
		if r == first {
			fmt.Fprintf(w, "%v\t", r.Cell)
		}
		ratio := ""
		if r != first && r.PerCPU() > 0 {
			ratio = fmt.Sprintf("x%.2f", first.PerCPU()/r.PerCPU())
		}
		fmt.Fprintf(w, "|\t%.1f\t%.2f\t%.1f\t%s\t", r.Rate()/1e3, r.CPU.Seconds(), r.PerCPU()/1e3, ratio)
		if (i+1)%peers == 0 {
			fmt.Fprintln(w)
		}
	}
	_ = w.Flush()
	return text.String()
}
