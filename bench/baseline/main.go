// Baseline runs the Go libraries that shunt does not use on its data path beside what
// it uses instead, on the same jobs, in one process:
//
//	job                                     theirs               ours
//	transmit 114-byte frames by AF_XDP      asavie/xdp           dataplane/xsk
//	io_uring: nothing, 4 KiB reads          giouring             (comes with blk)
//	take apart a VXLAN frame                google/gopacket      dataplane/wire
//	put the outer headers on a frame        google/gopacket      dataplane/wire
//
// They take turns of a fraction of a second, so that whatever else the machine does
// hits all alike, and what counts is the CPU time of the thread they run on. It is a
// module of its own, because it alone requires these versions, and is linked with
// -checklinkname=0, because giouring is not linked without. As root:
//
//	make baseline
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"time"
)

func main() {
	run := flag.String("run", "", "only jobs that match this `regexp`")
	rounds := flag.Int("rounds", 9, "turns each contender gets; the median counts")
	turn := flag.Duration("turn", 300*time.Millisecond, "length of a turn")
	flag.Parse()
	only, err := regexp.Compile(*run)
	if err != nil || *rounds < 1 || *turn <= 0 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "baseline: -run takes a regular expression, -rounds and -turn something above zero")
		os.Exit(2)
	}
	for _, j := range jobs {
		if !only.MatchString(j.name) {
			continue
		}
		results, err := j.run(*rounds, *turn)
		if err != nil {
			fmt.Fprintf(os.Stderr, "baseline: %v\n", err)
			os.Exit(1)
		}
		printTable(os.Stdout, j, results)
	}
}
