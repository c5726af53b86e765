package peer

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// PingOptions say how to ping.
type PingOptions struct {
	// Count of requests; 0 is 3.
	Count int
	// Size of the ICMP payload in bytes; 0 is 56.
	Size int
	// Wait for each answer, in whole seconds; 0 is 5 s.
	Wait time.Duration
}

// Pinged is what ping counted. RTTs are 0 when nothing came back.
type Pinged struct {
	Sent, Received int
	Min, Avg, Max  time.Duration
	// Lost is what was said of requests without an answer, and how long that took by this machine's clock.
	Lost string
}

var (
	pingCounts = regexp.MustCompile(`(\d+) packets transmitted, (\d+) (?:packets )?received`)
	pingTimes  = regexp.MustCompile(`(?:rtt|round-trip) min/avg/max[^=]*= *([\d.]+)/([\d.]+)/([\d.]+)`)
)

// Ping sends echo requests to an IPv4 or IPv6 address, with iputils' ping or
// busybox's, one after the other. Answers that did not come are no error: look
// at Received.
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
	var sum Pinged
	for range count {
		// Of several requests at once, both programs take the answer to the last
		// for lost after two round trips, which is not so on a busy machine.
		begin := time.Now()
		out, err := r.Run(ctx, "ping", "-c", "1", "-s", strconv.Itoa(size), "-W", strconv.Itoa(int(wait.Seconds())), address)
		p, ok := parsePing(out)
		if !ok {
			return sum, fmt.Errorf("ping %s: %w\n%s", address, err, out)
		}
		sum.add(p)
		if p.Received < p.Sent {
			sum.Lost += fmt.Sprintf("after %v: %s\n", time.Since(begin).Round(time.Millisecond), strings.TrimSpace(out))
		}
	}
	return sum, nil
}

func (p *Pinged) add(q Pinged) {
	if q.Received > 0 {
		if p.Received == 0 {
			p.Min = q.Min
		}
		p.Min, p.Max = min(p.Min, q.Min), max(p.Max, q.Max)
		p.Avg = (p.Avg*time.Duration(p.Received) + q.Avg*time.Duration(q.Received)) / time.Duration(p.Received+q.Received)
	}
	p.Sent, p.Received = p.Sent+q.Sent, p.Received+q.Received
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
