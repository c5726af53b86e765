package pinning

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestAuto(t *testing.T) {
	one := func(cpus string) fstest.MapFS { // one core whose threads are all CPUs
		files := map[string]string{cpuDir + "online": cpus, cpuDir + "present": cpus}
		ids, _ := ParseList(cpus)
		for _, id := range ids {
			files[fmt.Sprintf("%scpu%d/topology/core_cpus_list", cpuDir, id)] = cpus
		}
		return sysfs(files)
	}
	with := func(name, text string) fstest.MapFS { return server(map[string]string{name: text}) }
	for _, tc := range []struct {
		name    string
		sys     fstest.MapFS
		allowed []int
		opt     AutoOptions
		want    []int
	}{
		{"one thread per core but the first", server(nil), span(0, 15), AutoOptions{}, span(1, 7)},
		{"bounded", server(nil), span(0, 15), AutoOptions{Max: 2}, []int{1, 2}},
		{"near a device", server(nil), span(0, 15), AutoOptions{Nodes: []int{1}}, span(4, 7)},
		{"near a device, first core spared", server(nil), span(0, 15), AutoOptions{Nodes: []int{0}}, span(1, 3)},
		{"near both", server(nil), span(0, 15), AutoOptions{Nodes: []int{0, 1}}, span(1, 7)},
		{"near none", server(nil), span(0, 15), AutoOptions{Nodes: []int{NoNode}}, span(1, 7)},
		{"node without allowed CPUs", server(nil), span(0, 3), AutoOptions{Nodes: []int{1}}, span(1, 3)},
		{"isolated first", with(cpuDir+"isolated", "2-3,6"), span(0, 15), AutoOptions{}, []int{2, 3, 6}},
		{"isolated before near", with(cpuDir+"isolated", "2-3"), span(0, 15), AutoOptions{Nodes: []int{1}}, []int{2, 3}},
		{"isolated and near", with(cpuDir+"isolated", "2,6"), span(0, 15), AutoOptions{Nodes: []int{1}}, []int{6}},
		{"isolated second threads", with(cpuDir+"isolated", "10-11"), span(0, 15), AutoOptions{}, []int{10, 11}},
		{"only isolated allowed", with(cpuDir+"isolated", "2-5"), span(2, 5), AutoOptions{}, span(3, 5)},
		{"first core isolated", with(cpuDir+"isolated", "0,8"), span(0, 15), AutoOptions{}, []int{0}},
		{"nohz_full", with(cpuDir+"nohz_full", "5-7,13-15"), span(0, 15), AutoOptions{}, span(5, 7)},
		{"second threads only", server(nil), span(8, 15), AutoOptions{}, span(9, 15)},
		{"one CPU", one("0"), []int{0}, AutoOptions{}, []int{0}},
		{"one CPU, isolated, elsewhere", with(cpuDir+"isolated", "3"), []int{3}, AutoOptions{Nodes: []int{1}}, []int{3}},
		{"one core of two threads", one("0-1"), []int{0, 1}, AutoOptions{}, []int{1}},
		{"no CPU", one("0"), nil, AutoOptions{}, nil},
		// Node 0 has memory only, node 2 is all there is.
		{"asymmetric nodes", sysfs(map[string]string{
			cpuDir + "online": "0-2", nodeDir + "online": "0,2",
			nodeDir + "node0/cpulist": "", nodeDir + "node2/cpulist": "0-2",
		}), span(0, 2), AutoOptions{Nodes: []int{0}}, []int{1, 2}},
	} {
		if got := read(t, tc.sys, tc.allowed).Auto(tc.opt); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestCheck(t *testing.T) {
	topo := read(t, server(map[string]string{cpuDir + "online": "0-14"}), span(0, 11))
	for _, tc := range []struct {
		cpus []int
		want string
	}{
		{[]int{3, 1, 11}, ""},
		{nil, "no CPU is named; name at least one, or use auto"},
		{[]int{1, 16}, "CPU 16 does not exist, this machine has 0-15; choose among 0-11"},
		{[]int{-1}, "CPU -1 does not exist"},
		{[]int{15}, "CPU 15 is offline; write 1 to /sys/devices/system/cpu/cpu15/online, or choose among 0-14"},
		{[]int{12}, "CPU 12 is not allowed to this process; choose among 0-11, or widen"},
		{[]int{2, 3, 2}, "CPU 2 is named twice"},
	} {
		err := topo.Check(tc.cpus)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%v: %v, want %q", tc.cpus, err, tc.want)
		}
	}
}

func TestSharedCores(t *testing.T) {
	topo := read(t, server(nil), span(0, 15))
	if got := fmt.Sprint(topo.SharedCores([]int{9, 4, 1, 12, 2, 99})); got != "[[1 9] [4 12]]" {
		t.Errorf("shared cores are %s, want [[1 9] [4 12]]", got)
	}
	if got := topo.SharedCores([]int{1, 2, 3}); got != nil {
		t.Errorf("shared cores are %v, want none", got)
	}
}
