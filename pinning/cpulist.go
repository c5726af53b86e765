package pinning

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxCPUs bounds CPU numbers: the largest NR_CPUS a kernel is built with (x86,
// MAXSMP). It keeps a list such as "0-4294967295" from being expanded.
const MaxCPUs = 8192

// ParseList reads a list of CPUs as the kernel writes it and people do: numbers and
// ranges between commas, such as "0-3,8,10-11". The CPUs come in the order written;
// none comes twice. An empty list is no error.
func ParseList(s string) ([]int, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	var cpus []int
	var seen [MaxCPUs]bool
	for item := range strings.SplitSeq(s, ",") {
		first, last, err := parseRange(strings.TrimSpace(item))
		if err != nil {
			return nil, fmt.Errorf("CPU list %q: %w", s, err)
		}
		for cpu := first; cpu <= last; cpu++ {
			if seen[cpu] {
				return nil, fmt.Errorf("CPU list %q: CPU %d is named twice; name each once", s, cpu)
			}
			seen[cpu] = true
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// parseRange reads "3" or "3-5".
func parseRange(item string) (first, last int, err error) {
	low, high, isRange := strings.Cut(item, "-")
	if first, err = parseCPU(low, item); err != nil || !isRange {
		return first, first, err
	}
	if last, err = parseCPU(high, item); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("the range %s runs backwards; write %d-%d", item, last, first)
	}
	return first, last, nil
}

func parseCPU(number, item string) (int, error) {
	// ParseUint, unlike Atoi, takes no sign.
	cpu, err := strconv.ParseUint(number, 10, 64)
	switch {
	case err == nil && cpu < MaxCPUs:
		return int(cpu), nil
	case err == nil || strings.Trim(number, "0123456789") == "" && number != "":
		return 0, fmt.Errorf("%s is beyond the last possible CPU, %d", number, MaxCPUs-1)
	case item == "":
		return 0, fmt.Errorf("a number is missing beside a comma; write numbers and ranges such as 0-3,8")
	default:
		return 0, fmt.Errorf("%q is no CPU or range; write numbers and ranges such as 0-3,8", item)
	}
}

// FormatList writes CPUs as ParseList reads them, runs of successive ones as ranges.
func FormatList(cpus []int) string {
	var b strings.Builder
	for i := 0; i < len(cpus); {
		end := i + 1
		for end < len(cpus) && cpus[end] == cpus[end-1]+1 {
			end++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(cpus[i]))
		if end-i > 1 {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(cpus[end-1]))
		}
		i = end
	}
	return b.String()
}

// sorted returns cpus in ascending order.
func sorted(cpus []int) []int { return slices.Sorted(slices.Values(cpus)) }
