package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// IperfOptions say what iperf3 sends, from the client to the server.
type IperfOptions struct {
	// Reverse sends from the server to the client.
	Reverse bool
	// UDP instead of TCP, at Rate.
	UDP bool
	// Rate in bit/s; 0 is iperf3's: 1 Mbit/s for UDP, without limit for TCP.
	Rate int
	// Time to send for, in whole seconds; 0 is 2 s.
	Time time.Duration
	// TOS is the type of service, DSCP and ECN, that the data is sent with. TCP has its own ECN.
	TOS int
	// Length of a write, for UDP of a datagram's payload; 0 is iperf3's.
	Length int
}

// Iperfed is what iperf3 measured, as the receiver saw it.
type Iperfed struct {
	Bytes         uint64
	BitsPerSecond float64
	Retransmits   int // TCP
	Packets, Lost int // UDP
}

// Iperf runs an iperf3 server on one side and a client that connects to its
// address on the other.
func Iperf(ctx context.Context, server, client Runner, address string, o IperfOptions) (Iperfed, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	var output string
	go func() {
		out, err := server.Run(ctx, "iperf3", "-s", "-1", "-J")
		output = out
		served <- err
		close(served)
	}()
	result, err := iperfClient(ctx, client, address, o, served)
	// A server that is about to end would take the next client's connection, and break it.
	select {
	case <-served:
	case <-time.After(serverEnd):
		cancel()
		<-served
	}
	if err != nil {
		return result, fmt.Errorf("iperf3 to %s: %w; the server said: %s", address, err, output)
	}
	return result, nil
}

// serverEnd is how long a server may take to end by itself, a hundred times what it takes.
const serverEnd = 5 * time.Second

// iperfClient tries until the server listens.
func iperfClient(ctx context.Context, client Runner, address string, o IperfOptions, served <-chan error) (Iperfed, error) {
	for {
		out, err := client.Run(ctx, "iperf3", o.arguments(address)...)
		result, parseErr := parseIperf(out)
		if parseErr == nil {
			return result, nil
		}
		if !strings.Contains(parseErr.Error(), "Connection refused") {
			return result, errors.Join(parseErr, err)
		}
		select {
		case err := <-served:
			return result, fmt.Errorf("the server ended: %w", err)
		case <-ctx.Done():
			return result, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (o IperfOptions) arguments(address string) []string {
	seconds := o.Time
	if seconds == 0 {
		seconds = 2 * time.Second
	}
	args := []string{"-c", address, "-J", "-t", strconv.Itoa(int(seconds.Seconds())), "--connect-timeout", "10000"}
	if o.Reverse {
		args = append(args, "-R")
	}
	if o.UDP {
		args = append(args, "-u")
	}
	if o.Rate != 0 {
		args = append(args, "-b", strconv.Itoa(o.Rate))
	}
	if o.TOS != 0 {
		args = append(args, "-S", strconv.Itoa(o.TOS))
	}
	if o.Length != 0 {
		args = append(args, "-l", strconv.Itoa(o.Length))
	}
	return args
}

// parseIperf reads the report, which may come between lines on standard error.
func parseIperf(out string) (Iperfed, error) {
	type sum struct {
		Bytes         uint64
		BitsPerSecond float64 `json:"bits_per_second"`
		Retransmits   int
		Packets       int
		Lost          int `json:"lost_packets"`
	}
	var report struct {
		End struct {
			Sum         *sum
			SumSent     *sum `json:"sum_sent"`
			SumReceived *sum `json:"sum_received"`
		}
		Error string
	}
	begin := strings.Index(out, "{")
	if begin < 0 {
		return Iperfed{}, fmt.Errorf("no report in %q", out)
	}
	if err := json.NewDecoder(strings.NewReader(out[begin:])).Decode(&report); err != nil {
		return Iperfed{}, fmt.Errorf("read the report: %w", err)
	}
	if report.Error != "" {
		return Iperfed{}, errors.New(report.Error)
	}
	end := report.End
	switch {
	case end.Sum != nil: // UDP: the receiver's counts of packets
		s := end.Sum
		return Iperfed{Bytes: s.Bytes, BitsPerSecond: s.BitsPerSecond, Packets: s.Packets, Lost: s.Lost}, nil
	case end.SumSent != nil && end.SumReceived != nil:
		s := end.SumReceived
		return Iperfed{Bytes: s.Bytes, BitsPerSecond: s.BitsPerSecond, Retransmits: end.SumSent.Retransmits}, nil
	}
	return Iperfed{}, errors.New("the report has no sums")
}
