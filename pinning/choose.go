package pinning

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// AutoOptions bend the automatic choice. The zero value takes all it finds, anywhere.
type AutoOptions struct {
	// Max is the largest number of CPUs to choose; 0 sets no bound.
	Max int
	// Nodes are the NUMA nodes to stay on, those of the uplinks' devices. It is a
	// wish: where no CPU is left there the others are taken. Empty, or NoNode in it,
	// for no wish.
	Nodes []int
}

// Auto chooses CPUs for workers: one thread of each physical core but the first, which
// is left to everything else. Cores the operator set aside, by isolcpus= or else by
// nohz_full=, are taken before others, and then only these. There is always at least
// one, on a machine with a single CPU too; only a process without any CPU gets none.
func (t *Topology) Auto(opt AutoOptions) []int {
	cores := t.cores()
	if len(cores) == 0 {
		return nil
	}
	if len(cores) == 1 {
		// The last thread; the first is where the kernel's own work gathers.
		return []int{cores[0][len(cores[0])-1].ID}
	}
	// The first core the scheduler uses is left out; among isolated cores alone, the
	// first: shuntd's other threads must run somewhere.
	spare := max(0, slices.IndexFunc(cores, func(core []CPU) bool { return !aside(core, isolated) }))
	cores = slices.Delete(cores, spare, spare+1)

	for _, wish := range []func(CPU) bool{
		isolated,
		func(c CPU) bool { return c.NohzFull },
	} {
		if set := keep(cores, wish); len(set) > 0 {
			cores = set
			break
		}
	}
	if len(opt.Nodes) > 0 && !slices.Contains(opt.Nodes, NoNode) {
		if near := keep(cores, func(c CPU) bool { return slices.Contains(opt.Nodes, c.Node) }); len(near) > 0 {
			cores = near
		}
	}
	if opt.Max > 0 && len(cores) > opt.Max {
		cores = cores[:opt.Max]
	}
	chosen := make([]int, len(cores))
	for i, core := range cores {
		chosen[i] = core[0].ID
	}
	return chosen
}

// cores returns the allowed CPUs by core: cores by their first thread, threads by ID.
func (t *Topology) cores() [][]CPU {
	var cores [][]CPU
	index := make(map[int]int) // a core's first sibling -> its place in cores
	for _, c := range t.CPUs {
		if !c.Allowed {
			continue
		}
		i, ok := index[c.Siblings[0]]
		if !ok {
			i = len(cores)
			index[c.Siblings[0]] = i
			cores = append(cores, nil)
		}
		cores[i] = append(cores[i], c)
	}
	return cores
}

func isolated(c CPU) bool { return c.Isolated }

// aside reports whether all threads of a core fulfil a wish.
func aside(core []CPU, wish func(CPU) bool) bool {
	return !slices.ContainsFunc(core, func(c CPU) bool { return !wish(c) })
}

// keep returns, of each core, the threads that fulfil a wish, and no core without any.
func keep(cores [][]CPU, wish func(CPU) bool) [][]CPU {
	var kept [][]CPU
	for _, core := range cores {
		var threads []CPU
		for _, c := range core {
			if wish(c) {
				threads = append(threads, c)
			}
		}
		if len(threads) > 0 {
			kept = append(kept, threads)
		}
	}
	return kept
}

// Check tells what is wrong with CPUs that somebody chose by number, and what to do.
// It returns nil when each exists, is online, may be used, and is named once.
func (t *Topology) Check(cpus []int) error {
	if len(cpus) == 0 {
		return errors.New("no CPU is named; name at least one, or use auto")
	}
	all := t.ids(func(CPU) bool { return true })
	online := t.ids(func(c CPU) bool { return c.Online })
	usable := t.ids(func(c CPU) bool { return c.Allowed })
	for i, id := range cpus {
		c := t.cpu(id)
		switch {
		case slices.Contains(cpus[:i], id):
			return fmt.Errorf("CPU %d is named twice; a worker needs one of its own, so name each once", id)
		case c == nil:
			return fmt.Errorf("CPU %d does not exist, this machine has %s; choose among %s", id, all, usable)
		case !c.Online:
			return fmt.Errorf("CPU %d is offline; write 1 to /sys/devices/system/cpu/cpu%d/online, or choose among %s", id, id, online)
		case !c.Allowed:
			return fmt.Errorf("CPU %d is not allowed to this process; choose among %s, or widen what taskset, systemd's CPUAffinity= or the cgroup's cpuset.cpus leave it", id, usable)
		}
	}
	return nil
}

// SharedCores returns the groups of these CPUs that are threads of one core. Workers
// there slow each other; it is worth a warning.
func (t *Topology) SharedCores(cpus []int) [][]int {
	cores := make(map[int][]int) // by a core's first sibling
	for _, id := range sorted(cpus) {
		if c := t.cpu(id); c != nil {
			cores[c.Siblings[0]] = append(cores[c.Siblings[0]], id)
		}
	}
	var shared [][]int
	for _, first := range slices.Sorted(maps.Keys(cores)) {
		if len(cores[first]) > 1 {
			shared = append(shared, cores[first])
		}
	}
	return shared
}

// cpu returns the CPU of a number, or nil.
func (t *Topology) cpu(id int) *CPU {
	i, ok := slices.BinarySearchFunc(t.CPUs, id, func(c CPU, id int) int { return c.ID - id })
	if !ok {
		return nil
	}
	return &t.CPUs[i]
}

// ids lists the CPUs that fulfil a condition.
func (t *Topology) ids(cond func(CPU) bool) string {
	var ids []int
	for _, c := range t.CPUs {
		if cond(c) {
			ids = append(ids, c.ID)
		}
	}
	if len(ids) == 0 {
		return "none"
	}
	return FormatList(ids)
}
