package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// Attachment is an XDP program on an interface, ours or not.
type Attachment struct {
	// Interface is the name of the interface.
	Interface string `json:"interface"`
	// Mode is the mode in force.
	Mode Mode `json:"mode"`
	// Program names what runs.
	Program ProgramInfo `json:"program"`
	// Link is the bpf_link that holds it; 0 when it was attached without one.
	Link uint32 `json:"link,omitempty"`
	// Pin is the path of the link's pin, for a program attached by a Hook.
	Pin string `json:"pin,omitempty"`
	// Owner is the living process that has the interface; 0 when there is none.
	Owner int `json:"owner,omitempty"`
	// OwnerName is its command name.
	OwnerName string `json:"owner-name,omitempty"`
	// Maps are those the program uses.
	Maps []MapInfo `json:"maps"`
	// Counters count frames by verdict, for our programs only.
	Counters []Counter `json:"counters,omitempty"`
}

// ProgramInfo names a loaded program.
type ProgramInfo struct {
	// ID is the kernel's number for it.
	ID uint32 `json:"id"`
	// Name is the name of its function, cut to 15 bytes where its types are missing.
	Name string `json:"name"`
	// Tag is the hash of its instructions.
	Tag string `json:"tag"`
}

// MapInfo describes a map of a loaded program.
type MapInfo struct {
	// ID is the kernel's number for it.
	ID uint32 `json:"id"`
	// Name is its name, cut to 15 bytes.
	Name string `json:"name"`
	// Type is its kind.
	Type string `json:"type"`
	// Entries is how many there are. Arrays are always full and sockets cannot be
	// counted, for them it is nil.
	Entries *int `json:"entries,omitempty"`
	// MaxEntries is how many there can be.
	MaxEntries uint32 `json:"max-entries"`
}

// Inspect returns the XDP programs of the named interfaces, or of all in the
// calling thread's network namespace, with what they count. It takes nothing
// from their owners. An empty pinPath is DefaultPinPath.
func Inspect(pinPath string, interfaces ...string) ([]Attachment, error) {
	if pinPath == "" {
		pinPath = DefaultPinPath
	}
	devices, err := findDevices(interfaces)
	if err != nil {
		return nil, err
	}
	found := []Attachment{}
	for _, dev := range devices {
		if dev.program == 0 {
			continue
		}
		a, err := dev.inspect(pinPath)
		if errors.Is(err, os.ErrNotExist) {
			continue // detached since
		}
		if err != nil {
			return nil, fmt.Errorf("look at interface %s: %w", dev.name, err)
		}
		found = append(found, *a)
	}
	return found, nil
}

func findDevices(names []string) ([]device, error) {
	var devices []device
	for _, name := range names {
		dev, err := findDevice(name)
		if err != nil {
			return nil, err
		}
		devices = append(devices, dev)
	}
	if len(names) > 0 {
		return devices, nil
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, Explain("list interfaces", err)
	}
	for _, l := range links {
		devices = append(devices, newDevice(l.Attrs()))
	}
	return devices, nil
}

func (d device) inspect(pinPath string) (*Attachment, error) {
	prog, err := ebpf.NewProgramFromID(d.program)
	if err != nil {
		return nil, Explain(fmt.Sprintf("open program %d", d.program), err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return nil, err
	}
	a := &Attachment{Interface: d.name, Mode: d.mode, Program: ProgramInfo{uint32(d.program), info.Name, info.Tag}, Maps: []MapInfo{}}
	if err := a.findHolder(d, pinPath); err != nil {
		return nil, err
	}
	maps, err := programMaps(d.program)
	if err != nil {
		return nil, err
	}
	defer closeMaps(maps)
	for _, m := range maps {
		if err := a.addMap(prog, m); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *Attachment) findHolder(d device, pinPath string) error {
	held, err := d.findLink()
	if err != nil && !errors.Is(err, ErrBusy) { // several links: it stays unnamed
		return err
	}
	if held == nil {
		return nil
	}
	defer held.Close()
	info, err := held.Info()
	if err != nil {
		return err
	}
	a.Link = uint32(info.ID)
	dir, err := claimDir(pinPath, d.index)
	if err != nil {
		return err
	}
	pin := filepath.Join(dir, "link")
	if _, err := os.Stat(pin); err != nil {
		return nil
	}
	a.Pin = pin
	if a.Owner = owner(dir); a.Owner != 0 {
		a.OwnerName = processName(a.Owner)
	}
	return nil
}

func (a *Attachment) addMap(prog *ebpf.Program, m *ebpf.Map) error {
	info, err := m.Info()
	if err != nil {
		return err
	}
	id, _ := info.ID()
	entries, err := countEntries(m)
	if err != nil {
		return Explain("count the entries of map "+info.Name, err)
	}
	a.Maps = append(a.Maps, MapInfo{uint32(id), info.Name, m.Type().String(), entries, m.MaxEntries()})
	if info.Name != steerMapVerdicts || !slices.Contains(succession, a.Program.Name) {
		return nil
	}
	names, err := verdictNames(prog)
	if err != nil {
		return err
	}
	if len(names) != int(m.MaxEntries()) {
		return fmt.Errorf("program %s has %d verdicts but counts %d", a.Program.Name, len(names), m.MaxEntries())
	}
	a.Counters, err = readCounters(m, names)
	return err
}

// countEntries walks the keys of a hash. One that changes meanwhile may start the
// walk over, so the walk is no longer than the map can be.
func countEntries(m *ebpf.Map) (*int, error) {
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LRUCPUHash, ebpf.LPMTrie, ebpf.DevMapHash:
	default:
		return nil, nil
	}
	n := 0
	var key any
	for ; n < int(m.MaxEntries()); n++ {
		next, err := m.NextKeyBytes(key)
		if err != nil {
			return nil, err
		}
		if next == nil {
			break
		}
		key = next
	}
	return &n, nil
}
