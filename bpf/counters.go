package bpf

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Counter counts the frames of one verdict since the program was loaded.
type Counter struct {
	// Verdict is what the program decided, such as "redirect" or
	// "pass-unknown-vni"; its first word is what became of the frame.
	Verdict string `json:"verdict"`
	// Packets counts frames.
	Packets uint64 `json:"packets"`
	// Bytes counts their Ethernet headers and payload.
	Bytes uint64 `json:"bytes"`
}

func readCounters(verdicts *ebpf.Map, names []string) ([]Counter, error) {
	counters := make([]Counter, len(names))
	var perCPU []steerCounter
	for i, name := range names {
		if err := verdicts.Lookup(uint32(i), &perCPU); err != nil {
			return nil, Explain("read the counters", err)
		}
		counters[i].Verdict = name
		for _, c := range perCPU {
			counters[i].Packets += c.Packets
			counters[i].Bytes += c.Bytes
		}
	}
	return counters, nil
}

// verdictNames takes the names of the counters from the types of the program, as
// the kernel has them: so they are right for a program of any version.
func verdictNames(prog *ebpf.Program) ([]string, error) {
	handle, err := prog.Handle()
	if err != nil {
		return nil, Explain("read the types of the XDP program", err)
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("read the types of the XDP program: %w", err)
	}
	var enum *btf.Enum
	if err := spec.TypeByName("verdict", &enum); err != nil {
		return nil, fmt.Errorf("find the names of the counters: %w", err)
	}
	names := make([]string, max(1, len(enum.Values))-1) // the last value is their number
	for _, v := range enum.Values {
		if v.Value < uint64(len(names)) {
			names[v.Value] = strings.ReplaceAll(strings.ToLower(v.Name), "_", "-")
		}
	}
	return names, nil
}
