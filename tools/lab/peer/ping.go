package peer

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// PingOptions say how to ping.
type PingOptions struct {
	// Count of requests; 0 is 3.
	Count int
	// Size of the ICMP payload in bytes; 0 is 56.
	Size int
	// Wait for the last answer, in whole seconds; 0 is 5 s.
	Wait time.Duration
}

// Pinged is what ping counted. RTTs are 0 when nothing came back.
type Pinged struct {
	Sent, Received int
	Min, Avg, Max  time.Duration
}

var (
	pingCounts = regexp.MustCompile(`(\d+) packets transmitted, (\d+) (?:packets )?received`)
	pingTimes  = regexp.MustCompile(`(?:rtt|round-trip) min/avg/max[^=]*= *([\d.]+)/([\d.]+)/([\d.]+)`)
)

// Ping sends echo requests to an IPv4 or IPv6 address, with iputils' ping or
// busybox's. Answers that did not come are no error: look at Received.
func Ping(ctx context.Context, r Runner, address string, o PingOptions) (Pinged, error) {
	count, size, wait := o.Count, o.Size, o.Wait
	if count == 0 {
		count = 3
	}
	if size == 0 {
		size = 56
	}
	if wait == 0 {
		wait = 5 * time.Second
	}
	out, err := r.Run(ctx, "ping", "-i", "0.2", "-c", strconv.Itoa(count), "-s", strconv.Itoa(size), "-W", strconv.Itoa(int(wait.Seconds())), address)
	p, ok := parsePing(out)
	if !ok {
		return p, fmt.Errorf("ping %s: %w\n%s", address, err, out)
	}
	return p, nil
}

func parsePing(out string) (Pinged, bool) {
	var p Pinged
	counts := pingCounts.FindStringSubmatch(out)
	if counts == nil {
		return p, false
	}
	p.Sent, p.Received = int(number(counts[1])), int(number(counts[2]))
	if times := pingTimes.FindStringSubmatch(out); times != nil {
		for i, rtt := range []*time.Duration{&p.Min, &p.Avg, &p.Max} {
			ms, err := strconv.ParseFloat(times[i+1], 64)
			if err != nil {
				return p, false
			}
			*rtt = time.Duration(ms * float64(time.Millisecond))
		}
	}
	return p, true
}
