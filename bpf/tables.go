package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The program takes a frame when its outer destination is a VTEP, its VNI a
// network, and a socket stands at its queue and the network's worker. A change
// holds from the next frame on.

// AddVTEP makes frames to addr ours, if their VNI is known.
func (p *Program) AddVTEP(addr netip.Addr) error {
	table, key, err := p.vtep(addr)
	if err != nil {
		return err
	}
	return p.put(table, key, uint8(1))
}

// RemoveVTEP leaves frames to addr to the kernel.
func (p *Program) RemoveVTEP(addr netip.Addr) error {
	table, key, err := p.vtep(addr)
	if err != nil {
		return err
	}
	return p.remove(table, key)
}

// CheckVTEP says whether addr can be a tunnel endpoint.
func CheckVTEP(addr netip.Addr) error {
	if !addr.IsValid() || addr.Zone() != "" || addr.IsMulticast() || addr.IsUnspecified() {
		return fmt.Errorf("%w: tunnel endpoint %s is not a unicast address without zone", ErrInvalid, addr)
	}
	return nil
}

func (p *Program) vtep(addr netip.Addr) (*ebpf.Map, []byte, error) {
	if err := CheckVTEP(addr); err != nil {
		return nil, nil, err
	}
	addr = addr.Unmap()
	if addr.Is4() {
		return p.objs.Vteps4, addr.AsSlice(), nil
	}
	return p.objs.Vteps6, addr.AsSlice(), nil
}

// AddVNI makes a network known, and gives its frames to worker's sockets. To
// add it again changes the worker.
func (p *Program) AddVNI(vni uint32, worker int) error {
	if err := CheckVNI(vni); err != nil {
		return err
	}
	if err := checkWorker(worker); err != nil {
		return err
	}
	return p.put(p.objs.Networks, vniKey(vni), uint32(worker))
}

// CheckVNI says whether vni fits 24 bits.
func CheckVNI(vni uint32) error {
	if vni >= 1<<24 {
		return fmt.Errorf("%w: VNI %d does not fit 24 bits", ErrInvalid, vni)
	}
	return nil
}

// RemoveVNI leaves the network's frames to the kernel.
func (p *Program) RemoveVNI(vni uint32) error { return p.remove(p.objs.Networks, vniKey(vni)) }

// SetFlat says whether the uplink carries a flat network, whose frames are
// steered by destination MAC. Off, which is how it begins, the MACs have no
// effect.
func (p *Program) SetFlat(on bool) error {
	if err := p.objs.Flat.Set(on); err != nil {
		return Explain("switch the flat network", err)
	}
	return nil
}

// AddMAC makes untagged frames to a unicast MAC ours, and gives them to worker's
// sockets. To add it again changes the worker.
func (p *Program) AddMAC(mac [6]byte, worker int) error {
	if mac[0]&1 != 0 {
		return fmt.Errorf("%w: MAC %s is not unicast", ErrInvalid, net.HardwareAddr(mac[:]))
	}
	if err := checkWorker(worker); err != nil {
		return err
	}
	return p.put(p.objs.Macs, mac[:], uint32(worker))
}

// RemoveMAC leaves frames to mac to the kernel.
func (p *Program) RemoveMAC(mac [6]byte) error { return p.remove(p.objs.Macs, mac[:]) }

// AddSocket puts an AF_XDP socket, bound to this uplink and queue, where the
// frames of queue and worker go. The kernel removes it when it is closed.
func (p *Program) AddSocket(queue, worker, fd int) error {
	if queue < 0 || queue >= p.queues {
		return fmt.Errorf("%w: queue %d is none of the %d the program was loaded for", ErrInvalid, queue, p.queues)
	}
	if err := checkWorker(worker); err != nil {
		return err
	}
	err := p.objs.Xsks.Put(uint32(queue*MaxWorkers+worker), uint32(fd))
	return Explain(fmt.Sprintf("give queue %d its socket", queue), err)
}

func checkWorker(worker int) error {
	if worker < 0 || worker >= MaxWorkers {
		return fmt.Errorf("%w: worker %d is not between 0 and %d", ErrInvalid, worker, MaxWorkers-1)
	}
	return nil
}

func (p *Program) put(table *ebpf.Map, key []byte, value any) error {
	err := table.Put(key, value)
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("table %s of the XDP program is full with %d entries", tableName(table), table.MaxEntries())
	}
	if err != nil {
		return Explain("add to table "+tableName(table), err)
	}
	delete(p.inherited[table], string(key))
	return nil
}

// remove takes it for done when the entry is not there.
func (p *Program) remove(table *ebpf.Map, key []byte) error {
	delete(p.inherited[table], string(key))
	if err := table.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return Explain("remove from table "+tableName(table), err)
	}
	return nil
}

func tableName(table *ebpf.Map) string {
	info, err := table.Info()
	if err != nil {
		return "unknown"
	}
	return info.Name
}
