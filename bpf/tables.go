package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The program takes a frame when its outer destination is a VTEP and its VNI a
// network, and gives it to the socket at its queue and the worker of its station,
// or else of the network. A change holds from the next frame on; one that changes
// workers leaves no moment without any.

// MaxSpread is how many workers can share a station.
const MaxSpread = 8

// AddVTEP makes frames to addr ours, if their VNI is known.
func (p *Program) AddVTEP(addr netip.Addr) error {
	table, key, err := p.vtep(addr)
	if err != nil {
		return err
	}
	// One that stands stays: a frame can miss an entry that is being exchanged.
	if err := p.put(table, key, uint8(1), ebpf.UpdateNoExist); !errors.Is(err, ebpf.ErrKeyExist) {
		return err
	}
	delete(p.inherited[table], string(key))
	return nil
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

// AddVNI makes a network known, and gives frames to none of its stations to
// worker's sockets. To add it again changes the worker.
func (p *Program) AddVNI(vni uint32, worker int) error {
	if err := CheckVNI(vni); err != nil {
		return err
	}
	if err := checkWorker(worker); err != nil {
		return err
	}
	if err := p.put(p.objs.Networks, vniKey(vni), &steerNetwork{Worker: uint32(worker)}, ebpf.UpdateLock); err != nil {
		return err
	}
	if p.stations[vni] == nil {
		p.stations[vni] = map[[6]byte]bool{}
	}
	return nil
}

// CheckVNI says whether vni fits 24 bits.
func CheckVNI(vni uint32) error {
	if vni >= 1<<24 {
		return fmt.Errorf("%w: VNI %d does not fit 24 bits", ErrInvalid, vni)
	}
	return nil
}

// RemoveVNI leaves the network's frames to the kernel, those to its stations
// first, which are forgotten.
func (p *Program) RemoveVNI(vni uint32) error {
	for mac := range p.stations[vni] {
		if err := p.RemoveStation(vni, mac); err != nil {
			return err
		}
	}
	delete(p.stations, vni)
	return p.remove(p.objs.Networks, vniKey(vni))
}

// AddStation gives frames of a network, which was added before, to a guest's
// unicast MAC to the sockets of up to MaxSpread workers: all frames of a flow to
// those of one. To add it again changes the workers, and with them
// which flow goes to which.
func (p *Program) AddStation(vni uint32, mac [6]byte, workers []int) error {
	if p.stations[vni] == nil {
		return fmt.Errorf("%w: station %s is in VNI %d, which is not known: add that first", ErrInvalid, net.HardwareAddr(mac[:]), vni)
	}
	value, err := share(mac, workers)
	if err != nil {
		return err
	}
	if err := p.put(p.objs.Stations, stationKey(vni, mac), value, ebpf.UpdateLock); err != nil {
		return err
	}
	p.stations[vni][mac] = true
	return nil
}

// RemoveStation leaves frames to mac to the network's worker.
func (p *Program) RemoveStation(vni uint32, mac [6]byte) error {
	if err := p.remove(p.objs.Stations, stationKey(vni, mac)); err != nil {
		return err
	}
	delete(p.stations[vni], mac)
	return nil
}

// stationKey is struct station.
func stationKey(vni uint32, mac [6]byte) []byte {
	return append(append(vniKey(vni), mac[:]...), 0, 0)
}

// share makes the entry of a station. Slots beyond the workers repeat them; see
// struct workers.
func share(mac [6]byte, workers []int) (*steerWorkers, error) {
	if mac[0]&1 != 0 {
		return nil, fmt.Errorf("%w: MAC %s is not unicast", ErrInvalid, net.HardwareAddr(mac[:]))
	}
	if len(workers) == 0 || len(workers) > MaxSpread {
		return nil, fmt.Errorf("%w: %d workers cannot share a station, give 1 to %d", ErrInvalid, len(workers), MaxSpread)
	}
	s := &steerWorkers{N: uint32(len(workers))}
	for i := range s.Worker {
		worker := workers[i%len(workers)]
		if err := checkWorker(worker); err != nil {
			return nil, err
		}
		s.Worker[i] = uint8(worker)
	}
	return s, nil
}

// SetFlat says whether the uplink carries a flat network, whose frames are
// steered by destination MAC. Off, which is how it begins, the MACs have no
// effect.
func (p *Program) SetFlat(on bool) error {
	if err := p.objs.Flat.Set(on); err != nil {
		return Explain("switch the flat network", err)
	}
	return nil
}

// AddMAC makes untagged frames to a unicast MAC ours, and gives them to workers
// as AddStation does.
func (p *Program) AddMAC(mac [6]byte, workers []int) error {
	value, err := share(mac, workers)
	if err != nil {
		return err
	}
	return p.put(p.objs.Macs, mac[:], value, ebpf.UpdateLock)
}

// RemoveMAC leaves frames to mac to the kernel.
func (p *Program) RemoveMAC(mac [6]byte) error { return p.remove(p.objs.Macs, mac[:]) }

// AddSocket puts an AF_XDP socket, bound to this uplink and queue, where the
// frames of queue and worker go. The kernel removes it when it is closed.
func (p *Program) AddSocket(queue, worker, fd int) error {
	if err := checkWorker(worker); err != nil {
		return err
	}
	return p.addSocket(queue, worker, fd)
}

func checkWorker(worker int) error {
	if worker < 0 || worker >= MaxWorkers {
		return fmt.Errorf("%w: worker %d is not between 0 and %d", ErrInvalid, worker, MaxWorkers-1)
	}
	return nil
}

func (p *Program) put(table *ebpf.Map, key []byte, value any, how ebpf.MapUpdateFlags) error {
	err := table.Update(key, value, how)
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
