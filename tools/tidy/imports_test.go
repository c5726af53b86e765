package tidy

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// below says what each part of the module stands on; whatever those stand on may be
// imported as well. A part is the folder and all in it that is no part of its own.
//
//	tools -> bench -> vxlan, blk, rdma -> dataplane/...
//
// Test files are free: a test of vxlan may use tools/lab. So are fakes, the packages
// with names such as vnettest, and only what tests and measures may import these.
var below = map[string][]string{
	"dataplane/shm":       {},
	"dataplane/wire":      {},
	"dataplane/frame":     {"dataplane/shm"},
	"dataplane/guestmem":  {"dataplane/shm"},
	"dataplane/virtq":     {"dataplane/guestmem"},
	"dataplane/vhostuser": {"dataplane/virtq"},
	"dataplane/uring":     {"dataplane/shm"},
	"dataplane":           {"dataplane/frame"},
	"dataplane/xsk":       {"dataplane", "dataplane/wire"},
	"dataplane/packet":    {"dataplane"},
	"dataplane/filter":    {"dataplane/wire"},
	"dataplane/offload":   {"dataplane", "dataplane/wire"},
	"dataplane/vnet":      {"dataplane/offload", "dataplane/vhostuser"},

	"vxlan":     {"vxlan/acl", "dataplane/vnet", "dataplane/xsk", "dataplane/uring"},
	"vxlan/acl": {}, // rules and tuples: no frame
	"blk":       {"dataplane/vnet", "dataplane/xsk", "dataplane/uring"},
	"rdma":      {"dataplane/vnet", "dataplane/xsk", "dataplane/uring"},

	"blk/file":    {"blk"},
	"blk/nbd":     {"blk"},
	"blk/nvmetcp": {"blk"},
	"blk/driver":  {"blk"},
	"blk/blktest": {"blk"},

	"bpf":     {},
	"pinning": {},
	"docs":    {},
	"bench":   {"vxlan", "blk/file", "blk/nbd", "blk/nvmetcp", "blk/driver", "blk/blktest", "rdma", "bpf", "pinning"},

	"tools":            {"bench", "tools/control", "tools/shuntd", "tools/lab/netlab"},
	"tools/control":    {"vxlan/acl", "docs"}, // knows no packet
	"tools/need":       {},                    // of tests
	"tools/lab/netlab": {},
	"tools/shuntbpf":   {"bpf", "tools/control"}, // the version is the same
	"tools/shuntctl":   {"tools/control"},
	"tools/shuntd":     {"tools/control", "vxlan", "blk/file", "blk/nbd", "blk/nvmetcp", "rdma", "dataplane/packet", "dataplane/filter", "bpf", "pinning"},
}

// outside says which parts alone may import a module that is not ours. A packet
// decoder, a YAML parser or a metrics library in the engine would end up on the way
// of a packet.
var outside = map[string][]string{
	"github.com/gopacket/gopacket":            {"bench", "tools"},
	"charm.land/bubbletea":                    {"tools/shuntctl"},
	"github.com/goccy/go-yaml":                {"tools"},
	"github.com/spf13/cobra":                  {"tools"},
	"github.com/prometheus":                   {"tools"},
	"github.com/coreos/go-systemd":            {"tools"},
	"github.com/HdrHistogram/hdrhistogram-go": {"bench", "tools"},
	"github.com/google/go-cmp":                {"tools/lab"},
	"pgregory.net/rapid":                      {},
	"testing":                                 {"tools/need"},
}

// part returns the entry of below that holds the folder dir, or "".
func part(dir string) string {
	for p := dir; ; {
		if _, ok := below[p]; ok {
			return p
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			return ""
		}
		p = p[:i]
	}
}

// fake reports whether a folder holds what tests of others share, as net/http/httptest.
func fake(dir string) bool { return strings.HasSuffix(dir, "test") }

func inside(dir, folder string) bool { return dir == folder || strings.HasPrefix(dir, folder+"/") }

