package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// inherit copies from a dead owner's program which tunnel endpoints and networks
// are ours, so that the exchange of the programs opens no gap in which the
// kernel would answer. Stations need none of this: until they are added again their
// frames go to their networks' workers. Neither do MACs of a flat network: the
// kernel does not take frames for MACs it does not have.
func (p *Program) inherit() error {
	if p.hook.link == nil {
		return nil
	}
	old, err := programMaps(p.hook.dev.program)
	if err != nil {
		return fmt.Errorf("take over from a dead owner: %w", err)
	}
	defer closeMaps(old)
	for _, table := range []*ebpf.Map{p.objs.Vteps4, p.objs.Vteps6, p.objs.Networks} {
		for _, m := range old {
			if tableName(m) != tableName(table) || m.KeySize() != table.KeySize() || m.ValueSize() != table.ValueSize() {
				continue
			}
			if err := p.copyTable(table, m); err != nil {
				return fmt.Errorf("take over table %s from a dead owner: %w", tableName(m), err)
			}
		}
	}
	return nil
}

func (p *Program) copyTable(to, from *ebpf.Map) error {
	keys := map[string]bool{}
	key, value := make([]byte, from.KeySize()), make([]byte, from.ValueSize())
	entries := from.Iterate()
	for entries.Next(&key, &value) {
		if err := to.Put(key, value); err != nil {
			return err
		}
		keys[string(key)] = true
	}
	p.inherited[to] = keys
	return entries.Err()
}

// Settle removes what was taken over from a dead owner and has not been added
// again since. Call it when the configuration is in place: until then what the
// predecessor served is dropped rather than answered by the kernel. Networks
// that are still to be added are kept, until the next call.
func (p *Program) Settle(keep ...uint32) error {
	kept := map[string]bool{}
	for _, vni := range keep {
		kept[string(vniKey(vni))] = true
	}
	var errs []error
	for table, keys := range p.inherited {
		for key := range keys {
			if table != p.objs.Networks || !kept[key] {
				errs = append(errs, p.remove(table, []byte(key)))
			}
		}
	}
	return errors.Join(errs...)
}

func vniKey(vni uint32) []byte { return binary.NativeEndian.AppendUint32(nil, vni) }

// programMaps opens the maps a loaded program uses.
func programMaps(id ebpf.ProgramID) ([]*ebpf.Map, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, Explain(fmt.Sprintf("open program %d", id), err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return nil, Explain(fmt.Sprintf("look at program %d", id), err)
	}
	ids, _ := info.MapIDs()
	var maps []*ebpf.Map
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			closeMaps(maps)
			return nil, Explain(fmt.Sprintf("open map %d", id), err)
		}
		maps = append(maps, m)
	}
	return maps, nil
}

func closeMaps(maps []*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}
