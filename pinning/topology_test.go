package pinning

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// sysfs is a /sys made of file contents.
func sysfs(files map[string]string) fstest.MapFS {
	m := make(fstest.MapFS, len(files))
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text + "\n")}
	}
	return m
}

// server is a machine of two sockets with four cores of two threads each: thread 0 of
// core i is CPU i, thread 1 is CPU i+8; cores 0-3 are socket 0 and node 0.
func server(more map[string]string) fstest.MapFS {
	files := map[string]string{
		cpuDir + "present":        "0-15",
		cpuDir + "online":         "0-15",
		cpuDir + "isolated":       "",
		cpuDir + "nohz_full":      "(null)",
		nodeDir + "online":        "0-1",
		nodeDir + "node0/cpulist": "0-3,8-11",
		nodeDir + "node1/cpulist": "4-7,12-15",
	}
	for id := range 16 {
		dir := fmt.Sprintf("%scpu%d/topology/", cpuDir, id)
		files[dir+"physical_package_id"] = fmt.Sprint(id % 8 / 4)
		files[dir+"core_cpus_list"] = fmt.Sprintf("%d,%d", id%8, id%8+8)
	}
	for name, text := range more {
		files[name] = text
	}
	return sysfs(files)
}

func span(first, last int) []int {
	var cpus []int
	for cpu := first; cpu <= last; cpu++ {
		cpus = append(cpus, cpu)
	}
	return cpus
}

func read(t *testing.T, sys fstest.MapFS, allowed []int) *Topology {
	t.Helper()
	topo, err := Read(sys, allowed)
	if err != nil {
		t.Fatal(err)
	}
	return topo
}

func TestReadServer(t *testing.T) {
	topo := read(t, server(map[string]string{
		cpuDir + "isolated":  "13",
		cpuDir + "nohz_full": "12-13",
	}), span(0, 13))
	if len(topo.CPUs) != 16 {
		t.Fatalf("%d CPUs, want 16", len(topo.CPUs))
	}
	want := CPU{ID: 13, Package: 1, Node: 1, Siblings: []int{5, 13}, Online: true, Isolated: true, NohzFull: true, Allowed: true}
	if got := fmt.Sprint(topo.CPUs[13]); got != fmt.Sprint(want) {
		t.Errorf("CPU 13 is %v, want %v", got, want)
	}
	if c := topo.CPUs[14]; c.Allowed || !c.Online || c.Isolated {
		t.Errorf("CPU 14 is %+v, want online and not allowed", c)
	}
}

func TestReadOffline(t *testing.T) {
	sys := server(map[string]string{cpuDir + "online": "0-12,14-15"})
	for name := range sys {
		if strings.HasPrefix(name, cpuDir+"cpu13/topology") {
			delete(sys, name)
		}
	}
	sys[cpuDir+"cpu5/topology/core_cpus_list"].Data = []byte("5\n")
	topo := read(t, sys, append(span(0, 12), 14, 15))
	if c := topo.CPUs[13]; c.Online || c.Allowed {
		t.Errorf("CPU 13 is %+v, want offline", c)
	}
	if c := topo.CPUs[5]; !slices.Equal(c.Siblings, []int{5}) {
		t.Errorf("CPU 5 has siblings %v, want itself alone", c.Siblings)
	}
}

// Without sysfs every allowed CPU is a core of its own.
func TestReadWithoutSysfs(t *testing.T) {
	for name, sys := range map[string]fstest.MapFS{
		"nothing":     {},
		"online only": sysfs(map[string]string{cpuDir + "online": "0-7"}),
		"lying":       sysfs(map[string]string{cpuDir + "online": "0", cpuDir + "present": "0"}),
		"old names":   sysfs(map[string]string{cpuDir + "cpu2/topology/thread_siblings_list": "2"}),
	} {
		topo := read(t, sys, []int{2, 5})
		if got := topo.ids(func(c CPU) bool { return c.Allowed && c.Online && c.Node == 0 && len(c.Siblings) == 1 }); got != "2,5" {
			t.Errorf("%s: usable %s, want 2,5", name, got)
		}
		if got := topo.Auto(AutoOptions{}); !slices.Equal(got, []int{5}) {
			t.Errorf("%s: auto is %v, want 5", name, got)
		}
	}
}

func TestReadRefusesNonsense(t *testing.T) {
	for name, want := range map[string]string{
		cpuDir + "online":                            "/sys/" + cpuDir + "online: CPU list",
		nodeDir + "node1/cpulist":                    "/sys/" + nodeDir + "node1/cpulist: CPU list",
		cpuDir + "cpu3/topology/core_cpus_list":      "core_cpus_list: CPU list",
		cpuDir + "cpu3/topology/physical_package_id": "is no number",
	} {
		_, err := Read(server(map[string]string{name: "many"}), span(0, 15))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", name, err, want)
		}
	}
}

func TestDeviceNode(t *testing.T) {
	sys := sysfs(map[string]string{
		"class/net/eth0/device/numa_node": "1",
		"class/net/eth1/device/numa_node": "-1",
		"class/net/veth0/mtu":             "1500",
	})
	for name, want := range map[string]int{"eth0": 1, "eth1": NoNode, "veth0": NoNode} {
		if node, err := DeviceNode(sys, name); err != nil || node != want {
			t.Errorf("%s: node %d, %v; want %d", name, node, err, want)
		}
	}
	for _, name := range []string{"eth9", "", ".", "../net", "../../devices"} {
		if _, err := DeviceNode(sys, name); err == nil || !strings.Contains(err.Error(), "is not in /sys/class/net") {
			t.Errorf("%q: %v, want an error", name, err)
		}
	}
}

// This machine reads without error and has a CPU for a worker.
func TestHost(t *testing.T) {
	topo, err := Host()
	if err != nil {
		t.Fatal(err)
	}
	auto := topo.Auto(AutoOptions{})
	if err := topo.Check(auto); err != nil {
		t.Errorf("auto chose %v: %v", auto, err)
	}
}
