// Package pinning finds the CPUs a worker may have and gives it one.
//
//	/sys/devices/system/{cpu,node} --Read--> Topology --Auto or Check--> CPUs --Apply--> one thread each
//	the affinity mask ---------------^
//
// A worker polls, so it wants a core of its own: two workers on the two threads of
// one core slow each other, and one on a core the scheduler also uses is held up.
// What the kernel tells about that is read from sysfs:
//
//   - which CPUs exist and are online;
//   - which are threads of one core (SMT siblings), which belong to one NUMA node;
//   - which the scheduler leaves alone (isolcpus=) or does not interrupt by its tick
//     while one task runs (nohz_full=): the operator set these aside for such work;
//   - which this process may use: its affinity mask, that cgroup cpusets, taskset and
//     systemd's CPUAffinity= narrow.
//
// In a container much of this may be missing. Then every allowed CPU counts as a core
// of its own on node 0, which is right for the choice and wrong for nothing else.
package pinning

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// NoNode is the NUMA node of a device that is near none or all of them.
const NoNode = -1

// CPU is one logical CPU, a thread of a core.
type CPU struct {
	ID       int
	Package  int   // the socket
	Node     int   // the NUMA node
	Siblings []int // all online threads of its core, itself among them, ascending
	Online   bool
	Isolated bool // the scheduler places nothing here by itself (isolcpus=)
	NohzFull bool // no scheduler tick while one task runs (nohz_full=)
	Allowed  bool // online, and this process may use it
}

// Topology is what CPUs there are. It does not change once read.
type Topology struct {
	CPUs []CPU // by ascending ID, offline ones too
}

// Host reads the machine's topology and the CPUs this process may use. It is called
// before any thread is pinned, for it asks the main thread's mask.
func Host() (*Topology, error) {
	sys := os.DirFS("/sys")
	isolated, _, err := readList(sys, cpuDir+"isolated")
	if err != nil {
		return nil, err
	}
	allowed, err := allowed(isolated)
	if err != nil {
		return nil, err
	}
	return Read(sys, allowed)
}

const (
	cpuDir  = "devices/system/cpu/"
	nodeDir = "devices/system/node/"
)

// Read takes the topology from sys, a file system as at /sys, for a process that may
// use the CPUs in allowed. Files that are missing are made up for; one that is there
// and cannot be understood is an error.
func Read(sys fs.FS, allowed []int) (*Topology, error) {
	r := reader{sys: sys}
	online, hasOnline := r.list(cpuDir + "online")
	present, hasPresent := r.list(cpuDir + "present")
	if !hasOnline {
		online = allowed
		if hasPresent && len(allowed) == 0 {
			online = present
		}
	}
	// What the kernel lets a process use is there and online, whatever a container's
	// sysfs shows.
	online = union(online, allowed)
	present = union(present, online)

	isolated, _ := r.list(cpuDir + "isolated")
	nohz, _ := r.list(cpuDir + "nohz_full")
	nodes := r.nodes()

	t := &Topology{CPUs: make([]CPU, 0, len(present))}
	for _, id := range present {
		c := CPU{
			ID:       id,
			Node:     nodes[id],
			Siblings: []int{id},
			Online:   slices.Contains(online, id),
			Isolated: slices.Contains(isolated, id),
			NohzFull: slices.Contains(nohz, id),
			Allowed:  slices.Contains(allowed, id),
		}
		if c.Online { // an offline CPU has no topology folder
			r.core(&c)
		}
		t.CPUs = append(t.CPUs, c)
	}
	if r.err != nil {
		return nil, fmt.Errorf("read the CPU topology: %w", r.err)
	}
	return t, nil
}

// core fills in what devices/system/cpu/cpuN/topology tells.
func (r *reader) core(c *CPU) {
	dir := cpuDir + "cpu" + strconv.Itoa(c.ID) + "/topology/"
	c.Package = r.number(dir + "physical_package_id")
	siblings, ok := r.list(dir + "core_cpus_list")
	if !ok {
		siblings, ok = r.list(dir + "thread_siblings_list") // its name before Linux 5.4
	}
	if ok {
		c.Siblings = union(siblings, c.Siblings)
	}
}

// nodes returns the NUMA node by CPU. A machine without NUMA has no node folder, and
// a node may have memory and no CPU.
func (r *reader) nodes() map[int]int {
	nodes := make(map[int]int)
	online, _ := r.list(nodeDir + "online")
	for _, node := range online {
		cpus, _ := r.list(nodeDir + "node" + strconv.Itoa(node) + "/cpulist")
		for _, cpu := range cpus {
			nodes[cpu] = node
		}
	}
	return nodes
}

// DeviceNode returns the NUMA node of a network interface's device, or NoNode: a veth
// has no device, and a machine with one node need not say so.
func DeviceNode(sys fs.FS, name string) (int, error) {
	dir := path.Join("class/net", name)
	if _, err := fs.Stat(sys, dir); err != nil || !strings.HasPrefix(dir, "class/net/") {
		return NoNode, fmt.Errorf("interface %q is not in /sys/class/net; name one that `ip link` shows", name)
	}
	text, err := fs.ReadFile(sys, dir+"/device/numa_node")
	if err != nil {
		return NoNode, nil
	}
	node, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || node < 0 {
		return NoNode, nil
	}
	return node, nil
}

// reader reads sysfs files and keeps the first error other than absence.
type reader struct {
	sys fs.FS
	err error
}

func (r *reader) list(name string) (cpus []int, ok bool) {
	cpus, ok, err := readList(r.sys, name)
	r.fail(err)
	return cpus, ok
}

func (r *reader) number(name string) int {
	text, err := fs.ReadFile(r.sys, name)
	if err != nil {
		r.fail(absent(err))
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		r.fail(fmt.Errorf("/sys/%s: %q is no number", name, text))
	}
	return n
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// readList reads a list of CPUs or nodes; ok is false when there is no such file.
func readList(sys fs.FS, name string) (cpus []int, ok bool, err error) {
	text, err := fs.ReadFile(sys, name)
	if err != nil {
		return nil, false, absent(err)
	}
	list := strings.TrimSpace(string(text))
	if list == "(null)" { // nohz_full of a kernel that could and does not
		return nil, true, nil
	}
	cpus, err = ParseList(list)
	if err != nil {
		return nil, false, fmt.Errorf("/sys/%s: %w", name, err)
	}
	return sorted(cpus), true, nil
}

// absent makes absence no error.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// union returns what is in a or b, ascending.
func union(a, b []int) []int {
	return slices.Compact(sorted(slices.Concat(a, b)))
}