// reaches reports whether part from stands on part to.
func reaches(from, to string) bool {
	return from == to || slices.ContainsFunc(below[from], func(p string) bool { return reaches(p, to) })
}

func importDirection(f *file) []string {
	from := part(f.dir())
	if from == "" || from == "dataplane" && f.dir() != "dataplane" {
		return []string{f.at(f.ast, "folder %s has no place in the import direction; give it one in tools/tidy", f.dir())}
	}
	var found []string
	imports := f.imports()
	for _, imported := range slices.Sorted(maps.Keys(imports)) {
		if ours, ok := strings.CutPrefix(imported, modulePath+"/"); ok {
			if fake(ours) && !inside(f.dir(), "bench") && !inside(f.dir(), "tools/lab") {
				found = append(found, f.at(imports[imported], "%s imports %s, which is for tests", f.dir(), ours))
			}
			if to := part(ours); !reaches(from, to) {
				found = append(found, f.at(imports[imported], "%s imports %s, which it does not stand on", f.dir(), ours))
			}
			continue
		}
		for module, allowed := range outside {
			if inside(imported, module) && !slices.ContainsFunc(allowed, func(p string) bool { return inside(f.dir(), p) }) {
				found = append(found, f.at(imports[imported], "%s imports %s, which only %q may", f.dir(), imported, allowed))
			}
		}
	}
	return found
}

func TestImportDirection(t *testing.T) {
	judge(t, func(f *file) bool { return !f.test() && !fake(f.dir()) }, importDirection)
}

func TestImportDirectionRule(t *testing.T) {
	ours := func(p string) string { return "package p\nimport _ \"" + modulePath + "/" + p + "\"\n" }
	testRule(t, importDirection, []sample{
		{"dataplane/virtq/a.go", ours("dataplane/shm"), ""},
		{"dataplane/virtq/a.go", ours("dataplane/vnet"), "does not stand on"},
		{"dataplane/a.go", ours("dataplane/xsk"), "does not stand on"},
		{"dataplane/new/a.go", "package p\n", "no place"},
		{"other/a.go", "package p\n", "no place"},
		{"vxlan/a.go", ours("dataplane/shm"), ""},
		{"vxlan/underlay/a.go", ours("vxlan"), ""},
		{"vxlan/acl/a.go", ours("vxlan"), "does not stand on"},
		{"vxlan/a.go", ours("blk"), "does not stand on"},
		{"blk/nbd/a.go", ours("blk"), ""},
		{"blk/nbd/a.go", ours("blk/file"), "does not stand on"},
		{"blk/a.go", ours("blk/file"), "does not stand on"},
		{"tools/shuntd/a.go", ours("blk/nvmetcp"), ""},
		{"vxlan/a.go", ours("dataplane/vnet/vnettest"), "is for tests"},
		{"bench/a.go", ours("dataplane/vnet/vnettest"), ""},
		{"vxlan/a.go", ours("tools/control"), "does not stand on"},
		{"bpf/a.go", ours("dataplane/shm"), "does not stand on"},
		{"tools/control/api/a.go", ours("tools/control/config"), ""},
		{"tools/control/a.go", ours("dataplane/wire"), "does not stand on"},
		{"tools/shuntd/a.go", ours("tools/lab/netlab"), "does not stand on"},
		{"tools/lab/demo/a.go", ours("tools/lab/guest"), ""},
		{"vxlan/a.go", "package p\nimport _ \"github.com/gopacket/gopacket/layers\"\n", "which only"},
		{"tools/shuntd/a.go", "package p\nimport _ \"testing\"\n", "which only"},
		{"tools/control/a.go", "package p\nimport _ \"github.com/prometheus/client_golang/prometheus\"\n", ""},
	})
}

// The direction is one only if nothing stands on itself.
func TestImportDirectionHasNoCycle(t *testing.T) {
	for p, on := range below {
		for _, q := range on {
			if _, ok := below[q]; !ok {
				t.Errorf("%s stands on %s, which is no part", p, q)
			} else if reaches(q, p) {
				t.Errorf("%s and %s stand on each other", p, q)
			}
		}
	}
}
